//! What is one thing in short sequences and another in longer ones is not raised as the former; what a
//! node says besides its inputs is not passed over.
//!
//! The fixtures of `tests/fixtures/lengths` and what ONNX Runtime makes of 60 or 200 tokens come from its
//! `make.py`.
#![cfg(feature = "tract")]

use std::path::{Path, PathBuf};

use hlrc::exec::{Engine, Options};
use hlrc::ir::{Module, OpKind};
use hlrc::weights::FileCache;

use super::{agrees, import, raised, tensors};

/// Raised whole.
const WHOLE: [&str; 5] = ["plain", "rotary", "positions", "product", "looked_up"];

/// Right, and not raised whole.
const PARTS: [&str; 22] = [
    "scale",
    "equal",
    "factor",
    "vector",
    "logn",
    "remainder",
    "least",
    "clipped",
    "buffer",
    "stretch",
    "turns",
    "size",
    "fractions",
    "chunks",
    "hole",
    "faint",
    "shifted",
    "softmax12",
    "small_factor",
    "logarithm",
    "mirrored",
    "filled",
];

fn fixture(name: &str) -> PathBuf {
    Path::new("tests/fixtures/lengths").join(format!("{name}.onnx"))
}

fn is_whole(module: &Module) -> bool {
    let mut ops = module.graphs.iter().flat_map(|g| &g.ops);
    !ops.any(|op| matches!(op.kind, OpKind::Onnx(_)))
}

#[test]
fn longer_sequences_are_computed_as_onnx_runtime_does() {
    let expected = tensors(Path::new("tests/fixtures/lengths/expected.safetensors"));
    for name in WHOLE.into_iter().chain(PARTS) {
        let module = raised(&fixture(name));
        agrees(name, &module, &expected);
    }
    for name in ["plain", "rotary", "positions"] {
        assert!(is_whole(&raised(&fixture(name))), "{name}");
    }
    for name in PARTS {
        assert!(!is_whole(&raised(&fixture(name))), "{name}");
    }
}

#[test]
fn what_tract_reads_otherwise_is_refused_by_name() {
    for (name, wanted) in [("celu", "onnx.Celu"), ("own", "\"my.ops\"")] {
        let mut module = import(&fixture(name));
        hlrc::passes::raise::raise_to_run(&mut module).unwrap_or_else(|e| panic!("{name}: {e}"));
        let engine = Engine::new(&module, &FileCache::new(), &Options::default());
        let error = engine.err().unwrap_or_else(|| panic!("{name} runs"));
        assert!(error.to_string().contains(wanted), "{error}");
    }
}
