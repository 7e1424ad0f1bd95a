//! Training of modules with terms of plugins' kinds: gradients go through them by their decoded matrix, and
//! by their tensors where the kind has a backward rule.

use std::collections::BTreeMap;
use std::path::Path;

use hlrc::exec::{Engine, Options, Tensor};
use hlrc::ir::{Module, Part, Term, ValueId};
use hlrc::store::Reader;
use hlrc::train::grad::{Parameter, Wanted, What, differentiate};
use hlrc::weights::{DType, FileCache};

use super::common::{library, works};
use super::compute::coded;
use super::dense::{decoded, opened};

/// Two linears and a loss.
const MODULE: &str = "hlir 1\nmodule \"m\" {\n  weight @a.weight : f32[24,16] = synthetic(seed=1, power=1.2, scale=0.2, outliers=0.01)\n  weight @b.weight : f32[8,24] = synthetic(seed=2, power=1.2, scale=0.2, outliers=0.01)\n  graph @main(%x : f32[B,S,16], %target : f32[B,S,8], %weights : f32[B,S]) -> (%loss) {\n    %h = linear %x [24,16] { dense(@a.weight) } name(\"a\") : f32[B,S,24]\n    %y = linear %h [8,24] { dense(@b.weight) } name(\"b\") : f32[B,S,8]\n    %loss = loss.mean_square %y, %target, %weights\n  }\n}\n";

fn gradients(module: &Module, files: &FileCache, wanted: &Wanted, threads: usize) -> Vec<Vec<f32>> {
    let joint = differentiate(module, wanted).unwrap_or_else(|e| panic!("{e}"));
    hlrc::ir::verify::verify(&joint.module).unwrap_or_else(|e| panic!("{e}"));
    let printed = hlrc::ir::text::print(&joint.module);
    let parsed = hlrc::ir::text::parse(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
    assert_eq!(hlrc::ir::text::print(&parsed), printed);
    let options = Options {
        threads,
        ..Options::default()
    };
    let engine = Engine::new(&joint.module, files, &options).unwrap_or_else(|e| panic!("{e}"));
    let values = |seed: usize, count: usize| -> Vec<f32> {
        let value = |i: usize| ((i * 37 + seed * 11) % 19) as f32 / 9.0 - 1.0;
        (0..count).map(value).collect()
    };
    let inputs = [
        ("x", Tensor::f32(&[2, 3, 16], values(1, 96))),
        ("target", Tensor::f32(&[2, 3, 8], values(2, 48))),
        (
            "weights",
            Tensor::f32(&[2, 3], vec![0.5, 0.25, 1.0, 0.125, 0.5, 0.75]),
        ),
    ];
    let made = engine.run(&inputs).unwrap_or_else(|e| panic!("{e}"));
    let floats = |(_, t): &(String, Tensor)| t.floats().expect("floats").to_vec();
    made[joint.outputs..].iter().map(floats).collect()
}

fn close(name: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{name}");
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(largest > 1e-3, "{name}: gradients that say something");
    let off = a
        .iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0f32, f32::max);
    assert!(off <= 1e-5 * largest, "{name}: {off} of {largest}");
}

#[test]
fn gradients_are_those_of_the_decoded_matrices() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    std::fs::write(here.join("m.hlir"), MODULE).expect("written");
    let plugin = library("kmeans4");
    let load = ["--load-pass-plugin", plugin.to_str().expect("utf-8")];
    works(
        here,
        &[
            &["m.hlir", "-p", "outlier,kmeans4", "-o", "m.hlrc", "-q"],
            &load[..],
        ]
        .concat(),
    );
    hlrc::pass::plugin::load(&plugin, false).expect("it loads");
    let (module, files) = opened(&here.join("m.hlrc"));
    let input = module.graphs[0].body.inputs[0];
    // By the codebooks' values, and by the input.
    let mut books = Vec::new();
    for op in &module.graphs[0].ops {
        for term in op.kind.matrix().map_or(&[][..], |m| &m.terms) {
            if let Term::Custom(c) = term {
                let at = c.tensors.iter().position(|(name, _)| name == "values");
                let at = at.expect("values");
                books.push((
                    op.name.clone(),
                    c.clone(),
                    Parameter {
                        weight: c.tensors[at].1,
                        index: None,
                        what: What::Part(Part::Tensor(at as u8)),
                    },
                ));
            }
        }
    }
    assert_eq!(books.len(), 2);
    let wanted = |parameters: Vec<Parameter>, value: ValueId| Wanted {
        parameters,
        values: vec![value],
        checkpoint: false,
    };
    let own = wanted(books.iter().map(|b| b.2).collect(), input);
    let made = gradients(&module, &files, &own, 1);
    assert_eq!(
        made,
        gradients(&module, &files, &own, 3),
        "one thread, or three"
    );
    let plain = decoded(&module, &files);
    let of = |name: &str| Parameter {
        weight: plain
            .weights
            .iter()
            .position(|w| w.name == format!("{name}.dense"))
            .map(hlrc::ir::WeightId::new)
            .expect("a matrix"),
        index: None,
        what: What::Part(Part::Dense),
    };
    let dense = wanted(books.iter().map(|b| of(&b.0)).collect(), input);
    let expected = gradients(&plain, &files, &dense, 1);
    close("the input", &made[2], &expected[2]);
    let reader = Reader::new(&files);
    for ((name, term, _), (have, dw)) in books.iter().zip(made.iter().zip(&expected)) {
        // A value's gradient is the sum over the entries that have its code.
        let codes = term
            .tensors
            .iter()
            .find(|(name, _)| name == "codes")
            .expect("codes");
        let packed = reader.bytes(&module, codes.1).expect("codes");
        let rows = have.len() / 16;
        let (cols, row_bytes) = (dw.len() / rows, packed.len() / rows);
        let mut sums = vec![0f32; have.len()];
        for (at, gradient) in dw.iter().enumerate() {
            let (row, col) = (at / cols, at % cols);
            let code = packed[row * row_bytes + col / 2] >> (4 * (col % 2)) & 15;
            sums[row * 16 + usize::from(code)] += gradient;
        }
        close(name, have, &sums);
    }
}

/// Tensors of an output by name.
fn tensors(folder: &Path) -> BTreeMap<String, (DType, Vec<u8>)> {
    let (module, files) = opened(folder);
    let reader = Reader::new(&files);
    let mut all = BTreeMap::new();
    for (i, weight) in module.weights.iter().enumerate() {
        let bytes = reader
            .bytes(&module, hlrc::ir::WeightId::new(i))
            .expect("bytes");
        all.insert(weight.name.clone(), (weight.dtype, bytes));
    }
    all
}

/// Trains `coded.hlrc` for some steps; names of what moved.
fn moved(here: &Path, plugin: &str, out: &str, more: &[&str]) -> Vec<String> {
    let data = std::fs::canonicalize("tests/fixtures/text/stories.txt").expect("the fixture");
    let teacher = std::fs::canonicalize("tests/fixtures/stories260K").expect("the fixture");
    let plugin = library(plugin);
    let arguments = [
        "train",
        "coded.hlrc",
        "--teacher",
        teacher.to_str().expect("utf-8"),
        "--data",
        data.to_str().expect("utf-8"),
        "--ctx",
        "64",
        "--batch",
        "2",
        "--steps",
        "8",
        "--judge-every",
        "4",
        "-q",
        "-o",
        out,
        "--load-pass-plugin",
        plugin.to_str().expect("utf-8"),
    ];
    works(here, &[&arguments[..], more].concat());
    let (before, after) = (tensors(&here.join("coded.hlrc")), tensors(&here.join(out)));
    assert!(before.keys().eq(after.keys()), "the same tensors");
    let changed = before
        .iter()
        .filter(|(name, value)| after[*name] != **value);
    changed.map(|(name, _)| name.clone()).collect()
}

#[test]
fn terms_of_plugins_are_trained_by_their_rule() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    coded(here, "kmeans4", "kmeans4");
    let all = moved(here, "kmeans4", "all.hlrc", &[]);
    assert!(all.iter().any(|n| n.ends_with(".values")), "{all:?}");
    assert!(all.iter().any(|n| n.contains("norm")), "{all:?}");
    assert!(!all.iter().any(|n| n.ends_with(".codes")), "{all:?}");
    // Of the kinds that were asked for alone, through the plugin's terms.
    let norms = moved(here, "kmeans4", "norms.hlrc", &["--params", "norms"]);
    assert!(
        !norms.is_empty() && norms.iter().all(|n| n.contains("norm")),
        "{norms:?}"
    );
    let values = moved(
        here,
        "kmeans4",
        "values.hlrc",
        &["--params", "plugin", "--mode", "both"],
    );
    assert!(
        !values.is_empty() && values.iter().all(|n| n.ends_with(".values")),
        "{values:?}"
    );
    // The same bytes from a process of its own, and from more threads.
    moved(here, "kmeans4", "isolated.hlrc", &["--isolate-plugins"]);
    moved(here, "kmeans4", "three.hlrc", &["--threads", "3"]);
    let first = tensors(&here.join("all.hlrc"));
    assert_eq!(first, tensors(&here.join("isolated.hlrc")));
    assert_eq!(first, tensors(&here.join("three.hlrc")));
}

#[test]
fn terms_without_a_rule_are_constants() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    coded(here, "outlier,row-scale", "row-scale");
    let all = moved(here, "row-scale", "all.hlrc", &[]);
    assert!(all.iter().any(|n| n.contains("norm")), "{all:?}");
    assert!(
        !all.iter()
            .any(|n| n.ends_with(".signs") || n.ends_with(".scales")),
        "{all:?}"
    );
    // Asked for by name, it is said that there are none.
    let data = std::fs::canonicalize("tests/fixtures/text/stories.txt").expect("the fixture");
    let plugin = library("row-scale");
    let arguments = [
        "train",
        "coded.hlrc",
        "--data",
        data.to_str().expect("utf-8"),
        "--params",
        "plugin",
        "-o",
        "none.hlrc",
        "--load-pass-plugin",
        plugin.to_str().expect("utf-8"),
    ];
    super::common::fails(here, &arguments, 2, &["the model has no plugin", "norms"]);
}
