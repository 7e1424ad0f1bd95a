//! Logits of a reference on disk, so that the next candidate need not wait for them again.
//!
//! A file holds the logits of every prediction as the model gave them: f32, exact, so that an
//! evaluation with cached logits gives the same numbers to the last bit. Layout, little-endian:
//! 8 bytes `HLRCLOG1`, vocabulary u32, zero u32, predictions u64, the key (32 bytes); then blocks in
//! the order of the text, each its logits `[n, vocabulary]` and their SHA-256. The file is called by
//! its key, grows under another name, and is renamed when it is complete.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::measure::block;
use super::{EvalError, Predictor, Protocol, Result, Windows};
use crate::weights::Digest;

const MAGIC: &[u8; 8] = b"HLRCLOG1";
const HEADER: u64 = 56;
/// Unfinished files older than this were left by a run that was killed.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A folder of logits that stays below a size.
#[derive(Clone, Debug)]
pub struct Cache {
    /// The folder.
    pub dir: PathBuf,
    /// Bytes that its files may have together.
    pub limit: u64,
}

/// What logits depend on.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Names a file in the cache.
    pub key: Digest,
    /// Predictions.
    pub predictions: usize,
    /// Tokens that the model knows.
    pub vocabulary: usize,
    blocks: u64,
}

#[derive(Serialize)]
struct KeyParts<'a> {
    version: &'a str,
    model: &'a str,
    precision: &'a str,
    protocol: Protocol,
    block: usize,
    tokens: String,
}

/// The user's folder of caches: `$XDG_CACHE_HOME/hlrc-opt`, or `~/.cache/hlrc-opt`.
pub fn default_dir() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let base =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("hlrc-opt"))
}

/// Who a model is: its module's text, and each file's name, size, time and first and last 64 KiB.
///
/// A file that is changed in place, same size, same time, far from both ends, is taken for the same.
pub fn identify(module: &str, files: &[PathBuf]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(module);
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hasher.update(name.as_bytes());
        let Ok(mut file) = File::open(path) else {
            continue;
        };
        let meta = file.metadata().ok();
        let len = meta.as_ref().map_or(0, fs::Metadata::len);
        let time = meta.and_then(|m| m.modified().ok());
        let since = time.and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
        hasher.update(len.to_le_bytes());
        hasher.update(since.map_or(0, |d| d.as_nanos()).to_le_bytes());
        for from in [0, len.saturating_sub(64 << 10)] {
            let mut piece = Vec::new();
            // A file that can't be read fails when the model is run.
            let _ = std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(from));
            let _ = (&mut file).take(64 << 10).read_to_end(&mut piece);
            hasher.update(&piece);
        }
    }
    Digest(hasher.finalize().into()).to_hex()
}

impl Identity {
    /// What the logits of a model on some windows are called by.
    pub fn new(
        model: &str,
        precision: &str,
        protocol: Protocol,
        windows: &Windows,
        vocabulary: usize,
    ) -> Self {
        let mut tokens = Sha256::new();
        for window in &windows.list {
            tokens.update((window.first as u64).to_le_bytes());
            tokens.update((window.tokens.len() as u64).to_le_bytes());
            window
                .tokens
                .iter()
                .for_each(|t| tokens.update(t.to_le_bytes()));
        }
        let step = block(vocabulary);
        let parts = KeyParts {
            version: env!("CARGO_PKG_VERSION"),
            model,
            precision,
            protocol,
            block: step,
            tokens: Digest(tokens.finalize().into()).to_hex(),
        };
        let json = serde_json::to_vec(&parts).unwrap_or_default();
        let blocks = windows
            .list
            .iter()
            .map(|w| w.predictions().div_ceil(step) as u64);
        Self {
            key: Digest::of(&json),
            predictions: windows.predictions(),
            vocabulary,
            blocks: blocks.sum(),
        }
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        let logits = (self.predictions as u64)
            .saturating_mul(self.vocabulary as u64)
            .saturating_mul(4);
        logits.saturating_add(HEADER + 32 * self.blocks)
    }

    fn header(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&(self.vocabulary as u32).to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&(self.predictions as u64).to_le_bytes());
        out.extend_from_slice(&self.key.0);
        out
    }
}

impl Cache {
    fn path(&self, identity: &Identity) -> PathBuf {
        self.dir.join(format!("{}.logits", identity.key.to_hex()))
    }

    /// Whether the logits fit the cache at all.
    pub fn fits(&self, identity: &Identity) -> bool {
        identity.bytes() <= self.limit
    }

    /// Logits that are there; `None` where there are none. A damaged file is removed.
    pub fn find(&self, identity: &Identity, name: &str) -> Option<Cached> {
        let path = self.path(identity);
        let mut file = File::open(&path).ok()?;
        let mut header = vec![0; HEADER as usize];
        let whole = file.metadata().is_ok_and(|m| m.len() == identity.bytes())
            && file.read_exact(&mut header).is_ok()
            && header == identity.header();
        if !whole {
            self.forget(identity);
            return None;
        }
        // So that what is used stays longest; without the time it goes earlier.
        let _ = file.set_modified(SystemTime::now());
        Some(Cached {
            file: BufReader::with_capacity(1 << 20, file),
            path,
            name: name.to_string(),
            vocabulary: identity.vocabulary,
            bytes: Vec::new(),
            logits: Vec::new(),
        })
    }

    /// Removes what was stored; that there is nothing is fine.
    pub fn forget(&self, identity: &Identity) {
        let _ = fs::remove_file(self.path(identity));
    }

    /// Begins to store what a model gives; older files go until it fits.
    ///
    /// # Errors
    /// [`EvalError::Cache`]: the folder or file cannot be made.
    pub fn record<'p>(
        &self,
        identity: &Identity,
        inner: &'p mut dyn Predictor,
    ) -> Result<Recorder<'p>> {
        let fault = |path: &Path, source| EvalError::Cache {
            path: path.to_path_buf(),
            source,
        };
        fs::create_dir_all(&self.dir).map_err(|e| fault(&self.dir, e))?;
        self.make_room(identity.bytes());
        let target = self.path(identity);
        let temporary = target.with_extension(format!("{}.tmp", std::process::id()));
        let file = File::create(&temporary).map_err(|e| fault(&temporary, e))?;
        let mut recorder = Recorder {
            inner,
            file: BufWriter::with_capacity(1 << 20, file),
            temporary,
            target,
            failed: None,
        };
        recorder.write(&identity.header());
        Ok(recorder)
    }

    /// Removes the files that were used longest ago until `bytes` more fit, and what killed runs left.
    fn make_room(&self, bytes: u64) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        let mut files = Vec::new();
        for entry in entries.flatten() {
            let (path, Ok(meta)) = (entry.path(), entry.metadata()) else {
                continue;
            };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match path.extension().and_then(|e| e.to_str()) {
                Some("logits") => files.push((used, path, meta.len())),
                Some("tmp") if used.elapsed().is_ok_and(|age| age > STALE) => {
                    // Not ours to insist on.
                    let _ = fs::remove_file(path);
                }
                _ => {}
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(.., len)| len).sum();
        for (_, path, len) in files {
            if total.saturating_add(bytes) <= self.limit {
                break;
            }
            if fs::remove_file(path).is_ok() {
                total -= len;
            }
        }
    }
}

/// A reference whose logits come from the disk.
pub struct Cached {
    file: BufReader<File>,
    path: PathBuf,
    name: String,
    vocabulary: usize,
    bytes: Vec<u8>,
    logits: Vec<f32>,
}

impl Predictor for Cached {
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn begin(&mut self, _: &[u32]) -> Result<()> {
        Ok(())
    }

    fn rows(&mut self, range: Range<usize>, each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let damaged = |problem: String| EvalError::Damaged {
            path: self.path.clone(),
            problem,
        };
        let mut digest = [0; 32];
        self.bytes.resize(range.len() * self.vocabulary * 4, 0);
        let read = self
            .file
            .read_exact(&mut self.bytes)
            .and_then(|()| self.file.read_exact(&mut digest));
        read.map_err(|e| damaged(e.to_string()))?;
        if Sha256::digest(&self.bytes).as_slice() != digest {
            return Err(damaged("a block has another hash".to_string()));
        }
        let (values, _) = self.bytes.as_chunks::<4>();
        self.logits.clear();
        self.logits
            .extend(values.iter().map(|b| f32::from_le_bytes(*b)));
        each(0, &self.logits);
        Ok(())
    }
}

/// A reference whose logits are stored as they come.
pub struct Recorder<'p> {
    inner: &'p mut dyn Predictor,
    file: BufWriter<File>,
    temporary: PathBuf,
    target: PathBuf,
    failed: Option<std::io::Error>,
}

impl Recorder<'_> {
    /// Gives the file its name.
    ///
    /// # Errors
    /// [`EvalError::Cache`]: something was not written; nothing is kept then.
    pub fn finish(mut self) -> Result<()> {
        let flushed = match self.failed.take() {
            Some(error) => Err(error),
            None => self
                .file
                .flush()
                .and_then(|()| fs::rename(&self.temporary, &self.target)),
        };
        flushed.map_err(|source| EvalError::Cache {
            path: self.target.clone(),
            source,
        })
    }

    fn write(&mut self, bytes: &[u8]) {
        // A full disk is no reason to stop the evaluation; `finish` tells.
        if self.failed.is_none() {
            self.failed = self.file.write_all(bytes).err();
        }
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        // After `finish` there is nothing under this name.
        let _ = fs::remove_file(&self.temporary);
    }
}

impl Predictor for Recorder<'_> {
    fn vocabulary(&self) -> usize {
        self.inner.vocabulary()
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn begin(&mut self, tokens: &[u32]) -> Result<()> {
        self.inner.begin(tokens)
    }

    fn rows(&mut self, range: Range<usize>, each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let mut bytes = Vec::with_capacity(range.len() * self.inner.vocabulary() * 4);
        self.inner.rows(range, &mut |first, logits| {
            logits
                .iter()
                .for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
            each(first, logits);
        })?;
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        self.write(&bytes);
        self.write(&digest);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
