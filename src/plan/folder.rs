//! A plan's folder: `plan.json`, `plan.txt`, `weights.bin`, the sources of its kernels, and their machine
//! code where that is asked for.
//!
//! It grows under a temporary name and is renamed when it is complete.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rayon::prelude::*;

use super::lower::Lowered;
use super::pack::{self, Sink};
use super::{Plan, PlanError, Variant, kernels, text, verify};
use crate::ir::Module;
use crate::store::Reader;
use crate::weights::MappedFile;

/// The plan's file.
pub const PLAN_FILE: &str = "plan.json";
/// The same as text.
pub const TEXT_FILE: &str = "plan.txt";
/// Where sources of kernels are.
pub const KERNELS_FOLDER: &str = "kernels";
/// Where machine code is.
pub const CUBIN_FOLDER: &str = "cubin";

/// Compiles a variant, from sources in a folder, to a file.
pub type Compile<'a> = dyn Fn(&Variant, &Path, &Path) -> Result<()> + Sync + 'a;

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

/// Writes a plan's folder, with its weights packed unless `source` is absent, and with machine code if there
/// is something to `compile` with; an earlier plan's folder at `path` is replaced.
///
/// # Errors
/// The plan does not verify, a weight can't be read, a kernel does not compile, a file is not written.
/// Nothing is left half-written.
pub fn write(
    path: &Path,
    lowered: Lowered,
    source: Option<(&Module, &Reader<'_>)>,
    compile: Option<&Compile<'_>>,
    stop: &AtomicBool,
    each: &mut dyn FnMut(&str, u64),
) -> Result<Plan> {
    let partial = partial(path);
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(io(&partial))?;
    }
    std::fs::create_dir_all(&partial).map_err(io(&partial))?;
    let written = fill(&partial, lowered, source, compile, stop, each).and_then(|plan| {
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
    mut lowered: Lowered,
    source: Option<(&Module, &Reader<'_>)>,
    compile: Option<&Compile<'_>>,
    stop: &AtomicBool,
    each: &mut dyn FnMut(&str, u64),
) -> Result<Plan> {
    // Before hours are spent on weights.
    verify::verify(&lowered.plan).map_err(PlanError::Invalid)?;
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io(parent))?;
        }
        std::fs::write(&path, text).map_err(io(&path))
    };
    for (name, text) in kernels::sources(&lowered.plan.kernels) {
        put(&format!("{KERNELS_FOLDER}/{name}"), text)?;
    }
    if let Some(compile) = compile {
        compiled(folder, &mut lowered.plan, compile, stop)?;
    }
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
    put(PLAN_FILE, &(json + "\n"))?;
    put(TEXT_FILE, &text::print(&plan))?;
    Ok(plan)
}

/// Compiles every variant, and says in the plan where its machine code is.
fn compiled(
    folder: &Path,
    plan: &mut Plan,
    compile: &Compile<'_>,
    stop: &AtomicBool,
) -> Result<()> {
    let (sources, into) = (folder.join(KERNELS_FOLDER), folder.join(CUBIN_FOLDER));
    std::fs::create_dir_all(&into).map_err(io(&into))?;
    let one = |(index, variant): (usize, &Variant)| {
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(PlanError::Interrupted);
        }
        let name = format!("{index:03}-{}.cubin", variant.kernel);
        compile(variant, &sources, &into.join(&name))?;
        Ok(format!("{CUBIN_FOLDER}/{name}"))
    };
    let made: Vec<Result<String>> = plan.kernels.par_iter().enumerate().map(one).collect();
    for (variant, name) in plan.kernels.iter_mut().zip(made) {
        variant.cubin = Some(name?);
    }
    Ok(())
}

/// A plan that was read and checked, with its weights mapped.
pub struct Opened {
    /// The plan.
    pub plan: Plan,
    /// Its weights; absent in a plan from a configuration alone.
    pub blob: Option<Arc<MappedFile>>,
    /// Machine code of its kernel variants, by their index, where it was compiled with the plan.
    pub cubins: Vec<Option<Vec<u8>>>,
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
    let cubins = plan.kernels.iter().map(|v| cubin(&file, v));
    let cubins = cubins.collect::<Result<Vec<_>>>()?;
    Ok(Opened { plan, blob, cubins })
}

/// The machine code of a variant, beside the plan.
fn cubin(plan: &Path, variant: &Variant) -> Result<Option<Vec<u8>>> {
    let Some(named) = &variant.cubin else {
        return Ok(None);
    };
    let name = named
        .strip_prefix(CUBIN_FOLDER)
        .and_then(|n| n.strip_prefix('/'));
    let inside = name.filter(|n| Path::new(n).file_name().is_some_and(|f| f == *n));
    let Some(name) = inside else {
        return Err(PlanError::Format {
            place: plan.display().to_string(),
            problem: format!("machine code `{named}` is not a file of {CUBIN_FOLDER}/"),
        });
    };
    let path = plan.with_file_name(CUBIN_FOLDER).join(name);
    std::fs::read(&path).map(Some).map_err(io(&path))
}
