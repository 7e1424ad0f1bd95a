//! The walk over a module's graphs.

use std::collections::HashMap;

use super::fact::{Fact, MAX_ELEMENTS, MAX_RANK};
use super::rules::{self, Node};
use super::size::{Names, Size};
use super::{Known, MAX_CONSTANT_BYTES, Trust};
use crate::ir::{
    Attr, Graph, Module, OnnxOp, Op, OpKind, Operand, Region, Storage, ValueId, Weight, WeightId,
};
use crate::weights::DType;

/// Nesting of regions that is followed.
const MAX_DEPTH: usize = 64;

/// State of an inference.
pub(super) struct Inference<'a> {
    module: &'a Module,
    trust: Trust,
    read: &'a mut dyn FnMut(&Weight) -> Option<Vec<u8>>,
    pub(super) names: Names,
    weights: HashMap<WeightId, Fact>,
    /// What is known of the values of the graph at hand.
    facts: Vec<Fact>,
}

impl<'a> Inference<'a> {
    pub(super) fn new(
        module: &'a Module,
        trust: Trust,
        read: &'a mut dyn FnMut(&Weight) -> Option<Vec<u8>>,
    ) -> Self {
        Self {
            module,
            trust,
            read,
            names: Names::default(),
            weights: HashMap::new(),
            facts: Vec::new(),
        }
    }

    /// What is known of the values of graph number `index`.
    pub(super) fn graph(&mut self, index: usize) -> Vec<Known> {
        let Some(graph) = self.module.graphs.get(index) else {
            return Vec::new();
        };
        self.facts = vec![Fact::default(); graph.values.len()];
        for &input in &graph.body.inputs {
            if let Some(ty) = graph.value(input).and_then(|value| value.ty.as_ref()) {
                let fact = Fact::stated(ty, &mut self.names);
                self.set(input, fact);
            }
        }
        self.region(graph, &graph.body, 0);
        let names = &self.names;
        let facts = std::mem::take(&mut self.facts);
        facts.into_iter().map(|fact| known(fact, names)).collect()
    }

    fn set(&mut self, value: ValueId, fact: Fact) {
        if let Some(slot) = self.facts.get_mut(value.index()) {
            *slot = fact;
        }
    }

    /// What the module states of a value that is made inside.
    fn stated(&mut self, graph: &Graph, value: ValueId) -> Fact {
        let ty = graph.value(value).and_then(|value| value.ty.as_ref());
        match (ty, self.trust) {
            (Some(ty), Trust::Stated) => Fact::stated(ty, &mut self.names),
            _ => Fact::default(),
        }
    }

    /// Sets a value made inside to what was found and what is stated.
    fn make(&mut self, graph: &Graph, value: ValueId, found: Fact) {
        let stated = self.stated(graph, value);
        let mut fact = found.meet(stated, &mut self.names);
        // Gather of a tensor by itself doubles its rank, so a chain of them would fill the memory.
        if fact.rank().is_some_and(|rank| rank > MAX_RANK) {
            (fact.shape, fact.data) = (None, None);
        }
        self.set(value, fact);
    }

    fn region(&mut self, graph: &Graph, region: &Region, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        for op in region.ops.iter().filter_map(|&id| graph.op(id)) {
            let found = self.op(graph, op, depth);
            let mut found = found.into_iter();
            for result in &op.results {
                let fact = found.next().unwrap_or_default();
                if let Some(value) = result {
                    self.make(graph, *value, fact);
                }
            }
        }
    }

    pub(super) fn operand(&mut self, operand: Operand) -> Option<Fact> {
        match operand {
            Operand::None => None,
            Operand::Value(value) => {
                Some(self.facts.get(value.index()).cloned().unwrap_or_default())
            }
            Operand::Weight(id) => Some(self.weight(id)),
        }
    }

    fn op(&mut self, graph: &Graph, op: &Op, depth: usize) -> Vec<Fact> {
        match &op.kind {
            OpKind::Onnx(onnx) => self.onnx(graph, op, onnx, depth),
            OpKind::Moe(moe) => {
                let x = op.inputs.first().and_then(|&x| self.operand(x));
                for region in &moe.experts {
                    let tokens = self.names.unnamed();
                    let width = x.as_ref().and_then(|x| x.shape.as_ref()?.last().cloned());
                    let dtype = x.as_ref().and_then(|x| x.dtype);
                    let shape = width.map(|width| vec![tokens, width]);
                    for &input in &region.inputs {
                        self.make(graph, input, Fact::new(dtype, shape.clone()));
                    }
                    self.region(graph, region, depth + 1);
                }
                vec![Fact {
                    data: None,
                    ..x.unwrap_or_default()
                }]
            }
            OpKind::Grad(grad) => {
                let inputs = op.inputs.iter().map(|&input| self.operand(input));
                let inputs: Vec<Option<Fact>> = inputs.collect();
                for region in &grad.experts {
                    self.unknown(graph, &[region], depth);
                }
                super::grad::results(grad, &inputs)
            }
            _ => self.native(op).into_iter().collect(),
        }
    }

    fn onnx(&mut self, graph: &Graph, op: &Op, onnx: &OnnxOp, depth: usize) -> Vec<Fact> {
        let standard = matches!(onnx.domain.as_str(), "" | "ai.onnx");
        let regions = onnx.attrs.regions();
        if !regions.is_empty() {
            return match onnx.op_type.as_str() {
                "If" if standard => self.branches(graph, op, onnx, depth),
                "Loop" if standard => self.iterations(graph, op, &regions, depth),
                _ => {
                    self.unknown(graph, &regions, depth);
                    Vec::new()
                }
            };
        }
        if standard && onnx.op_type == "Constant" {
            return self.constant(onnx).into_iter().collect();
        }
        if self.is_function(onnx) {
            return Vec::new();
        }
        let value = match onnx.attrs.get("value") {
            Some(Attr::Weight(id)) => Some(self.weight(*id)),
            _ => None,
        };
        let inputs = op.inputs.iter().map(|&input| self.operand(input));
        let node = Node {
            onnx,
            inputs: inputs.collect(),
            results: op.results.len(),
            value,
        };
        rules::apply(&node, &mut self.names)
    }

    /// Whether the model defines the op by a function of its own.
    fn is_function(&self, onnx: &OnnxOp) -> bool {
        let mut functions = self.module.graphs.iter().skip(1);
        functions.any(|graph| super::names(onnx, graph))
    }

    fn constant(&mut self, onnx: &OnnxOp) -> Option<Fact> {
        let scalar = |dtype| Some(Fact::new(Some(dtype), Some(Vec::new())));
        let list = |dtype, count: usize| {
            let count = Size::of(i64::try_from(count).ok()?);
            Some(Fact::new(Some(dtype), Some(vec![count])))
        };
        let (name, attr) = onnx.attrs.iter().next()?;
        match (name.as_str(), attr) {
            ("value", Attr::Weight(id)) => Some(self.weight(*id)),
            ("value_int", Attr::Int(value)) => Some(Fact::ints(vec![Some(Size::of(*value))], true)),
            ("value_ints", Attr::Ints(values)) => {
                let values = values.iter().map(|&value| Some(Size::of(value)));
                Some(Fact::ints(values.collect(), false))
            }
            ("value_float", Attr::Float(_)) => scalar(DType::F32),
            ("value_floats", Attr::Floats(values)) => list(DType::F32, values.len()),
            ("value_string", Attr::Str(_)) => scalar(DType::String),
            ("value_strings", Attr::Strs(values)) => list(DType::String, values.len()),
            _ => None,
        }
    }

    fn outputs(&mut self, region: &Region) -> Vec<Fact> {
        let outputs = region.outputs.iter();
        outputs
            .map(|&output| self.operand(output).unwrap_or_default())
            .collect()
    }

    /// `If`: what holds in both branches, or in the one that is taken.
    fn branches(&mut self, graph: &Graph, op: &Op, onnx: &OnnxOp, depth: usize) -> Vec<Fact> {
        let condition = op.inputs.first().and_then(|&input| self.operand(input));
        let condition = condition.and_then(|fact| fact.number());
        let mut made = Vec::new();
        for (name, taken) in [("then_branch", 1), ("else_branch", 0)] {
            let Some(Attr::Region(region)) = onnx.attrs.get(name) else {
                return Vec::new();
            };
            self.region(graph, region, depth + 1);
            let outputs = self.outputs(region);
            if condition.is_none_or(|value| (value != 0) == (taken != 0)) {
                made.push(outputs);
            }
        }
        match made.as_slice() {
            [one] => one.clone(),
            [a, b] if a.len() == b.len() => {
                let pairs = a.iter().zip(b);
                pairs.map(|(a, b)| a.join(b, &mut self.names)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// `Loop`: carried values keep their element types; scanned ones gain a dimension in front.
    fn iterations(
        &mut self,
        graph: &Graph,
        op: &Op,
        regions: &[&Region],
        depth: usize,
    ) -> Vec<Fact> {
        let &[body] = regions else { return Vec::new() };
        let carried: Vec<Fact> = op
            .inputs
            .iter()
            .skip(2)
            .map(|&input| Fact::new(self.operand(input).and_then(|fact| fact.dtype), None))
            .collect();
        let scalar = |dtype| Fact::new(Some(dtype), Some(Vec::new()));
        let heads = [scalar(DType::I64), scalar(DType::Bool)];
        let given = heads.into_iter().chain(carried.iter().cloned());
        for (&input, fact) in body.inputs.iter().zip(given) {
            self.make(graph, input, fact);
        }
        self.region(graph, body, depth + 1);
        let count = self.names.unnamed();
        let outputs = self.outputs(body).into_iter().skip(1);
        let each = |(at, output): (usize, Fact)| match carried.get(at) {
            Some(fact) => fact.clone(),
            None => {
                let shape = output
                    .shape
                    .map(|shape| [vec![count.clone()], shape].concat());
                Fact::new(output.dtype, shape)
            }
        };
        outputs.enumerate().map(each).collect()
    }

    /// Regions of an op that is not known: their inputs are what is stated.
    fn unknown(&mut self, graph: &Graph, regions: &[&Region], depth: usize) {
        for region in regions {
            for &input in &region.inputs {
                self.make(graph, input, Fact::default());
            }
            self.region(graph, region, depth + 1);
        }
    }

    fn weight(&mut self, id: WeightId) -> Fact {
        if let Some(fact) = self.weights.get(&id) {
            return fact.clone();
        }
        let Some(weight) = self.module.weight(id) else {
            return Fact::default();
        };
        let sizes = weight
            .dims
            .iter()
            .map(|&d| i64::try_from(d).ok().map(Size::of));
        let fact = Fact::new(Some(weight.dtype), sizes.collect());
        let data = self.integers(weight);
        let fact = fact.with_data(data);
        self.weights.insert(id, fact.clone());
        fact
    }

    /// The elements of a small tensor of integers or truth values.
    fn integers(&mut self, weight: &Weight) -> Option<Vec<Option<Size>>> {
        use DType::{Bool, I32, I64};
        let few = weight.elements().is_some_and(|n| n <= MAX_ELEMENTS as u64);
        let small = weight.bytes() <= MAX_CONSTANT_BYTES;
        if !few || !small || !matches!(weight.dtype, I64 | I32 | Bool) {
            return None;
        }
        let read;
        let bytes = match &weight.storage {
            Storage::Inline(bytes) => bytes.as_slice(),
            Storage::Absent => return None,
            _ => {
                read = (self.read)(weight)?;
                read.as_slice()
            }
        };
        if bytes.len() as u64 != weight.bytes() {
            return None;
        }
        let width = usize::try_from(weight.dtype.bits() / 8).ok()?;
        let element = |chunk: &[u8]| match weight.dtype {
            I64 => Some(i64::from_le_bytes(chunk.try_into().ok()?)),
            I32 => Some(i64::from(i32::from_le_bytes(chunk.try_into().ok()?))),
            _ => Some(i64::from(*chunk.first()? != 0)),
        };
        let chunks = bytes.chunks_exact(width);
        Some(chunks.map(|c| element(c).map(Size::of)).collect())
    }
}

fn known(fact: Fact, names: &Names) -> Known {
    let dims = fact.shape.as_ref();
    Known {
        dtype: fact.dtype,
        dims: dims.map(|sizes| sizes.iter().map(|size| names.dim(size)).collect()),
        ty: fact.ty(names),
        elements: fact.numbers(),
    }
}
