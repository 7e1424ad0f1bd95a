//! A thread that hashes a growing shard behind the writer.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use super::super::Digest;

/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// Hashes a header that was foreseen, then the data as it comes.
#[derive(Debug)]
pub(super) struct Follower {
    header: Vec<u8>,
    /// How many bytes of data are in the file.
    written: Option<Sender<u64>>,
    thread: JoinHandle<std::io::Result<Digest>>,
}

impl Follower {
    /// Starts behind a file whose data begins where `header` ends; `None` where no thread or file is
    /// to be had, which costs only time.
    pub(super) fn start(path: &Path, header: Vec<u8>) -> Option<Follower> {
        let file = File::open(path).ok()?;
        let (written, progress) = channel();
        let first = header.clone();
        let thread = std::thread::Builder::new()
            .name("hash".to_owned())
            .spawn(move || follow(&file, &first, &progress))
            .ok()?;
        Some(Follower {
            header,
            written: Some(written),
            thread,
        })
    }

    /// Whether the header has come out as foreseen.
    pub(super) fn foresaw(&self, header: &[u8]) -> bool {
        self.header == header
    }

    /// So many bytes of data have been handed to the system.
    pub(super) fn advance(&self, data_len: u64) {
        // A thread that has stopped has an error; the file is then hashed anew.
        let _ = self.written.as_ref().map(|w| w.send(data_len));
    }

    /// No more data will come.
    pub(super) fn end(&mut self) {
        self.written = None;
    }

    /// The digest of the whole file; `None` where reading it failed.
    pub(super) fn finish(mut self) -> Option<Digest> {
        self.end();
        self.thread.join().ok()?.ok()
    }
}

fn follow(file: &File, header: &[u8], progress: &Receiver<u64>) -> std::io::Result<Digest> {
    let mut hasher = Sha256::new();
    hasher.update(header);
    let start = header.len() as u64;
    let mut buffer = vec![0; PIECE];
    let mut done = 0u64;
    for written in progress {
        while done < written {
            let want = usize::try_from(written - done).unwrap_or(PIECE).min(PIECE);
            let piece = buffer.get_mut(..want).unwrap_or_default();
            file.read_exact_at(piece, start + done)?;
            hasher.update(&*piece);
            done += want as u64;
        }
    }
    Ok(Digest(hasher.finalize().into()))
}
