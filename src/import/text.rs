//! Text IR, from a file or standard input.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Format, ImportError, Imported, Result, folder_of, shown, unrecognised};
use crate::ir::text::parse;
use crate::ir::{Module, Storage};
use crate::weights::{FileCache, MappedFile};

/// Most bytes of text that are read; a module of a thousand layers has a few million.
const MAX_TEXT: u64 = 1 << 30;

/// Imports a `.hlir` file; relative paths of weights start at its folder.
pub(super) fn file(path: &Path, cache: &FileCache) -> Result<Imported> {
    let file = std::fs::File::open(path).map_err(|e| ImportError::read(path, e))?;
    let module = read(file, path, folder_of(path))?;
    check_files(&module, path, cache)?;
    Ok(Imported {
        files: files(&module, path),
        ..Imported::bare(module, Format::Text)
    })
}

/// Imports standard input; relative paths of weights start at the working folder.
pub(super) fn stdin(cache: &FileCache) -> Result<Imported> {
    let path = Path::new("<stdin>");
    let module = read(std::io::stdin().lock(), path, PathBuf::from("."))?;
    check_files(&module, path, cache)?;
    Ok(Imported::bare(module, Format::Text))
}

/// Parses what `source` holds; `path` is for messages.
pub(super) fn read(source: impl Read, path: &Path, base_dir: PathBuf) -> Result<Module> {
    let mut content = Vec::new();
    let read = source.take(MAX_TEXT + 1).read_to_end(&mut content);
    read.map_err(|e| ImportError::read(path, e))?;
    if content.len() as u64 > MAX_TEXT {
        let found = format!("the text has more than {MAX_TEXT} bytes");
        return Err(unrecognised(
            path,
            found,
            "keep weights in files, not in the text",
        ));
    }
    let content = String::from_utf8(content).map_err(|e| {
        let found = format!(
            "is no text: byte {} is no UTF-8",
            e.utf8_error().valid_up_to()
        );
        unrecognised(path, found, "text IR begins with `hlir 1`")
    })?;
    let mut module = parse(&content).map_err(|source| ImportError::Text {
        path: path.to_path_buf(),
        source,
    })?;
    module.base_dir = base_dir;
    Ok(module)
}

/// Checks that the files of the weights are there and long enough; touches no data.
pub(super) fn check_files(module: &Module, path: &Path, cache: &FileCache) -> Result<()> {
    let mut opened: HashMap<&str, Arc<MappedFile>> = HashMap::new();
    for (weight, part) in module.storage_parts() {
        let Storage::File {
            path: name,
            offset,
            len,
            ..
        } = part
        else {
            continue;
        };
        let located = |source: &dyn std::fmt::Display| {
            let found = format!("weight @{}: {source}", shown(&weight.name));
            unrecognised(
                path,
                found,
                "paths of weights start at the folder of the text",
            )
        };
        let file = match opened.get(name.as_ref()) {
            Some(file) => file,
            None => {
                let file = cache.open(&module.base_dir.join(name.as_ref()));
                let file = file.map_err(|e| located(&e))?;
                opened.entry(name).or_insert(file)
            }
        };
        file.check(*offset, *len).map_err(|e| located(&e))?;
    }
    Ok(())
}

/// The text and the files that its weights are in, each once, in order.
pub(super) fn files(module: &Module, path: &Path) -> Vec<PathBuf> {
    let mut seen: HashMap<&str, ()> = HashMap::new();
    let mut files = vec![path.to_path_buf()];
    for (_, part) in module.storage_parts() {
        if let Storage::File { path: name, .. } = part
            && seen.insert(name, ()).is_none()
        {
            files.push(module.base_dir.join(name.as_ref()));
        }
    }
    files
}
