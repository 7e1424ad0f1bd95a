//! Two paths change places, with no moment at which one of the names is missing.
#![allow(unsafe_code)]

use std::io;
use std::path::Path;

/// Gives each of two existing files or folders the other's name, in one step.
///
/// # Errors
/// One is missing, they are on different file systems, or the system has no such call
/// ([`io::ErrorKind::Unsupported`], or `InvalidInput` of a file system without it).
#[cfg(target_os = "linux")]
pub(super) fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let (a, b) = (text(a)?, text(b)?);
    // SAFETY: both strings end in NUL and outlive the call, which only reads them.
    let result = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The same where no system call does it.
#[cfg(not(target_os = "linux"))]
pub(super) fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::exchange;

    #[test]
    fn folders_change_places() {
        let dir = tempfile::tempdir().expect("a folder");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir(&a).expect("a");
        std::fs::write(a.join("new"), "1").expect("written");
        std::fs::create_dir(&b).expect("b");
        match exchange(&a, &b) {
            Ok(()) => assert!(b.join("new").is_file() && !a.join("new").exists()),
            // The file system of this test may not know the call; two renames do then.
            Err(_) => assert!(a.join("new").is_file()),
        }
        assert!(exchange(&a, &dir.path().join("none")).is_err());
    }
}
