//! Rewritten models against an interpreter in numpy that shares no code with the tool.

use std::path::Path;
use std::process::Command;

use super::FAMILIES;
use super::common::{python, succeed};
use super::fixture::{Fixture, engine, exec, import};
use hlrc::exec::{Data, Tensor};

/// Pipelines that leave every kind of term, and the families that they are tried on.
const PIPELINES: [(&str, &[&str]); 17] = [
    ("int8", &["llama", "gpt2", "qwen3_moe_plain"]),
    ("int8{group=row}", &["gemma2"]),
    ("int8{group=column}", &["qwen3"]),
    ("int4,embeddings(int8)", &["gemma2", "bert"]),
    ("int4{asymmetric}", &["qwen2"]),
    ("int3", &["mistral", "gpt2"]),
    ("int2{group=32}", &["mixtral", "gemma3"]),
    ("fuse-siblings,int4", &["llama", "llama_yarn"]),
    ("lowrank{rank=8}", &["llama", "bert_masked_lm"]),
    ("lowrank{rank=4 factors=f16},outlier,int4", &["qwen3"]),
    ("lowrank{depth=1 rank=4 factors=int4}", &["mistral", "gpt2"]),
    ("multilevel,int4", &["llama_dynamic"]),
    (
        "outlier{columns=true density=10%},int4",
        &["qwen3_moe", "gpt2"],
    ),
    ("outlier{density=5%}", &["qwen2"]),
    ("rotate,int4", &["llama", "gpt2"]),
    (
        "fold-rotations,int4",
        &["llama", "qwen2", "mixtral", "gpt2"],
    ),
    ("fold-rotations{down=false},rotate,int3", &["mistral"]),
];

fn tool(arguments: &[&Path]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    succeed(command.arg("-q").args(arguments));
}

/// A safetensors file of these tensors.
fn save(path: &Path, tensors: &[(&str, &Tensor)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, tensor) in tensors {
        let start = data.len();
        let dtype = match &tensor.data {
            Data::F32(values) => {
                data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
                "F32"
            }
            Data::I64(values) => {
                data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
                "I64"
            }
            other => panic!("{name}: {other:?}"),
        };
        let offsets = [start, data.len()];
        let entry =
            serde_json::json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": offsets});
        header.insert((*name).to_string(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(path, file).expect("written");
}

fn interpret(python: &str, module: &Path, expected: &Path, tolerance: &str) {
    let mut command = Command::new(python);
    command.arg("tests/peers/interpret.py");
    succeed(command.arg(module).arg(expected).arg(tolerance));
}

#[test]
fn the_interpreter_agrees_on_every_family() {
    let Some(python) = python("numpy, onnx, onnxruntime") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    for name in FAMILIES {
        let folder = Path::new("tests/fixtures/families").join(name);
        let module = dir.path().join(format!("{name}.hlir"));
        tool(&[&folder, Path::new("-S"), Path::new("-o"), &module]);
        interpret(
            &python,
            &module,
            &folder.join("expected.safetensors"),
            "1e-5",
        );
    }
}

#[test]
fn the_interpreter_agrees_on_rewritten_models() {
    let Some(python) = python("numpy, onnx, onnxruntime") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    for (number, (pipeline, families)) in PIPELINES.into_iter().enumerate() {
        for name in families {
            let fixture = Fixture::open(name);
            let folder = dir.path().join(format!("{name}-{number}.hlrc"));
            let source = Path::new("tests/fixtures/families").join(name);
            let arguments = ["-p", pipeline, "-o"].map(Path::new);
            tool(&[&source, arguments[0], arguments[1], arguments[2], &folder]);
            let (module, files) = import(&folder, &[]);
            let inputs = fixture.inputs();
            let outputs = exec(&engine(&module, &files, 2), &inputs);
            let mut known: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
            known.extend(outputs.iter().map(|(n, t)| (n.as_str(), t)));
            let expected = dir.path().join("expected.safetensors");
            save(&expected, &known);
            interpret(&python, &folder.join("module.hlir"), &expected, "1e-4");
        }
    }
}
