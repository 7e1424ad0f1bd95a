//! Drops tensors that nothing uses any more, declares those that are new.

use std::collections::{HashMap, HashSet};

use crate::ir::{Attr, Graph, Module, OpId, Operand, Region, ValueId, WeightId};
use crate::onnx::mapping::{INITIALIZER, LAYOUT};

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
    let live = live(&graph);
    keep(&mut graph.body);
    for (op, _) in graph.ops.iter_mut().zip(&live).filter(|(_, live)| **live) {
        op.kind.regions_mut().into_iter().for_each(&mut keep);
    }
    let mut new: Vec<WeightId> = operands(&graph)
        .into_iter()
        .filter(|id| !declared.contains(id))
        .collect();
    new.sort_unstable();
    new.dedup();
    name_tensors(module, &graph, &new);
    declare(&mut graph, &new);
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

/// Declares tensors in the region that reads them, or in the outermost where
/// several do: ONNX Runtime doesn't fuse across the border of a subgraph.
fn declare(graph: &mut Graph, new: &[WeightId]) {
    let regions = regions_of(graph);
    let mut home: HashMap<WeightId, usize> = HashMap::new();
    for (index, op) in graph.ops.iter().enumerate() {
        let Some(&region) = regions.get(&OpId::new(index)) else {
            continue;
        };
        for input in &op.inputs {
            if let Operand::Weight(id) = input {
                let home = home.entry(*id).or_insert(region);
                *home = if *home == region { region } else { 0 };
            }
        }
    }
    let live = live(graph);
    let mut index = 0;
    let mut take = |region: &mut Region| {
        let here = |id: &&WeightId| home.get(id).copied().unwrap_or(0) == index;
        region.weights.extend(new.iter().filter(here));
        index += 1;
    };
    take(&mut graph.body);
    for (op, _) in graph.ops.iter_mut().zip(&live).filter(|(_, live)| **live) {
        op.kind.regions_mut().into_iter().for_each(&mut take);
    }
}

/// The region of each placed op; 0 is the graph's body.
pub(super) fn regions_of(graph: &Graph) -> HashMap<OpId, usize> {
    let live = live(graph);
    let ops = graph.ops.iter().zip(&live).filter(|(_, live)| **live);
    let inner = ops.flat_map(|(op, _)| op.kind.regions());
    let all = std::iter::once(&graph.body).chain(inner).enumerate();
    all.flat_map(|(index, region)| region.ops.iter().map(move |&op| (op, index)))
        .collect()
}

/// Which ops of the arena stand in a region; those that were replaced don't.
fn live(graph: &Graph) -> Vec<bool> {
    let mut live = vec![false; graph.ops.len()];
    for id in graph.walk() {
        if let Some(slot) = live.get_mut(id.index()) {
            *slot = true;
        }
    }
    live
}

/// Gives tensors of attributes that became initializers a name of their own.
fn name_tensors(module: &mut Module, graph: &Graph, new: &[WeightId]) {
    let made = placed(graph).flat_map(|op| op.results.iter().flatten().copied());
    let values = made.chain(graph.body.inputs.iter().copied());
    let taken: HashSet<String> = values
        .filter_map(|id| Some(graph.value(id)?.name.clone()))
        .collect();
    for id in new {
        let Some(weight) = module.weights.get_mut(id.index()) else {
            continue;
        };
        if weight.meta.remove("name").is_some() {
            weight.meta.remove(LAYOUT);
        }
        // Weights have unique names, but share them with values in ONNX.
        while taken.contains(&weight.name) {
            weight.name.push_str("_weight");
        }
    }
}

/// Drops inputs that only declare an initializer, as IR versions before 4 ask
/// for. They must go with their tensor, and the new tensors are none of them.
fn drop_inputs(module: &mut Module, graph: &mut Graph) {
    let version = module
        .meta
        .get("ir_version")
        .and_then(Attr::as_int)
        .unwrap_or(3);
    if version >= 4 {
        return;
    }
    module.meta.set("ir_version", Attr::Int(4));
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
        let declares = values
            .get(id.index())
            .is_some_and(|v| v.meta.get(INITIALIZER).is_some());
        read.contains(id) || !declares
    };
    let inputs = graph.body.inputs.iter().copied().filter(stays).collect();
    graph.body.inputs = inputs;
}
