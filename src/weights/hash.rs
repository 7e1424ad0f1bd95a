//! SHA-256 of files, in the foreground or on a thread of its own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

use super::{MappedFile, Result, WeightsError};

/// Bytes hashed between two calls of a progress callback.
const CHUNK: u64 = 4 << 20;

/// A SHA-256 digest; displays as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Digest of bytes that come in pieces.
    pub fn of_pieces(pieces: &[Vec<u8>]) -> Digest {
        let mut hasher = Sha256::new();
        pieces.iter().for_each(|piece| hasher.update(piece));
        Digest(hasher.finalize().into())
    }

    /// Lower-case hexadecimal, 64 digits.
    pub fn to_hex(self) -> String {
        to_hex(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

/// Text that is no SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 digest has 64 hexadecimal digits")]
pub struct BadDigest;

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Digest, BadDigest> {
        let bytes = from_hex(text).ok_or(BadDigest)?;
        bytes.try_into().map(Digest).map_err(|_| BadDigest)
    }
}

/// Bytes as lower-case hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from(if n < 10 { b'0' + n } else { b'a' + n - 10 });
    let digits = bytes.iter().flat_map(|&b| [digit(b >> 4), digit(b & 15)]);
    digits.collect()
}

/// Bytes of hexadecimal text in either case; `None` where it is malformed.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let (pairs, []) = digits.as_deref()?.as_chunks::<2>() else {
        return None;
    };
    // Two digits of four bits make one byte.
    Some(
        pairs
            .iter()
            .map(|[high, low]| (high << 4 | low) as u8)
            .collect(),
    )
}

/// SHA-256 of the file at `path`, read through a mapping in 4 MiB steps.
///
/// `progress(done, total)` is called after each step, in bytes. Memory: the step
/// in flight.
///
/// # Errors
/// [`WeightsError::Io`] and [`WeightsError::OutOfBounds`].
pub fn sha256_file(path: &Path, progress: impl FnMut(u64, u64)) -> Result<Digest> {
    let file = MappedFile::open(path)?;
    sha256_mapped(&file, 0, file.len(), progress)
}

/// SHA-256 of a range of a mapped file, whose pages are released behind it.
///
/// # Errors
/// [`WeightsError::OutOfBounds`].
pub fn sha256_mapped(
    file: &MappedFile,
    offset: u64,
    len: u64,
    mut progress: impl FnMut(u64, u64),
) -> Result<Digest> {
    let keep_going = |done, total| {
        progress(done, total);
        true
    };
    // Never cancelled, so there is a digest.
    Ok(hash_range(file, offset, len, keep_going)?.unwrap_or_else(|| Digest::of(&[])))
}

/// Hashes until `progress(done, total)` says false, which gives `None`.
fn hash_range(
    file: &MappedFile,
    offset: u64,
    len: u64,
    mut progress: impl FnMut(u64, u64) -> bool,
) -> Result<Option<Digest>> {
    file.check(offset, len)?;
    let mut hasher = Sha256::new();
    let mut done = 0;
    while done < len {
        let step = CHUNK.min(len - done);
        hasher.update(file.slice(offset + done, step)?);
        file.release(offset + done, step);
        done += step;
        if !progress(done, len) {
            return Ok(None);
        }
    }
    Ok(Some(Digest(hasher.finalize().into())))
}

/// A thread that hashes files in the order they come; dropping it cancels.
#[derive(Debug)]
pub struct HashQueue {
    home: PathBuf,
    paths: Option<Sender<PathBuf>>,
    done: Arc<AtomicU64>,
    cancelled: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Digest>>>>,
}

impl HashQueue {
    /// Starts the thread; `home` names the work in messages.
    ///
    /// # Errors
    /// [`WeightsError::Io`] where no thread can be started.
    pub fn start(home: &Path) -> Result<HashQueue> {
        let (paths, queue) = channel::<PathBuf>();
        let done = Arc::new(AtomicU64::new(0));
        let cancelled = Arc::new(AtomicBool::new(false));
        let (total, stop) = (Arc::clone(&done), Arc::clone(&cancelled));
        let work = move || hash_all(&queue, &total, &stop);
        let thread = std::thread::Builder::new()
            .name("hash".to_owned())
            .spawn(work);
        Ok(HashQueue {
            home: home.to_path_buf(),
            paths: Some(paths),
            done,
            cancelled,
            thread: Some(thread.map_err(|e| WeightsError::io("hash in", home, e))?),
        })
    }

    /// Adds a complete file, which must keep its name until `finish` returns.
    pub fn push(&self, path: &Path) {
        // A thread that has stopped has an error, which `finish` reports.
        let _ = self
            .paths
            .as_ref()
            .map(|paths| paths.send(path.to_path_buf()));
    }

    /// Bytes hashed so far, of all files.
    pub fn progress(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits for the digests, in the order of the files.
    ///
    /// # Errors
    /// As [`sha256_file`], of the first file that fails.
    pub fn finish(mut self) -> Result<Vec<Digest>> {
        self.paths = None;
        let joined = self.thread.take().map(JoinHandle::join);
        joined.and_then(std::result::Result::ok).unwrap_or_else(|| {
            let error = std::io::Error::other("the hashing thread stopped early");
            Err(WeightsError::io("hash in", &self.home, error))
        })
    }
}

impl Drop for HashQueue {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

fn hash_all(
    queue: &Receiver<PathBuf>,
    total: &AtomicU64,
    cancelled: &AtomicBool,
) -> Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for path in queue {
        let file = MappedFile::open(&path)?;
        let before = total.load(Ordering::Relaxed);
        let digest = hash_range(&file, 0, file.len(), |bytes, _| {
            total.store(before + bytes, Ordering::Relaxed);
            !cancelled.load(Ordering::Relaxed)
        })?;
        let Some(digest) = digest else {
            break;
        };
        digests.push(digest);
    }
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn known_digest_and_hex() {
        assert_eq!(Digest::of(b"abc").to_hex(), ABC);
        assert_eq!(ABC.parse(), Ok(Digest::of(b"abc")));
        assert_eq!("ba78".parse::<Digest>(), Err(BadDigest));
        assert_eq!(from_hex("00fF10"), Some(vec![0, 255, 16]));
        assert_eq!(
            (from_hex("0"), from_hex("zz"), from_hex("é0")),
            (None, None, None)
        );
        assert_eq!(to_hex(&[0, 255, 16]), "00ff10");
    }

    #[test]
    fn files_hash_as_their_bytes_on_any_thread() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("f");
        for len in [0, 1, CHUNK as usize, 2 * CHUNK as usize + 17] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + i / 251) as u8).collect();
            std::fs::write(&path, &bytes).expect("write");
            let mut last = (0, len as u64);
            let digest = sha256_file(&path, |done, total| last = (done, total)).expect("hash");
            assert_eq!(digest, Digest::of(&bytes));
            assert_eq!(last, (len as u64, len as u64));
            let queue = HashQueue::start(dir.path()).expect("spawn");
            queue.push(&path);
            queue.push(&path);
            assert_eq!(queue.finish().expect("hash"), [digest, digest]);
        }
        let queue = HashQueue::start(dir.path()).expect("spawn");
        queue.push(&dir.path().join("absent"));
        assert!(queue.finish().is_err());
    }
}
