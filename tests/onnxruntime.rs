//! What ONNX Runtime makes of the ONNX files written here.
//!
//! The scripts in `tests/peers/` share no code with the tool: they decode terms with numpy by the
//! layout in `docs/format.md`. They need a Python with numpy, onnx and onnxruntime: `HLRC_PYTHON`, or
//! `target/venv` as `.ci/run` makes it. Without one these tests say so and skip.

mod common;

use std::path::Path;
use std::process::Command;

use common::{model, python, succeed};

/// What the scripts import.
const PEERS: &str = "numpy, onnx, onnxruntime";

const STORIES: &str = "tests/fixtures/stories260K/stories260K.onnx";

fn tool() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.arg("-q");
    command
}

/// Import, print, parse, export: the same file, and the same outputs to the bit.
fn comes_back(python: &str, source: &Path) {
    let dir = tempfile::tempdir().expect("a folder");
    let (text, copy) = (dir.path().join("m.hlir"), dir.path().join("m.onnx"));
    succeed(tool().arg(source).arg("-S").arg("-o").arg(&text));
    succeed(tool().arg(&text).arg("-o").arg(&copy));
    let mut check = Command::new(python);
    check.args(["tests/peers/crosscheck.py", "same"]);
    let said = succeed(check.arg(source).arg(&copy));
    assert!(said.contains("byte-identical"), "{said}");
}

/// The rewritten ONNX file equals a float model whose weights are the sums of the terms.
fn equals_its_terms(python: &str, source: &Path, pipeline: &str, form: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let (folder, file) = (dir.path().join("m.hlrc"), dir.path().join("m.onnx"));
    succeed(
        tool()
            .arg(source)
            .args(["-p", pipeline])
            .arg("-o")
            .arg(&folder),
    );
    let mut export = tool();
    export
        .arg(source)
        .args(["-p", pipeline, form])
        .arg("-o")
        .arg(&file);
    succeed(&mut export);
    let mut check = Command::new(python);
    check.args(["tests/peers/crosscheck.py", "terms"]);
    succeed(check.arg(source).arg(&folder).arg(&file).arg("1e-4"));
}

const PIPELINES: [&str; 10] = [
    "lowrank{rank=32},outlier,int4",
    "lowrank{rank=32}",
    "lowrank{depth=2 rank=16}",
    "outlier,int4",
    "outlier{columns=true density=2%},int4",
    "int8",
    "int4",
    "int4{asymmetric}",
    "int3",
    "int2",
];

#[test]
fn untouched_models_come_back() {
    let Some(python) = python(PEERS) else { return };
    comes_back(&python, Path::new(STORIES));
    let mut sources = Vec::from_iter(model("paraphrase-MiniLM-L3-v2.onnx"));
    if let Some(folder) = model("silero-vad") {
        let files = std::fs::read_dir(folder).expect("a folder");
        let paths = files.filter_map(|f| f.ok().map(|f| f.path()));
        sources.extend(paths.filter(|p| p.extension().is_some_and(|e| e == "onnx")));
    }
    for source in sources {
        comes_back(&python, &source);
    }
}

#[test]
fn rewritten_models_equal_their_terms() {
    let Some(python) = python(PEERS) else { return };
    for pipeline in PIPELINES {
        // Its feed-forward width of 172 leaves a tail in every group.
        equals_its_terms(&python, Path::new(STORIES), pipeline, "--onnx-quant=nbits");
    }
    equals_its_terms(&python, Path::new(STORIES), "int4", "--onnx-quant=qdq");
    let Some(minilm) = model("paraphrase-MiniLM-L3-v2.onnx") else {
        return;
    };
    for pipeline in PIPELINES {
        equals_its_terms(&python, &minilm, pipeline, "--onnx-quant=nbits");
    }
    equals_its_terms(
        &python,
        &minilm,
        "int4,embeddings(int8)",
        "--onnx-quant=nbits",
    );
    equals_its_terms(&python, &minilm, "int4", "--onnx-quant=qdq");
}

#[test]
fn every_spelling_of_a_linear_is_found() {
    let Some(python) = python(PEERS) else { return };
    for form in ["--onnx-quant=nbits", "--onnx-quant=qdq"] {
        let mut check = Command::new(&python);
        check.arg("tests/peers/spellings.py");
        succeed(check.arg(env!("CARGO_BIN_EXE_hlrc-opt")).arg(form));
    }
}

#[test]
fn native_ops_equal_numpy() {
    let Some(python) = python(PEERS) else { return };
    let mut check = Command::new(python);
    check.arg("tests/peers/native_onnx.py");
    succeed(check.arg(env!("CARGO_BIN_EXE_hlrc-opt")));
}
