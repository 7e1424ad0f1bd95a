//! Rotations folded into every family: the same outputs, and what is left alone is said.

use std::path::Path;
use std::process::Command;

use super::FAMILIES;
use super::common::succeed;
use super::fixture::{Fixture, engine, error, exec, f32s, import};
use hlrc::ir::{Module, Native, OpKind};

/// Families whose residual streams stay, and the word that says why.
const LEFT: [(&str, &str); 5] = [
    // Norms stand behind linears too.
    ("gemma2", "rms_norm makes it"),
    ("gemma3", "rms_norm makes it"),
    ("gpt2", "layer_norm takes the mean off"),
    ("bert", "layer_norm takes the mean off"),
    ("bert_masked_lm", "layer_norm takes the mean off"),
];

/// Turns a family; the module, its files and what was said.
fn turned(name: &str, pipeline: &str, folder: &Path) -> (Module, hlrc::weights::FileCache, String) {
    let out = folder.join(format!("{name}.hlrc"));
    let source = Path::new("tests/fixtures/families").join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command
        .arg(&source)
        .args(["-q", "-f", "-p", pipeline, "-o"]);
    succeed(command.arg(&out));
    let report = std::fs::read_to_string(out.join("report.json")).expect("a report");
    let (module, files) = import(&out, &[]);
    (module, files, report)
}

fn rotations(module: &Module) -> usize {
    let ops = module.graphs.iter().flat_map(|g| &g.ops);
    ops.filter(|op| matches!(op.kind, OpKind::Native(Native::Hadamard { .. })))
        .count()
}

#[test]
fn folded_families_give_the_outputs_of_transformers() {
    let dir = tempfile::tempdir().expect("a folder");
    for name in FAMILIES {
        let fixture = Fixture::open(name);
        let (module, files, report) = turned(name, "fold-rotations{dtype=f32}", dir.path());
        let mut compared = 0;
        for (output, tensor) in exec(&engine(&module, &files, 2), &fixture.inputs()) {
            let Some(expected) = fixture.expected.get(&output) else {
                continue;
            };
            compared += 1;
            let off = error(f32s(&tensor), f32s(expected));
            eprintln!(
                "{name}: {output} is off by {off:.1e}, {} ops",
                rotations(&module)
            );
            assert!(off <= 1e-4, "{name}: {output} is off by {off:e}");
        }
        assert!(compared > 0, "{name}: no output is known");
        let left = LEFT.iter().find(|(family, _)| *family == name);
        match left {
            Some((_, why)) => assert!(report.contains(why), "{name}: {report}"),
            None => assert!(report.contains("turned in blocks of"), "{name}: {report}"),
        }
    }
}

#[test]
fn a_folded_stream_needs_no_rotation_of_its_readers() {
    let dir = tempfile::tempdir().expect("a folder");
    let (module, _, _) = turned("llama", "fold-rotations{down=false},int4", dir.path());
    let (tied, _, _) = turned("qwen2", "fold-rotations{down=false},int4", dir.path());
    for (name, module) in [("llama", &module), ("qwen2", &tied)] {
        let matrices = module.graphs[0]
            .ops
            .iter()
            .filter_map(|op| op.kind.matrix());
        let terms = matrices.flat_map(|m| &m.terms);
        assert!(terms.into_iter().all(|t| t.rotation().is_none()), "{name}");
    }
    // A table of its own folds, a tied one takes an op at either end.
    assert_eq!([rotations(&module), rotations(&tied)], [0, 2]);
}
