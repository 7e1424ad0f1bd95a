//! Real models against excerpts of what `transformers` computes in f32.

use std::path::Path;

use super::common::model;
use super::fixture::{engine, error, exec, f32s, i64s, import, tensors};
use hlrc::exec::Tensor;

/// Most relative error of a real model.
const TOLERANCE: f64 = 1e-3;
/// Entries kept of each sequence's last position.
const TOP: usize = 64;

fn agrees(name: &str, folder: &Path) {
    let excerpt = Path::new("tests/fixtures/logits").join(format!("{name}.safetensors"));
    let excerpt = tensors(&excerpt);
    let (module, files) = import(folder, &["embeddings.position_ids"]);
    let engine = engine(&module, &files, 2);
    let names = ["input_ids", "attention_mask", "token_type_ids"];
    let inputs: Vec<(&str, Tensor)> = names
        .into_iter()
        .filter_map(|name| Some((name, excerpt.get(name)?.clone())))
        .collect();
    let outputs = exec(&engine, &inputs);
    let wanted = ["logits", "last_hidden_state"];
    let (_, output) = outputs
        .iter()
        .find(|(name, _)| wanted.contains(&name.as_str()))
        .expect("an output that is known");
    let &[_, length, width] = output.shape.as_slice() else {
        panic!("{name}: the output is {:?}", output.shape);
    };
    let have = f32s(output);
    let at = |index: i64| have[usize::try_from(index).expect("an index")];
    let samples: Vec<f32> = i64s(&excerpt["where"]).iter().map(|&i| at(i)).collect();
    let norms: Vec<f32> = have.chunks(width).map(norm).collect();
    let last = last_positions(&excerpt, length);
    let top = i64s(&excerpt["top"]).chunks(TOP).zip(last).enumerate();
    let top: Vec<f32> = top
        .flat_map(|(sequence, (ids, last))| {
            let start = (sequence * length + last) * width;
            ids.iter().map(move |&id| start as i64 + id)
        })
        .map(at)
        .collect();
    for (what, have) in [("value", samples), ("norm", norms), ("top_value", top)] {
        let off = error(&have, f32s(&excerpt[what]));
        eprintln!("{name}: {what} is off by {off:.1e}");
        assert!(off <= TOLERANCE, "{name}: {what} is off by {off:e}");
    }
}

fn norm(row: &[f32]) -> f32 {
    let squares = row.iter().map(|&x| f64::from(x) * f64::from(x));
    squares.sum::<f64>().sqrt() as f32
}

/// Each sequence's last position that is no padding.
fn last_positions(
    excerpt: &std::collections::BTreeMap<String, Tensor>,
    length: usize,
) -> Vec<usize> {
    let sequences = i64s(&excerpt["input_ids"]).len() / length;
    let Some(mask) = excerpt.get("attention_mask") else {
        return vec![length - 1; sequences];
    };
    let count = |row: &[i64]| row.iter().filter(|&&seen| seen != 0).count() - 1;
    i64s(mask).chunks(length).map(count).collect()
}

#[test]
fn stories260k() {
    agrees("stories260K", Path::new("tests/fixtures/stories260K"));
}

#[test]
fn smollm2() {
    if let Some(folder) = model("smollm2-135m") {
        agrees("smollm2-135m", &folder);
    }
}

#[test]
fn all_minilm() {
    if let Some(folder) = model("all-MiniLM-L6-v2") {
        agrees("all-MiniLM-L6-v2", &folder);
    }
}
