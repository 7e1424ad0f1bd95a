//! What a file of statistics says of itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ir::Module;
use crate::ir::site::sites;
use crate::weights::Digest;

/// Version of the format that is written.
pub const VERSION: u32 = 1;
/// Entry of `__metadata__` that holds the [`Metadata`] as JSON.
pub const ENTRY: &str = "hlrc_calibration";

/// What a file of statistics says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// Version of the format, [`VERSION`].
    pub version: u32,
    /// The model that ran.
    pub model: ModelId,
    /// What it ran on; several where files were merged.
    pub runs: Vec<Source>,
    /// For each site by name, which sums are of its input.
    pub sites: BTreeMap<String, SiteInput>,
}

/// Which model statistics are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelId {
    /// Path, as it was named.
    pub name: String,
    /// See [`fingerprint`].
    pub fingerprint: String,
}

/// Texts, and how they were cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The files.
    pub data: Vec<DataFile>,
    /// How they were cut.
    pub protocol: Protocol,
    /// Where the tokenizer was, as it was named, if not beside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Windows that ran.
    pub windows: usize,
    /// Tokens that ran.
    pub tokens: u64,
    /// SHA-256 of all token ids, windows in order.
    pub token_hash: String,
}

/// A text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataFile {
    /// Path, as it was named; `self` for text of the model's own.
    pub name: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// How text is cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocol {
    /// Tokens of a window, BOS included; at most, where lines are windows.
    pub context: usize,
    /// Windows of all texts together; lines make up as many tokens.
    pub windows: usize,
    /// Whether each line is a window, for encoders.
    pub lines: bool,
    /// Token in front of every window.
    pub bos: Option<u32>,
    /// Seed of text that the model wrote itself.
    pub seed: u64,
}

/// Which sums are of a site's input.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteInput {
    /// Keys of sums; several where the matrix is used in several places, and then they add up.
    pub inputs: Vec<String>,
    /// Of an expert's inner linear: key of the sums over all experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Of an expert: key of the experts' token counts, and which it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<(String, usize)>,
}

impl Metadata {
    /// Names the statistics: model, texts and protocol, but not where the files lie.
    pub fn identity(&self) -> String {
        let mut anonymous = self.clone();
        anonymous.model.name.clear();
        for run in &mut anonymous.runs {
            run.tokenizer = None;
            run.data.iter_mut().for_each(|file| file.name.clear());
        }
        let json = serde_json::to_vec(&anonymous).unwrap_or_default();
        Digest::of(&json).to_hex()
    }
}

/// Places of a file that are hashed, and bytes of each.
const PLACES: u64 = 16;
const PIECE: u64 = 64 << 10;

/// Who a model is: its sites, and each file's name, size and 16 pieces of 64 KiB.
///
/// It stays when files are copied elsewhere. Reading all of a large model would take longer than
/// calibrating a small one; what differs in few bytes between the pieces is taken for the same.
pub fn fingerprint(module: &Module, files: &[PathBuf]) -> String {
    let mut hasher = Sha256::new();
    for site in sites(module) {
        hasher.update(format!("{} {} {}\n", site.name, site.rows, site.cols));
    }
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hasher.update(name.as_bytes());
        let Ok(mut file) = File::open(path) else {
            continue;
        };
        let len = file.metadata().map_or(0, |m| m.len());
        hasher.update(len.to_le_bytes());
        for place in 0..PLACES {
            let from = len.saturating_sub(PIECE) / (PLACES - 1) * place;
            let mut piece = Vec::new();
            // A file that can't be read fails when the model runs.
            let _ = file.seek(SeekFrom::Start(from));
            let _ = (&mut file).take(PIECE).read_to_end(&mut piece);
            hasher.update(&piece);
        }
    }
    Digest(hasher.finalize().into()).to_hex()
}

/// Bytes of the largest header that a safetensors file may have.
const HEADER: u64 = 100 << 20;

/// Which copy of a model this is, for caches: each file's size and time, and all of a safetensors header.
///
/// What [`fingerprint`] misses between its pieces has another time.
pub fn stamp(files: &[PathBuf]) -> String {
    let mut hasher = Sha256::new();
    for path in files {
        let Ok(mut file) = File::open(path) else {
            continue;
        };
        let meta = file.metadata().ok();
        let len = meta.as_ref().map_or(0, std::fs::Metadata::len);
        let time = meta.and_then(|m| m.modified().ok());
        let since = time.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        hasher.update(len.to_le_bytes());
        hasher.update(since.map_or(0, |d| d.as_nanos()).to_le_bytes());
        if path.extension().is_some_and(|e| e == "safetensors") {
            let mut start = [0u8; 8];
            // A file that can't be read fails when the model runs.
            let _ = file.read_exact(&mut start);
            let header = u64::from_le_bytes(start).min(HEADER);
            let mut piece = Vec::new();
            let _ = (&mut file).take(header).read_to_end(&mut piece);
            hasher.update(&piece);
        }
    }
    Digest(hasher.finalize().into()).to_hex()
}

/// The digest of token ids, for [`Source::token_hash`].
pub fn token_hash(windows: &[Vec<u32>]) -> String {
    let mut hasher = Sha256::new();
    for window in windows {
        hasher.update((window.len() as u64).to_le_bytes());
        for token in window {
            hasher.update(token.to_le_bytes());
        }
    }
    Digest(hasher.finalize().into()).to_hex()
}
