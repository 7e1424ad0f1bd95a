//! Messages and payloads → files.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::lower::Lowered;
use super::{ExportError, Exported, Options, external};
use crate::ir::{Module, Storage};
use crate::onnx::mapping::{Builder, SourceKind, Sources};
use crate::onnx::message::Blob;
use crate::onnx::{Payloads, encode, encoded_len};
use crate::store::{Reader, file_path};
use crate::weights::FileCache;

/// Protobuf readers refuse messages of 2 GiB; below that by a margin.
const LARGEST_MODEL: u64 = (1 << 31) - (1 << 20);

/// Bytes copied at once.
const CHUNK: u64 = 1 << 20;

/// Writes what [`super::lower::lower`] made. See [`super::export`].
pub(super) fn write(
    module: &Module,
    lowered: Lowered,
    cache: &FileCache,
    path: &Path,
    options: Options,
) -> Result<Exported, ExportError> {
    let Lowered {
        module: out,
        recipes,
        notes,
        changed,
    } = lowered;
    let mut sources = Sources::new("".into());
    let mut message = Builder::model(&out, &mut sources)?;
    let reader = Reader::new(cache);
    let payloads = Bytes {
        module,
        reader: &reader,
        cache,
        sources: &sources,
        recipes: &recipes,
    };
    let mut exported = Exported {
        notes,
        ..Exported::default()
    };
    let mut files = Staged::default();
    let was_external = module
        .weights
        .iter()
        .any(|w| w.meta.get("external_data").is_some());
    let folder = path.parent().unwrap_or(Path::new(""));
    let outside = options.external || (changed && was_external);
    if outside || encoded_len(&message) > LARGEST_MODEL {
        let name = path
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let location = format!("{name}.data");
        let (data, _) = external::move_out(&mut message, &location);
        if !data.is_empty() {
            may_replace(&folder.join(&location), module, options)?;
            files.write(&folder.join(&location), |out| {
                write_data(&data, &payloads, out)
            })?;
        }
    }
    if !changed && was_external {
        copy_data(module, cache, folder, options, &mut files)?;
    }
    files.write(path, |out| encode(&message, &payloads, out))?;
    exported.files = files.commit()?;
    for file in &exported.files {
        exported.bytes += std::fs::metadata(file).map_or(0, |meta| meta.len());
    }
    exported.files.reverse();
    Ok(exported)
}

/// The data file: tensors at their offsets, zeros between.
fn write_data(data: &[(u64, Blob)], payloads: &Bytes<'_>, out: &mut dyn Write) -> io::Result<()> {
    let mut at = 0;
    for (offset, blob) in data {
        let zeros = [0; external::ALIGNMENT as usize];
        let gap = usize::try_from(offset - at).unwrap_or(0).min(zeros.len());
        out.write_all(zeros.get(..gap).unwrap_or(&zeros))?;
        match blob {
            Blob::Owned(bytes) => out.write_all(bytes)?,
            Blob::At {
                source,
                offset,
                len,
            } => payloads.copy(*source, *offset, *len, out)?,
        }
        at = offset + blob.len();
    }
    Ok(())
}

/// Whether a file of external data may be written there: never over the input's own.
fn may_replace(target: &Path, module: &Module, options: Options) -> Result<(), ExportError> {
    if target.symlink_metadata().is_err() {
        return Ok(());
    }
    let mut inputs = module.weights.iter().filter_map(|w| match &w.storage {
        Storage::File { path, .. } => Some(file_path(module, path)),
        _ => None,
    });
    if inputs.any(|path| external::same_file(&path, target)) {
        return Err(ExportError::InUse(target.to_path_buf()));
    }
    match options.replace {
        true => Ok(()),
        false => Err(ExportError::Exists(target.to_path_buf())),
    }
}

/// Copies the files of external data beside a model that is written elsewhere.
fn copy_data(
    module: &Module,
    cache: &FileCache,
    folder: &Path,
    options: Options,
    files: &mut Staged,
) -> Result<(), ExportError> {
    for (location, path) in external::locations(module) {
        let target = folder.join(&location);
        if external::same_file(&path, &target) {
            continue;
        }
        may_replace(&target, module, options)?;
        let file = cache.open(&path)?;
        if let Some(parent) = target
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            std::fs::create_dir_all(parent).map_err(|source| ExportError::Write {
                path: parent.to_path_buf(),
                source,
            })?;
        }
        files.write(&target, |out| copy_range(&file, 0, file.len(), out))?;
    }
    Ok(())
}

fn copy_range(
    file: &crate::weights::MappedFile,
    offset: u64,
    len: u64,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let step = CHUNK.min(len - done);
        let bytes = file.slice(offset + done, step).map_err(io::Error::other)?;
        out.write_all(bytes)?;
        file.release(offset + done, step);
        done += step;
    }
    Ok(())
}

/// Files written under temporary names until all are complete.
#[derive(Default)]
struct Staged {
    files: Vec<(PathBuf, PathBuf)>,
}

impl Staged {
    fn write(
        &mut self,
        path: &Path,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), ExportError> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".writing");
        let partial = path.with_file_name(name);
        let fault = |source| ExportError::Write {
            path: path.to_path_buf(),
            source,
        };
        let file = File::create(&partial).map_err(fault)?;
        self.files.push((partial, path.to_path_buf()));
        let mut out = BufWriter::with_capacity(1 << 18, file);
        fill(&mut out).map_err(fault)?;
        out.flush().map_err(fault)
    }

    /// Gives the files their names: data first, the model last.
    fn commit(mut self) -> Result<Vec<PathBuf>, ExportError> {
        let mut done = Vec::new();
        for (partial, path) in std::mem::take(&mut self.files) {
            if let Err(source) = std::fs::rename(&partial, &path) {
                let _ = std::fs::remove_file(&partial);
                return Err(ExportError::Write { path, source });
            }
            done.push(path);
        }
        Ok(done)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for (partial, _) in &self.files {
            let _ = std::fs::remove_file(partial);
        }
    }
}

/// Payloads of the messages: files as they are, new tensors by recipe.
struct Bytes<'a> {
    module: &'a Module,
    reader: &'a Reader<'a>,
    cache: &'a FileCache,
    sources: &'a Sources,
    recipes: &'a std::collections::HashMap<String, super::recipe::Recipe>,
}

impl Payloads for Bytes<'_> {
    fn copy(&self, source: u32, offset: u64, len: u64, out: &mut dyn Write) -> io::Result<()> {
        match self.sources.get(source) {
            Some(SourceKind::File(path)) => {
                let path = file_path(self.module, path);
                let file = self.cache.open(&path).map_err(io::Error::other)?;
                copy_range(&file, offset, len, out)
            }
            Some(SourceKind::Generated(name)) => {
                let bytes = self.generated(name)?;
                if bytes.len() as u64 != len {
                    let what = format!("tensor {name:?} has {} bytes, needs {len}", bytes.len());
                    return Err(io::Error::other(what));
                }
                out.write_all(&bytes)
            }
            None => Err(io::Error::other(format!("no source {source}"))),
        }
    }
}

impl Bytes<'_> {
    fn generated(&self, name: &str) -> io::Result<Vec<u8>> {
        if let Some(recipe) = self.recipes.get(name) {
            return recipe
                .bytes(self.module, self.reader)
                .map_err(io::Error::other);
        }
        // Synthetic weights have no file either.
        let named = |weight: &&crate::ir::Weight| weight.name == name;
        let weight = self.module.weights.iter().find(named);
        let weight =
            weight.ok_or_else(|| io::Error::other(format!("tensor {name:?} has no data")))?;
        let located = self
            .reader
            .locate(self.module, weight)
            .map_err(io::Error::other)?;
        Ok(located.bytes().map_err(io::Error::other)?.to_vec())
    }
}
