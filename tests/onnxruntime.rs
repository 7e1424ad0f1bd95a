//! What ONNX Runtime makes of the ONNX files written here.
//!
//! The scripts in `tests/peers/` share no code with the tool: they decode terms with numpy by the
//! layout in `docs/format.md`. They need a Python with numpy, onnx and onnxruntime: `HLRC_PYTHON`, or
//! `target/venv` as `.ci/run` makes it. Without one these tests say so and skip.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{model, python, succeed};
use hlrc::exec::{Data, Engine, Options, Tensor};
use hlrc::import::{Input, open};
use hlrc::weights::{DType, FileCache, Header, MappedFile};
use npyz::WriterBuilder as _;

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

const PIPELINES: [&str; 12] = [
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
    "rotate,int4",
    "outlier,rotate,int3",
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

/// A checkpoint with its f16 tensors as bf16.
fn as_bf16(source: &Path, to: &Path) -> PathBuf {
    let file = MappedFile::open(&source.join("model.safetensors")).expect("opened");
    let header = Header::read(&file).expect("a header");
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for tensor in &header.tensors {
        assert_eq!(tensor.dtype, DType::F16, "{}", tensor.name);
        let from = data.len();
        let bytes = file.slice(tensor.offset, tensor.bytes).expect("inside");
        for pair in bytes.as_chunks::<2>().0 {
            let value = half::bf16::from_f32(half::f16::from_le_bytes(*pair).to_f32());
            data.extend_from_slice(&value.to_le_bytes());
        }
        let (name, shape, end) = (&tensor.name, &tensor.shape, data.len());
        let entry = format!(
            r#""{name}":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{from},{end}]}}"#
        );
        entries.push(entry);
    }
    let text = format!("{{{}}}", entries.join(","));
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(&data);
    std::fs::create_dir_all(to).expect("a folder");
    std::fs::write(to.join("model.safetensors"), out).expect("written");
    std::fs::copy(source.join("config.json"), to.join("config.json")).expect("copied");
    to.to_path_buf()
}

/// ONNX Runtime loads the exported file, and computes what the checkpoint does here.
fn exports_equal(python: &str, checkpoint: &Path, pipeline: &str) {
    let shown = format!("{} {pipeline}", checkpoint.display());
    let dir = tempfile::tempdir().expect("a folder");
    let (onnx, folder) = (dir.path().join("m.onnx"), dir.path().join("m.hlrc"));
    for out in [&onnx, &folder] {
        succeed(
            tool()
                .arg(checkpoint)
                .args(["-p", pipeline])
                .arg("-o")
                .arg(out),
        );
    }
    let files = FileCache::new();
    let module = open(&Input::Path(folder), &files).expect("imports").module;
    let engine = Engine::new(&module, &files, &Options::default()).expect("runs");
    let mut given = Vec::new();
    for port in engine.inputs() {
        let values: Vec<i64> = (0..22)
            .map(|i| match port.name.as_str() {
                "input_ids" => (i * 31 + 7) % 90 + 3,
                name => i64::from(name == "attention_mask"),
            })
            .collect();
        let file = std::fs::File::create(dir.path().join(format!("in_{}.npy", port.name)));
        let options = npyz::WriteOptions::new().default_dtype().shape(&[2, 11]);
        let mut writer = options
            .writer(file.expect("made"))
            .begin_nd()
            .expect("begun");
        writer.extend(values.iter().copied()).expect("written");
        writer.finish().expect("finished");
        given.push((port.name.clone(), Tensor::i64(&[2, 11], values)));
    }
    let mut script = Command::new(python);
    script
        .arg("tests/peers/ort_outputs.py")
        .arg(&onnx)
        .arg(dir.path());
    succeed(&mut script);
    let given: Vec<_> = given.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    for (name, ours) in engine.run(&given).expect("runs") {
        let bytes = std::fs::read(dir.path().join(format!("out_{name}.npy"))).expect("an output");
        let theirs = npyz::NpyFile::new(&bytes[..]).expect("an array");
        let theirs: Vec<f32> = theirs.into_vec().expect("floats");
        let Data::F32(ours) = &ours.data else {
            panic!("{shown}: {name} is no floats");
        };
        assert_eq!(ours.len(), theirs.len(), "{shown}: {name}");
        let top = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
        let gaps = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
        let worst = gaps.fold(0f32, f32::max) / top;
        println!("{shown}: {name}: {worst:.1e}");
        assert!(worst <= 1e-3, "{shown}: {name}: {worst}");
    }
}

/// Biases and gains that are stored in half precision meet activations in f32.
#[test]
fn half_precision_checkpoints_run_in_onnx_runtime() {
    let Some(python) = python(PEERS) else { return };
    let scratch = tempfile::tempdir().expect("a folder");
    for family in ["gpt2", "qwen2", "llama", "bert", "gemma2", "mixtral"] {
        let halves = Path::new("tests/fixtures/families").join(family);
        let shorter = as_bf16(&halves, &scratch.path().join(family));
        for checkpoint in [&halves, &shorter] {
            exports_equal(&python, checkpoint, "canonicalize");
        }
        exports_equal(&python, &shorter, "int8");
    }
}
