//! Kinds of terms that plugins define: through text, folders, runs and ONNX.

use std::path::Path;
use std::process::Command;

use super::common::{library, text, works};

const LINEAR: &str = "hlir 1\nmodule \"m\" {\n  weight @q.weight : f32[40,24] = synthetic(seed=1, power=1.2, scale=0.02, outliers=0.01)\n  graph @main(%x : f32[B,24]) -> (%y) {\n    %y = linear %x [40,24] { dense(@q.weight) } name(\"q\") : f32[B,40]\n  }\n}\n";

#[test]
fn terms_survive_files_and_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let model = std::fs::canonicalize("tests/fixtures/stories260K").expect("the fixture");
    let (model, plugin) = (model.to_str().expect("utf-8"), library("kmeans4"));
    let load = ["--load-pass-plugin", plugin.to_str().expect("utf-8")];
    let with = |arguments: &[&str]| works(here, &[arguments, &load[..]].concat());
    with(&[model, "-p", "lowrank{rank=4},kmeans4", "-o", "a.hlrc", "-q"]);
    assert!(with(&["verify", "a.hlrc", "-q"]).starts_with("sound"));
    assert!(!with(&["verify", "a.hlrc", "-q"]).contains("not checked"));
    // A second generation, and text in between, change nothing.
    with(&["a.hlrc", "-p", "canonicalize", "-o", "b.hlrc", "-q"]);
    with(&["diff", "a.hlrc", "b.hlrc", "--max-error", "0", "-q"]);
    let prompt = ["--temperature", "0", "-n", "12", "-q"];
    let run = |model: &str, more: &[&str]| {
        with(&[&["run", model, "-p", "Once upon a time"], &prompt[..], more].concat())
    };
    let here_said = run("a.hlrc", &[]);
    assert!(!here_said.trim().is_empty());
    assert_eq!(here_said, run("b.hlrc", &["--threads", "3"]));
    assert_eq!(here_said, run("a.hlrc", &["--isolate-plugins"]));
}

#[test]
fn a_backward_rule_is_the_derivative() {
    use hlrc::pass::kind::{CustomView, TensorView, find};
    use hlrc::weights::DType;

    hlrc::pass::plugin::load(&library("kmeans4"), false).expect("it loads");
    let kind = find("kmeans4.codebook").expect("its kind");
    let (rows, cols) = (2usize, 5usize);
    let codes: Vec<u8> = vec![0x21, 0x32, 0x01, 0x55, 0x5f, 0x0f];
    let decode = |values: &[f32]| -> Vec<f32> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|&x| half::f16::from_f32(x).to_le_bytes())
            .collect();
        let attrs = serde_json::Map::new();
        let view = view(rows, cols, &attrs, &codes, &bytes);
        let mut out = vec![0f32; rows * cols];
        kind.add_rows(&view, 0..rows, &mut out).expect("it decodes");
        out
    };
    fn view<'a>(
        rows: usize,
        cols: usize,
        attrs: &'a serde_json::Map<String, serde_json::Value>,
        codes: &'a [u8],
        values: &'a [u8],
    ) -> CustomView<'a> {
        let tensor = |name, dtype, shape, bytes| TensorView {
            name,
            dtype,
            shape,
            bytes,
        };
        CustomView {
            rows,
            cols,
            attrs,
            tensors: vec![
                tensor("codes", DType::U8, &[2, 3], codes),
                tensor("values", DType::F16, &[2, 16], values),
            ],
        }
    }
    let values: Vec<f32> = (0..32).map(|i| i as f32 / 8.0).collect();
    let dw: Vec<f32> = (0..rows * cols).map(|i| 1.0 + i as f32).collect();
    let loss = |values: &[f32]| -> f32 { decode(values).iter().zip(&dw).map(|(w, g)| w * g).sum() };
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|&x| half::f16::from_f32(x).to_le_bytes())
        .collect();
    let attrs = serde_json::Map::new();
    let made = kind.backward(&view(rows, cols, &attrs, &codes, &bytes), &dw);
    let made = made.expect("a rule").expect("gradients");
    assert!(made[0].iter().all(|&g| g == 0.0));
    for i in 0..values.len() {
        let mut moved = values.clone();
        moved[i] += 0.5;
        let slope = (loss(&moved) - loss(&values)) / 0.5;
        assert!(
            (slope - made[1][i]).abs() < 1e-3,
            "value {i}: {slope} against {}",
            made[1][i]
        );
    }
}

/// Decodes what the plugin stored, independently, and compares with what ONNX Runtime computes.
const CHECK: &str = r#"
import json, struct, sys, glob, numpy, onnxruntime
folder, codebook, dense = sys.argv[1:4]
tensors = {}
for name in glob.glob(folder + "/*.safetensors"):
    raw = open(name, "rb").read()
    size = struct.unpack("<Q", raw[:8])[0]
    for key, about in json.loads(raw[8:8 + size]).items():
        if key != "__metadata__":
            a, b = about["data_offsets"]
            tensors[key] = (about["dtype"], about["shape"], raw[8 + size + a:8 + size + b])
pick = lambda end: next(v for k, v in tensors.items() if k.endswith(end))
_, shape, raw = pick(".codes")
packed = numpy.frombuffer(raw, numpy.uint8).reshape(shape)
codes = numpy.stack([packed & 15, packed >> 4], -1).reshape(shape[0], -1)
_, shape, raw = pick(".values")
values = numpy.frombuffer(raw, numpy.float16).reshape(shape).astype(numpy.float32)
matrix = numpy.take_along_axis(values, codes.astype(numpy.int64), 1)
for path in (codebook, dense):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    got = session.run(None, {name: numpy.eye(matrix.shape[1], dtype=numpy.float32)})[0].T
    if path == codebook:
        assert numpy.abs(got - matrix).max() <= 1e-6, numpy.abs(got - matrix).max()
        ops = open(path, "rb").read()
        assert b"GatherElements" in ops
    else:
        assert got.shape == matrix.shape and numpy.isfinite(got).all() and numpy.abs(got).max() > 0
print("same")
"#;

#[test]
fn onnx_runtime_computes_what_the_plugin_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    std::fs::write(here.join("m.hlir"), LINEAR).expect("written");
    let (kmeans, rows) = (library("kmeans4"), library("row-scale"));
    let (kmeans, rows) = (
        kmeans.to_str().expect("utf-8"),
        rows.to_str().expect("utf-8"),
    );
    works(
        here,
        &[
            "m.hlir",
            "-p",
            "kmeans4",
            "-o",
            "k.hlrc",
            "-q",
            "--load-pass-plugin",
            kmeans,
        ],
    );
    works(
        here,
        &["k.hlrc", "-o", "k.onnx", "-q", "--load-pass-plugin", kmeans],
    );
    works(
        here,
        &[
            "m.hlir",
            "-p",
            "kmeans4",
            "-o",
            "one.onnx",
            "-q",
            "--load-pass-plugin",
            kmeans,
        ],
    );
    works(
        here,
        &[
            "m.hlir",
            "-p",
            "row-scale",
            "-o",
            "r.onnx",
            "-q",
            "--load-pass-plugin",
            rows,
        ],
    );
    let python = std::env::current_dir()
        .expect("a folder")
        .join("target/venv/bin/python");
    let output = Command::new(&python)
        .args(["-c", CHECK, "k.hlrc", "k.onnx", "r.onnx"])
        .current_dir(here as &Path)
        .output();
    let Ok(output) = output else {
        println!("skipped: {} is not there", python.display());
        return;
    };
    assert!(
        text(&output.stdout).contains("same"),
        "{}",
        text(&output.stderr)
    );
}
