//! Widths of activations against their matrices.

use super::{Violation, op_place};
use crate::ir::shapes::{Shapes, Trust, infer_with};
use crate::ir::{Graph, Layout, Module, Native, OpKind, Operand, Term, ValueId};

/// Linears whose activation is known to have another width than the matrix takes, and rotations whose
/// blocks do not divide it.
pub(super) fn check(module: &Module) -> Vec<Violation> {
    let linear = |graph: &Graph| {
        let mut ops = graph.ops.iter();
        ops.any(|op| matches!(op.kind, OpKind::Linear(_)))
    };
    if !module.graphs.iter().any(linear) {
        return Vec::new();
    }
    // What a source states of inner values may be wrong, and its runtime may not care.
    let shapes = infer_with(module, Trust::Inputs, &mut |_| None);
    let mut found = Vec::new();
    for at in module.walk() {
        let (Some(graph), Some(op)) = (module.graphs.get(at.graph), module.op(at)) else {
            continue;
        };
        if let (OpKind::Native(Native::Hadamard { block, .. }), [Operand::Value(x)]) =
            (&op.kind, op.inputs.as_slice())
            && let Some(has) = shapes.size(at.graph, *x, -1)
            && !has.is_multiple_of((*block).max(1))
        {
            let activation = activation(graph, &shapes, at.graph, *x);
            found.push(Violation {
                place: op_place(graph, at.op),
                what: format!(
                    "{activation} has {has} features, which blocks of {block} do not divide"
                ),
            });
        }
        let (OpKind::Linear(linear), [Operand::Value(x)]) = (&op.kind, op.inputs.as_slice()) else {
            continue;
        };
        let axis = match linear.layout {
            Layout::Rows => -1,
            Layout::Columns => -2,
            Layout::Channels(_) => 1,
        };
        let takes = linear.matrix.in_features;
        let has = shapes.size(at.graph, *x, axis);
        if let Some(has) = has.filter(|has| *has != takes) {
            let matrix = matrix_name(module, &linear.matrix.terms);
            let activation = activation(graph, &shapes, at.graph, *x);
            found.push(Violation {
                place: op_place(graph, at.op),
                what: format!("{activation} has {has} features, {matrix} takes {takes}"),
            });
        }
    }
    found
}

fn activation(graph: &Graph, shapes: &Shapes, index: usize, value: ValueId) -> String {
    let name = graph.value(value).map_or("", |value| &value.name);
    let rank = shapes.rank(index, value).unwrap_or(0);
    match name.is_empty() {
        true => format!("the activation {value} of rank {rank}"),
        false => format!("the activation %{name} of rank {rank}"),
    }
}

fn matrix_name(module: &Module, terms: &[Term]) -> String {
    let id = terms.iter().flat_map(Term::weights).next();
    match id.and_then(|id| module.weight(id)) {
        Some(weight) => format!("its matrix @{}", weight.name),
        None => "its matrix".to_string(),
    }
}
