//! Importers: from files to a verified [`Module`].
//!
//! [`open`] tells formats apart by what the files are and are called: ONNX, Hugging Face folders and
//! bare safetensors, text IR, and `.hlrc` folders written earlier. Headers and configurations are
//! read; weights' data stay where they are, and the module refers to them.

mod error;
mod hlrc;
pub mod safetensors;
mod text;

use std::io::Read;
use std::path::{Path, PathBuf};

pub use error::ImportError;

use crate::export::hlrc::{MANIFEST_FILE, MODULE_FILE};
use crate::ir::Module;
use crate::ir::patch::normalize;
use crate::ir::verify::verify;
use crate::weights::FileCache;

/// Result of everything in this module.
pub type Result<T, E = ImportError> = std::result::Result<T, E>;

/// What to import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file or folder.
    Path(PathBuf),
    /// Text IR on standard input.
    Stdin,
}

impl Input {
    /// The input that a command line names: `-` is standard input.
    pub fn named(name: &Path) -> Self {
        if name == Path::new("-") {
            Input::Stdin
        } else {
            Input::Path(name.to_path_buf())
        }
    }
}

/// Where a module came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An ONNX file.
    Onnx,
    /// safetensors, with or without a `config.json`.
    Safetensors,
    /// Text IR.
    Text,
    /// An output folder of an earlier run.
    Hlrc,
}

/// An imported model.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The module: verified, in the order of its text.
    pub module: Module,
    /// Its format.
    pub format: Format,
    /// Files that it was made from: what a manifest hashes. Empty for standard input.
    pub files: Vec<PathBuf>,
    /// Tokenizer and configuration files beside it, to be copied to an output.
    pub sidecars: Vec<PathBuf>,
    /// Pipelines that made it, where it is an output of an earlier run.
    pub pipelines: Vec<String>,
    /// Warnings to print once.
    pub notes: Vec<String>,
}

impl Imported {
    /// A module with nothing beside it.
    fn bare(module: Module, format: Format) -> Self {
        Self {
            module,
            format,
            files: Vec::new(),
            sidecars: Vec::new(),
            pipelines: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// Imports a model.
///
/// Cost: headers, configuration and graph; no weight's data are read.
///
/// # Errors
/// [`ImportError`], with the place; all of them are faults of the input.
pub fn open(input: &Input, cache: &FileCache) -> Result<Imported> {
    let (mut imported, path) = match input {
        Input::Stdin => (text::stdin(cache)?, Path::new("<stdin>")),
        Input::Path(path) => (open_path(path, cache)?, path.as_path()),
    };
    verify(&imported.module).map_err(|violations| ImportError::Invalid {
        path: path.to_path_buf(),
        violations,
    })?;
    imported.module = normalize(&imported.module);
    Ok(imported)
}

fn open_path(path: &Path, cache: &FileCache) -> Result<Imported> {
    match kind(path)? {
        Kind::Onnx => open_onnx(path, cache),
        Kind::Text => text::file(path, cache),
        Kind::Hlrc => hlrc::open(path, cache),
        Kind::Safetensors => safetensors::open(path, cache),
    }
}

/// An ONNX file and the external data that it names.
fn open_onnx(path: &Path, cache: &FileCache) -> Result<Imported> {
    let module = crate::onnx::mapping::import(path).map_err(|source| ImportError::Onnx {
        path: path.to_path_buf(),
        source: Box::new(source),
    })?;
    text::check_files(&module, path, cache)?;
    Ok(Imported {
        files: text::files(&module, path),
        sidecars: sidecars(&folder_of(path))?,
        ..Imported::bare(module, Format::Onnx)
    })
}

enum Kind {
    Onnx,
    Text,
    Hlrc,
    Safetensors,
}

fn kind(path: &Path) -> Result<Kind> {
    let meta = std::fs::metadata(path).map_err(|e| ImportError::read(path, e))?;
    if meta.is_dir() {
        return folder_kind(path);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match name
        .rsplit('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase()
        .as_str()
    {
        "onnx" => Ok(Kind::Onnx),
        "hlir" => Ok(Kind::Text),
        "safetensors" => Ok(Kind::Safetensors),
        "json" if name.ends_with(".index.json") => Ok(Kind::Safetensors),
        "json" => Err(unrecognised(
            path,
            "is JSON, but not the index of safetensors shards",
            "name the folder that it is in, or a *.safetensors.index.json",
        )),
        extension => match foreign(extension) {
            Some((found, help)) => Err(unrecognised(path, found, help)),
            None => sniffed(path),
        },
    }
}

/// A folder: an earlier output, or else a checkpoint.
fn folder_kind(path: &Path) -> Result<Kind> {
    if [MODULE_FILE, MANIFEST_FILE]
        .iter()
        .any(|name| path.join(name).is_file())
    {
        return Ok(Kind::Hlrc);
    }
    let names = file_names(path)?;
    if names
        .iter()
        .any(|n| n.ends_with(".safetensors") || n.ends_with(".safetensors.index.json"))
    {
        return Ok(Kind::Safetensors);
    }
    let looked = "the folder has neither model.safetensors, model.safetensors.index.json, another \
                  *.safetensors, nor module.hlir with manifest.json";
    if let Some(onnx) = names.iter().find(|n| n.ends_with(".onnx")) {
        return Err(unrecognised(
            path,
            looked,
            format!("for ONNX, name the file: {onnx}"),
        ));
    }
    let other = names.iter().find_map(|name| {
        let (found, help) = foreign(name.rsplit('.').next()?)?;
        Some((name, found, help))
    });
    Err(match other {
        Some((name, found, help)) => unrecognised(path, format!("{looked}; {name} {found}"), help),
        None => unrecognised(path, looked, "name a model's folder or file"),
    })
}

/// What else models come in, by extension, and what to do about it.
fn foreign(extension: &str) -> Option<(&'static str, &'static str)> {
    Some(match extension {
        "bin" | "pt" | "pth" | "ckpt" => (
            "is a PyTorch pickle, which runs code when it is read",
            "save it as safetensors: model.save_pretrained(folder, safe_serialization=True), or \
             safetensors.torch.save_file",
        ),
        "gguf" | "ggml" => (
            "is GGUF, whose weights are quantized already in most cases",
            "start from the original safetensors checkpoint",
        ),
        "zip" | "gz" | "tar" | "tgz" | "xz" | "7z" => (
            "is an archive",
            "unpack it and name the folder or file inside",
        ),
        "h5" | "keras" | "pb" | "tflite" | "msgpack" | "npz" | "mlmodel" => (
            "is of a format that isn't read",
            "export the model to ONNX, or save it as safetensors",
        ),
        _ => return None,
    })
}

/// A file that its name doesn't tell: by its first bytes.
fn sniffed(path: &Path) -> Result<Kind> {
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| ImportError::read(path, e))?;
    let read = file.take(16).read_to_end(&mut start);
    read.map_err(|e| ImportError::read(path, e))?;
    let (found, help) = match start.as_slice() {
        [b'h', b'l', b'i', b'r', b' ', ..] => return Ok(Kind::Text),
        [_, _, _, _, _, 0, 0, 0, b'{', ..] => return Ok(Kind::Safetensors),
        [b'G', b'G', b'U', b'F', ..] => return Err(of_extension(path, "gguf")),
        [b'P', b'K', 3, 4, ..] => return Err(of_extension(path, "zip")),
        // ModelProto begins with its first field, a varint: ir_version.
        [0x08, 1..=64, ..] => return Ok(Kind::Onnx),
        _ => (
            "the format is not known by its name or first bytes",
            "inputs are .onnx, .safetensors (or the .index.json of shards), .hlir, .hlrc folders, \
             and Hugging Face folders",
        ),
    };
    Err(unrecognised(path, found, help))
}

fn of_extension(path: &Path, extension: &str) -> ImportError {
    let (found, help) = foreign(extension).unwrap_or_default();
    unrecognised(path, found, help)
}

fn unrecognised(path: &Path, found: impl Into<String>, help: impl Into<String>) -> ImportError {
    ImportError::Unrecognised {
        path: path.to_path_buf(),
        found: found.into(),
        help: help.into(),
    }
}

/// Names of the files in a folder, sorted.
fn file_names(folder: &Path) -> Result<Vec<String>> {
    let fault = |e| ImportError::read(folder, e);
    let mut names = Vec::new();
    for entry in folder.read_dir().map_err(fault)? {
        let entry = entry.map_err(fault)?;
        if entry.path().is_file() {
            names.extend(entry.file_name().into_string());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Files that belong to a model without being its weights or graph.
///
/// # Errors
/// [`ImportError::Read`] where the folder can't be listed.
pub fn sidecars(folder: &Path) -> Result<Vec<PathBuf>> {
    const STARTS: [&str; 5] = ["tokenizer", "vocab", "chat_template", "spiece", "LICENSE"];
    const NAMES: [&str; 7] = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "preprocessor_config.json",
    ];
    let mut names = file_names(folder)?;
    names.retain(|n| NAMES.contains(&n.as_str()) || STARTS.iter().any(|s| n.starts_with(s)));
    Ok(names.into_iter().map(|n| folder.join(n)).collect())
}

/// A name of the input in a message: not too long, nothing that steers a terminal.
fn shown(name: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    name.chars().take(120).map(printable).collect()
}

/// The folder of a file; `.` for a bare name.
fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests;
