//! ONNX ops that have no kernel run in tract, with ONNX Runtime's results.
//!
//! Needs a Python with numpy and onnxruntime, and the models of `../shared/models/make.py`; what is
//! absent is skipped with a message.
#![cfg(feature = "tract")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{model, python};
use hlrc::exec::{Data, Engine, ExecError, Options, Tensor};
use hlrc::import::Input;
use hlrc::weights::FileCache;

fn load(path: &Path) -> Tensor {
    let bytes = std::fs::read(path).expect("the script wrote it");
    let file = npyz::NpyFile::new(&bytes[..]).expect("an array");
    let shape: Vec<usize> = file.shape().iter().map(|&d| d as usize).collect();
    let integer =
        matches!(file.dtype(), npyz::DType::Plain(t) if t.type_char() == npyz::TypeChar::Int);
    let data = if integer {
        Data::I64(file.into_vec().expect("integers"))
    } else {
        Data::F32(file.into_vec().expect("floats"))
    };
    Tensor { shape, data }
}

/// Runs a model on inputs of the script's choice, and compares every output.
fn equals_onnx_runtime(python: &str, path: &Path, shapes: &[&str]) -> Result<(), ExecError> {
    let dir = tempfile::tempdir().expect("a folder");
    let mut script = Command::new(python);
    script.arg("tests/peers/ort_outputs.py").arg(path);
    script.arg(dir.path()).args(shapes);
    let shown = path.display();
    assert!(script.status().expect("python").success(), "{shown}");
    let files = FileCache::new();
    let module = hlrc::import::open(&Input::Path(path.into()), &files).expect("imports");
    let engine = Engine::new(&module.module, &files, &Options::default())?;
    let names: Vec<String> = engine.inputs().iter().map(|p| p.name.clone()).collect();
    let given = |name: &String| load(&dir.path().join(format!("in_{name}.npy")));
    let inputs: Vec<_> = names.iter().map(|n| (n.as_str(), given(n))).collect();
    let outputs = engine.run(&inputs)?;
    assert!(!outputs.is_empty());
    for (name, actual) in outputs {
        let expected = load(&dir.path().join(format!("out_{name}.npy")));
        assert_eq!(actual.shape, expected.shape, "{shown} {name}");
        let (Some(a), Some(e)) = (actual.floats(), expected.floats()) else {
            assert_eq!(actual, expected, "{shown} {name}");
            continue;
        };
        let top = e.iter().fold(0f32, |m, x| m.max(x.abs()));
        let gaps = a.iter().zip(e).map(|(x, y)| (x - y).abs());
        let worst = gaps.fold(0f32, f32::max);
        println!("{shown} {name}: {:.1e}", worst / top);
        assert!(worst <= 1e-4 * top, "{shown} {name}: {worst} of {top}");
    }
    Ok(())
}

#[test]
fn a_transformer_runs_whole_in_tract() {
    let Some(python) = python("numpy, onnxruntime") else {
        return;
    };
    let stories = Path::new("tests/fixtures/stories260K/stories260K.onnx");
    equals_onnx_runtime(&python, stories, &["input_ids=2,12"]).expect("runs");
    if let Some(path) = model("paraphrase-MiniLM-L3-v2.onnx") {
        let shapes = ["input_ids=2,9", "attention_mask=2,9"];
        equals_onnx_runtime(&python, &path, &shapes).expect("runs");
    }
}

#[test]
fn voice_models_run_in_tract_or_are_refused_by_name() {
    let Some(python) = python("numpy, onnxruntime") else {
        return;
    };
    let Some(folder) = model("silero-vad") else {
        return;
    };
    let run = |name: &str, shapes: &[&str]| {
        let result = equals_onnx_runtime(&python, &folder.join(name), shapes);
        println!("{name}: {result:?}");
        result
    };
    run("silero_vad_openvino_16k.onnx", &[]).expect("runs");
    let shapes = ["input=1,576", "state=2,1,128"];
    // tract types an If only where both branches have one shape.
    let refused = run("silero_vad_16k_op15.onnx", &shapes).expect_err("its If has two shapes");
    assert!(refused.to_string().contains("If"), "{refused}");
    for name in ["silero_vad_op18_ifless.onnx", "silero_vad_half.onnx"] {
        let _seen = run(name, &shapes);
    }
    let _seen = run("silero_vad_16k_sequence.onnx", &["input=4,576"]);
}

#[test]
fn a_refusal_names_the_op() {
    let text = r#"hlir 1
module "m" meta{format="onnx", ir_version=8, opset_import=[{version=17}]} {
  graph @main(%x : f32[2]) -> (%y) {
    %y = onnx.NoSuchOp(%x) name("odd") : f32[2]
  }
}
"#;
    let module = hlrc::ir::text::parse(text).expect("parses");
    let files = FileCache::new();
    let x = Tensor::f32(&[2], vec![1.0, 2.0]);
    let error = Engine::new(&module, &files, &Options::default())
        .and_then(|engine| engine.run(&[("x", x)]).map(|_| ()))
        .expect_err("there is no such op");
    assert!(error.to_string().contains("NoSuchOp"), "{error}");
}

/// Of a run of many kinds of ops the one that tract does not read.
#[test]
fn a_refusal_names_the_one_of_many_ops() {
    let text = r#"hlir 1
module "m" meta{format="onnx", ir_version=8, opset_import=[{version=17}]} {
  weight @c : bf16[2] = hex"803f0040"
  graph @main(%x : f32[2]) -> (%y) {
    %a = onnx.Neg(%x) name("first")
    %b = onnx.Exp(%a) name("second")
    %c = onnx.Abs(%b) name("third")
    %d = onnx.Ceil(%c) name("fourth")
    %e = onnx.Max(%d, @c) name("odd")
    %y = onnx.Floor(%e) name("last")
  }
}
"#;
    let module = hlrc::ir::text::parse(text).expect("parses");
    let engine = Engine::new(&module, &FileCache::new(), &Options::default());
    let error = engine.err().expect("tract has no bf16");
    let ExecError::Unsupported { op, name, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!((op.as_str(), name.as_str()), ("onnx.Max", "odd"), "{error}");
}

/// Half-precision graphs of which some ops are raised: between linears in f32, tract's ops have f16
/// constants of their own.
#[test]
fn half_precision_graphs_raised_in_part_run() {
    let half = |values: &[f32]| -> String {
        let halves = values.iter().map(|&x| half::f16::from_f32(x));
        let bytes = halves.flat_map(half::f16::to_le_bytes);
        bytes.map(|b| format!("{b:02x}")).collect()
    };
    let text = format!(
        r#"hlir 1
module "m" meta{{format="onnx", ir_version=8, opset_import=[{{version=17}}]}} {{
  weight @a : f16[2,3] = hex"{}"
  weight @c : f16[3] = hex"{}"
  weight @b : f16[3,2] = hex"{}"
  graph @main(%x : f16[1,4,2]) -> (%y) {{
    %p = onnx.MatMul(%x, @a) name("up")DECLARED
    %q = onnx.Max(%p, @c) name("clamp")DECLARED
    %y = onnx.MatMul(%q, @b) name("down")
  }}
}}
"#,
        half(&[1.0, 2.0, -1.0, 0.5, -2.0, 1.0]),
        half(&[0.25, -0.5, 1.0]),
        half(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]),
    );
    let x = [1.0, 2.0, -1.0, 0.5, 3.0, -1.0, 0.0, 0.25];
    for declared in ["", " : f16[1,4,3]"] {
        let text = text.replace("DECLARED", declared);
        let mut module = hlrc::ir::text::parse(&text).expect("parses");
        hlrc::passes::raise::raise_to_run(&mut module).expect("raises");
        let ops = &module.graphs[0].ops;
        let linears = ops.iter().filter(|op| op.kind.matrix().is_some()).count();
        assert!(
            (1..ops.len()).contains(&linears),
            "{linears} of {}",
            ops.len()
        );
        let files = FileCache::new();
        let made = Engine::new(&module, &files, &Options::default())
            .and_then(|engine| engine.run(&[("x", Tensor::f32(&[1, 4, 2], x.to_vec()))]))
            .unwrap_or_else(|error| panic!("{declared}: {error}"));
        let wanted = x.chunks(2).flat_map(|x| {
            let (a, b) = (x[0], x[1]);
            let p = [a + 0.5 * b, 2.0 * a - 2.0 * b, b - a];
            let q = [p[0].max(0.25), p[1].max(-0.5), p[2].max(1.0)];
            [q[0] + q[2], q[1] + q[2]]
        });
        let wanted: Vec<f32> = wanted.collect();
        assert_eq!(made[0].1.floats(), Some(&wanted[..]), "{declared}");
    }
}

#[test]
fn masks_and_numbers_between_runs_keep_their_types() {
    let dir = tempfile::tempdir().expect("a folder");
    for family in ["mixtral", "qwen3_moe", "llama_yarn"] {
        let source = Path::new("tests/fixtures/families").join(family);
        let files = FileCache::new();
        let open = |path: &Path| hlrc::import::open(&Input::Path(path.into()), &files);
        let module = open(&source).expect("imports").module;
        let logits = |module: &hlrc::ir::Module| {
            let engine = Engine::new(module, &files, &Options::default())?;
            let port = engine.inputs().first().map(|p| p.name.clone());
            let ids = Tensor::i64(&[1, 5], vec![3, 1, 4, 1, 5]);
            let outputs = engine.run(&[(port.as_deref().unwrap_or("input_ids"), ids)])?;
            let logits = outputs
                .first()
                .and_then(|(_, t)| t.floats())
                .expect("floats");
            Ok::<_, ExecError>(logits.to_vec())
        };
        let wanted = logits(&module).expect("runs");
        let path = dir.path().join(format!("{family}.onnx"));
        let options = hlrc::export::onnx::Options::default();
        hlrc::export::onnx::export(&module, &files, &path, options).expect("exports");
        let mut exported = open(&path).expect("imports").module;
        hlrc::passes::raise::raise_to_run(&mut exported).expect("raises");
        let found = logits(&exported);
        let found = found.unwrap_or_else(|e| panic!("{family}: {e}"));
        let top = wanted.iter().fold(0f32, |m, x| m.max(x.abs()));
        let gaps = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
        let worst = gaps.fold(0f32, f32::max);
        println!("{family}: {:.1e}", worst / top);
        assert!(worst <= 1e-4 * top, "{family}: {worst} of {top}");
    }
}
