//! SIGINT and SIGTERM: the first asks the work to stop at the next tensor or token, the second ends the
//! process.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The flag that a first interrupt sets; the pass manager looks at it between tensors.
pub fn flag() -> &'static AtomicBool {
    &INTERRUPTED
}

/// Whether an interrupt was seen.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

#[cfg(unix)]
mod unix {
    use super::{INTERRUPTED, Ordering};

    const NOTICE: &[u8] =
        b"\ninterrupted: ending with what is in flight (once more to end at once)\n";

    extern "C" fn handle(_: libc::c_int) {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            // SAFETY: _exit is async-signal-safe and does not return.
            unsafe { libc::_exit(130) }
        }
        // SAFETY: write is async-signal-safe; the buffer is static. A failed notice changes nothing.
        let _ = unsafe { libc::write(2, NOTICE.as_ptr().cast(), NOTICE.len()) };
    }

    /// Waits until standard input has something, or ended; false where a signal came first.
    pub fn wait_for_input() -> bool {
        let mut input = libc::pollfd {
            fd: libc::STDIN_FILENO,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: poll writes to the one entry that it is given; it is never begun again by SA_RESTART.
        unsafe { libc::poll(&raw mut input, 1, -1) >= 0 }
    }

    extern "C" fn note(_: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }

    /// Calls `work` with what is standard output; what others print in the meantime goes to standard
    /// error. SIGUSR1 sets the flag that a first interrupt sets.
    ///
    /// # Errors
    /// Those of `work`, or of the system.
    pub fn with_private_stdout(
        work: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        use std::os::fd::FromRawFd;
        let handler: extern "C" fn(libc::c_int) = note;
        end_with_parent();
        // SAFETY: the handler only touches an atomic; dup makes a descriptor that nobody else has, so
        // that the file may own it.
        let mut out = unsafe {
            libc::signal(libc::SIGUSR1, handler as *const () as libc::sighandler_t);
            let own = libc::dup(libc::STDOUT_FILENO);
            if own < 0 || libc::dup2(libc::STDERR_FILENO, libc::STDOUT_FILENO) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            std::fs::File::from_raw_fd(own)
        };
        work(&mut out)
    }

    /// Ends this process once its parent has ended, whatever ended that. (The system's own signal for it comes
    /// when the thread ends that started the process.)
    fn end_with_parent() {
        // SAFETY: getppid has no conditions, and _exit may be called from any thread.
        let parent = unsafe { libc::getppid() };
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(std::time::Duration::from_millis(500));
                // SAFETY: as above.
                unsafe {
                    if libc::getppid() != parent {
                        libc::_exit(1);
                    }
                }
            }
        });
    }

    /// Installs the handlers.
    pub fn install() {
        // Beyond a file size limit a write then fails like on a full disk, in place of ending the process.
        // SAFETY: SIG_IGN is a valid disposition for SIGXFSZ.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        // Children with plugins inherit this until they have a handler: one that is told to stop early lives.
        // SAFETY: as above, for SIGUSR1.
        unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let handler: extern "C" fn(libc::c_int) = handle;
            // SAFETY: a zeroed sigaction with a valid handler and an empty mask is what the call expects;
            // the handler only touches an atomic and async-signal-safe calls.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handler as *const () as libc::sighandler_t;
                libc::sigemptyset(&mut action.sa_mask);
                action.sa_flags = libc::SA_RESTART;
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
        }
    }
}

#[cfg(unix)]
pub use unix::{install, wait_for_input, with_private_stdout};

/// Calls `work` with what is standard output; what others print in the meantime goes to standard error.
/// SIGUSR1 sets the flag that a first interrupt sets.
///
/// # Errors
/// Those of `work`.
#[cfg(not(unix))]
pub fn with_private_stdout(
    work: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let _ = work;
    Err(std::io::Error::other(
        "plugins can't be isolated on this system",
    ))
}

/// Without POSIX signals an interrupt ends the process; the journal makes it resumable all the same.
#[cfg(not(unix))]
pub fn install() {}

/// Without POSIX signals, reading waits by itself.
#[cfg(not(unix))]
pub fn wait_for_input() -> bool {
    true
}
