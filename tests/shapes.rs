//! Inferred shapes against the python package's inference and against what ONNX Runtime computes.
//!
//! Needs a Python with numpy, onnx and onnxruntime, as `tests/onnxruntime.rs` does, and skips
//! without. The check is `tests/peers/shapes.py`.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::python;
use hlrc::import::{self, Input};
use hlrc::ir::Dim;
use hlrc::store;
use hlrc::weights::FileCache;

const STORIES: &str = "tests/fixtures/stories260K/stories260K.onnx";

/// Every value's name, element type and dimensions, one line each, tabs between.
fn table(path: &Path) -> String {
    let module = import::open(&Input::named(path), &FileCache::new())
        .unwrap_or_else(|e| panic!("{e}"))
        .module;
    let shapes = store::shapes(&module);
    let mut lines = String::new();
    for (index, value) in module.graphs[0].values.iter().enumerate() {
        let Some(known) = shapes.of(0, hlrc::ir::ValueId::new(index)) else {
            continue;
        };
        let dtype = known.dtype.map_or("?", |dtype| dtype.name());
        let dim = |dim: &Dim| match dim {
            Dim::Known(size) => size.to_string(),
            Dim::Symbol(text) => text.clone(),
            Dim::Unknown => "?".to_owned(),
        };
        let dims = known.dims.as_ref();
        let dims = dims.map(|dims| dims.iter().map(dim).collect::<Vec<_>>().join("|"));
        let dims = dims.map_or("*".to_owned(), |dims| format!("[{dims}]"));
        lines.push_str(&format!("{}\t{dtype}\t{dims}\n", value.name));
    }
    lines
}

fn check(python: &str, path: &Path) {
    let dir = tempfile::tempdir().expect("a folder");
    let list = dir.path().join("shapes.tsv");
    std::fs::write(&list, table(path)).expect("written");
    let output = Command::new(python)
        .arg("tests/peers/shapes.py")
        .args([path, &list])
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{}: {said}", path.display());
    assert!(
        output.status.success(),
        "{}\n{said}{errors}",
        path.display()
    );
}

#[test]
fn inferred_shapes_agree_with_peers() {
    let Some(python) = python("numpy, onnx, onnxruntime") else {
        return;
    };
    let folder = std::env::var("HLRC_MODELS").unwrap_or_else(|_| "target/models".to_string());
    let mut sources = vec![PathBuf::from(STORIES)];
    for folder in [
        PathBuf::from(&folder),
        Path::new(&folder).join("silero-vad"),
    ] {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        sources.extend(paths.filter(|path| path.extension().is_some_and(|e| e == "onnx")));
    }
    for source in sources {
        check(&python, &source);
    }
}
