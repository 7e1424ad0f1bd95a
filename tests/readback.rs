//! What the ONNX exporter writes is read back as the terms that it was, and runs the same.

mod common;

use std::path::Path;
use std::process::Command;

use common::succeed;
use hlrc::exec::{Engine, Options, Tensor};
use hlrc::import::{Input, open};
use hlrc::ir::{Module, Native, OpKind, Term};
use hlrc::passes::raise;
use hlrc::weights::FileCache;

/// Largest difference of logits, relative to the largest.
const TOLERANCE: f32 = 1e-4;

const PIPELINES: [&str; 13] = [
    "rotate,int4",
    "rotate,int3,embeddings(int8)",
    "int8",
    "int4",
    "int3",
    "int2",
    "lowrank,outlier,int4",
    "int4,embeddings(int8)",
    "multilevel,int4",
    "outlier{columns=true},int4,embeddings(outlier,int4)",
    "embeddings(lowrank{rank=8},int4)",
    "embeddings(int8{group=column}),int8{group=column}",
    "head(int8),int4{group=row}",
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
    // Parts are put side by side and columns taken in tract; products are our own.
    let ops = module.graphs.iter().flat_map(|g| &g.ops);
    let foreign = ops.filter_map(|op| match &op.kind {
        OpKind::Onnx(onnx) => Some(onnx.op_type.as_str()),
        _ => None,
    });
    let left: Vec<_> = foreign
        .filter(|o| !["Concat", "Gather"].contains(o))
        .collect();
    let shown = path.display();
    assert_eq!(left, Vec::<&str>::new(), "{shown}");
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
    let source = "tests/fixtures/stories260K";
    let dir = tempfile::tempdir().expect("a folder");
    let write = |pipeline: &str, out: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
        command.arg(source).args(["-q", "-p", pipeline, "-o"]);
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
                rotations(&out, pipeline.starts_with("rotate"));
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

/// Rotations are read as such, where there are some, and everything with them is native.
fn rotations(path: &Path, wanted: bool) {
    let module = opened(path);
    let kinds = || module.graphs.iter().flat_map(|g| &g.ops).map(|op| &op.kind);
    let turned = kinds().any(|k| matches!(k, OpKind::Native(Native::Hadamard { .. })));
    assert_eq!(turned, wanted, "{}", path.display());
    let foreign = kinds().any(|k| matches!(k, OpKind::Onnx(_)));
    assert!(!(wanted && foreign), "{}", path.display());
}

/// Fields of `bits`, low bits first, padded to whole bytes.
fn packed(codes: &[u8], bits: usize) -> Vec<u8> {
    let bytes = codes.chunks(8 / bits);
    let byte = |c: &[u8]| {
        (0..)
            .zip(c)
            .fold(0, |byte, (i, code)| byte | code << (i * bits))
    };
    bytes.map(byte).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A module of one MatMulNBits with f32 scales, and its matrix.
fn nbits(bits: usize, (n, k): (usize, usize), zeros: bool, rounded: bool) -> (String, Vec<f64>) {
    let (block, mut seed) = (32, 1u32);
    let mut random = |limit: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % limit
    };
    let (blocks, top) = (k.div_ceil(block), 1u32 << bits);
    let codes: Vec<u8> = (0..n * blocks * block).map(|_| random(top) as u8).collect();
    let points: Vec<u8> = (0..n * blocks).map(|_| random(top) as u8).collect();
    let fine = if rounded { 1.0 } else { 1.0001 };
    let scales = (0..n * blocks).map(|_| (1 + random(200)) as f32 / 4096.0 * fine);
    let scales: Vec<f32> = scales.collect();
    let entry = |at: usize| {
        let (row, col) = (at / k, at % k);
        let group = row * blocks + col / block;
        let middle = if zeros {
            points[group]
        } else {
            1 << (bits - 1)
        };
        let code = codes[row * blocks * block + col];
        (f64::from(code) - f64::from(middle)) * f64::from(scales[group])
    };
    let matrix = (0..n * k).map(entry).collect();
    let rows = points.chunks(blocks).map(|row| packed(row, bits));
    let rows: Vec<u8> = rows.flatten().collect();
    let floats: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
    let (blob, given) = (block * bits / 8, if zeros { ", @z" } else { "" });
    let text = format!(
        r#"hlir 1
module "m" meta{{format="onnx", ir_version=8, opset_import=[{{version=17}}, {{domain="com.microsoft", version=1}}]}} {{
  weight @q : u8[{n},{blocks},{blob}] = hex"{}"
  weight @s : f32[{n},{blocks}] = hex"{}"
  weight @z : u8[{}] = hex"{}"
  graph @main(%x : f32[3,{k}]) -> (%y) {{
    %y = onnx."com.microsoft".MatMulNBits(%x, @q, @s{given}) {{K={k}, N={n}, bits={bits}, block_size={block}}} name("odd") : f32[3,{n}]
  }}
}}
"#,
        hex(&packed(&codes, bits)),
        hex(&floats),
        rows.len(),
        hex(&rows),
    );
    (text, matrix)
}

#[test]
fn matmulnbits_of_others_runs_packed() {
    for bits in [2, 4, 8] {
        for (zeros, k, exact) in [
            (false, 64, true),
            (true, 64, true),
            (false, 75, true),
            (true, 75, true),
            (true, 75, false),
        ] {
            let n = 5;
            let (text, matrix) = nbits(bits, (n, k), zeros, exact);
            let mut module = hlrc::ir::text::parse(&text).expect("parses");
            let remarks = raise::raise_to_run(&mut module).expect("raises");
            assert_eq!(
                remarks.iter().any(|r| r.to_string().contains("rounded")),
                !exact
            );
            let ops = module.graphs.iter().flat_map(|g| &g.ops);
            let mut matrices = ops.filter_map(|op| op.kind.matrix());
            let terms = &matrices.next().expect("a linear").terms;
            assert!(matches!(terms.as_slice(), [Term::Quant(_)]), "{terms:?}");
            let files = FileCache::new();
            let engine = Engine::new(&module, &files, &Options::default()).expect("runs");
            let x: Vec<f32> = (0..3 * k).map(|i| ((i * 29) % 17) as f32 - 8.0).collect();
            let given = [("x", Tensor::f32(&[3, k], x.clone()))];
            let outputs = engine.run(&given).expect("runs");
            let found = outputs[0].1.floats().expect("floats");
            let product = |at: usize| -> f64 {
                let (token, row) = (&x[at / n * k..][..k], &matrix[at % n * k..][..k]);
                row.iter().zip(token).map(|(w, x)| w * f64::from(*x)).sum()
            };
            let wanted: Vec<f64> = (0..3 * n).map(product).collect();
            let top = wanted.iter().fold(0f64, |m, x| m.max(x.abs()));
            let gaps = wanted
                .iter()
                .zip(found)
                .map(|(a, b)| (a - f64::from(*b)).abs());
            let worst = gaps.fold(0f64, f64::max) / top;
            println!("{bits} bits, zeros {zeros}, K {k}: {worst:.1e}");
            let allowed = if exact { 1e-5 } else { 1e-3 };
            assert!(
                worst <= allowed,
                "{bits} bits, zeros {zeros}, K {k}: {worst}"
            );
        }
    }
}

#[test]
fn what_is_not_read_back_is_said() {
    let (text, _) = nbits(4, (5, 64), false, true);
    for (from, to, why) in [
        ("bits=4,", "bits=5,", "5 bits"),
        ("@q, @s", "@q, @x", "MatMulNBits"),
        ("K=64", "K=96", "takes 96"),
        ("(%x, @q, @s)", "(%x, @q, @s, @s)", "zero points are f32"),
    ] {
        let text = text.replace(from, to).replace("@x", "%x");
        let mut module = hlrc::ir::text::parse(&text).expect("parses");
        let remarks = raise::raise_to_run(&mut module).expect("raises");
        let said: Vec<String> = remarks.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|r| r.contains(why)), "{to}: {said:?}");
    }
}
