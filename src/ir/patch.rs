//! Patches: how a pass changes a module.
//!
//! A patch is a list of edits with the name of the rule that made it. It is applied to a copy, the
//! copy is verified, and only then does it take the module's place; so a bad patch changes nothing.

use std::collections::{HashMap, HashSet};

use super::verify::{Violations, verify};
use super::{
    Graph, Module, Op, OpId, OpRef, Operand, Region, Type, Value, ValueId, Weight, WeightId,
};

/// A change to a module, not yet made.
#[derive(Clone, Debug)]
pub struct Patch {
    /// The pass or rule that asks for it.
    pub rule: String,
    first_weight: usize,
    weights: Vec<Weight>,
    first_values: Vec<usize>,
    values: Vec<Vec<Value>>,
    replaced: HashMap<OpRef, Vec<Op>>,
    dropped: Vec<WeightId>,
    ports: HashMap<usize, (Vec<ValueId>, Vec<Operand>)>,
    whole: Option<Box<Module>>,
}

/// Why a patch was not applied. The module is as it was.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The module has changed since the patch was made.
    #[error("patch of {0}: the module has changed since the patch was made; make it again")]
    Stale(String),
    /// An edit names an op that stands in no region.
    #[error("patch of {rule}: {op:?} stands in no region of the module")]
    NoSuchOp {
        /// The rule.
        rule: String,
        /// The op.
        op: OpRef,
    },
    /// The module would break invariants.
    #[error("patch of {rule}: {violations}")]
    Invalid {
        /// The rule.
        rule: String,
        /// What it would break.
        violations: Violations,
    },
}

impl Patch {
    /// An empty patch of `module`.
    pub fn new(module: &Module, rule: &str) -> Self {
        Self {
            rule: rule.to_string(),
            first_weight: module.weights.len(),
            weights: Vec::new(),
            first_values: module.graphs.iter().map(|g| g.values.len()).collect(),
            values: vec![Vec::new(); module.graphs.len()],
            replaced: HashMap::new(),
            dropped: Vec::new(),
            ports: HashMap::new(),
            whole: None,
        }
    }

    /// A patch that puts `whole` in the place of `module`.
    pub fn whole(module: &Module, rule: &str, whole: Module) -> Self {
        Self {
            whole: Some(Box::new(whole)),
            ..Self::new(module, rule)
        }
    }

    /// Weights that it adds.
    pub fn added(&self) -> &[Weight] {
        &self.weights
    }

    /// Adds a weight; the id is valid once the patch is applied.
    pub fn add_weight(&mut self, weight: Weight) -> WeightId {
        self.weights.push(weight);
        WeightId::new(self.first_weight + self.weights.len() - 1)
    }

    /// Adds a value to graph number `graph`; the id is valid once the patch is applied.
    ///
    /// # Panics
    /// If the module has no such graph.
    pub fn add_value(&mut self, graph: usize, name: &str, ty: Option<Type>) -> ValueId {
        let values = &mut self.values[graph];
        values.push(Value {
            name: name.to_string(),
            ty,
            ..Value::default()
        });
        ValueId::new(self.first_values[graph] + values.len() - 1)
    }

    /// Puts `ops` where the op `at` stands; an empty list removes it.
    pub fn replace(&mut self, at: OpRef, ops: Vec<Op>) {
        self.replaced.insert(at, ops);
    }

    /// Takes a weight out, unless something still refers to it once the patch is applied.
    pub fn drop_weight(&mut self, id: WeightId) {
        self.dropped.push(id);
    }

    /// Replaces the inputs and outputs of graph number `graph`.
    pub fn set_ports(&mut self, graph: usize, inputs: Vec<ValueId>, outputs: Vec<Operand>) {
        self.ports.insert(graph, (inputs, outputs));
    }

    /// Whether the patch already replaces the op.
    pub fn touches(&self, at: OpRef) -> bool {
        self.replaced.contains_key(&at)
    }

    /// Whether the patch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
            && self.replaced.is_empty()
            && self.dropped.is_empty()
            && self.ports.is_empty()
            && self.whole.is_none()
    }

    /// Number of ops replaced or removed.
    pub fn edits(&self) -> usize {
        self.replaced.len()
    }

    /// Applies the patch; on failure the module is unchanged.
    ///
    /// # Errors
    /// The patch is stale, names an op that is not there, or the result breaks an invariant.
    pub fn apply(mut self, module: &mut Module) -> Result<(), PatchError> {
        let values: Vec<_> = module.graphs.iter().map(|g| g.values.len()).collect();
        if module.weights.len() != self.first_weight || values != self.first_values {
            return Err(PatchError::Stale(self.rule));
        }
        let mut next = match self.whole.take() {
            Some(whole) => *whole,
            None => module.clone(),
        };
        next.weights.append(&mut self.weights);
        for (index, graph) in next.graphs.iter_mut().enumerate() {
            graph
                .values
                .append(self.values.get_mut(index).unwrap_or(&mut Vec::new()));
            self.edit_graph(index, graph);
            if let Some((inputs, outputs)) = self.ports.remove(&index) {
                graph.body.inputs = inputs;
                graph.body.outputs = outputs;
            }
        }
        if let Some(op) = self.replaced.keys().min() {
            return Err(PatchError::NoSuchOp {
                rule: self.rule,
                op: *op,
            });
        }
        if !self.dropped.is_empty() {
            without_weights(&mut next, &self.dropped);
        }
        match verify(&next) {
            Ok(()) => *module = next,
            Err(violations) => {
                return Err(PatchError::Invalid {
                    rule: self.rule,
                    violations,
                });
            }
        }
        Ok(())
    }

    fn edit_graph(&mut self, index: usize, graph: &mut Graph) {
        let mut body = std::mem::take(&mut graph.body);
        self.edit_region(index, graph, &mut body);
        graph.body = body;
        // Ops that an edit adds may hold regions with edits of their own.
        let mut id = 0;
        while id < graph.ops.len() {
            let mut op = std::mem::replace(&mut graph.ops[id], placeholder());
            for region in op.kind.regions_mut() {
                self.edit_region(index, graph, region);
            }
            graph.ops[id] = op;
            id += 1;
        }
    }

    fn edit_region(&mut self, index: usize, graph: &mut Graph, region: &mut Region) {
        let mut ops = Vec::with_capacity(region.ops.len());
        for &id in &region.ops {
            let at = OpRef {
                graph: index,
                op: id,
            };
            match self.replaced.remove(&at) {
                None => ops.push(id),
                Some(new) => {
                    // Edits inside of the op's regions belong to its successor.
                    if let Some(old) = graph.ops.get_mut(id.index()) {
                        *old = placeholder();
                    }
                    ops.extend(new.into_iter().map(|op| graph.add_op(op)));
                }
            }
        }
        region.ops = ops;
    }
}

fn placeholder() -> Op {
    Op::new(
        super::OpKind::Native(super::Native::Add),
        Vec::new(),
        ValueId::new(0),
    )
}

/// Takes those of `candidates` out of the module that nothing refers to any more; ids change.
pub fn without_weights(module: &mut Module, candidates: &[WeightId]) {
    let mut used = vec![false; module.weights.len()];
    let mut mark = |id: WeightId| {
        if let Some(slot) = used.get_mut(id.index()) {
            *slot = true;
        }
    };
    for at in module.walk() {
        let Some(op) = module.op(at) else { continue };
        op.weights().into_iter().for_each(&mut mark);
    }
    for graph in &module.graphs {
        let ops = graph.walk();
        let inner = ops.iter().filter_map(|&op| graph.op(op));
        let regions = inner.flat_map(|op| op.kind.regions());
        for region in std::iter::once(&graph.body).chain(regions) {
            region.meta.weights().into_iter().for_each(&mut mark);
            for output in &region.outputs {
                if let super::Operand::Weight(id) = output {
                    mark(*id);
                }
            }
        }
    }
    let dead = |id: &WeightId| candidates.contains(id) && !used[id.index()];
    let dead: HashSet<WeightId> = candidates.iter().copied().filter(dead).collect();
    if dead.is_empty() {
        return;
    }
    for graph in &mut module.graphs {
        graph.body.weights.retain(|w| !dead.contains(w));
        for op in &mut graph.ops {
            for region in op.kind.regions_mut() {
                region.weights.retain(|w| !dead.contains(w));
            }
        }
    }
    *module = normalize_without(module, &dead);
}

/// Drops what nothing refers to and numbers the rest in the order of the text, so that
/// `parse(print(m)) == m`.
pub fn normalize(module: &Module) -> Module {
    normalize_without(module, &HashSet::new())
}

fn normalize_without(module: &Module, dead: &HashSet<WeightId>) -> Module {
    let mut n = Normalizer {
        old: module,
        weights: HashMap::new(),
        new: Module {
            name: module.name.clone(),
            base_dir: module.base_dir.clone(),
            ..Module::default()
        },
    };
    let owned = n.owned();
    let free = (0..module.weights.len()).filter(|i| !owned[*i]);
    for id in free.map(WeightId::new).filter(|id| !dead.contains(id)) {
        n.weight(id);
    }
    for graph in &module.graphs {
        let mut g = GraphNormalizer {
            old: graph,
            new: Graph::default(),
            values: HashMap::new(),
        };
        let body = g.region(&mut n, &graph.body);
        g.new.body = body;
        n.new.graphs.push(g.new);
    }
    n.new.meta = n.attrs_without_regions(&module.meta);
    n.new
}

struct Normalizer<'a> {
    old: &'a Module,
    weights: HashMap<WeightId, WeightId>,
    new: Module,
}

impl Normalizer<'_> {
    fn owned(&self) -> Vec<bool> {
        let mut owned = vec![false; self.old.weights.len()];
        for graph in &self.old.graphs {
            let ops = graph.walk();
            let inner = ops.iter().filter_map(|&op| graph.op(op));
            let regions = inner.flat_map(|op| op.kind.regions());
            for w in std::iter::once(&graph.body)
                .chain(regions)
                .flat_map(|r| &r.weights)
            {
                if let Some(slot) = owned.get_mut(w.index()) {
                    *slot = true;
                }
            }
        }
        owned
    }

    fn weight(&mut self, id: WeightId) -> WeightId {
        if let Some(&new) = self.weights.get(&id) {
            return new;
        }
        let Some(weight) = self.old.weight(id) else {
            return id;
        };
        let new = self.new.add_weight(weight.clone());
        self.weights.insert(id, new);
        new
    }

    fn attrs_without_regions(&mut self, attrs: &super::Attrs) -> super::Attrs {
        let mut attrs = attrs.clone();
        for (_, attr) in &mut attrs.0 {
            self.attr(attr);
        }
        attrs
    }

    fn attr(&mut self, attr: &mut super::Attr) {
        match attr {
            super::Attr::Weight(w) => *w = self.weight(*w),
            super::Attr::List(list) => list.iter_mut().for_each(|a| self.attr(a)),
            super::Attr::Dict(dict) => dict.0.iter_mut().for_each(|(_, a)| self.attr(a)),
            _ => {}
        }
    }
}

struct GraphNormalizer<'a> {
    old: &'a Graph,
    new: Graph,
    values: HashMap<ValueId, ValueId>,
}

impl GraphNormalizer<'_> {
    fn value(&mut self, id: ValueId) -> ValueId {
        if let Some(&new) = self.values.get(&id) {
            return new;
        }
        let value = self.old.value(id).cloned().unwrap_or_default();
        self.new.values.push(value);
        let new = ValueId::new(self.new.values.len() - 1);
        self.values.insert(id, new);
        new
    }

    fn operand(&mut self, n: &mut Normalizer<'_>, operand: super::Operand) -> super::Operand {
        match operand {
            super::Operand::Value(v) => super::Operand::Value(self.value(v)),
            super::Operand::Weight(w) => super::Operand::Weight(n.weight(w)),
            super::Operand::None => super::Operand::None,
        }
    }

    fn region(&mut self, n: &mut Normalizer<'_>, region: &Region) -> Region {
        let inputs = region.inputs.iter().map(|&v| self.value(v)).collect();
        let weights = region.weights.iter().map(|&w| n.weight(w)).collect();
        let ops = region.ops.iter().map(|&op| self.op(n, op)).collect();
        let outputs = region.outputs.iter().map(|&o| self.operand(n, o)).collect();
        Region {
            name: region.name.clone(),
            inputs,
            outputs,
            ops,
            weights,
            meta: n.attrs_without_regions(&region.meta),
        }
    }

    fn op(&mut self, n: &mut Normalizer<'_>, id: OpId) -> OpId {
        let Some(old) = self.old.op(id) else {
            return id;
        };
        let mut op = old.clone();
        op.inputs = op.inputs.iter().map(|&o| self.operand(n, o)).collect();
        self.kind(n, &mut op.kind);
        op.meta = n.attrs_without_regions(&op.meta);
        op.results = op
            .results
            .iter()
            .map(|r| r.map(|v| self.value(v)))
            .collect();
        self.new.add_op(op)
    }

    fn kind(&mut self, n: &mut Normalizer<'_>, kind: &mut super::OpKind) {
        if let Some(matrix) = kind.matrix_mut() {
            for term in &mut matrix.terms {
                term.for_each_weight(|w| *w = n.weight(*w));
            }
        }
        match kind {
            super::OpKind::Linear(linear) => {
                if let Some(bias) = &mut linear.bias {
                    *bias = n.weight(*bias);
                }
            }
            super::OpKind::Onnx(onnx) => {
                for (_, attr) in &mut onnx.attrs.0 {
                    n.attr(attr);
                }
            }
            _ => {}
        }
        for region in kind.regions_mut() {
            *region = self.region(n, region);
        }
    }
}
