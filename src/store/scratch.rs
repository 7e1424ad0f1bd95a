//! Terms and residuals on their way from one stage of matrix passes to a later one.
//!
//! Only the last stage of a site says whether its terms are kept, so until then they are part of no
//! output: each stage has one file of them in the partial folder, which goes before the folder is
//! published.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::SinkError;
use crate::ir::{Encoding, Storage};
use crate::weights::WeightsError;

const PREFIX: &str = "residual-";
const SUFFIX: &str = ".scratch";
/// Bytes read at once.
const PIECE: usize = 1 << 20;

/// The file of one stage, growing.
pub(super) struct Scratch {
    pub(super) stage: usize,
    path: PathBuf,
    file: File,
    len: u64,
}

impl Scratch {
    /// Opens the file of a stage behind the `len` bytes that a journal counts.
    pub(super) fn open(directory: &Path, stage: usize, len: u64) -> Result<Self, SinkError> {
        let path = directory.join(name(stage));
        let fault = |e| WeightsError::io("open", &path, e);
        let mut how = OpenOptions::new();
        let file = how.read(true).write(true).create(true).truncate(false);
        let mut file = file.open(&path).map_err(fault)?;
        if file.metadata().map_err(fault)?.len() < len {
            return Err(SinkError::Scratch(path));
        }
        file.set_len(len).map_err(fault)?;
        file.seek(SeekFrom::Start(len)).map_err(fault)?;
        Ok(Self {
            stage,
            path,
            file,
            len,
        })
    }

    /// Appends a matrix's row tiles; gives its first byte.
    pub(super) fn add(&mut self, pieces: &[Vec<u8>]) -> Result<u64, SinkError> {
        let start = self.len;
        for piece in pieces {
            let written = self.file.write_all(piece);
            written.map_err(|e| WeightsError::io("write", &self.path, e))?;
            self.len += piece.len() as u64;
        }
        Ok(start)
    }
}

/// Reads part of a scratch file, piece by piece.
pub(super) fn read(
    path: &Path,
    offset: u64,
    len: u64,
    mut take: impl FnMut(&[u8]) -> Result<(), WeightsError>,
) -> Result<(), SinkError> {
    let fault = |e| WeightsError::io("read", path, e);
    let mut file = File::open(path).map_err(fault)?;
    file.seek(SeekFrom::Start(offset)).map_err(fault)?;
    let mut piece = vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE))];
    let mut left = len;
    while left > 0 {
        let count = usize::try_from(left).map_or(piece.len(), |n| n.min(piece.len()));
        let part = piece.get_mut(..count).unwrap_or_default();
        file.read_exact(part).map_err(fault)?;
        take(part)?;
        left -= count as u64;
    }
    Ok(())
}

/// Where a tensor of a stage is.
pub(super) fn storage(directory: &Path, stage: usize, offset: u64, len: u64) -> Storage {
    let path = directory.join(name(stage));
    let path = std::path::absolute(&path).unwrap_or(path);
    Storage::File {
        path: path.to_string_lossy().into(),
        offset,
        len,
        encoding: Encoding::Raw,
    }
}

fn name(stage: usize) -> String {
    format!("{PREFIX}{stage}{SUFFIX}")
}

/// Whether a weight waits in a scratch file.
pub fn in_scratch(storage: &Storage) -> bool {
    let is_there = |part: &Storage| match part {
        Storage::File { path, .. } => is_scratch(Path::new(path.as_ref())),
        _ => false,
    };
    storage.parts().iter().any(is_there)
}

/// What the names of training's checkpoints, and of what it spills, start with.
const CHECKPOINTS: [&str; 2] = ["train.", "train-"];

/// Whether a file of a partial folder is a scratch file.
pub fn is_scratch(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str());
    name.is_some_and(|n| n.starts_with(PREFIX) && n.ends_with(SUFFIX))
}

/// Whether a file of a partial folder is no part of the output: scratch, or a checkpoint of training.
pub fn is_fleeting(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str());
    let checkpoint = name.is_some_and(|n| CHECKPOINTS.iter().any(|c| n.starts_with(c)));
    checkpoint || is_scratch(path)
}
