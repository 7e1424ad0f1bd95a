//! What of a graph is alive while a module pass plans its changes.

use std::collections::{HashMap, HashSet};

use crate::ir::{Graph, Module, OpId, OpKind, Operand, Region, WeightId};

/// A graph, less the ops that a pass has decided to remove.
pub struct Live<'a> {
    graph: Option<&'a Graph>,
    removed: HashSet<OpId>,
}

impl<'a> Live<'a> {
    /// Graph number `graph`, whole.
    pub fn new(module: &'a Module, graph: usize) -> Self {
        Self {
            graph: module.graphs.get(graph),
            removed: HashSet::new(),
        }
    }

    /// Takes ops out, with all that is inside of them.
    pub fn remove(&mut self, ops: impl IntoIterator<Item = OpId>) {
        self.removed.extend(ops);
    }

    /// Ops that are left, outer before inner, in order.
    pub fn ops(&self) -> Vec<OpId> {
        let of = |region: &&'a Region| region.ops.iter().copied();
        let regions = self.regions();
        let ops = regions.iter().flat_map(of);
        ops.filter(|op| !self.removed.contains(op)).collect()
    }

    /// The body and the regions of ops that are left.
    pub fn regions(&self) -> Vec<&'a Region> {
        let mut found = Vec::new();
        let mut open: Vec<&Region> = self.graph.iter().map(|g| &g.body).collect();
        while let Some(region) = open.pop() {
            found.push(region);
            let left = region.ops.iter().filter(|op| !self.removed.contains(op));
            let ops = left.filter_map(|&op| self.graph?.op(op));
            let inner: Vec<_> = ops.flat_map(|op| op.kind.regions()).collect();
            open.extend(inner.into_iter().rev());
        }
        found
    }

    /// Takes out ops whose results nobody uses, operands being what `resolve` makes of them.
    ///
    /// Linears, embeddings and experts stay, and ops of foreign domains, which may do more than
    /// their results say.
    pub fn remove_dead(&mut self, resolve: impl Fn(Operand) -> Operand) -> Vec<OpId> {
        let mut dead = Vec::new();
        loop {
            let before = dead.len();
            let mut uses: HashMap<Operand, usize> = HashMap::new();
            let outputs = self.regions().into_iter().flat_map(|r| &r.outputs);
            outputs.for_each(|&o| *uses.entry(resolve(o)).or_default() += 1);
            let ops: Vec<_> = self
                .ops()
                .into_iter()
                .filter_map(|id| Some((id, self.graph?.op(id)?)))
                .collect();
            for (_, op) in &ops {
                op.inputs
                    .iter()
                    .for_each(|&i| *uses.entry(resolve(i)).or_default() += 1);
            }
            for (id, op) in ops.into_iter().rev() {
                let unused = |v| uses.get(&Operand::Value(v)).is_none_or(|&n| n == 0);
                if !has_no_effect(&op.kind) || !op.results.iter().flatten().all(|&v| unused(v)) {
                    continue;
                }
                for &input in &op.inputs {
                    uses.entry(resolve(input)).and_modify(|n| *n -= 1);
                }
                self.removed.insert(id);
                dead.push(id);
            }
            if dead.len() == before {
                return dead;
            }
        }
    }
}

fn has_no_effect(kind: &OpKind) -> bool {
    match kind {
        OpKind::Native(_) => true,
        OpKind::Onnx(onnx) => matches!(onnx.domain.as_str(), "" | "ai.onnx"),
        OpKind::Linear(_) | OpKind::Embedding(_) | OpKind::Moe(_) | OpKind::Grad(_) => false,
    }
}

/// Everything that leaves a graph or one of its regions.
pub fn region_outputs(graph: &Graph) -> HashSet<Operand> {
    let ops = graph.walk();
    let inner = ops
        .iter()
        .filter_map(|&op| graph.op(op))
        .flat_map(|op| op.kind.regions());
    let regions = std::iter::once(&graph.body).chain(inner);
    regions.flat_map(|r| r.outputs.iter().copied()).collect()
}

/// Weights that a region refers to by itself.
pub fn region_weights(region: &Region) -> Vec<WeightId> {
    let outputs = region.outputs.iter().filter_map(|o| match o {
        Operand::Weight(w) => Some(*w),
        _ => None,
    });
    region.meta.weights().into_iter().chain(outputs).collect()
}
