//! A plan's folder: `plan.json`, `plan.txt`, `weights.bin` and the sources of its kernels.
//!
//! It grows under a temporary name and is renamed when it is complete.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::lower::Lowered;
use super::pack::{self, Sink};
use super::{Plan, PlanError, kernels, text, verify};
use crate::ir::Module;
use crate::store::Reader;
use crate::weights::MappedFile;

/// The plan's file.
pub const PLAN_FILE: &str = "plan.json";
/// The same as text.
pub const TEXT_FILE: &str = "plan.txt";
/// Where sources of kernels are.
pub const KERNELS_FOLDER: &str = "kernels";

type Result<T> = std::result::Result<T, PlanError>;

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> PlanError {
    let path = path.to_path_buf();
    move |source| PlanError::Io { path, source }
}

/// Where a folder grows before it is complete.
pub fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

/// Writes a plan's folder, with its weights packed unless `source` is absent; an earlier plan's folder at
/// `path` is replaced.
///
/// # Errors
/// The plan does not verify, a weight can't be read, a file not written. Nothing is left half-written.
pub fn write(
    path: &Path,
    lowered: Lowered,
    source: Option<(&Module, &Reader<'_>)>,
    stop: &AtomicBool,
    each: &mut dyn FnMut(&str, u64),
) -> Result<Plan> {
    let partial = partial(path);
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(io(&partial))?;
    }
    std::fs::create_dir_all(&partial).map_err(io(&partial))?;
    let written = fill(&partial, lowered, source, stop, each).and_then(|plan| {
        if path.exists() {
            std::fs::remove_dir_all(path).map_err(io(path))?;
        }
        std::fs::rename(&partial, path).map_err(io(path))?;
        Ok(plan)
    });
    if written.is_err() {
        // The failure is what is told; what stays has a name that says what it is.
        let _ = std::fs::remove_dir_all(&partial);
    }
    written
}

fn fill(
    folder: &Path,
    lowered: Lowered,
    source: Option<(&Module, &Reader<'_>)>,
    stop: &AtomicBool,
    each: &mut dyn FnMut(&str, u64),
) -> Result<Plan> {
    // Before hours are spent on weights.
    verify::verify(&lowered.plan).map_err(PlanError::Invalid)?;
    let plan = match source {
        None => lowered.plan,
        Some((module, reader)) => {
            let mut sink = Sink::create(&folder.join(pack::BLOB_FILE))?;
            pack::pack(lowered, module, reader, &mut sink, stop, each)?
        }
    };
    verify::verify(&plan).map_err(PlanError::Invalid)?;
    let json = serde_json::to_string_pretty(&plan).map_err(|e| PlanError::Format {
        place: PLAN_FILE.to_string(),
        problem: e.to_string(),
    })?;
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io(parent))?;
        }
        std::fs::write(&path, text).map_err(io(&path))
    };
    put(PLAN_FILE, &(json + "\n"))?;
    put(TEXT_FILE, &text::print(&plan))?;
    for (name, text) in kernels::sources(&plan.kernels) {
        put(&format!("{KERNELS_FOLDER}/{name}"), text)?;
    }
    Ok(plan)
}

/// A plan that was read and checked, with its weights mapped.
pub struct Opened {
    /// The plan.
    pub plan: Plan,
    /// Its weights; absent in a plan from a configuration alone.
    pub blob: Option<Arc<MappedFile>>,
}

/// Reads a plan's folder, or its `plan.json`.
///
/// # Errors
/// A file is missing or damaged, or the plan does not verify.
pub fn open(path: &Path) -> Result<Opened> {
    let file = match path.is_dir() {
        true => path.join(PLAN_FILE),
        false => path.to_path_buf(),
    };
    let json = File::open(&file).map_err(io(&file))?;
    let reader = std::io::BufReader::new(json);
    let plan: Plan = serde_json::from_reader(reader).map_err(|e| PlanError::Format {
        place: file.display().to_string(),
        problem: e.to_string(),
    })?;
    verify::verify(&plan).map_err(PlanError::Invalid)?;
    let blob = match &plan.blob {
        None => None,
        Some(blob) => {
            let inside = Path::new(&blob.file)
                .file_name()
                .is_some_and(|n| *n == *blob.file);
            if !inside {
                return Err(PlanError::Format {
                    place: file.display().to_string(),
                    problem: format!("blob `{}` is not a file beside the plan", blob.file),
                });
            }
            let path = file.with_file_name(&blob.file);
            let mapped = MappedFile::open(&path).map_err(|e| PlanError::Format {
                place: path.display().to_string(),
                problem: e.to_string(),
            })?;
            if mapped.len() != blob.bytes {
                return Err(PlanError::Format {
                    place: path.display().to_string(),
                    problem: format!("has {} bytes, the plan says {}", mapped.len(), blob.bytes),
                });
            }
            Some(mapped)
        }
    };
    Ok(Opened { plan, blob })
}
