//! From a path to a module: tells formats apart and calls their importers.

use super::{Exit, Failure, argv, errors};
use crate::exec::ExecError;
use crate::import;
use crate::ir::Module;
use crate::pass::manager::{self, Schedule};
use crate::pass::pipeline::Pipeline;
use crate::pass::pipeline::error::nearest;
use crate::pass::{PassError, Remark, RemarkKind};
use crate::passes::raise;
use crate::report::human;
use crate::report::progress::Progress;
use crate::weights::FileCache;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Name of the module inside an output folder.
pub const MODULE_FILE: &str = "module.hlir";

/// What a path holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Text IR on standard input.
    Stdin,
    /// A file of text IR.
    Text(PathBuf),
    /// An ONNX file.
    Onnx(PathBuf),
    /// An output folder of an earlier run.
    Output(PathBuf),
    /// A safetensors file, its index, or a folder with either.
    Checkpoint(PathBuf),
}

impl Source {
    /// Tells what the path holds, by what it is and is called.
    ///
    /// # Errors
    /// A [`Failure`] where there is nothing, or nothing known.
    pub fn of(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self::Stdin);
        }
        let meta = std::fs::metadata(path).map_err(|error| missing(path, &error))?;
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or_default()
            .to_ascii_lowercase();
        if meta.is_dir() {
            return match extension.as_str() {
                "onnx" | "hlir" | "safetensors" => Err(Failure::new(
                    Exit::Input,
                    format!("{}: is a folder, not a file", path.display()),
                )
                .help("name the file inside it")),
                _ if path.join(MODULE_FILE).is_file() || path.join("manifest.json").is_file() => {
                    Ok(Self::Output(path.into()))
                }
                _ => Ok(Self::Checkpoint(path.into())),
            };
        }
        match extension.as_str() {
            "onnx" => Ok(Self::Onnx(path.into())),
            "hlir" => Ok(Self::Text(path.into())),
            "safetensors" | "json" => Ok(Self::Checkpoint(path.into())),
            _ if begins_as_text(path) => Ok(Self::Text(path.into())),
            _ => Err(Failure::new(Exit::Input, format!("{}: the format is not known by this name", path.display()))
                .help("inputs are .onnx, .safetensors (or the .index.json of shards), .hlir, .hlrc folders, and Hugging Face folders")),
        }
    }

    /// The name that outputs are called by: the file's or folder's stem.
    pub fn stem(&self) -> String {
        let path = match self {
            Self::Stdin => return "stdin".into(),
            Self::Text(path) | Self::Onnx(path) | Self::Output(path) | Self::Checkpoint(path) => {
                path
            }
        };
        // A relative folder such as `.` has no name of its own.
        let named = if path.file_name().is_some() {
            path.clone()
        } else {
            path.canonicalize().unwrap_or_default()
        };
        let name = named
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let known = [
            ".onnx",
            ".hlir",
            ".hlrc",
            ".safetensors.index.json",
            ".safetensors",
        ];
        let stem = known
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(&name);
        if stem.is_empty() {
            "model".into()
        } else {
            stem.into()
        }
    }
}

fn missing(path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::read(path, error);
    match path.to_str().and_then(|name| nearest(name, argv::COMMANDS)) {
        Some(command) => failure.help(format!("if you meant the command: hlrc-opt {command}")),
        None => failure,
    }
}

fn begins_as_text(path: &Path) -> bool {
    let mut start = [0; 5];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut start))
        .is_ok()
        && &start == b"hlir "
}

/// An imported model, and what an output tells of where it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The module.
    pub module: Module,
    /// Files that it was made from, to be hashed.
    pub files: Vec<PathBuf>,
    /// Tokenizer and configuration, to be copied.
    pub sidecars: Vec<PathBuf>,
    /// Pipelines that made it, where it is an earlier output.
    pub pipelines: Vec<String>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Loaded {
    /// A module that comes from nowhere in particular.
    pub fn bare(module: Module) -> Self {
        Self {
            module,
            files: Vec::new(),
            sidecars: Vec::new(),
            pipelines: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// Imports a model to be looked at: linears are found, weights' data stay where they are.
///
/// # Errors
/// A [`Failure`] with the place in the file, exit code 3.
pub fn model(path: &Path) -> Result<Module, Failure> {
    let mut module = source(&Source::of(path)?)?.module;
    find_linears(&mut module)?;
    Ok(module)
}

/// A model to be run.
#[derive(Debug)]
pub struct Executable {
    /// The module.
    pub module: Module,
    /// What the user should know of the import.
    pub notes: Vec<String>,
    /// What raising has to say: what was left, and why; what became less exact.
    pub remarks: Vec<Remark>,
}

/// Remarks that an error tells; the others are counted.
const TOLD: usize = 3;

impl Executable {
    /// Says what the import has to say: notes, and with `-v` remarks.
    pub fn tell(&self, path: &Path, progress: &Progress) {
        for note in &self.notes {
            progress.warn(&format!("{}: {note}", path.display()));
        }
        for remark in &self.remarks {
            progress.detail(&remark.to_string());
        }
    }

    /// The model can't be run; what was not raised is often why.
    pub fn refused(&self, path: &Path, error: &ExecError) -> Failure {
        let mut what = format!("{}: {error}", path.display());
        let missed = |remark: &&Remark| remark.kind == RemarkKind::Missed;
        for remark in self.remarks.iter().filter(missed).take(TOLD) {
            what += &format!("\n  {remark}");
        }
        let count = self.remarks.iter().filter(missed).count();
        if let Some(more) = count.checked_sub(TOLD).filter(|&more| more > 0) {
            what += &format!("\n  and {} more", human::plural(more, "remark"));
        }
        let failure = Failure::new(errors::of_exec(error), what);
        match error {
            ExecError::NotLanguageModel(_) => failure
                .help("`hlrc-opt eval` judges it: on whole windows of text, or on given inputs"),
            _ => failure,
        }
    }
}

/// Imports a model to be run: what ONNX exporters took apart is native ops again where that is known.
///
/// # Errors
/// As [`model`].
pub fn executable(path: &Path) -> Result<Executable, Failure> {
    raised(path, raise::raise_to_run)
}

/// As [`executable`], where the model takes inputs of its source: masks, positions, and where `past` is
/// among them keys and values of earlier calls.
///
/// # Errors
/// As [`model`].
pub fn executable_as_is(path: &Path, past: bool) -> Result<Executable, Failure> {
    raised(path, |module| raise::raise_as_is(module, past))
}

fn raised(
    path: &Path,
    raise: impl FnOnce(&mut Module) -> Result<Vec<Remark>, PassError>,
) -> Result<Executable, Failure> {
    let Loaded {
        mut module, notes, ..
    } = source(&Source::of(path)?)?;
    let raised = raise(&mut module);
    let mut remarks =
        raised.map_err(|error| Failure::new(Exit::Failure, format!("raise: {error}")))?;
    remarks.retain(|remark| remark.kind != RemarkKind::Passed);
    find_linears(&mut module)?;
    Ok(Executable {
        module,
        notes,
        remarks,
    })
}

/// Sees linears and embeddings in the module's ONNX nodes, as a pipeline would.
fn find_linears(module: &mut Module) -> Result<(), Failure> {
    let pipeline = Pipeline::parse("find-linears")?;
    let schedule = Schedule::new(&pipeline, &[], None).map_err(|error| errors::schedule(&error))?;
    manager::raise(module, &schedule).map_err(|error| errors::run(&error))?;
    Ok(())
}

/// Imports from a source that is known already.
///
/// # Errors
/// As [`model`].
pub fn source(source: &Source) -> Result<Loaded, Failure> {
    let input = match source {
        Source::Stdin => import::Input::Stdin,
        Source::Text(path)
        | Source::Onnx(path)
        | Source::Output(path)
        | Source::Checkpoint(path) => import::Input::Path(path.clone()),
    };
    let imported = import::open(&input, &FileCache::new())?;
    Ok(Loaded {
        module: imported.module,
        files: imported.files,
        sidecars: imported.sidecars,
        pipelines: imported.pipelines,
        notes: imported.notes,
    })
}

/// The source in messages.
pub fn describe(source: &Source) -> String {
    match source {
        Source::Stdin => "<stdin>".into(),
        Source::Text(path)
        | Source::Onnx(path)
        | Source::Output(path)
        | Source::Checkpoint(path) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stems() {
        for (path, stem) in [
            ("a/model.onnx", "model"),
            ("a/llama", "llama"),
            ("model.safetensors.index.json", "model"),
            ("x.hlrc", "x"),
            ("x.hlrc/", "x"),
        ] {
            assert_eq!(Source::Checkpoint(path.into()).stem(), stem);
        }
        assert_eq!(Source::Stdin.stem(), "stdin");
        assert!(!Source::Checkpoint(".".into()).stem().is_empty());
    }

    #[test]
    fn what_is_not_there_is_a_failure() {
        let failure = Source::of(Path::new("inspct")).expect_err("no such file");
        assert_eq!(failure.exit, Exit::Input);
        assert!(failure.help.contains("inspect"));
    }
}
