//! Gradients of every rule against central differences of the graph in `f64`.
//!
//! Modules are texts with random weights; pipelines give them every kind of term. The executor runs
//! the backward graph in `f32`.

#[path = "../common/mod.rs"]
mod common;
mod modules;
mod reference;

use std::path::Path;
use std::process::Command;

use hlrc::exec::{Engine, Options, Tensor};
use hlrc::import::{Input, open};
use hlrc::ir::{Module, ValueId};
use hlrc::train::grad::{
    GradError, Joint, Parameter, Wanted, What, differentiate, of_op, parameters,
};
use hlrc::weights::FileCache;
use modules::*;
use reference::{Array, Reference};

/// Values of each tensor that are moved.
const PLACES: usize = 6;

/// A number in −1 … 1 from a seed and a place.
fn noise(seed: u64, i: usize) -> f64 {
    let mut z =
        seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (i as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    for _ in 0..3 {
        z = (z ^ (z >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
    }
    (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// What an input of this name is filled with.
fn filled(name: &str, seed: u64) -> Array {
    let (b, s) = (2, 5);
    let ids = |most: usize| -> Vec<f64> {
        (0..b * s)
            .map(|i| ((noise(seed, i) + 1.0) * 0.499 * most as f64).floor())
            .collect()
    };
    let random = |shape: &[usize], scale: f64| {
        let count = shape.iter().product();
        let values = (0..count).map(|i| f64::from((noise(seed, i) * scale) as f32));
        Array::new(shape, values.collect())
    };
    match name {
        "input_ids" => Array::new(&[b, s], ids(VOCABULARY)),
        "mask" => Array::new(
            &[b, s],
            (0..b * s).map(|i| if i == 1 { 0.0 } else { 1.0 }).collect(),
        ),
        "labels" => {
            let mut labels = ids(VOCABULARY);
            labels[3] = -100.0;
            Array::new(&[b, s], labels)
        }
        "weights" => {
            let mut weights = random(&[b, s], 0.1);
            weights
                .data
                .iter_mut()
                .for_each(|w| *w = f64::from((*w).abs() as f32));
            weights.data[4] = 0.0;
            weights
        }
        "first_weights" => Array::new(&[b], vec![0.25, 0.5]),
        "first_target" => random(&[b, WIDTH], 1.0),
        "teacher" => random(&[b, s, VOCABULARY], 2.0),
        "top_ids" => {
            let id = |i: usize| ((i / 3 * 7 + i % 3 * 5) % VOCABULARY) as f64;
            Array::new(&[b, s, 3], (0..b * s * 3).map(id).collect())
        }
        "top" => {
            let log = |i: usize| f64::from((0.2 + 0.08 * noise(seed, i)).ln() as f32);
            Array::new(&[b, s, 3], (0..b * s * 3).map(log).collect())
        }
        "wide" => random(&[b, s, 2 * WIDTH], 1.5),
        _ => random(&[b, s, WIDTH], 1.5),
    }
}

fn is_integer(name: &str) -> bool {
    matches!(name, "input_ids" | "mask" | "labels" | "top_ids")
}

fn tensor(name: &str, array: &Array) -> Tensor {
    match is_integer(name) {
        true => Tensor::i64(&array.shape, array.data.iter().map(|&x| x as i64).collect()),
        false => Tensor::f32(&array.shape, array.data.iter().map(|&x| x as f32).collect()),
    }
}

/// A text, rewritten by a pipeline, as it is read back.
fn module(text: &str, pipeline: &str) -> (Module, FileCache, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.hlir");
    std::fs::write(&path, text).expect("written");
    let path = match pipeline {
        "" => path,
        pipeline => {
            let out = folder.path().join("out.hlrc");
            let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
            command
                .arg(&path)
                .args(["-q", "-p", pipeline, "-o"])
                .arg(&out);
            common::succeed(&mut command);
            out
        }
    };
    let files = FileCache::new();
    let imported = open(&Input::Path(path), &files).unwrap_or_else(|e| panic!("{e}"));
    (imported.module, files, folder)
}

fn engine(module: &Module, files: &FileCache, threads: usize) -> Engine {
    let options = Options {
        threads,
        ..Options::default()
    };
    Engine::new(module, files, &options).unwrap_or_else(|e| panic!("{e}"))
}

fn inputs(module: &Module) -> Vec<(String, Array)> {
    let graph = &module.graphs[0];
    let name = |&id: &ValueId| graph.value(id).expect("a value").name.clone();
    let names = graph.body.inputs.iter().map(name);
    names
        .enumerate()
        .map(|(i, name)| (name.clone(), filled(&name, i as u64 + 1)))
        .collect()
}

fn outputs(
    joint: &Joint,
    files: &FileCache,
    threads: usize,
    given: &[(String, Array)],
) -> Vec<Vec<f32>> {
    let given: Vec<(&str, Tensor)> = given
        .iter()
        .map(|(n, a)| (n.as_str(), tensor(n, a)))
        .collect();
    let made = engine(&joint.module, files, threads).run(&given);
    let made = made.unwrap_or_else(|e| panic!("{e}"));
    made.into_iter()
        .map(|(_, t)| t.floats().expect("floats").to_vec())
        .collect()
}

/// Holds every gradient of a module against differences.
fn check(text: &str, pipeline: &str) {
    let (module, files, _folder) = module(text, pipeline);
    let graph = &module.graphs[0];
    let given = inputs(&module);
    let floats = graph.body.inputs.iter().copied();
    let floats = floats.filter(|&id| {
        let name = &graph.value(id).expect("a value").name;
        name.starts_with('x') || name == "wide"
    });
    let mut wanted = Wanted {
        parameters: parameters(&module),
        values: floats.collect(),
        checkpoint: false,
    };
    // Scales that are zero carry nothing that could be divided out again.
    assert!(!wanted.parameters.is_empty() || !wanted.values.is_empty());
    let joint = differentiate(&module, &wanted).unwrap_or_else(|e| panic!("{pipeline}: {e}"));
    hlrc::ir::verify::verify(&joint.module).unwrap_or_else(|e| panic!("{pipeline}: {e}"));
    let printed = hlrc::ir::text::print(&joint.module);
    let parsed = hlrc::ir::text::parse(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(
        hlrc::ir::text::print(&parsed),
        printed,
        "the text of the backward graph"
    );
    let made = outputs(&joint, &files, 1, &given);
    assert_eq!(
        made,
        outputs(&joint, &files, 3, &given),
        "one thread, or three"
    );
    wanted.checkpoint = true;
    let again = differentiate(&module, &wanted).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        made,
        outputs(&again, &files, 2, &given),
        "values made again"
    );

    let mut reference = Reference::new(&module, &files);
    let loss: f64 = made[..joint.outputs].iter().map(|l| f64::from(l[0])).sum();
    let want = reference.loss(&given);
    assert!(
        (loss - want).abs() < 1e-5 * want.abs().max(0.1),
        "{pipeline}: loss {loss}, {want}"
    );
    let gradients = &made[joint.outputs..];
    let ops = graph.walk();
    for (p, have) in wanted.parameters.iter().zip(gradients) {
        let op = ops
            .iter()
            .filter_map(|&id| graph.op(id))
            .find(|op| of_op(op).contains(p));
        let start = reference.parameter(op.expect("its op"), *p);
        assert_eq!(start.len(), have.len(), "{}: length", p.name(&module));
        let name = format!("{pipeline}: {} ({:?})", p.name(&module), p.what);
        compare(&name, have, &start, |moved| {
            reference.moved.insert(*p, moved);
            let loss = reference.loss(&given);
            reference.moved.clear();
            loss
        });
    }
    for (id, have) in wanted
        .values
        .iter()
        .zip(&gradients[wanted.parameters.len()..])
    {
        let name = graph.value(*id).expect("a value").name.clone();
        let start = given
            .iter()
            .find(|(n, _)| *n == name)
            .expect("given")
            .1
            .data
            .clone();
        compare(&format!("{pipeline}: %{name}"), have, &start, |moved| {
            reference.shifted.insert(*id, moved);
            let loss = reference.loss(&given);
            reference.shifted.clear();
            loss
        });
    }
}

/// A gradient against central differences at some places, the largest entry among them.
fn compare(name: &str, have: &[f32], start: &[f64], mut loss: impl FnMut(Vec<f64>) -> f64) {
    let largest = have.iter().fold(0f64, |m, g| m.max(f64::from(g.abs())));
    let at_largest = have
        .iter()
        .position(|g| f64::from(g.abs()) == largest)
        .unwrap_or(0);
    let random = (0..PLACES).map(|i| ((noise(77, i) + 1.0) * 0.4999 * have.len() as f64) as usize);
    for place in random.chain([at_largest]) {
        let h = 1e-4 * (start[place].abs() + 0.1);
        let mut moved = |by: f64| {
            let mut values = start.to_vec();
            values[place] += by;
            loss(values)
        };
        // Fourth order, so that what is left of the error is rounding.
        let near = moved(h) - moved(-h);
        let far = moved(2.0 * h) - moved(-2.0 * h);
        let want = (8.0 * near - far) / (12.0 * h);
        let off = (f64::from(have[place]) - want).abs();
        assert!(
            off <= 1e-4 * largest + 1e-7,
            "{name} at {place}: {} instead of {want}; the largest is {largest}",
            have[place]
        );
    }
}

#[test]
fn dense_transformers() {
    check(&llama(), "");
    check(&gpt(), "");
    check(&mixture(true), "");
    check(&mixture(false), "");
}

#[test]
fn native_ops_and_losses() {
    check(&natives(), "");
    check(&losses(), "");
}

#[test]
fn integer_codes() {
    for pipeline in [
        "int4",
        "int2",
        "int3{group=32}",
        "int8{group=column}",
        "int4{group=row asymmetric=true}",
        "rotate,int4",
    ] {
        check(&llama(), &format!("{pipeline},embeddings({pipeline})"));
    }
}

#[test]
fn factors_and_outliers() {
    for pipeline in [
        "lowrank{rank=3},outlier{density=5%},int4",
        "lowrank{rank=3 factors=f16},drop-residual,embeddings(lowrank{rank=4 factors=f32},drop-residual)",
        "lowrank{rank=2 factors=int8},outlier{columns=true count=2},int2",
        "lowrank{rank=2 depth=1 factors=f16},int4",
        "multilevel{rank=4}",
    ] {
        check(&llama(), pipeline);
    }
}

#[test]
fn trellis_codes() {
    check(&llama(), "trellis{bits=2}");
    check(&mixture(true), "rotate,trellis{bits=3}");
}

#[test]
fn stacks_of_experts() {
    let (module, ..) = module(&stacks(), "");
    let stacked = parameters(&module);
    let stacked = stacked.iter().filter(|p| p.index.is_some()).count();
    assert_eq!(
        stacked, 12,
        "each expert's matrices have gradients of their own"
    );
    check(&stacks(), "");
}

#[test]
fn the_backward_graph_is_the_golden_one() {
    use std::io::Write;
    let mut mint = goldenfile::Mint::new("tests/grad/golden");
    for (name, text, checkpoint) in [
        ("gpt", gpt(), false),
        ("mixture", mixture(true), false),
        ("natives_again", natives(), true),
    ] {
        let module = hlrc::ir::text::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let wanted = Wanted {
            parameters: parameters(&module),
            values: module.graphs[0]
                .body
                .inputs
                .iter()
                .copied()
                .take(1)
                .collect(),
            checkpoint,
        };
        // Token ids have no gradient.
        let values = wanted.values.iter().filter(|_| name != "gpt").copied();
        let wanted = Wanted {
            values: values.collect(),
            ..wanted
        };
        let joint = differentiate(&module, &wanted).unwrap_or_else(|e| panic!("{e}"));
        let mut file = mint.new_goldenfile(format!("{name}.out")).expect("a file");
        let printed = hlrc::ir::text::print(&joint.module);
        file.write_all(printed.as_bytes()).expect("written");
    }
}

#[test]
fn what_has_no_rule_is_named() {
    let (module, _, _folder) = module(&without_rule(), "");
    let wanted = Wanted {
        parameters: parameters(&module),
        ..Wanted::default()
    };
    let error = differentiate(&module, &wanted).expect_err("no rule");
    let GradError::NoRule { op, name, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!((op.as_str(), name.as_str()), ("onnx.Erf", "odd"));
    // What stands behind the op can be trained all the same.
    let behind: Vec<Parameter> = parameters(&module)
        .into_iter()
        .filter(|p| p.name(&module) == "b.weight" && p.what != What::Vector)
        .collect();
    let wanted = Wanted {
        parameters: behind,
        ..Wanted::default()
    };
    assert!(differentiate(&module, &wanted).is_ok());
}

#[test]
fn a_parameter_that_no_loss_depends_on_is_named() {
    let (module, _, _folder) = module(&unreached(), "");
    let wanted = Wanted {
        parameters: parameters(&module),
        ..Wanted::default()
    };
    let error = differentiate(&module, &wanted).expect_err("nothing reaches it");
    assert_eq!(error, GradError::Unreached("idle.weight".to_string()));
    assert!(Path::new(env!("CARGO_BIN_EXE_hlrc-opt")).exists());
}
