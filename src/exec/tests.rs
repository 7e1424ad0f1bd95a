//! The engine on the small trained model that the repository ships.

use std::ops::ControlFlow;
use std::path::Path;

use super::{Engine, ExecError, Options, Rows, State};
use crate::import::Input;
use crate::weights::FileCache;

fn engine(threads: usize) -> Engine {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stories260K");
    let files = FileCache::new();
    let input = crate::import::open(&Input::Path(path), &files).expect("the fixture imports");
    let options = Options {
        threads,
        ..Options::default()
    };
    Engine::new(&input.module, &files, &options).expect("the fixture runs")
}

fn logits(engine: &Engine, state: &mut State, tokens: &[u32], rows: Rows) -> Vec<f32> {
    let mut all = Vec::new();
    let mut each = |first: usize, values: &[f32]| {
        assert_eq!(first * 512, all.len());
        all.extend_from_slice(values);
        ControlFlow::Continue(())
    };
    engine
        .forward(state, tokens, rows, &mut each)
        .expect("the tokens run");
    all
}

fn close(a: &[f32], b: &[f32], bound: f32) {
    assert_eq!(a.len(), b.len());
    let top = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    assert!(worst <= bound * top, "{worst} of {top}");
}

const TOKENS: [u32; 9] = [1, 403, 407, 261, 378, 300, 5, 17, 99];

#[test]
fn a_token_at_a_time_is_the_whole_at_once() {
    let engine = engine(2);
    let whole = logits(&engine, &mut engine.state(1), &TOKENS, Rows::All);
    let mut state = engine.state(1);
    let mut steps = logits(&engine, &mut state, &TOKENS[..4], Rows::All);
    for token in &TOKENS[4..] {
        steps.extend(logits(&engine, &mut state, &[*token], Rows::Last));
    }
    assert_eq!(state.len(0), TOKENS.len());
    close(&whole, &steps, 1e-5);
}

#[test]
fn threads_do_not_change_a_bit() {
    let one = engine(1);
    let expected = logits(&one, &mut one.state(1), &TOKENS, Rows::All);
    for threads in [2, 3, 5] {
        let many = engine(threads);
        let actual = logits(&many, &mut many.state(1), &TOKENS, Rows::All);
        assert_eq!(expected, actual);
    }
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() {
    let engine = engine(2);
    let alone = logits(&engine, &mut engine.state(1), &TOKENS[..4], Rows::Last);
    let other = logits(&engine, &mut engine.state(1), &TOKENS[4..8], Rows::Last);
    let both = logits(&engine, &mut engine.state(2), &TOKENS[..8], Rows::Last);
    close(&both, &[alone, other].concat(), 1e-5);
}

#[test]
fn truncating_forgets() {
    let engine = engine(1);
    let mut state = engine.state(1);
    logits(&engine, &mut state, &TOKENS, Rows::Last);
    state.truncate(0, 3);
    let again = logits(&engine, &mut state, &TOKENS[3..5], Rows::Last);
    let fresh = logits(&engine, &mut engine.state(1), &TOKENS[..5], Rows::Last);
    close(&again, &fresh, 1e-5);
}

#[test]
fn mistakes_are_refused_and_leave_the_state_alone() {
    let engine = engine(1);
    let mut state = engine.state(1);
    let mut ignore = |_: usize, _: &[f32]| ControlFlow::Continue(());
    let outside = engine.forward(&mut state, &[512], Rows::Last, &mut ignore);
    assert!(matches!(outside, Err(ExecError::Input { .. })));
    let long = vec![1; 513];
    let beyond = engine.forward(&mut state, &long, Rows::Last, &mut ignore);
    assert!(matches!(
        beyond,
        Err(ExecError::Context {
            asked: 513,
            context: 512
        })
    ));
    let none = engine.forward(&mut state, &[], Rows::Last, &mut ignore);
    assert!(matches!(none, Err(ExecError::Input { .. })));
    assert!(state.is_empty() && state.bytes() == 0);
}

fn of_text(text: &str) -> Engine {
    let module = crate::ir::text::parse(text).expect("parses");
    let options = Options {
        threads: 1,
        ..Options::default()
    };
    Engine::new(&module, &FileCache::new(), &options).expect("compiles")
}

fn hex(values: &[f32]) -> String {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes());
    bytes.map(|b| format!("{b:02x}")).collect()
}

#[test]
fn a_row_of_weights_is_added_to_and_multiplied_with_every_token() {
    for (op, wanted) in [
        ("add", [11.0, 22.0, 33.0, 14.0, 25.0, 36.0]),
        ("mul", [10.0, 40.0, 90.0, 40.0, 100.0, 180.0]),
    ] {
        for operands in ["%x, @row", "@row, %x"] {
            let text = format!(
                r#"hlir 1
module "m" {{
  weight @row : f32[3] = hex"{}"
  graph @main(%x : f32[1,S,3]) -> (%y) {{
    %y = {op} {operands}
  }}
}}
"#,
                hex(&[10.0, 20.0, 30.0])
            );
            let x = super::Tensor::f32(&[1, 2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
            let made = of_text(&text).run(&[("x", x)]).expect("runs");
            assert_eq!(made[0].1.shape, [1, 2, 3]);
            assert_eq!(made[0].1.floats(), Some(&wanted[..]), "{op} {operands}");
        }
    }
}

/// The gate of two tokens and one row for both, in either order, are one fused step.
#[test]
fn a_gate_is_repeated_over_the_rows_of_the_other() {
    let long = super::Tensor::f32(&[1, 2, 2], vec![-1.0, 2.0, 3.0, -4.0]);
    let short = super::Tensor::f32(&[2], vec![5.0, 0.5]);
    for (gate, other) in [("%x, %y", "%y"), ("%y, %x", "%x")] {
        let gate = gate.split(',').next().expect("a name");
        for operands in [format!("%t, {other}"), format!("{other}, %t")] {
            let text = format!(
                r#"hlir 1
module "m" {{
  graph @main(%x : f32[1,S,2], %y : f32[2]) -> (%z) {{
    %t = activate {gate} {{function="relu"}}
    %z = mul {operands}
  }}
}}
"#
            );
            let engine = of_text(&text);
            let made = engine.run(&[("x", long.clone()), ("y", short.clone())]);
            let made = made.expect("runs");
            let wanted: Vec<f32> = match gate {
                "%x" => vec![0.0, 1.0, 15.0, 0.0],
                _ => vec![-5.0, 1.0, 15.0, -2.0],
            };
            assert_eq!(made[0].1.shape, [1, 2, 2]);
            assert_eq!(made[0].1.floats(), Some(&wanted[..]), "{operands}");
        }
    }
}

#[test]
fn a_mask_that_hides_keys_does_not_go_with_a_cache() {
    let text = |factor: f32| {
        // The first column is the mask.
        let table = [1.0, 2.0, 1.0, 4.0, 1.0, 6.0, 1.0, 8.0];
        let eye = [1.0, 0.0, 0.0, 1.0];
        format!(
            r#"hlir 1
module "m" meta{{max_positions=16}} {{
  weight @table : f32[4,2] = hex"{}"
  weight @head : f32[2,2] = hex"{}"
  graph @main(%input_ids : i64[B,S]) -> (%logits) {{
    %x = embedding %input_ids [4,2] {{ dense(@table) }}
    %column = slice %x {{start=0, width=1}}
    %mask = scale %column {{factor={factor:?}}}
    %y = attention %x, %x, %x, %mask {{heads=1, kv_heads=1, head_dim=2, scale=1.0, causal=true, cache=0}}
    %logits = linear %y [2,2] {{ dense(@head) }}
  }}
}}
"#,
            hex(&table),
            hex(&eye)
        )
    };
    for (factor, fits) in [(1.0, true), (0.0, false)] {
        let engine = of_text(&text(factor));
        let mut state = engine.state(1);
        let mut ignore = |_: usize, _: &[f32]| ControlFlow::Continue(());
        let done = engine.forward(&mut state, &[0, 1, 2], Rows::Last, &mut ignore);
        assert_eq!(done.is_ok(), fits, "{done:?}");
        if let Err(error) = done {
            assert!(error.to_string().contains("mask"), "{error}");
            assert!(state.is_empty());
        }
        let ids = super::Tensor::i64(&[1, 3], vec![0, 1, 2]);
        engine
            .run(&[("input_ids", ids)])
            .expect("whole sequences have masks");
    }
}
