//! A child process, seen from here.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use super::super::ON_PROGRESS;
use super::pipes::{PATIENCE, Pipes};
use super::wire::{Answer, Ask, receive, send};
use super::{COMMAND, PROGRAM, TELL};

/// A child that waits for questions.
pub(super) struct Child {
    process: std::process::Child,
    pipes: Pipes,
    shared: PathBuf,
    file: File,
    map: Option<MmapMut>,
}

static COUNT: AtomicU64 = AtomicU64::new(0);

impl Child {
    pub(super) fn start(plugin: &Path) -> Result<Self, String> {
        let program = match PROGRAM.get() {
            Some(program) => program.clone(),
            None => {
                std::env::current_exe().map_err(|e| format!("this program can't be found: {e}"))?
            }
        };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let shared =
            std::env::temp_dir().join(format!("hlrc-plugin-{}-{number}", std::process::id()));
        let file =
            create(&shared).map_err(|e| format!("{}: can't be written: {e}", shared.display()))?;
        let mut command = Command::new(program);
        command.arg(COMMAND).arg(plugin).arg(&shared);
        if ON_PROGRESS.get().is_some() {
            command.arg(TELL);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Signals of the terminal come to the parent alone, which passes them on.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let started = command.spawn();
        let mut process = started.map_err(|e| format!("its process can't be started: {e}"))?;
        let (Some(to), Some(from)) = (process.stdin.take(), process.stdout.take()) else {
            return Err("its process has no pipes".to_string());
        };
        let pipes = Pipes::new(to, from, process.id());
        let pipes = pipes.map_err(|error| {
            let _ = process.kill();
            let _ = process.wait();
            let _ = std::fs::remove_file(&shared);
            format!("its pipes can't be used: {error}")
        })?;
        Ok(Self {
            process,
            pipes,
            shared,
            file,
            map: None,
        })
    }

    /// Asks; `matrix` goes there and comes back through the shared file.
    pub(super) fn ask(
        &mut self,
        ask: &Ask,
        blobs: &[&[u8]],
        matrix: Option<&mut [f32]>,
    ) -> Result<Answer, String> {
        let lend = |e: std::io::Error| format!("the file shared with its process: {e}");
        if let Some(matrix) = matrix.as_deref() {
            let bytes = self.room(size_of_val(matrix)).map_err(lend)?;
            let values = bytes.chunks_exact_mut(4).zip(matrix.iter());
            values.for_each(|(b, x)| b.copy_from_slice(&x.to_le_bytes()));
        }
        self.pipes.begin();
        let sent = send(&mut self.pipes, ask, blobs);
        let answer = sent.and_then(|()| receive::<Answer>(&mut self.pipes));
        let (mut answer, bytes) = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(self.end(None)),
            Err(error) => return Err(self.end(Some(error))),
        };
        if let Some(slot) = answer.bytes_mut() {
            *slot = bytes;
        }
        if let Some(matrix) = matrix {
            let bytes = self.room(size_of_val::<[f32]>(matrix)).map_err(lend)?;
            let values = bytes.as_chunks::<4>().0.iter().zip(matrix);
            values.for_each(|(b, x)| *x = f32::from_le_bytes(*b));
        }
        Ok(answer)
    }

    /// So many bytes of the shared file, for what goes there before the question.
    pub(super) fn room(&mut self, len: usize) -> std::io::Result<&mut [u8]> {
        if self.map.as_ref().is_none_or(|m| m.len() < len) {
            self.map = None;
            self.file.set_len(len as u64)?;
            // SAFETY: the file is this process's and its child's, which takes turns with it; its name is
            // known to nobody else, and its length is only set here.
            self.map = Some(unsafe { MmapMut::map_mut(&self.file) }?);
        }
        let map = self.map.as_mut().and_then(|m| m.get_mut(..len));
        map.ok_or_else(|| std::io::Error::other("it is too short"))
    }

    /// How the process ended.
    fn end(&mut self, error: Option<std::io::Error>) -> String {
        if self.pipes.gave_up() {
            let _ = self.process.kill();
            let _ = self.process.wait();
            return "it did not stop when it was asked to, and its process was ended".to_string();
        }
        // A process that closed its pipes is about to end.
        let since = Instant::now();
        let status = loop {
            match self.process.try_wait() {
                Ok(None) if since.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(status) => break status,
                Err(_) => break None,
            }
        };
        match (status, error) {
            (Some(status), _) => format!("it crashed: its process ended with {}", ended(status)),
            (None, Some(error)) => format!("its process does not answer: {error}"),
            (None, None) => "its process closed the pipe".to_string(),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The child has taken the name away, unless it never came to that.
        let _ = std::fs::remove_file(&self.shared);
    }
}

#[cfg(unix)]
fn ended(status: std::process::ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(libc::SIGSEGV) => "signal 11 (segmentation fault)".to_string(),
        Some(libc::SIGABRT) => "signal 6 (abort)".to_string(),
        Some(libc::SIGBUS) => "signal 7 (bus error)".to_string(),
        Some(libc::SIGILL) => "signal 4 (illegal instruction)".to_string(),
        Some(libc::SIGFPE) => "signal 8 (arithmetic exception)".to_string(),
        Some(libc::SIGKILL) => "signal 9 (killed: out of memory?)".to_string(),
        Some(signal) => format!("signal {signal}"),
        None => format!("{status}"),
    }
}

#[cfg(not(unix))]
fn ended(status: std::process::ExitStatus) -> String {
    format!("{status}")
}

/// A file that nobody else may read, and that is not there yet.
fn create(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
