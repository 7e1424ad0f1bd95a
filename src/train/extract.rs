//! A part of a graph as a module of its own.

use std::collections::HashSet;

use super::TrainError;
use crate::ir::{Module, OpId, Operand, ValueId};

/// The ops of the first graph that make `to` from `from` and the graph's own inputs.
///
/// Values and weights keep their ids; `from` become inputs, named `held.<id>` where they have no name.
///
/// # Errors
/// A value of `to` is made by nothing.
pub fn between(module: &Module, from: &[ValueId], to: &[ValueId]) -> Result<Module, TrainError> {
    let mut part = module.clone();
    let lost = |value: ValueId| {
        TrainError::Settings(format!("{value} between two layers is made by nothing"))
    };
    let graph = part
        .graphs
        .first_mut()
        .ok_or_else(|| lost(ValueId::new(0)))?;
    let given: HashSet<ValueId> = from.iter().chain(&graph.body.inputs).copied().collect();
    let mut needed: HashSet<ValueId> = to.iter().copied().collect();
    let mut ops: Vec<OpId> = Vec::new();
    for &id in graph.body.ops.iter().rev() {
        let Some(op) = graph.op(id) else { continue };
        let mut results = op.results.iter().flatten();
        if !results.any(|v| needed.contains(v) && !given.contains(v)) {
            continue;
        }
        needed.extend(op.inputs.iter().filter_map(|input| match input {
            Operand::Value(v) => Some(*v),
            _ => None,
        }));
        ops.push(id);
    }
    ops.reverse();
    let made: HashSet<ValueId> = ops
        .iter()
        .filter_map(|&id| graph.op(id))
        .flat_map(|op| op.results.iter().flatten().copied())
        .collect();
    if let Some(&value) = needed
        .iter()
        .find(|v| !made.contains(v) && !given.contains(v))
    {
        return Err(lost(value));
    }
    for &value in from {
        if let Some(value_data) = graph.values.get_mut(value.index())
            && value_data.name.is_empty()
        {
            value_data.name = format!("held.{}", value.index());
        }
    }
    let inputs = graph.body.inputs.iter().copied();
    let inputs: Vec<ValueId> = inputs.filter(|v| needed.contains(v)).collect();
    let held = from
        .iter()
        .copied()
        .filter(|v| needed.contains(v) && !inputs.contains(v));
    graph.body.inputs = inputs.iter().copied().chain(held).collect();
    graph.body.outputs = to.iter().map(|&v| Operand::Value(v)).collect();
    graph.body.ops = ops;
    Ok(part)
}
