//! The journal of a run: what is complete, so that `--resume` goes on from there.
//!
//! One JSON object per line: first the fingerprint of the run, then a record per finished site. A
//! record is written after the bytes that it speaks of have been handed to the system; a torn last
//! line is a record that was not written.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::pass::Remark;
use crate::pass::terms::TermSpec;
use crate::report::SiteReport;
use crate::weights::writer::Entry;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The journal.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// It belongs to another run.
    #[error(
        "{}: the interrupted run was another one ({what}); run without --resume to start anew",
        path.display()
    )]
    Other {
        /// The journal.
        path: PathBuf,
        /// What differs.
        what: String,
    },
}

/// A finished site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Number of the stage of matrix passes.
    pub stage: usize,
    /// Number of the site in the stage.
    pub site: usize,
    /// Structure of its terms; `None` where the site was left as it was.
    pub terms: Option<Vec<TermSpec>>,
    /// Tensors of earlier stages' terms that were written in front of the site's own.
    pub moved: Vec<Entry>,
    /// Tensors written, in the order of the terms.
    pub entries: Vec<Entry>,
    /// Instead of these, where a later stage takes the site up: tensors in the scratch file, likewise.
    pub passed: Vec<Entry>,
    /// Σ w² of the matrix that the stage began with.
    pub weight_squares: f64,
    /// What is reported of it.
    pub report: SiteReport,
    /// What passes said of it.
    pub remarks: Vec<Remark>,
}

/// An open journal.
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Starts a journal with the run's fingerprint.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn create(path: &Path, fingerprint: &str) -> Result<Self, JournalError> {
        let fault = |source| io_error(path, source);
        let mut file = File::create(path).map_err(fault)?;
        let first = serde_json::json!({ "fingerprint": fingerprint });
        writeln!(file, "{first}").map_err(fault)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
        })
    }

    /// Opens the journal of an interrupted run and returns its complete records.
    ///
    /// # Errors
    /// [`JournalError::Other`] where the fingerprint differs.
    pub fn resume(path: &Path, fingerprint: &str) -> Result<(Self, Vec<Record>), JournalError> {
        let fault = |source| io_error(path, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(fault)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(fault)?;
        let other = |what: &str| JournalError::Other {
            path: path.to_path_buf(),
            what: what.to_string(),
        };
        let mut records = Vec::new();
        let mut complete = 0u64;
        for (number, line) in text.split_inclusive(|b| *b == b'\n').enumerate() {
            if !line.ends_with(b"\n") {
                break;
            }
            if number == 0 {
                let first: serde_json::Value =
                    serde_json::from_slice(line).map_err(|_| other("its journal is damaged"))?;
                if first["fingerprint"] != fingerprint {
                    return Err(other("input, pipeline, seed, shard size or version differ"));
                }
            } else {
                match serde_json::from_slice(line) {
                    Ok(record) => records.push(record),
                    Err(_) => break,
                }
            }
            complete += line.len() as u64;
        }
        if complete == 0 {
            return Err(other("its journal is empty"));
        }
        file.set_len(complete).map_err(fault)?;
        file.seek(SeekFrom::End(0)).map_err(fault)?;
        let journal = Self {
            path: path.to_path_buf(),
            file,
        };
        Ok((journal, records))
    }

    /// Adds a record; its bytes have been handed to the system before.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn add(&mut self, record: &Record) -> Result<(), JournalError> {
        let mut line = serde_json::to_vec(record)
            .map_err(|e| io_error(&self.path, std::io::Error::other(e)))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(|source| io_error(&self.path, source))
    }
}

fn io_error(path: &Path, source: std::io::Error) -> JournalError {
    JournalError::Io {
        path: path.to_path_buf(),
        source,
    }
}
