//! A file of statistics as it grows: sums in order, a journal, one rename at the end.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{CalibError, Result};
use super::metadata::{ENTRY, Metadata};
use crate::exec::kernels::gemm;
use crate::export::hlrc::Partial;
use crate::store::JOURNAL;
use crate::weights::writer::Entry;
use crate::weights::{DType, ShardWriter, WriterOptions};

/// First part of the growing file's name.
const STEM: &str = "statistics";
/// Name of the file of values between segments.
pub const HELD: &str = "held";

/// Names of the tensors of one key.
pub fn names(key: &str) -> [String; 3] {
    ["hessian", "diag", "tokens"].map(|part| format!("{key}.{part}"))
}

/// A file that grows.
pub struct Writer {
    partial: Partial,
    target: PathBuf,
    shards: ShardWriter,
    journal: File,
    journal_path: PathBuf,
    written: usize,
    /// Segments that an interrupted run has finished.
    pub done: usize,
}

#[derive(Serialize, Deserialize)]
struct First {
    identity: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    segment: usize,
    entries: Vec<Entry>,
}

impl Writer {
    /// Begins a file beside `target`, or goes on with the interrupted one.
    ///
    /// # Errors
    /// The folder `TARGET.partial` cannot be made, is in use, or is of another run.
    pub fn open(target: &Path, metadata: &Metadata, resume: bool) -> Result<Self> {
        let partial = Partial::open(target, resume)?;
        let journal_path = partial.path.join(JOURNAL);
        let fault = |e| CalibError::io(&journal_path)(e);
        let options = options(metadata);
        let identity = metadata.identity();
        let (mut entries, mut done) = (Vec::new(), 0);
        if partial.resumed {
            let text = std::fs::read(&journal_path).map_err(fault)?;
            (entries, done) = resumed(&journal_path, &text, &identity)?;
        }
        let shards = match partial.resumed {
            true => ShardWriter::resume(&partial.path, options, entries.clone())?,
            false => ShardWriter::create(&partial.path, options)?,
        };
        // Anew, so that a torn last line is gone.
        let mut journal = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&journal_path)
            .map_err(fault)?;
        writeln!(journal, "{}", json(&First { identity })).map_err(fault)?;
        if done > 0 {
            let record = Record {
                segment: done - 1,
                entries: entries.clone(),
            };
            writeln!(journal, "{}", json(&record)).map_err(fault)?;
        }
        Ok(Self {
            partial,
            target: target.to_path_buf(),
            written: entries.len(),
            shards,
            journal,
            journal_path,
            done,
        })
    }

    /// The folder in which files of the run may stand.
    pub fn folder(&self) -> &Path {
        &self.partial.path
    }

    /// Writes the sums of one input; of `hessian` `[width, width]` the upper triangle, row by row.
    pub fn sums(&mut self, key: &str, hessian: &[f32], width: usize, tokens: u64) -> Result<()> {
        let [packed, diag, count] = names(key);
        let n = width as u64;
        self.shards.begin(&packed, DType::F32, &[n * (n + 1) / 2])?;
        for (i, row) in hessian.chunks(width.max(1)).enumerate() {
            self.shards
                .write(gemm::bytes(row.get(i..).unwrap_or_default()))?;
        }
        self.shards.end()?;
        let diagonal: Vec<f32> = hessian.iter().step_by(width + 1).copied().collect();
        self.shards
            .tensor(&diag, DType::F32, &[n], gemm::bytes(&diagonal))?;
        self.shards
            .tensor(&count, DType::U64, &[1], &tokens.to_le_bytes())?;
        Ok(())
    }

    /// Writes sums that are packed already.
    pub fn packed(
        &mut self,
        key: &str,
        packed: &[f32],
        diagonal: &[f32],
        tokens: u64,
    ) -> Result<()> {
        let [matrix, diag, count] = names(key);
        let shape = [packed.len() as u64];
        self.shards
            .tensor(&matrix, DType::F32, &shape, gemm::bytes(packed))?;
        let shape = [diagonal.len() as u64];
        self.shards
            .tensor(&diag, DType::F32, &shape, gemm::bytes(diagonal))?;
        self.shards
            .tensor(&count, DType::U64, &[1], &tokens.to_le_bytes())?;
        Ok(())
    }

    /// Writes a list of counts.
    pub fn counts(&mut self, key: &str, counts: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = counts.iter().flat_map(|c| c.to_le_bytes()).collect();
        let name = format!("{key}.tokens");
        self.shards
            .tensor(&name, DType::U64, &[counts.len() as u64], &bytes)?;
        Ok(())
    }

    /// Journals that a segment is complete.
    pub fn segment(&mut self, segment: usize) -> Result<()> {
        self.shards.position()?;
        let entries = self
            .shards
            .entries()
            .get(self.written..)
            .unwrap_or_default()
            .to_vec();
        self.written += entries.len();
        let record = json(&Record { segment, entries });
        writeln!(self.journal, "{record}").map_err(CalibError::io(&self.journal_path))
    }

    /// Completes the file, gives it its name, and takes the partial folder away.
    pub fn finish(self) -> Result<()> {
        let folder = self.partial.path.clone();
        let finished = self.shards.finish()?;
        let file = finished.files.first().map_or("", |f| f.file.as_str());
        let from = folder.join(file);
        std::fs::rename(&from, &self.target).map_err(CalibError::io(&self.target))?;
        drop(self.partial);
        std::fs::remove_dir_all(&folder).map_err(CalibError::io(&folder))
    }
}

fn options(metadata: &Metadata) -> WriterOptions {
    let text = json(metadata);
    let header = json(&text).len() as u64;
    let names: u64 = metadata
        .sites
        .keys()
        .map(|name| 3 * (name.len() as u64 + 110))
        .sum();
    WriterOptions {
        stem: STEM.to_string(),
        shard_size: u64::MAX,
        header_reserve: header + names + 4096,
        metadata: vec![(ENTRY.to_string(), text)],
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Entries of complete segments, and how many segments those are.
fn resumed(path: &Path, text: &[u8], identity: &str) -> Result<(Vec<Entry>, usize)> {
    let other = |what: &str| CalibError::Other {
        path: path.to_path_buf(),
        what: what.to_string(),
    };
    let mut lines = text
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| line.ends_with(b"\n"));
    let first: Option<First> = lines
        .next()
        .and_then(|line| serde_json::from_slice(line).ok());
    match first {
        None => return Err(other("its journal is damaged")),
        Some(first) if first.identity != identity => {
            return Err(other("model, text, protocol or version differ"));
        }
        Some(_) => {}
    }
    let (mut entries, mut done) = (Vec::new(), 0);
    for line in lines {
        let Ok(record) = serde_json::from_slice::<Record>(line) else {
            break;
        };
        entries.extend(record.entries);
        done = record.segment.saturating_add(1);
    }
    Ok((entries, done))
}
