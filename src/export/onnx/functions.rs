//! Model-local functions have no initializers: their tensors stand in Constant nodes.

use std::collections::{HashMap, HashSet};

use crate::ir::{
    Attr, Attrs, Graph, Module, OnnxOp, Op, OpId, OpKind, Operand, Region, ValueId, WeightId,
};

/// Lets nodes of function number `index` read their tensors from Constant nodes: those that the
/// body has, or new ones in the region that reads them, since ONNX Runtime does not fuse across
/// the border of a subgraph.
pub(super) fn tensors_as_nodes(module: &mut Module, index: usize) {
    let Some(mut graph) = module.graphs.get_mut(index).map(std::mem::take) else {
        return;
    };
    let placed = graph.walk();
    let made = placed.iter().filter_map(|&id| graph.op(id));
    let made = made.flat_map(|op| op.results.iter().flatten());
    let values = made.chain(&graph.body.inputs);
    let taken = values.filter_map(|&id| Some(graph.value(id)?.name.clone()));
    let taken = taken.collect();
    let mut body = std::mem::take(&mut graph.body);
    let mut hoist = Hoist::new(module, &graph, &body, taken);
    hoist.region(&mut graph, &mut body);
    let head = hoist.head;
    if !head.is_empty() {
        body.ops.retain(|op| !head.contains(op));
        body.ops.splice(0..0, head);
    }
    graph.body = body;
    if let Some(slot) = module.graphs.get_mut(index) {
        *slot = graph;
    }
}

struct Hoist<'a> {
    module: &'a Module,
    /// Weights that a subgraph declares.
    declared: HashSet<WeightId>,
    /// Names of values.
    taken: HashSet<String>,
    /// Constant nodes of the body.
    given: HashMap<WeightId, (OpId, ValueId)>,
    /// Those of them that are read from elsewhere, so that they have to stand first.
    head: Vec<OpId>,
}

impl<'a> Hoist<'a> {
    fn new(module: &'a Module, graph: &Graph, body: &Region, taken: HashSet<String>) -> Self {
        let regions = graph.ops.iter().flat_map(|op| op.kind.regions());
        let constant = |&at: &OpId| match graph.op(at) {
            Some(Op {
                kind: OpKind::Onnx(onnx),
                results,
                ..
            }) if onnx.op_type == "Constant" && matches!(onnx.domain.as_str(), "" | "ai.onnx") => {
                match (onnx.attrs.get("value"), results.as_slice()) {
                    (Some(Attr::Weight(id)), &[Some(value)]) => Some((*id, (at, value))),
                    _ => None,
                }
            }
            _ => None,
        };
        Self {
            module,
            declared: regions.flat_map(|r| &r.weights).copied().collect(),
            taken,
            given: body.ops.iter().filter_map(constant).collect(),
            head: Vec::new(),
        }
    }

    fn region(&mut self, graph: &mut Graph, region: &mut Region) {
        let mut made = HashMap::new();
        let mut new = Vec::new();
        for &id in &region.ops {
            let Some(slot) = graph.ops.get_mut(id.index()) else {
                continue;
            };
            let empty = Op {
                name: String::new(),
                kind: OpKind::Native(crate::ir::Native::Add),
                inputs: Vec::new(),
                results: Vec::new(),
                meta: Attrs::new(),
            };
            let mut op = std::mem::replace(slot, empty);
            for input in &mut op.inputs {
                self.operand(graph, input, &mut made, &mut new);
            }
            for inner in op.kind.regions_mut() {
                self.region(graph, inner);
            }
            if let Some(slot) = graph.ops.get_mut(id.index()) {
                *slot = op;
            }
        }
        for output in &mut region.outputs {
            self.operand(graph, output, &mut made, &mut new);
        }
        region.ops.splice(0..0, new);
    }

    fn operand(
        &mut self,
        graph: &mut Graph,
        operand: &mut Operand,
        made: &mut HashMap<WeightId, ValueId>,
        new: &mut Vec<OpId>,
    ) {
        let &mut Operand::Weight(id) = operand else {
            return;
        };
        if self.declared.contains(&id) {
            return;
        }
        let value = if let Some(&(op, value)) = self.given.get(&id) {
            if !self.head.contains(&op) {
                self.head.push(op);
            }
            value
        } else if let Some(&value) = made.get(&id) {
            value
        } else {
            let (op, value) = self.constant(graph, id);
            new.push(op);
            made.insert(id, value);
            value
        };
        *operand = Operand::Value(value);
    }

    fn constant(&mut self, graph: &mut Graph, id: WeightId) -> (OpId, ValueId) {
        let weight = self.module.weight(id);
        let mut name = weight.map_or("tensor", |weight| &weight.name).to_owned();
        while !self.taken.insert(name.clone()) {
            name.push_str("_weight");
        }
        let value = graph.add_value(&name, None);
        let mut attrs = Attrs::new();
        attrs.set("value", Attr::Weight(id));
        let kind = OpKind::Onnx(OnnxOp {
            domain: String::new(),
            op_type: "Constant".to_owned(),
            overload: String::new(),
            attrs,
        });
        (graph.add_op(Op::new(kind, Vec::new(), value)), value)
    }
}
