//! Checkpoints of no known architecture: every matrix as a free-standing op.
//!
//! Each matrix gets a graph input and a graph output of its own, so that weight passes, the report and
//! output work; the graph says nothing of how the model computes.

use std::collections::HashSet;

use super::builder::{Builder, LinearSpec};
use crate::ir::{Dim, Embedding, Matrix, OpKind, Operand, Role, Type, WeightId, WeightView};
use crate::weights::DType;

/// Most matrices that are made of stacks.
const MAX_MATRICES: u64 = 1 << 18;

/// A tensor that is one matrix or a stack of them.
struct Candidate {
    weight: WeightId,
    name: String,
    dims: Vec<u64>,
}

/// Makes an op of every matrix; returns how many there are.
pub(super) fn build(b: &mut Builder) -> usize {
    let mut found = candidates(b, is_named_matrix);
    if found.is_empty() {
        // Not one name of the usual form: then shape alone counts.
        found = candidates(b, |_| true);
    }
    let mut paths = HashSet::new();
    for candidate in &found {
        let used = paths.len() as u64;
        match *candidate.dims.as_slice() {
            [rows, cols] if is_embedding(&candidate.name) => {
                let path = unique(&mut paths, stem(&candidate.name), &candidate.name);
                embedding(b, candidate, &path, (rows, cols));
            }
            [rows, cols] => {
                let path = unique(&mut paths, stem(&candidate.name), &candidate.name);
                linear(b, candidate, None, &path, (rows, cols));
            }
            [stack, rows, cols] if used.saturating_add(stack) <= MAX_MATRICES => {
                for index in 0..stack {
                    let path = format!("{}.{index}", stem(&candidate.name));
                    let path = unique(&mut paths, &path, &format!("{}.{index}", candidate.name));
                    linear(b, candidate, Some(index), &path, (rows, cols));
                }
            }
            _ => continue,
        }
        b.tensors.mark(candidate.weight);
    }
    paths.len()
}

/// `path`, or where that is taken, the longer `other`, or that with a mark.
fn unique(paths: &mut HashSet<String>, path: &str, other: &str) -> String {
    let mut path = if paths.contains(path) { other } else { path }.to_string();
    while !paths.insert(path.clone()) {
        path.push('\'');
    }
    path
}

fn candidates(b: &Builder, named: impl Fn(&str) -> bool) -> Vec<Candidate> {
    let mut found = Vec::new();
    for (index, weight) in b.tensors.weights.iter().enumerate() {
        let shaped = match *weight.dims.as_slice() {
            [rows, cols] => rows > 1 && cols > 1,
            [stack, rows, cols] => {
                stack > 0 && rows > 1 && cols > 1 && weight.name.contains("experts")
            }
            _ => false,
        };
        if shaped && weight.dtype.is_float() && named(&weight.name) {
            found.push(Candidate {
                weight: WeightId::new(index),
                name: weight.name.clone(),
                dims: weight.dims.clone(),
            });
        }
    }
    found
}

fn is_named_matrix(name: &str) -> bool {
    name == "weight" || name.ends_with(".weight") || name.contains("experts")
}

fn stem(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

fn is_embedding(name: &str) -> bool {
    let mut parts = stem(name).split('.');
    let table = |p: &str| p.contains("embed") && p != "embed_out" || p == "wte" || p == "wpe";
    // Its last part, or the one before, names it: `embed_tokens`, `word_embeddings`, `embeddings.word`.
    let last = parts.next_back().unwrap_or_default();
    table(last) && !last.contains("proj") || parts.next_back() == Some("embeddings")
}

fn role(name: &str) -> Role {
    let stem = stem(name);
    let last = stem.rsplit('.').next().unwrap_or_default();
    match last {
        "lm_head" | "embed_out" => Role::Head,
        "output" if !stem.contains('.') => Role::Head,
        "router" => Role::Router,
        "gate" if stem.contains("moe") || stem.ends_with("mlp.gate") => Role::Router,
        _ if name.contains("experts.") => Role::Expert,
        _ => Role::Linear,
    }
}

fn known(size: u64) -> Dim {
    i64::try_from(size).map_or(Dim::Unknown, Dim::Known)
}

fn linear(
    b: &mut Builder,
    c: &Candidate,
    index: Option<u64>,
    path: &str,
    (rows, cols): (u64, u64),
) {
    let vector = |width| Type::tensor(DType::F32, vec![Dim::symbol("N"), known(width)]);
    let x = b.input(&format!("{path}.in"), vector(cols));
    let view = WeightView {
        weight: c.weight,
        index,
        transposed: false,
    };
    let bias = format!("{}.bias", stem(&c.name));
    let biased = index.is_none() && b.tensors.is_float(&bias, &[rows]);
    let bias = biased.then(|| b.tensors.weight(&bias, &[rows]));
    let spec = LinearSpec::new(path, rows, cols).role(role(&c.name));
    let y = b.linear_of(x, &spec, view, bias);
    b.output(y, &format!("{path}.out"), vector(rows));
}

fn embedding(b: &mut Builder, c: &Candidate, path: &str, (rows, cols): (u64, u64)) {
    let ids = Type::tensor(DType::I64, vec![Dim::symbol("N")]);
    let ids = b.input(&format!("{path}.in"), ids);
    let matrix = Matrix::dense(rows, cols, WeightView::whole(c.weight));
    let kind = OpKind::Embedding(Embedding { matrix });
    let y = b.op(path, kind, vec![Operand::Value(ids)], None);
    let ty = Type::tensor(DType::F32, vec![Dim::symbol("N"), known(cols)]);
    b.output(y, &format!("{path}.out"), ty);
}
