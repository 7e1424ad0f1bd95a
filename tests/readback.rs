//! What the ONNX exporter writes is read back as the terms that it was, and runs the same.

mod common;

use std::path::Path;
use std::process::Command;

use common::{model, succeed};
use hlrc::exec::{Engine, Options, Tensor};
use hlrc::import::{Input, open};
use hlrc::ir::{Module, OpKind};
use hlrc::passes::raise;
use hlrc::weights::FileCache;

/// Largest difference of logits, relative to the largest.
const TOLERANCE: f32 = 1e-4;

const PIPELINES: [&str; 6] = [
    "int8",
    "int4",
    "int3",
    "int2",
    "lowrank,outlier,int4",
    "int4,embeddings(int8)",
];

fn opened(path: &Path) -> Module {
    let imported = open(&Input::Path(path.to_path_buf()), &FileCache::new());
    let mut module = imported.expect("imports").module;
    for remark in raise::raise_to_run(&mut module).expect("raises") {
        println!("{}: {remark}", path.display());
    }
    module
}

/// Logits of some tokens.
fn logits(path: &Path) -> Vec<f32> {
    let module = opened(path);
    let ops = module.graphs.iter().flat_map(|g| &g.ops);
    let left = ops.filter_map(|op| match &op.kind {
        OpKind::Onnx(onnx) => Some(onnx.op_type.as_str()),
        _ => None,
    });
    let shown = path.display();
    assert_eq!(left.collect::<Vec<_>>(), Vec::<&str>::new(), "{shown}");
    let engine = Engine::new(&module, &FileCache::new(), &Options::default()).expect("runs");
    let ids: Vec<i64> = (0..24).map(|i| 1 + (i * 37) % 500).collect();
    let ports = engine.inputs().iter();
    let given: Vec<_> = ports
        .map(|p| (p.name.as_str(), Tensor::i64(&[1, 24], ids.clone())))
        .collect();
    let outputs = engine
        .run(&given)
        .unwrap_or_else(|e| panic!("{shown}: {e}"));
    let logits = outputs.first().and_then(|(_, t)| t.floats());
    logits.expect("logits").to_vec()
}

#[test]
fn exported_models_run_as_their_folders_do() {
    let Some(source) = model("stories260K") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let write = |pipeline: &str, out: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
        command.arg(&source).args(["-q", "-p", pipeline, "-o"]);
        succeed(command.arg(out).args(more));
    };
    for (number, pipeline) in PIPELINES.iter().enumerate() {
        let folder = dir.path().join(format!("{number}.hlrc"));
        write(pipeline, &folder, &[]);
        let wanted = logits(&folder);
        assert!(wanted.iter().all(|x| x.is_finite()), "{pipeline}");
        let top = wanted.iter().fold(0f32, |m, x| m.max(x.abs()));
        for form in ["nbits", "qdq"] {
            for cache in [None, Some("--onnx-cache")] {
                let out = dir.path().join(format!("{number}-{form}-{cache:?}.onnx"));
                let mut more = vec!["--onnx-quant", form];
                more.extend(cache);
                write(pipeline, &out, &more);
                let found = logits(&out);
                assert_eq!(found.len(), wanted.len());
                assert!(top > 1.0 && found.iter().all(|x| x.is_finite()));
                let gaps = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
                let worst = gaps.fold(0f32, f32::max);
                println!("{pipeline} {form} {cache:?}: {:.1e}", worst / top);
                assert!(
                    worst <= TOLERANCE * top,
                    "{pipeline} {form}: {worst} of {top}"
                );
            }
        }
    }
}
