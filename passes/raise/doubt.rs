//! Values that may be others in sequences longer than all samples.
//!
//! Samples show where a length passes 32, not where it passes 4096. What compares a number that grows
//! with the sequence to one that no sample reaches is doubted, and what follows from it: such values
//! are neither numbers nor positions nor angles. Masks are looked at on their own.

use std::collections::HashSet;

use super::probe::Facts;
use super::sample::PROBES;
use super::tensor::Tensor;
use crate::ir::{Graph, OnnxOp, Op, OpKind, Operand, ValueId};

/// The doubtful values of a graph, by what is known at short and at longer samples.
pub(super) fn doubts(graph: &Graph, facts: [&Facts<'_>; 2]) -> HashSet<ValueId> {
    let mut doubtful = HashSet::new();
    for op in graph.body.ops.iter().filter_map(|&id| graph.op(id)) {
        let OpKind::Onnx(onnx) = &op.kind else {
            continue;
        };
        if matches!(onnx.op_type.as_str(), "Shape" | "Size") {
            continue;
        }
        let follows =
            |operand: &Operand| matches!(operand, Operand::Value(id) if doubtful.contains(id));
        if op.inputs.iter().any(follows) || is_doubtful(op, onnx, facts) {
            // Beyond activations nobody reads numbers.
            let numbers =
                |id: &ValueId| facts.iter().all(|f| f.side(Operand::Value(*id)).is_some());
            doubtful.extend(op.results.iter().flatten().filter(|id| numbers(id)));
        }
    }
    doubtful
}

/// What an operand is at all samples.
fn at_all(operand: Operand, facts: [&Facts<'_>; 2]) -> Option<Vec<Tensor>> {
    let [near, far] = facts;
    let mut all = near.side(operand)?.to_vec();
    all.extend(far.side(operand)?);
    (all.len() == 2 * PROBES).then_some(all)
}

/// Whether the numbers are the same at all samples.
fn is_constant(tensors: &[Tensor]) -> bool {
    let first = tensors.first();
    first.is_some_and(|first| {
        tensors
            .iter()
            .all(|t| t.shape == first.shape && t.data == first.data)
    })
}

fn numbers(tensors: &[Tensor]) -> impl Iterator<Item = f64> {
    tensors
        .iter()
        .flat_map(|t| t.values().unwrap_or_default().iter().copied())
}

/// Whether an op has pieces that no sample reaches.
fn is_doubtful(op: &Op, onnx: &OnnxOp, facts: [&Facts<'_>; 2]) -> bool {
    let inputs: Vec<_> = op.inputs.iter().map(|&o| at_all(o, facts)).collect();
    let given = |at: usize| inputs.get(at).and_then(Option::as_deref);
    let (Some(x), y) = (given(0), given(1)) else {
        return false;
    };
    match onnx.op_type.as_str() {
        "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "Min" | "Max" | "Mod" | "Div" => {
            let whole = x.iter().all(|t| t.dtype.is_integer());
            if onnx.op_type == "Div" && !whole {
                return false;
            }
            let parts = matches!(onnx.op_type.as_str(), "Mod" | "Div");
            // Beyond a divisor the next piece is seen.
            let side = |x, y| one_sided(x, y).is_some_and(|below| below || !parts);
            y.is_some_and(|y| side(x, y) || (!parts && side(y, x)))
        }
        "Clip" => [1, 2]
            .iter()
            .any(|&at| given(at).is_some_and(|bound| one_sided(x, bound).is_some())),
        "Floor" | "Ceil" | "Round" | "Cast" => {
            let result = op.results.first().copied().flatten();
            let Some(y) = result.and_then(|id| at_all(Operand::Value(id), facts)) else {
                return false;
            };
            let rounds = onnx.op_type != "Cast"
                || (x.iter().all(|t| t.dtype.is_float()) && y.iter().all(|t| t.dtype.is_integer()));
            let mut all = numbers(&y);
            let first = all.next();
            rounds && !is_constant(x) && all.all(|n| Some(n) == first)
        }
        _ => false,
    }
}

/// Where what grows with the sequence stays on one side of a number that is always the same: whether
/// below. That lengths and places are not negative is no news.
fn one_sided(grows: &[Tensor], bound: &[Tensor]) -> Option<bool> {
    let bound = bound.first().filter(|_| is_constant(bound))?.number()?;
    // What is beyond all lengths stands for no bound.
    if is_constant(grows) || bound.abs() >= f64::from(i32::MAX) {
        return None;
    }
    let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
    for n in numbers(grows) {
        (least, most) = (least.min(n), most.max(n));
    }
    let natural = bound <= 0.0 && least >= 0.0;
    (!natural && (most < bound || least > bound)).then_some(most < bound)
}
