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

/// Ops that are one thing here and another there.
const IN_PIECES: [&str; 22] = [
    "Abs",
    "ArgMax",
    "ArgMin",
    "Cast",
    "Ceil",
    "Clip",
    "Div",
    "Equal",
    "Erf",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
    "ReduceMax",
    "ReduceMin",
    "Relu",
    "Round",
    "Sigmoid",
];

/// Whether an op is one thing here and another there.
pub(super) fn has_pieces(onnx: &OnnxOp) -> bool {
    let kind = onnx.op_type.as_str();
    IN_PIECES.contains(&kind) || matches!(kind, "Sign" | "Tanh")
}

/// Whether an op has pieces that no sample reaches.
fn is_doubtful(op: &Op, onnx: &OnnxOp, facts: [&Facts<'_>; 2]) -> bool {
    let kind = onnx.op_type.as_str();
    if matches!(kind, "Gather" | "Slice") {
        return looks_up(op, facts);
    }
    if !has_pieces(onnx) {
        return false;
    }
    let inputs: Vec<_> = op.inputs.iter().map(|&o| at_all(o, facts)).collect();
    let given = |at: usize| inputs.get(at).and_then(Option::as_deref);
    let (Some(x), y) = (given(0), given(1)) else {
        return false;
    };
    let integers = |all: &[Tensor]| all.iter().all(|t| t.dtype.is_integer());
    let parts = match kind {
        "Div" if !integers(x) => return false,
        "Div" | "Mod" => true,
        _ => false,
    };
    // What grows and gives the same number everywhere is looked at in one piece.
    if is_flat(op, onnx, facts) {
        return true;
    }
    match kind {
        "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "Min" | "Max" | "Mod" | "Div" => {
            // Beyond a divisor the next piece is seen.
            let side = |x, y| one_sided(x, y).is_some_and(|below| below || !parts);
            y.is_some_and(|y| side(x, y) || (!parts && side(y, x)))
        }
        "Clip" => [1, 2]
            .iter()
            .any(|&at| given(at).is_some_and(|bound| one_sided(x, bound).is_some())),
        "Abs" => nears_zero(x),
        _ => false,
    }
}

/// Whether numbers differ, have one sign, and are negative or come nearer to zero in longer samples.
fn nears_zero(tensors: &[Tensor]) -> bool {
    let (near, far) = tensors.split_at(PROBES.min(tensors.len()));
    let least = |all: &[Tensor]| numbers(all).map(f64::abs).fold(f64::INFINITY, f64::min);
    let negative = numbers(tensors).all(|n| n < 0.0);
    let positive = numbers(tensors).all(|n| n > 0.0);
    !is_constant(tensors) && (negative || (positive && least(far) < least(near)))
}

/// Whether an op's inputs grow with the sequence and its result is one number, the same at all samples.
pub(super) fn is_flat(op: &Op, onnx: &OnnxOp, facts: [&Facts<'_>; 2]) -> bool {
    let inputs: Vec<_> = op.inputs.iter().map(|&o| at_all(o, facts)).collect();
    let result = op.results.first().copied().flatten();
    let Some(y) = result.and_then(|id| at_all(Operand::Value(id), facts)) else {
        return false;
    };
    let known = || inputs.iter().flatten();
    let rounds = match onnx.op_type.as_str() {
        "Cast" => {
            let floats = known().all(|all| all.iter().all(|t| t.dtype.is_float()));
            floats && y.iter().all(|t| t.dtype.is_integer())
        }
        _ => true,
    };
    let mut all = y.iter().enumerate().flat_map(|(at, y)| {
        let given = inputs.iter().flatten().filter_map(|all| all.get(at));
        defined(y, &given.collect::<Vec<_>>())
    });
    let first = all.next();
    let grows = |all: &Vec<Tensor>| varies(all);
    // That lengths and places are not negative is no news.
    let natural = || {
        let (growing, fixed): (Vec<_>, Vec<_>) = known().partition(|all| grows(all));
        !fixed.is_empty()
            && growing.iter().all(|all| numbers(all).all(|n| n >= 0.0))
            && fixed.iter().all(|all| numbers(all).all(|n| n <= 0.0))
    };
    rounds && known().any(grows) && first.is_some() && all.all(|n| Some(n) == first) && !natural()
}

/// A result's numbers, but where an input is none: the logarithm of what is negative decides nothing.
fn defined(y: &Tensor, inputs: &[&Tensor]) -> Vec<f64> {
    let holds = |place: usize| {
        inputs.iter().filter(|x| x.shape == y.shape).all(|x| {
            let number = x.values().and_then(|values| values.get(place));
            number.is_none_or(|n| !n.is_nan())
        })
    };
    let values = y.values().unwrap_or_default().iter();
    let told = values.enumerate().filter(|(place, _)| holds(*place));
    told.map(|(_, n)| *n).collect()
}

/// Whether the numbers differ, and not only how many of one number there are.
fn varies(tensors: &[Tensor]) -> bool {
    let mut all = numbers(tensors);
    let first = all.next();
    all.any(|n| Some(n) != first)
}

/// Whether an op takes a part of a stored vector, longer than all samples, that follows no even steps.
fn looks_up(op: &Op, facts: [&Facts<'_>; 2]) -> bool {
    let [_, far] = facts;
    let reach = far.samples().map(|s| s.length + s.past).into_iter().max();
    let table = op.inputs.first().and_then(|&table| at_all(table, facts));
    let Some(table) = table.filter(|table| is_constant(table)) else {
        return false;
    };
    let index = op.inputs.iter().skip(1);
    let moves = index
        .filter_map(|&o| at_all(o, facts))
        .any(|all| varies(&all));
    let Some(first) = table.first().filter(|_| moves) else {
        return false;
    };
    let vector = first.shape.iter().filter(|&&d| d > 1).count() == 1;
    let values = first.values().unwrap_or_default();
    let long = reach.is_some_and(|reach| values.len() > reach);
    let step = |pair: &[f64]| match pair {
        [a, b] => b - a,
        _ => f64::NAN,
    };
    let mut steps = values.windows(2).map(step);
    let even = steps.next();
    vector && long && !steps.all(|s| Some(s) == even)
}

/// Where what grows with the sequence stays on one side of a number that is always the same: whether
/// below. That lengths and places are not negative is no news.
fn one_sided(grows: &[Tensor], bound: &[Tensor]) -> Option<bool> {
    let mut bounds = numbers(bound);
    let bound = bounds.next()?;
    if bounds.any(|other| other != bound) {
        return None;
    }
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
