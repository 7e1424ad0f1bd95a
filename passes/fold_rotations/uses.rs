//! Who makes and who reads each value and weight of a graph.

use std::collections::{HashMap, HashSet};

use crate::ir::{
    Encoding, Graph, Layout, Module, Op, OpId, OpKind, Operand, Storage, Term, ValueId, WeightId,
    WeightView,
};

/// Makers and readers, regions' included.
pub(super) struct Uses<'a> {
    pub(super) module: &'a Module,
    pub(super) graph: &'a Graph,
    makers: HashMap<ValueId, OpId>,
    users: HashMap<ValueId, Vec<(OpId, usize)>>,
    /// Values that leave a region.
    leaving: HashSet<ValueId>,
    /// Ops of the body itself.
    body: HashSet<OpId>,
    /// How many ops of the module read each matrix: a weight, or one of its stack.
    matrices: HashMap<(WeightId, Option<u64>), usize>,
    /// Weights that ops read as they are: gains, biases, operands.
    plain: HashMap<WeightId, usize>,
}

impl<'a> Uses<'a> {
    pub(super) fn new(module: &'a Module, graph: &'a Graph) -> Self {
        let mut uses = Self {
            module,
            graph,
            makers: HashMap::new(),
            users: HashMap::new(),
            leaving: HashSet::new(),
            body: graph.body.ops.iter().copied().collect(),
            matrices: HashMap::new(),
            plain: HashMap::new(),
        };
        let leave = |leaving: &mut HashSet<ValueId>, outputs: &[Operand]| {
            leaving.extend(outputs.iter().filter_map(value));
        };
        leave(&mut uses.leaving, &graph.body.outputs);
        for id in graph.walk() {
            let Some(op) = graph.op(id) else { continue };
            for result in op.results.iter().flatten() {
                uses.makers.insert(*result, id);
            }
            for (index, input) in op.inputs.iter().enumerate() {
                if let Some(input) = value(input) {
                    uses.users.entry(input).or_default().push((id, index));
                }
            }
            for region in op.kind.regions() {
                leave(&mut uses.leaving, &region.outputs);
            }
        }
        for at in module.walk() {
            let Some(op) = module.op(at) else { continue };
            let view = op.kind.matrix().and_then(|m| m.dense_view());
            for id in op.weights() {
                match view {
                    Some(view) if view.weight == id => {
                        *uses.matrices.entry((id, view.index)).or_default() += 1;
                    }
                    _ => *uses.plain.entry(id).or_default() += 1,
                }
            }
        }
        uses
    }

    pub(super) fn maker(&self, value: ValueId) -> Option<(OpId, &'a Op)> {
        let id = *self.makers.get(&value)?;
        Some((id, self.graph.op(id)?))
    }

    /// Ops that read a value, and as which input.
    pub(super) fn users(&self, value: ValueId) -> &[(OpId, usize)] {
        self.users.get(&value).map_or(&[], Vec::as_slice)
    }

    /// Whether the value leaves the graph, or a region of it.
    pub(super) fn leaves(&self, value: ValueId) -> bool {
        self.leaving.contains(&value)
    }

    /// Whether the op stands in the graph's body itself.
    pub(super) fn in_body(&self, op: OpId) -> bool {
        self.body.contains(&op)
    }

    /// Whether a weight is read by one op alone, as it is.
    pub(super) fn is_own(&self, weight: WeightId) -> bool {
        let matrices = self.matrices.keys().any(|(id, _)| *id == weight);
        !matrices && self.plain.get(&weight) == Some(&1)
    }

    /// Whether the op's matrix and bias can be turned; or why not.
    pub(super) fn foldable(&self, op: &Op) -> Result<(), String> {
        let (matrix, bias) = match &op.kind {
            OpKind::Linear(linear) => {
                if linear.layout != Layout::Rows {
                    return Err("it does not contract the last axis".into());
                }
                (&linear.matrix, linear.bias)
            }
            OpKind::Embedding(embedding) => (&embedding.matrix, None),
            other => return Err(format!("{} is no linear", kind_name(other))),
        };
        let [Term::Dense(view)] = matrix.terms.as_slice() else {
            return Err(
                "its matrix is not one dense term; fold before passes that make terms".into(),
            );
        };
        self.own_matrix(view)?;
        let weight = self
            .module
            .weight(view.weight)
            .ok_or("its weight is missing")?;
        if !weight.dtype.is_float() {
            return Err(format!("its weight is {}", weight.dtype));
        }
        let whole = view.index.is_none();
        if weight.dims.len() != if whole { 2 } else { 3 } {
            return Err(format!("its weight has {} dimensions", weight.dims.len()));
        }
        match &weight.storage {
            Storage::File {
                encoding: Encoding::Raw,
                ..
            } => {}
            Storage::Inline(_) | Storage::Synthetic(_) if whole => {}
            Storage::Rotated(_) => return Err("its weight is turned already".into()),
            Storage::Concat(_) => {
                return Err(
                    "its weight is put together of parts; fold before `fuse-siblings`".into(),
                );
            }
            _ => return Err("its weight's bytes do not lie in a file as they are".into()),
        }
        let plain = |w: &crate::ir::Weight| w.storage.raw_bytes() == Some(w.bytes());
        match bias.map(|id| self.module.weight(id)) {
            Some(Some(bias)) if !bias.dtype.is_float() || !plain(bias) || bias.dims.len() != 1 => {
                Err("its bias is no plain vector of floats".into())
            }
            _ => Ok(()),
        }
    }

    /// Whether nothing else reads the matrix.
    fn own_matrix(&self, view: &WeightView) -> Result<(), String> {
        let id = view.weight;
        let overlaps = |(other, index): &&(WeightId, Option<u64>)| {
            *other == id && (index.is_none() || view.index.is_none() || *index == view.index)
        };
        let others = self.matrices.iter().filter(|(key, _)| overlaps(key));
        let readers: usize = others.map(|(_, count)| count).sum();
        match readers > 1 || self.plain.contains_key(&id) {
            true => Err("its weight is used elsewhere as well".into()),
            false => Ok(()),
        }
    }

    /// What an op is called in remarks.
    pub(super) fn name(&self, id: OpId) -> String {
        let Some(op) = self.graph.op(id) else {
            return id.to_string();
        };
        if !op.name.is_empty() {
            return op.name.clone();
        }
        let view = op.kind.matrix().and_then(|m| m.dense_view());
        let weights = view.map(|view| view.weight);
        let named = weights.or_else(|| op.weights().first().copied());
        if let Some(weight) = named.and_then(|id| self.module.weight(id)) {
            let name = &weight.name;
            return name.strip_suffix(".weight").unwrap_or(name).to_string();
        }
        let result = op.results.iter().flatten().next();
        let result = result.and_then(|r| self.graph.value(*r)).map(|v| &v.name);
        match result.filter(|name| !name.is_empty()) {
            Some(name) => name.clone(),
            None => kind_name(&op.kind).to_string(),
        }
    }
}

/// What a kind of op is called in text.
pub(super) fn kind_name(kind: &OpKind) -> &str {
    match kind {
        OpKind::Linear(_) => "linear",
        OpKind::Embedding(_) => "embedding",
        OpKind::Moe(_) => "moe",
        OpKind::Native(native) => native.name(),
        OpKind::Grad(_) => "grad",
        OpKind::Onnx(onnx) => &onnx.op_type,
    }
}

/// The value that an operand is.
pub(super) fn value(operand: &Operand) -> Option<ValueId> {
    match operand {
        Operand::Value(value) => Some(*value),
        _ => None,
    }
}
