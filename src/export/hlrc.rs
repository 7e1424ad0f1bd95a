//! The `.hlrc` folder: `module.hlir`, safetensors shards, `manifest.json`, `report.json`, and the
//! tokenizer and configuration of the source. `docs/format.md` describes it.
//!
//! It grows under `<name>.partial` and takes its name when it is complete.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::exchange::exchange;
use crate::ir::{Encoding, Module, Storage, WeightId, text};
use crate::store::{
    JOURNAL, Reader, Sink, SinkError, StoreError, copied_as, in_scratch, is_fleeting,
};
use crate::weights::writer::{Finished, ShardInfo};
use crate::weights::{WeightsError, sha256_file};

/// Version of the folder's layout.
pub const FORMAT_VERSION: u32 = 1;
/// The module's file.
pub const MODULE_FILE: &str = "module.hlir";
/// The manifest's file.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The report's file.
pub const REPORT_FILE: &str = "report.json";
/// Weights are copied in pieces of so many bytes.
const PIECE: u64 = 4 << 20;

/// Why a folder cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// Another process is writing the same output.
    #[error("{}: another run is writing this output; wait for it, or name another output", .0.display())]
    Busy(PathBuf),
    /// `--resume` without anything to resume.
    #[error("{}: there is no interrupted run to go on from; run without --resume", .0.display())]
    NothingToResume(PathBuf),
    /// The run was interrupted while it copied weights.
    #[error("interrupted while weights were copied")]
    Interrupted,
    /// A weight cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The shards cannot be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// A file cannot be hashed.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> FolderError {
    let path = path.to_path_buf();
    move |source| FolderError::Io { path, source }
}

/// What a folder was made from and of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `hlrc`
    pub format: String,
    /// Version of the layout.
    pub format_version: u32,
    /// The tool that wrote it.
    pub tool: String,
    /// The tool's version.
    pub tool_version: String,
    /// Pipelines run so far, canonical; one per generation.
    pub pipelines: Vec<String>,
    /// Seed of the last one.
    pub seed: u64,
    /// The source's files.
    pub inputs: Vec<ShardInfo>,
    /// The folder's files, this one left out.
    pub outputs: Vec<ShardInfo>,
}

/// A folder that is being written. Its lock ends with it.
pub struct Partial {
    /// Where the files grow.
    pub path: PathBuf,
    /// Whether an interrupted run is gone on from.
    pub resumed: bool,
    target: PathBuf,
    _lock: File,
}

/// Where an output grows before it is complete.
pub fn partial_path(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    target.with_file_name(name)
}

impl Partial {
    /// Makes the partial folder of an output, or opens that of an interrupted run.
    ///
    /// # Errors
    /// The folder cannot be made; another run is at it; there is nothing to resume.
    pub fn open(target: &Path, resume: bool) -> Result<Self, FolderError> {
        let path = partial_path(target);
        if resume && !path.join(JOURNAL).is_file() {
            return Err(FolderError::NothingToResume(path));
        }
        // Interrupted before its journal's first line: there is nothing to go on from but the name.
        let resume = resume && std::fs::read(path.join(JOURNAL)).is_ok_and(|j| j.contains(&b'\n'));
        std::fs::create_dir_all(&path).map_err(io(&path))?;
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path).map_err(io(&lock_path))?;
        if lock.try_lock().is_err() {
            return Err(FolderError::Busy(path));
        }
        if !resume {
            for entry in std::fs::read_dir(&path).map_err(io(&path))? {
                let entry = entry.map_err(io(&path))?.path();
                if entry != lock_path {
                    std::fs::remove_file(&entry).map_err(io(&entry))?;
                }
            }
        }
        Ok(Self {
            path,
            resumed: resume,
            target: target.to_path_buf(),
            _lock: lock,
        })
    }

    /// Writes a file of the folder.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FolderError> {
        let path = self.path.join(name);
        let mut file = File::create(&path).map_err(io(&path))?;
        file.write_all(bytes).map_err(io(&path))
    }

    /// Gives the folder its name; what stood there before goes.
    ///
    /// # Errors
    /// The folder cannot be renamed.
    pub fn publish(self) -> Result<(), FolderError> {
        for entry in std::fs::read_dir(&self.path).map_err(io(&self.path))? {
            let path = entry.map_err(io(&self.path))?.path();
            if is_fleeting(&path) {
                std::fs::remove_file(&path).map_err(io(&path))?;
            }
        }
        let old = self.take_name()?;
        // Only now: a run that is killed before can still be resumed.
        for name in [JOURNAL, "lock"] {
            let path = self.target.join(name);
            if path.exists() {
                std::fs::remove_file(&path).map_err(io(&path))?;
            }
        }
        let Some(old) = old else {
            return Ok(());
        };
        let gone = match old.is_dir() {
            true => std::fs::remove_dir_all(&old),
            false => std::fs::remove_file(&old),
        };
        gone.map_err(io(&old))
    }

    /// Renames the folder to its target; gives the path of what stood there, if anything did.
    fn take_name(&self) -> Result<Option<PathBuf>, FolderError> {
        if !self.target.exists() {
            std::fs::rename(&self.path, &self.target).map_err(io(&self.target))?;
            return Ok(None);
        }
        // In one step where the system can: a kill never leaves the name without an output.
        if exchange(&self.path, &self.target).is_ok() {
            return Ok(Some(self.path.clone()));
        }
        let name = format!("old-{}", std::process::id());
        let old = self.target.with_extension(name);
        std::fs::rename(&self.target, &old).map_err(io(&self.target))?;
        if let Err(error) = std::fs::rename(&self.path, &self.target) {
            // Put back what was there; the first error is the one to tell.
            let _ = std::fs::rename(&old, &self.target);
            return Err(io(&self.target)(error));
        }
        Ok(Some(old))
    }

    /// Removes the folder: its content has gone elsewhere.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn discard(self) -> Result<(), FolderError> {
        std::fs::remove_dir_all(&self.path).map_err(io(&self.path))
    }
}

/// Copies every weight that is not in the sink yet, then completes it and tells each weight where it is.
///
/// # Errors
/// A weight cannot be read, the shards cannot be written, `interrupt` was set.
pub fn settle(
    module: &mut Module,
    reader: &Reader<'_>,
    mut sink: Sink,
    copy_untouched: bool,
    interrupt: &AtomicBool,
) -> Result<Finished, FolderError> {
    for index in 0..module.weights.len() {
        let id = WeightId::new(index);
        // What no later pass took up after all is in a file that goes.
        let fleeting = module.weight(id).is_some_and(|w| in_scratch(&w.storage));
        if copy_untouched || fleeting {
            if interrupt.load(Ordering::Relaxed) {
                return Err(FolderError::Interrupted);
            }
            copy(module, reader, &mut sink, id)?;
        }
    }
    let finished = sink.finish()?;
    let finished = finished.unwrap_or(Finished {
        files: Vec::new(),
        tensors: Vec::new(),
    });
    let places: HashMap<&str, _> = finished
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t))
        .collect();
    for weight in &mut module.weights {
        let Some(place) = places.get(weight.name.as_str()) else {
            continue;
        };
        let Some(file) = finished.files.get(place.file) else {
            continue;
        };
        weight.storage = Storage::File {
            path: file.file.as_str().into(),
            offset: place.offset,
            len: place.bytes,
            encoding: Encoding::Raw,
        };
    }
    Ok(finished)
}

fn copy(
    module: &Module,
    reader: &Reader<'_>,
    sink: &mut Sink,
    id: WeightId,
) -> Result<(), FolderError> {
    let Some(weight) = module.weight(id) else {
        return Ok(());
    };
    let Some((name, dtype, shape)) = copied_as(weight) else {
        return Ok(());
    };
    let located = reader.locate(module, weight)?;
    let starts = (0..located.len).step_by(PIECE as usize);
    let mut pieces = starts.map(|start| {
        let len = PIECE.min(located.len - start);
        if start > 0 {
            located
                .source
                .release(located.offset + start - PIECE, PIECE);
        }
        located.source.slice(located.offset + start, len)
    });
    sink.copy(&name, dtype, &shape, &mut pieces)?;
    let last = located.len % PIECE;
    located
        .source
        .release(located.offset + located.len - last, last);
    Ok(())
}

/// What goes into a folder beside the weights.
pub struct Contents<'a> {
    /// Canonical pipelines, earlier generations first.
    pub pipelines: Vec<String>,
    /// Seed of the run.
    pub seed: u64,
    /// The source's files with their hashes.
    pub inputs: Vec<ShardInfo>,
    /// Tokenizer and configuration to copy.
    pub sidecars: &'a [PathBuf],
    /// `report.json`
    pub report: &'a str,
}

/// Completes a folder around its shards and publishes it.
///
/// # Errors
/// A file cannot be read or written; nothing is published then.
pub fn publish(
    partial: Partial,
    module: &Module,
    shards: &Finished,
    contents: Contents<'_>,
) -> Result<Manifest, FolderError> {
    partial.write(MODULE_FILE, text::print(module).as_bytes())?;
    partial.write(REPORT_FILE, contents.report.as_bytes())?;
    let mut names = vec![MODULE_FILE.to_string(), REPORT_FILE.to_string()];
    for sidecar in contents.sidecars {
        let Some(name) = sidecar.file_name().and_then(|n| n.to_str()) else {
            continue;
        };
        let to = partial.path.join(name);
        std::fs::copy(sidecar, &to).map_err(io(sidecar))?;
        names.push(name.to_string());
    }
    let mut outputs = shards.files.clone();
    for name in names {
        outputs.push(hashed(&partial.path, name)?);
    }
    let manifest = Manifest {
        format: "hlrc".to_string(),
        format_version: FORMAT_VERSION,
        tool: env!("CARGO_PKG_NAME").to_string(),
        tool_version: env!("CARGO_PKG_VERSION").to_string(),
        pipelines: contents.pipelines,
        seed: contents.seed,
        inputs: contents.inputs,
        outputs,
    };
    let text = serde_json::to_string_pretty(&manifest).unwrap_or_default() + "\n";
    partial.write(MANIFEST_FILE, text.as_bytes())?;
    partial.publish()?;
    Ok(manifest)
}

/// Replaces the report of a folder that is complete, and its hash in the manifest.
///
/// Each file appears whole; between the two the manifest has the old report's hash.
///
/// # Errors
/// A file cannot be read or written, or the manifest is none.
pub fn replace_report(folder: &Path, report: &str) -> Result<(), FolderError> {
    let manifest_path = folder.join(MANIFEST_FILE);
    let text = std::fs::read(&manifest_path).map_err(io(&manifest_path))?;
    let mut manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| io(&manifest_path)(std::io::Error::other(error)))?;
    write_whole(&folder.join(REPORT_FILE), report.as_bytes())?;
    let info = hashed(folder, REPORT_FILE.to_string())?;
    let listed = manifest.outputs.iter_mut().find(|o| o.file == REPORT_FILE);
    match listed {
        Some(listed) => *listed = info,
        None => manifest.outputs.push(info),
    }
    let text = serde_json::to_string_pretty(&manifest).unwrap_or_default() + "\n";
    write_whole(&manifest_path, text.as_bytes())
}

/// Writes a file under another name, then renames it.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written =
        std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        // Nothing half-written is left; that this fails too changes nothing.
        let _ = std::fs::remove_file(&temporary);
        io(path)(error)
    })
}

fn hashed(folder: &Path, file: String) -> Result<ShardInfo, FolderError> {
    let path = folder.join(&file);
    let bytes = std::fs::metadata(&path).map_err(io(&path))?.len();
    let sha256 = sha256_file(&path, |_, _| {})?.to_hex();
    Ok(ShardInfo {
        file,
        bytes,
        sha256,
    })
}
