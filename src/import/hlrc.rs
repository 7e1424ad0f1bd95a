//! `.hlrc` folders, written by an earlier run: `module.hlir`, its shards, and `manifest.json`.

use std::path::{Component, Path};

use super::text;
use super::{Format, ImportError, Imported, Result, shown, sidecars, unrecognised};
use crate::export::hlrc::{FORMAT_VERSION, MANIFEST_FILE, MODULE_FILE, Manifest};
use crate::ir::{Module, Storage};
use crate::weights::FileCache;

/// Most bytes of a manifest that are read.
const MAX_MANIFEST: u64 = 64 << 20;

/// Imports a folder. Contents are not hashed here: `verify` does that.
pub(super) fn open(folder: &Path, cache: &FileCache) -> Result<Imported> {
    let (module_path, manifest_path) = (folder.join(MODULE_FILE), folder.join(MANIFEST_FILE));
    let manifest = manifest(&manifest_path)?;
    let file = std::fs::File::open(&module_path);
    let file = file.map_err(|e| ImportError::read(&module_path, e))?;
    let module = text::read(file, &module_path, folder.to_path_buf())?;
    check_confined(&module, &module_path)?;
    text::check_files(&module, &module_path, cache)?;
    let mut files = text::files(&module, &module_path);
    files.push(manifest_path);
    Ok(Imported {
        files,
        sidecars: sidecars(folder)?,
        pipelines: manifest.pipelines,
        ..Imported::bare(module, Format::Hlrc)
    })
}

fn manifest(path: &Path) -> Result<Manifest> {
    let meta = std::fs::metadata(path).map_err(|e| ImportError::read(path, e))?;
    if meta.len() > MAX_MANIFEST {
        let problem = format!("has {} bytes; at most {MAX_MANIFEST} are read", meta.len());
        return Err(ImportError::config(path, "", problem));
    }
    let bytes = std::fs::read(path).map_err(|e| ImportError::read(path, e))?;
    let fault = |field: &str, problem: String| ImportError::config(path, field, problem);
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| fault("", format!("is no JSON: {e}")))?;
    // The version first: what else a later one holds can't be told.
    match json.get("format_version").map(|v| (v, v.as_u64())) {
        Some((_, Some(version))) if (1..=u64::from(FORMAT_VERSION)).contains(&version) => {}
        Some((version, _)) => {
            let problem = format!("is {version}; this tool reads versions up to {FORMAT_VERSION}");
            return Err(fault("format_version", problem));
        }
        None => return Err(fault("format_version", "is missing".to_string())),
    }
    serde_json::from_value(json).map_err(|e| fault("", format!("is no manifest: {e}")))
}

/// A folder may come from anywhere, so its text may name no file outside of it.
fn check_confined(module: &Module, path: &Path) -> Result<()> {
    for (weight, part) in module.storage_parts() {
        let Storage::File { path: name, .. } = part else {
            continue;
        };
        let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if name.is_empty() || !Path::new(name.as_ref()).components().all(inside) {
            let (weight, name) = (shown(&weight.name), shown(name));
            let found = format!("weight @{weight} is in `{name}`, outside of the folder");
            return Err(unrecognised(
                path,
                found,
                "an output holds all of its weights itself",
            ));
        }
    }
    Ok(())
}
