//! What `transformers` computes, and what we compute: the same, for every family.
//!
//! `tests/fixtures/families` has a tiny random model of each, made by its `make.py`; the real models'
//! excerpts in `tests/fixtures/logits` are made by `tests/peers/logits.py`. No Python is needed here,
//! except where a test says that it skips.

#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod real;
mod rotations;
mod swaps;
mod terms;

use std::ops::ControlFlow;

use fixture::{Fixture, engine, error, exec, f32s, ids};
use hlrc::exec::{Engine, Rows, State};

/// Most relative error against `transformers`: ours and theirs are f32, in different orders.
///
/// The aim is 1e-3. The two forms of GELU differ by 1e-4 of the outputs, so this is tighter.
const TOLERANCE: f64 = 2e-5;

const FAMILIES: [&str; 14] = [
    "llama",
    "llama_yarn",
    "llama_dynamic",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "gpt2",
    "bert",
    "bert_masked_lm",
    "mixtral",
    "qwen3_moe",
    "qwen3_moe_plain",
];

/// Families that decode with a cache.
fn decoders() -> impl Iterator<Item = Fixture> {
    let names = FAMILIES.iter().filter(|name| !name.starts_with("bert"));
    names.map(|name| Fixture::open(name))
}

/// Logits `[tokens, vocabulary]` of tokens appended to every sequence of a state.
fn forward(engine: &Engine, state: &mut State, tokens: &[u32], rows: Rows) -> Vec<f32> {
    let mut all = Vec::new();
    let done = engine.forward(state, tokens, rows, &mut |_, logits| {
        all.extend_from_slice(logits);
        ControlFlow::Continue(())
    });
    done.unwrap_or_else(|e| panic!("{e}"));
    all
}

/// Columns `from..to` of a row-major `[sequences, width]` table.
fn columns<T: Copy>(table: &[T], width: usize, from: usize, to: usize) -> Vec<T> {
    let rows = table.chunks(width);
    rows.flat_map(|row| row[from..to].iter().copied()).collect()
}

fn greatest(logits: &[f32]) -> u32 {
    let better = |a: &(usize, f32), b: &(usize, f32)| a.1.total_cmp(&b.1);
    let best = logits.iter().copied().enumerate().max_by(better);
    u32::try_from(best.expect("logits").0).expect("a token")
}

#[test]
fn there_is_a_fixture_of_every_family() {
    let folder = std::fs::read_dir("tests/fixtures/families").expect("fixtures");
    let mut found: Vec<_> = folder
        .map(|e| e.expect("an entry"))
        .filter(|e| e.path().join("expected.safetensors").is_file())
        .map(|e| e.file_name().into_string().expect("a name"))
        .collect();
    found.sort();
    let mut named = FAMILIES.to_vec();
    named.sort_unstable();
    assert_eq!(found, named);
}

#[test]
fn every_family_gives_the_outputs_of_transformers() {
    for name in FAMILIES {
        let fixture = Fixture::open(name);
        let engine = fixture.engine(2);
        let mut compared = 0;
        for (output, tensor) in fixture.run(&engine) {
            let Some(expected) = fixture.expected.get(&output) else {
                continue;
            };
            compared += 1;
            let off = error(f32s(&tensor), f32s(expected));
            eprintln!("{name}: {output} is off by {off:.1e}");
            assert!(off <= TOLERANCE, "{name}: {output} is off by {off:e}");
        }
        assert!(compared > 0, "{name}: no output is known");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for name in FAMILIES {
        let fixture = Fixture::open(name);
        let one = fixture.run(&fixture.engine(1));
        for threads in [2, 3, 5] {
            assert_eq!(
                fixture.run(&fixture.engine(threads)),
                one,
                "{name}, {threads} threads"
            );
        }
    }
}

#[test]
fn decoding_with_the_cache_follows_transformers() {
    for fixture in decoders() {
        let (name, engine) = (&fixture.name, fixture.engine(2));
        let (prompt, greedy) = (ids(&fixture.expected["input_ids"]), fixture.greedy());
        let expected = f32s(&fixture.expected["greedy_logits"]);
        let vocabulary = fixture.width("logits");
        let mut state = engine.state(2);
        let mut logits = forward(&engine, &mut state, &prompt, Rows::Last);
        for step in 0..8 {
            let tokens: Vec<u32> = logits.chunks(vocabulary).map(greatest).collect();
            assert_eq!(
                tokens,
                columns(&greedy, 8, step, step + 1),
                "{name}, step {step}"
            );
            logits = forward(&engine, &mut state, &tokens, Rows::Last);
            let want = columns(
                expected,
                8 * vocabulary,
                step * vocabulary,
                (step + 1) * vocabulary,
            );
            let off = error(&logits, &want);
            assert!(off <= TOLERANCE, "{name}, step {step}: off by {off:e}");
        }
    }
}

/// The fixture of `dynamic` scaling is longer than its original context.
#[test]
fn pieces_of_a_prompt_equal_the_whole() {
    for fixture in decoders() {
        let (name, engine) = (&fixture.name, fixture.engine(2));
        let prompt = ids(&fixture.expected["input_ids"]);
        let expected = f32s(&fixture.expected["logits"]);
        let vocabulary = fixture.width("logits");
        let whole = forward(&engine, &mut engine.state(2), &prompt, Rows::All);
        let off = error(&whole, expected);
        assert!(off <= TOLERANCE, "{name}: whole, off by {off:e}");
        let (mut state, mut at) = (engine.state(2), 0);
        state.expect(24);
        for length in [1, 5, 11, 7] {
            let tokens = columns(&prompt, 24, at, at + length);
            let piece = forward(&engine, &mut state, &tokens, Rows::All);
            let (from, to) = (at * vocabulary, (at + length) * vocabulary);
            let off = error(&piece, &columns(expected, 24 * vocabulary, from, to));
            assert!(
                off <= TOLERANCE,
                "{name}: {length} from {at}, off by {off:e}"
            );
            at += length;
        }
    }
}

#[test]
fn sequences_are_set_back_by_themselves() {
    for fixture in decoders() {
        let (name, engine) = (&fixture.name, fixture.engine(2));
        let prompt = ids(&fixture.expected["input_ids"]);
        let vocabulary = fixture.width("logits");
        let expected = f32s(&fixture.expected["logits"]);
        let mut state = engine.state(2);
        state.expect(24);
        forward(&engine, &mut state, &prompt, Rows::Last);
        let copy = state.clone();
        state.truncate(0, 20);
        state.truncate(1, 3);
        assert_eq!((state.len(0), state.len(1)), (20, 3), "{name}");
        // The first two of the four tokens that each goes on with from where it stands.
        let tokens = [&prompt[20..22], &prompt[24 + 3..24 + 5]].concat();
        let logits = forward(&engine, &mut state, &tokens, Rows::Last);
        let row = |sequence: usize, at: usize| {
            let start = (sequence * 24 + at) * vocabulary;
            &expected[start..start + vocabulary]
        };
        let off = error(&logits, &[row(0, 21), row(1, 4)].concat());
        assert!(off <= TOLERANCE, "{name}: off by {off:e}");
        assert_eq!((copy.len(0), copy.len(1)), (24, 24), "{name}");
    }
}

#[test]
fn a_module_that_came_through_text_computes_the_same() {
    for name in FAMILIES {
        let fixture = Fixture::open(name);
        let text = hlrc::ir::text::print(&fixture.module);
        let mut module = hlrc::ir::text::parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        module.base_dir = fixture.module.base_dir.clone();
        let again = exec(&engine(&module, &fixture.files, 2), &fixture.inputs());
        assert_eq!(again, fixture.run(&fixture.engine(2)), "{name}");
    }
}
