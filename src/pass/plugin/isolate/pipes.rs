//! The pipes to a child: questions go out and answers come in, and neither waits for ever.
//!
//! A child that is stuck takes nothing more once its pipe is full, and one that answers before it has heard
//! all takes nothing before it has been heard: so writing looks at the way back, and both look at the user's
//! wish to stop.
#![allow(unsafe_code)]

#[cfg(unix)]
use std::io::{Error, ErrorKind};
use std::io::{Read, Result, Write};
use std::process::{ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

/// How long a plugin may take to stop once the user asked for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How often the user's wish is looked at, milliseconds.
#[cfg(unix)]
const LOOK_MS: i32 = 100;
/// Most bytes that a child may answer before it has heard the question.
#[cfg(unix)]
const EARLY: usize = 16 << 20;

/// Both pipes of a child.
pub(super) struct Pipes {
    to: ChildStdin,
    from: ChildStdout,
    pid: u32,
    /// Since when it knows that the user wants to stop.
    asked: Option<Instant>,
    /// What came while a question was on its way, and how much of it was read.
    early: (Vec<u8>, usize),
}

impl Pipes {
    /// # Errors
    /// The system refuses to make writing one that does not wait.
    pub(super) fn new(to: ChildStdin, from: ChildStdout, pid: u32) -> Result<Self> {
        #[cfg(unix)]
        {
            use std::os::fd::AsRawFd;
            let fd = to.as_raw_fd();
            // SAFETY: fcntl changes the flags of a descriptor that is open and this process's own.
            let set = unsafe {
                let flags = libc::fcntl(fd, libc::F_GETFL);
                flags >= 0 && libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) >= 0
            };
            if !set {
                return Err(Error::last_os_error());
            }
        }
        Ok(Self {
            to,
            from,
            pid,
            asked: None,
            early: (Vec::new(), 0),
        })
    }

    /// A new question: patience begins anew.
    pub(super) fn begin(&mut self) {
        self.asked = None;
    }

    /// Whether it was asked to stop, and had its time.
    pub(super) fn gave_up(&self) -> bool {
        self.asked.is_some_and(|since| since.elapsed() > PATIENCE)
    }

    fn early(&self) -> &[u8] {
        let (bytes, read) = &self.early;
        bytes.get(*read..).unwrap_or(&[])
    }
}

#[cfg(unix)]
impl Pipes {
    /// Waits until something can be read, or written where that is wanted; whether it is something to read.
    /// Tells the child once that the user wants to stop.
    fn wait(&mut self, writes: bool) -> Result<bool> {
        use std::os::fd::AsRawFd;
        loop {
            let entry = |fd, events| libc::pollfd {
                fd,
                events,
                revents: 0,
            };
            let mut both = [
                entry(self.from.as_raw_fd(), libc::POLLIN),
                // A descriptor below zero is passed over.
                entry(if writes { self.to.as_raw_fd() } else { -1 }, libc::POLLOUT),
            ];
            // SAFETY: poll writes to the two entries that it is given.
            let count = unsafe { libc::poll(both.as_mut_ptr(), 2, LOOK_MS) };
            if count > 0 {
                return Ok(both[0].revents != 0);
            }
            if !super::super::cancelled() {
                continue;
            }
            if self.asked.is_none() {
                // SAFETY: the child is this process's own and not yet waited for.
                unsafe { libc::kill(self.pid as libc::pid_t, libc::SIGUSR1) };
                self.asked = Some(Instant::now());
            }
            if self.gave_up() {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }

    /// Takes what came back while a question is on its way, so that the child goes on; false where the child
    /// has closed its side.
    fn hear(&mut self) -> Result<bool> {
        let (bytes, _) = &mut self.early;
        if bytes.len() > EARLY {
            return Err(Error::other(
                "it writes without having been asked, more than anybody reads",
            ));
        }
        let mut some = [0; 64 << 10];
        let count = self.from.read(&mut some)?;
        bytes.extend_from_slice(some.get(..count).unwrap_or(&[]));
        Ok(count > 0)
    }
}

impl Read for Pipes {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let early = self.early();
        if !early.is_empty() {
            let count = early.len().min(out.len());
            out[..count].copy_from_slice(&early[..count]);
            self.early.1 += count;
            return Ok(count);
        }
        self.early = (Vec::new(), 0);
        #[cfg(unix)]
        self.wait(false)?;
        self.from.read(out)
    }
}

#[cfg(unix)]
impl Write for Pipes {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut listens = true;
        loop {
            match self.to.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
            if !listens {
                return Err(ErrorKind::BrokenPipe.into());
            }
            if self.wait(true)? {
                listens = self.hear()?;
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Plugins can't be isolated on other systems yet: no child gets as far as being asked.
#[cfg(not(unix))]
impl Write for Pipes {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let _ = (self.pid, self.asked);
        self.to.write(bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.to.flush()
    }
}
