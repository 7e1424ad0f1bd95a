//! Dates for chat templates: `strftime` over UTC, with English names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A point in time, taken apart.
struct Moment {
    year: i64,
    month: usize,
    day: u64,
    /// Days since 1 January 1970.
    days: u64,
    /// Seconds since midnight.
    seconds: u64,
}

impl Moment {
    fn of(now: SystemTime) -> Self {
        let since = now
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs();
        let days = since / 86_400;
        // Years that begin in March have their leap day last; 400 of them are 146,097 days.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year = (of_era + of_era / 36_524 - of_era / 1_460 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * march + 2) / 5 + 1;
        let month = if march < 10 { march + 2 } else { march - 10 };
        let year = era * 400 + year + u64::from(month < 2);
        Self {
            year: i64::try_from(year).unwrap_or(i64::MAX),
            month: usize::try_from(month).unwrap_or(0),
            day,
            days,
            seconds: since % 86_400,
        }
    }

    fn of_year(&self) -> u64 {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let days = before.get(self.month).copied().unwrap_or(0);
        days + self.day + u64::from(leap && self.month > 1)
    }
}

/// A date in the form that `strftime` describes; directives that it doesn't know stay as they are.
pub(super) fn strftime(form: &str, now: SystemTime) -> String {
    let moment = Moment::of(now);
    let mut out = String::new();
    let mut chars = form.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            // glibc: without padding.
            Some('-') => {
                let Some(c) = chars.next() else {
                    out.push_str("%-");
                    break;
                };
                let text = directive(c, &moment).unwrap_or_else(|| format!("%-{c}"));
                let bare = text.trim_start_matches('0');
                out.push_str(if bare.is_empty() { "0" } else { bare });
            }
            Some(c) => out.push_str(&directive(c, &moment).unwrap_or_else(|| format!("%{c}"))),
            None => out.push('%'),
        }
    }
    out
}

fn directive(c: char, m: &Moment) -> Option<String> {
    let (hour, minute, second) = (m.seconds / 3600, m.seconds / 60 % 60, m.seconds % 60);
    let name = |names: &[&str], at: usize, short: bool| {
        let name = names.get(at).copied().unwrap_or("");
        Some(
            if short {
                name.get(..3).unwrap_or(name)
            } else {
                name
            }
            .to_owned(),
        )
    };
    let weekday = usize::try_from(m.days % 7).unwrap_or(0);
    let date = |form: &str| -> Option<String> {
        let part = |c| match c {
            '-' | '/' | ':' => Some(String::from(c)),
            c => directive(c, m),
        };
        form.chars().map(part).collect()
    };
    let twelve = (hour + 11) % 12 + 1;
    match c {
        'Y' => Some(m.year.to_string()),
        'y' => Some(format!("{:02}", m.year % 100)),
        'm' => Some(format!("{:02}", m.month + 1)),
        'd' => Some(format!("{:02}", m.day)),
        'e' => Some(format!("{:2}", m.day)),
        'B' => name(&MONTHS, m.month, false),
        'b' | 'h' => name(&MONTHS, m.month, true),
        'A' => name(&DAYS, weekday, false),
        'a' => name(&DAYS, weekday, true),
        'H' => Some(format!("{hour:02}")),
        'I' => Some(format!("{twelve:02}")),
        'M' => Some(format!("{minute:02}")),
        'S' => Some(format!("{second:02}")),
        'p' => Some(if hour < 12 { "AM" } else { "PM" }.into()),
        'j' => Some(format!("{:03}", m.of_year())),
        'Z' => Some("UTC".into()),
        'z' => Some("+0000".into()),
        'F' => date("Y-m-d"),
        'T' => date("H:M:S"),
        'D' => date("m/d/y"),
        'R' => date("H:M"),
        'n' => Some("\n".into()),
        't' => Some("\t".into()),
        '%' => Some("%".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64, form: &str) -> String {
        strftime(form, UNIX_EPOCH + Duration::from_secs(seconds))
    }

    #[test]
    fn known_days() {
        assert_eq!(
            at(0, "%A %d %B %Y, day %j"),
            "Thursday 01 January 1970, day 001"
        );
        assert_eq!(at(951_782_400, "%d %b %Y"), "29 Feb 2000");
        assert_eq!(at(951_868_800, "%F %a %j"), "2000-03-01 Wed 061");
        assert_eq!(
            at(1_721_995_445, "%d %b %Y %H:%M:%S"),
            "26 Jul 2024 12:04:05"
        );
        assert_eq!(
            at(1_721_995_445, "%-I:%M %p, %T, %D"),
            "12:04 PM, 12:04:05, 07/26/24"
        );
        assert_eq!(at(1_735_689_599, "%Y-%j"), "2024-366");
        assert_eq!(at(1_704_067_200, "%-d.%-m.%y %-H %e"), "1.1.24 0  1");
    }

    #[test]
    fn unknown_directives_stay() {
        assert_eq!(at(0, "%% %Q %-Q %"), "% %Q %-Q %");
    }

    proptest! {
        #[test]
        fn days_follow_one_another(day in 0u64..200_000) {
            let ordinal = |d| at(d * 86_400, "%j").parse::<u64>().unwrap();
            let (today, next) = (ordinal(day), ordinal(day + 1));
            prop_assert!(next == today + 1 || (next == 1 && today >= 365));
            prop_assert_eq!(at(day * 86_400, "%Y").parse::<u64>().unwrap() + u64::from(next == 1),
                at((day + 1) * 86_400, "%Y").parse::<u64>().unwrap());
        }

        #[test]
        fn no_form_panics(form in "\\PC{0,20}", seconds in any::<u32>()) {
            let _ = at(u64::from(seconds), &form);
        }
    }
}
