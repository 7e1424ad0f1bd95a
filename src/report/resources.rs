//! What the process has used so far.
#![allow(unsafe_code)]

/// Peak resident set in bytes, mapped pages included; 0 where the system doesn't say.
#[cfg(unix)]
pub fn peak_rss() -> u64 {
    high_water().unwrap_or_else(largest_ever)
}

/// Of this program alone, where Linux says it: what `getrusage` tells may be of the program that started
/// this one.
#[cfg(unix)]
fn high_water() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(unix)]
fn largest_ever() -> u64 {
    // SAFETY: getrusage fills the struct that it is given; a zeroed one is valid for it.
    let (status, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::getrusage(libc::RUSAGE_SELF, &mut usage), usage)
    };
    if status != 0 {
        return 0;
    }
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    u64::try_from(usage.ru_maxrss)
        .unwrap_or(0)
        .saturating_mul(unit)
}

/// Peak resident set in bytes; not known on this system.
#[cfg(not(unix))]
pub fn peak_rss() -> u64 {
    0
}

#[cfg(all(test, unix))]
mod tests {
    #[test]
    fn a_process_uses_memory() {
        assert!(super::peak_rss() > 100 << 10);
    }
}
