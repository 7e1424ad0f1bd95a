//! The rules: what each op's gradient is.

use super::parameters::{Source, vector};
use super::{Backward, GradError};
use crate::ir::{Grad, Layout, Linear, Native, Op, OpKind, Operand, Training, ValueId};

/// Emits an op's gradient, given that by its result.
type Rule = fn(&mut Backward<'_>, &Op, ValueId) -> Result<(), GradError>;

/// A row per op. `positions` makes integers: it stands in no way from a parameter to a loss.
const RULES: &[(&str, Rule)] = &[
    ("linear", linear),
    ("embedding", embedding),
    ("moe", moe),
    ("rms_norm", norm),
    ("layer_norm", norm),
    ("rope", rope),
    ("attention", attention),
    ("activate", pointwise),
    ("softcap", pointwise),
    ("add", sides),
    ("mul", sides),
    ("scale", scale),
    ("hadamard", scale),
    ("slice", pointwise),
    ("first_token", pointwise),
];

/// What the op is called in text.
fn name(op: &Op) -> String {
    match &op.kind {
        OpKind::Linear(_) => "linear".to_string(),
        OpKind::Embedding(_) => "embedding".to_string(),
        OpKind::Moe(_) => "moe".to_string(),
        OpKind::Native(native) => native.name().to_string(),
        OpKind::Grad(grad) => grad.name(),
        OpKind::Onnx(onnx) => format!("onnx.{}", onnx.op_type),
    }
}

/// Whether an op has a rule.
pub fn has_rule(op: &Op) -> bool {
    let name = name(op);
    RULES.iter().any(|(of, _)| *of == name)
}

/// The error of an op without a rule.
pub(super) fn none(op: &Op, problem: &str) -> GradError {
    GradError::NoRule {
        op: name(op),
        name: op.name.clone(),
        problem: problem.to_string(),
    }
}

/// Emits an op's gradient.
pub(super) fn apply(b: &mut Backward<'_>, op: &Op, dy: ValueId) -> Result<(), GradError> {
    let name = name(op);
    match RULES.iter().find(|(of, _)| *of == name) {
        Some((_, rule)) => rule(b, op, dy),
        None => Err(none(
            op,
            "the op has no rule; train what stands behind it (--params), or raise the graph to \
             native ops (the pass `raise`)",
        )),
    }
}

fn linear(b: &mut Backward<'_>, op: &Op, dy: ValueId) -> Result<(), GradError> {
    let OpKind::Linear(linear) = &op.kind else {
        return Ok(());
    };
    let Linear { layout, scale, .. } = *linear;
    if layout != Layout::Rows {
        return Err(none(
            op,
            "linears along another axis than the last have no rule",
        ));
    }
    let (scale, dy) = (f64::from(scale), Operand::Value(dy));
    let x = b.see(op.inputs.first().copied().unwrap_or(Operand::None));
    b.parts(op, &linear.matrix, &Source::Linear { dy, x, scale });
    if let Some(bias) = linear
        .bias
        .map(vector)
        .filter(|bias| b.parameters.contains(bias))
    {
        let sum = b.emit_one(op, Grad::op(Training::SumRows), vec![dy]);
        b.give_parameter(op, bias, sum);
    }
    if b.is_active(op.inputs.first()) {
        let grad = Grad::with_matrix(Training::Linear { scale }, linear.matrix.clone());
        let dx = b.emit_one(op, grad, vec![dy]);
        b.give(op, op.inputs.first(), dx);
    }
    Ok(())
}

fn embedding(b: &mut Backward<'_>, op: &Op, dy: ValueId) -> Result<(), GradError> {
    let OpKind::Embedding(embedding) = &op.kind else {
        return Ok(());
    };
    let ids = b.see(op.inputs.first().copied().unwrap_or(Operand::None));
    let dy = Operand::Value(dy);
    b.parts(op, &embedding.matrix, &Source::Table { dy, ids });
    Ok(())
}

fn moe(b: &mut Backward<'_>, op: &Op, dy: ValueId) -> Result<(), GradError> {
    super::experts::rule(b, op, dy)
}

/// `dy`, then the op's own inputs.
fn inputs(b: &Backward<'_>, op: &Op, dy: ValueId) -> Vec<Operand> {
    let own = op.inputs.iter().map(|&input| b.see(input));
    std::iter::once(Operand::Value(dy)).chain(own).collect()
}

fn native(op: &Op) -> Option<&Native> {
    match &op.kind {
        OpKind::Native(native) => Some(native),
        _ => None,
    }
}

/// Whether a gradient by an input is wanted: a value's, or a weight's that is a parameter.
fn wants(b: &Backward<'_>, input: Option<&Operand>) -> bool {
    match input {
        Some(Operand::Weight(id)) => b.parameters.contains(&vector(*id)),
        other => b.is_active(other),
    }
}

/// Emits `grad.<name>` and hands each of its results to the input that it is by.
fn emit(b: &mut Backward<'_>, op: &Op, given: Vec<Operand>) {
    let Some(native) = native(op) else { return };
    let count = Grad::native_results(native);
    let wanted: Vec<bool> = (0..count).map(|i| wants(b, op.inputs.get(i))).collect();
    let kind = OpKind::Grad(Box::new(Grad::of(native.clone())));
    let made = b.emit(op, kind, given, &wanted);
    for (input, value) in op.inputs.iter().zip(made) {
        match input {
            Operand::Weight(id) => b.give_parameter(op, vector(*id), value),
            other => b.give(op, Some(other), value),
        }
    }
}

/// Ops whose gradient needs `dy` and all of their inputs.
fn pointwise(b: &mut Backward<'_>, op: &Op, dy: ValueId) -> Result<(), GradError> {
    let given = inputs(b, op, dy);
    emit(b, op, given);
    Ok(())
}

fn norm(b: &mut Backward<'_>, op: &Op, dy: ValueId) -> Result<(), GradError> {
    pointwise(b, op, dy)
}

fn attention(b: &mut Backward<'_>, op: &Op, dy: ValueId) -> Result<(), GradError> {
    pointwise(b, op, dy)
}

/// The rotation back needs no activations.
fn rope(b: &mut Backward<'_>, op: &Op, dy: ValueId) -> Result<(), GradError> {
    let mut given = inputs(b, op, dy);
    if let Some(x) = given.get_mut(1) {
        *x = Operand::None;
    }
    emit(b, op, given);
    Ok(())
}

fn scale(b: &mut Backward<'_>, op: &Op, dy: ValueId) -> Result<(), GradError> {
    rope(b, op, dy)
}

/// Sums and products. The gradient by a summand of the sum's shape is `dy` itself.
fn sides(b: &mut Backward<'_>, op: &Op, dy: ValueId) -> Result<(), GradError> {
    let same = |b: &Backward<'_>, input: &Operand| match (input, op.results.as_slice()) {
        (Operand::Value(x), [Some(y)]) => {
            let dims = |v: &ValueId| b.shapes.dims(0, *v);
            matches!((dims(x), dims(y)), (Some(x), Some(y)) if x == y)
        }
        _ => false,
    };
    let plain = matches!(op.kind, OpKind::Native(Native::Add))
        && op
            .inputs
            .iter()
            .all(|input| !wants(b, Some(input)) || same(b, input));
    if !plain {
        return pointwise(b, op, dy);
    }
    for input in &op.inputs {
        b.give(op, Some(input), Some(dy));
    }
    Ok(())
}
