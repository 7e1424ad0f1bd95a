//! Masks that show in longer sequences only, and what else must not be raised or run by half.
//!
//! The fixtures of `tests/fixtures/masks` and what ONNX Runtime makes of them come from its `make.py`.

use std::path::Path;

use hlrc::exec::{Engine, Options};
use hlrc::ir::{Module, Native, Op, OpKind};
use hlrc::passes::raise;
use hlrc::weights::FileCache;

use super::{agrees, import, raised, tensors};

/// Causality and window of what is raised, or what is said of the mask.
type Shown = Result<(bool, Option<u64>), &'static str>;

/// What is raised in `tests/fixtures/masks`, and what a remark says of what is not.
const MASKS: [(&str, Shown); 9] = [
    ("causal", Ok((true, None))),
    ("places", Ok((true, None))),
    ("window", Ok((true, Some(20)))),
    ("stored", Ok((true, Some(20)))),
    ("chunk", Err("a mask that 20 changes in longer sequences")),
    ("near", Err("a mask that 20 changes in longer sequences")),
    ("padding", Err("scores chosen by what depends on token ids")),
    ("bias", Err("a mask for each head")),
    ("conv", Ok((true, None))),
];

#[test]
fn masks_are_what_they_are_in_longer_sequences() {
    for (name, wanted) in MASKS {
        let mut module = import(&Path::new("tests/fixtures/masks").join(format!("{name}.onnx")));
        let remarks = raise::raise_module(&mut module, &raise::Options::default());
        let remarks = remarks.unwrap_or_else(|e| panic!("{name}: {e}"));
        let ops = module.graphs.iter().flat_map(|g| &g.ops);
        let rule = |op: &Op| match &op.kind {
            OpKind::Native(Native::Attention { causal, window, .. }) => Some((*causal, *window)),
            _ => None,
        };
        let found: Vec<_> = ops.filter_map(rule).collect();
        match wanted {
            Ok(wanted) => assert_eq!(found, [wanted], "{name}"),
            Err(why) => {
                let said: Vec<String> = remarks.iter().map(ToString::to_string).collect();
                assert!(said.iter().any(|r| r.contains(why)), "{name}: {said:?}");
                // Of two layers the first is raised.
                assert_eq!(found.len(), usize::from(name == "bias"), "{name}");
            }
        }
    }
}

/// Beyond what the probes see, with what is not raised in tract.
#[test]
#[cfg(feature = "tract")]
fn masked_models_compute_what_onnx_runtime_does() {
    let expected = tensors(Path::new("tests/fixtures/masks/expected.safetensors"));
    for name in MASKS.map(|(name, _)| name).into_iter().chain(["length"]) {
        let module = raised(&Path::new("tests/fixtures/masks").join(format!("{name}.onnx")));
        agrees(name, &module, &expected);
    }
}

/// A graph that is raised in part mixes tokens elsewhere than in cached attention.
#[test]
#[cfg(feature = "tract")]
fn what_sees_new_tokens_alone_is_no_cached_language_model() {
    for (name, op) in [
        ("causal", None),
        ("window", None),
        ("bias", Some("onnx.")),
        ("conv", Some("onnx.Transpose \"layer1.turned\"")),
        ("padding", Some("onnx.")),
    ] {
        let mut module = import(&Path::new("tests/fixtures/masks").join(format!("{name}.onnx")));
        raise::raise_to_run(&mut module).unwrap_or_else(|e| panic!("{name}: {e}"));
        let engine = Engine::new(&module, &FileCache::new(), &Options::default());
        let found = engine
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .language_model();
        match (op, found) {
            (None, found) => assert!(found.is_ok(), "{name}: {found:?}"),
            (Some(_), Ok(_)) => panic!("{name} passes for a language model"),
            (Some(op), Err(error)) => {
                let said = error.to_string();
                let named = said.contains(op) && said.contains("mixes tokens");
                assert!(named || said.contains("no attention"), "{name}: {said}");
            }
        }
    }
}

#[test]
fn models_on_arrays_keep_their_inputs() {
    let expected = tensors(Path::new("tests/fixtures/raise/expected.safetensors"));
    for name in ["llama.dynamo.past", "llama.script.past", "bert.script"] {
        let source = import(&Path::new("tests/fixtures/raise").join(format!("{name}.onnx")));
        let mut module = source.clone();
        raise::raise_as_is(&mut module, true).unwrap_or_else(|e| panic!("{name}: {e}"));
        let names = |module: &Module| -> Vec<String> {
            let graph = &module.graphs[0];
            let inputs = graph.body.inputs.iter();
            inputs
                .map(|&id| graph.value(id).expect("an input").name.clone())
                .collect()
        };
        assert_eq!(names(&module), names(&source), "{name}");
        // What makes a mask of a past is left to tract, which does not know its shapes.
        if cfg!(feature = "tract") && !name.ends_with("past") {
            agrees(name, &module, &expected);
        }
    }
    // Nothing of the past is given: keys and values become a cache, the mask stays.
    let mut module = import(Path::new("tests/fixtures/raise/genai.split.onnx"));
    raise::raise_as_is(&mut module, false).expect("raised");
    let engine = Engine::new(&module, &FileCache::new(), &Options::default()).expect("runs");
    let names: Vec<&str> = engine.inputs().iter().map(|p| p.name.as_str()).collect();
    assert!(names.contains(&"attention_mask"), "{names:?}");
    assert!(!names.iter().any(|name| raise::is_past(name)), "{names:?}");
}
