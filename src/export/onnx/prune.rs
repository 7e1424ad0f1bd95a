//! Drops tensors that nothing uses any more, declares those that are new.

use std::collections::HashSet;

use crate::ir::{Attr, Graph, Module, Operand, Region, ValueId, WeightId};

/// Leaves exactly the used weights declared in regions of the main graph.
pub(super) fn prune(module: &mut Module) {
    let Some(mut graph) = module.graphs.first_mut().map(std::mem::take) else {
        return;
    };
    let used = used(&graph);
    let mut declared = HashSet::new();
    let mut keep = |region: &mut Region| {
        region.weights.retain(|id| used.contains(id));
        declared.extend(region.weights.iter().copied());
        if let Some(Attr::List(list)) = region.meta.get("sparse_initializer") {
            for item in list {
                if let Attr::Dict(dict) = item {
                    declared.extend(dict.weights());
                }
            }
        }
    };
    keep(&mut graph.body);
    for op in &mut graph.ops {
        op.kind.regions_mut().into_iter().for_each(&mut keep);
    }
    let mut new: Vec<WeightId> = operands(&graph)
        .into_iter()
        .filter(|id| !declared.contains(id))
        .collect();
    new.sort_unstable();
    new.dedup();
    graph.body.weights.extend(new);
    drop_inputs(module, &mut graph);
    if let Some(slot) = module.graphs.first_mut() {
        *slot = graph;
    }
}

fn placed(graph: &Graph) -> impl Iterator<Item = &crate::ir::Op> {
    graph.walk().into_iter().filter_map(|id| graph.op(id))
}

/// Weights that nodes or outputs read by name.
fn operands(graph: &Graph) -> Vec<WeightId> {
    let inputs = placed(graph).flat_map(|op| &op.inputs);
    let outputs = graph.body.outputs.iter();
    let inner = placed(graph)
        .flat_map(|op| op.kind.regions())
        .flat_map(|region| &region.outputs);
    let weight = |operand: &Operand| match operand {
        Operand::Weight(id) => Some(*id),
        _ => None,
    };
    inputs
        .chain(outputs)
        .chain(inner)
        .filter_map(weight)
        .collect()
}

fn used(graph: &Graph) -> HashSet<WeightId> {
    operands(graph).into_iter().collect()
}

/// Before IR version 4 initializers are inputs too; without its tensor such an
/// input would have to be fed.
fn drop_inputs(module: &Module, graph: &mut Graph) {
    let kept: HashSet<&str> = graph
        .body
        .weights
        .iter()
        .filter_map(|&id| Some(module.weight(id)?.name.as_str()))
        .collect();
    let gone: HashSet<&str> = module
        .weights
        .iter()
        .map(|weight| weight.name.as_str())
        .filter(|name| !kept.contains(name))
        .collect();
    let read: HashSet<ValueId> = placed(graph)
        .flat_map(|op| &op.inputs)
        .chain(&graph.body.outputs)
        .filter_map(|operand| match operand {
            Operand::Value(id) => Some(*id),
            _ => None,
        })
        .collect();
    let values = &graph.values;
    let stays = |id: &ValueId| {
        let name = values.get(id.index()).map_or("", |value| &value.name);
        read.contains(id) || !gone.contains(name)
    };
    let inputs = graph.body.inputs.iter().copied().filter(stays).collect();
    graph.body.inputs = inputs;
}
