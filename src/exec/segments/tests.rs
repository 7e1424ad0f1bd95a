//! Segments of the small trained model that the repository ships.

use super::*;
use crate::exec::{Options, Tensor};
use crate::import::Input;
use crate::weights::FileCache;
use std::path::Path;

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

#[derive(Default)]
struct Last(Vec<f32>, usize);

impl Tap for Last {
    fn see(&mut self, _: OpId, x: &[f32], width: usize) {
        assert_eq!(x.len() % width, 0);
        x.clone_into(&mut self.0);
        self.1 += 1;
    }
}

#[test]
fn a_transformer_is_cut_behind_its_layers() {
    let segments = engine(1).segments();
    let layers: Vec<Option<u32>> = segments.list.iter().map(|s| s.layer).collect();
    // The head takes what the last layer leaves.
    assert_eq!(layers, [Some(0), Some(1), Some(2), Some(3), Some(4), None]);
    let widths: Vec<usize> = segments.list[1].inputs.iter().map(|i| i.width).collect();
    assert_eq!(widths, [64, 64, 64, 172]);
    let shared: Vec<usize> = segments.list[1]
        .inputs
        .iter()
        .map(|i| i.linears.len())
        .collect();
    assert_eq!(shared, [3, 1, 2, 1]);
    // Activations, and the positions until the last layer has used them.
    let left: Vec<usize> = segments.list.iter().map(|s| s.leave.len()).collect();
    assert_eq!(left, [2, 2, 2, 2, 1, 0]);
    assert!(segments.fits(&engine(2)));
}

#[test]
fn segments_one_by_one_are_the_whole() {
    let (engine, other) = (engine(2), engine(1));
    let tokens = vec![1, 403, 407, 261, 378, 300, 5, 17, 99, 12];
    let input = vec![("input_ids".to_string(), Tensor::i64(&[2, 5], tokens))];
    let segments = engine.segments();
    let (mut held, mut last) = (Held::default(), Last::default());
    for (number, segment) in segments.list.iter().enumerate() {
        // Every other segment by an engine of its own.
        let engine = if number % 2 == 0 { &engine } else { &other };
        held = engine
            .run_segment(segment, &input, held, &mut last)
            .expect("runs");
        engine.release_segment(segment);
    }
    assert!(held.values.is_empty());
    assert_eq!(last.1, 5 * 7 + 1);
    let head = engine
        .program
        .steps
        .iter()
        .rev()
        .find_map(|s| match &s.kind {
            Kind::Linear(linear) => Some(linear),
            _ => None,
        });
    let head = &head.expect("a head").matrix;
    let mut logits = vec![0f32; 10 * head.rows];
    head.multiply_exact(&engine.pool, &last.0, &mut logits)
        .expect("multiplies");
    let whole = engine
        .run(&[("input_ids", input[0].1.clone())])
        .expect("runs");
    assert_eq!(whole[0].1.floats(), Some(logits.as_slice()));
}

#[test]
fn what_is_missing_between_segments_is_told() {
    let engine = engine(1);
    let input = vec![("input_ids".to_string(), Tensor::i64(&[1, 2], vec![1, 2]))];
    let second = &engine.segments().list[1];
    let failed = engine.run_segment(second, &input, Held::default(), &mut Blind);
    assert!(failed.is_err());
    let failed = engine.run_segment(&engine.segments().list[0], &[], Held::default(), &mut Blind);
    assert!(failed.is_err());
}
