//! Sizes, durations and numbers as people read and write them.

use std::time::Duration;

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A byte count in binary units: `172 B`, `128.0 MiB`.
pub fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).unwrap_or(&"B"))
}

/// A count in decimal steps: `950`, `12.3 k`, `135 M`, `70.6 G`.
pub fn count(number: u64) -> String {
    let mut value = number as f64;
    let mut unit = 0;
    let units = ["", " k", " M", " G", " T", " P", " E"];
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 99.95 { 0 } else { 1 };
    format!("{value:.digits$}{}", units.get(unit).unwrap_or(&""))
}

/// A time span: `0.42 s`, `12.3 s`, `37:51`, `1:02:03`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 9.995 {
        return format!("{seconds:.2} s");
    }
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}")
    } else {
        format!("{minutes}:{seconds:02}")
    }
}

/// A count with its noun: `1 linear`, `4 linears`.
pub fn plural(count: usize, one: &str) -> String {
    if count == 1 {
        format!("1 {one}")
    } else {
        format!("{count} {one}s")
    }
}

/// A relative error: `0`, `0.031`, `4.1e-7`.
pub fn error(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    if !value.is_finite() || (1e-3..1e3).contains(&value.abs()) {
        return format!("{value:.4}");
    }
    format!("{value:.1e}")
}

/// A number with so many decimals, or in powers of ten where it is long: `35.87`, `6.79e6`.
pub fn figure(value: f64, decimals: usize) -> String {
    match value.abs() < 1e5 || !value.is_finite() {
        true => format!("{value:.decimals$}"),
        false => format!("{value:.2e}"),
    }
}

/// A size as users write it: `4GiB`, `1.5G`, `500MB`, `65536`.
///
/// `K`, `M`, `G`, `T` and the `iB` forms are powers of 1024, `KB`, `MB`, `GB`, `TB` powers of 1000.
///
/// # Errors
/// A message that says what a size looks like.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size; write 4GiB, 500MB or a number of bytes");
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let exponent = |c: Option<char>| "kmgt".find(c.unwrap_or(' ')).map(|at| at as i32 + 1);
    let unit = unit.to_ascii_lowercase();
    let factor = match (unit.as_str(), exponent(unit.chars().next())) {
        ("" | "b", _) => 1.0,
        (_, Some(power)) => match unit.get(1..).unwrap_or_default() {
            "" | "ib" => 1024f64.powi(power),
            "b" => 1000f64.powi(power),
            _ => return Err(wrong()),
        },
        _ => return Err(wrong()),
    };
    let bytes = number * factor;
    if bytes.is_finite() && (1.0..1e19).contains(&bytes) {
        Ok(bytes.round() as u64)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (134_217_728, "128.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (text, bytes) in [
            ("4GiB", 4 << 30),
            ("1.5G", 3 << 29),
            ("500MB", 500_000_000),
            ("65536", 65536),
            ("2 kib", 2048),
        ] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for text in ["", "G", "-1G", "0", "4XiB", "4GGB", "nan", "1e99G", "4Gé"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn others() {
        assert_eq!(duration(Duration::from_millis(420)), "0.42 s");
        assert_eq!(duration(Duration::from_millis(59_960)), "1:00");
        assert_eq!(duration(Duration::from_secs(3723)), "1:02:03");
        assert_eq!(count(950), "950");
        assert_eq!(count(134_515_008), "135 M");
        assert_eq!(count(1_240_000_000), "1.2 G");
        assert_eq!(error(0.0312), "0.0312");
        assert_eq!(error(4.1e-7), "4.1e-7");
        assert_eq!(error(f64::NAN), "NaN");
        assert_eq!(
            (figure(35.867, 2), figure(6_792_743.8, 2)),
            ("35.87".into(), "6.79e6".into())
        );
    }
}
