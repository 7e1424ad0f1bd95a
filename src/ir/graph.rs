//! Modules and graphs: arenas of values, ops and weights, and the regions that order the ops.

use std::path::PathBuf;

use super::{Attr, Attrs, Op, OpId, Operand, Storage, Type, ValueId, Weight, WeightId};

/// A model: graphs and the weights that they share.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// The model's name.
    pub name: String,
    /// The source's header: format, versions, producer, documentation, configuration.
    pub meta: Attrs,
    /// Every constant tensor.
    pub weights: Vec<Weight>,
    /// `@main` first, then model-local functions.
    pub graphs: Vec<Graph>,
    /// Folder that relative paths of weights start at. Not part of the text, nor of equality.
    pub base_dir: PathBuf,
}

impl PartialEq for Module {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.meta == other.meta
            && self.weights == other.weights
            && self.graphs == other.graphs
    }
}

/// A graph: one function of the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Every value of the graph and its nested regions.
    pub values: Vec<Value>,
    /// Every op of the graph and its nested regions; a region says which, in which order.
    pub ops: Vec<Op>,
    /// The graph's body.
    pub body: Region,
}

/// A list of ops with inputs and outputs. Ops of nested regions see the values outside.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Region {
    /// Name; the body of a graph gives the graph its name.
    pub name: String,
    /// Values that come in.
    pub inputs: Vec<ValueId>,
    /// What comes out.
    pub outputs: Vec<Operand>,
    /// Ops in an order in which every value is made before it is used.
    pub ops: Vec<OpId>,
    /// Weights that the source declares here (ONNX initializers), in its order.
    pub weights: Vec<WeightId>,
    /// Documentation, metadata and encoding of the source.
    pub meta: Attrs,
}

/// Something computed: made once, used any number of times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Value {
    /// The source's name; empty values are printed by number.
    pub name: String,
    /// Type, as far as the source says.
    pub ty: Option<Type>,
    /// Documentation and metadata of the source.
    pub meta: Attrs,
}

/// Finds one matrix: the op that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpRef {
    /// Index of the graph in the module.
    pub graph: usize,
    /// The op.
    pub op: OpId,
}

impl Graph {
    /// Adds a value.
    pub fn add_value(&mut self, name: &str, ty: Option<Type>) -> ValueId {
        self.values.push(Value {
            name: name.to_string(),
            ty,
            meta: Attrs::new(),
        });
        ValueId::new(self.values.len() - 1)
    }

    /// Adds an op to the arena without placing it in a region.
    pub fn add_op(&mut self, op: Op) -> OpId {
        self.ops.push(op);
        OpId::new(self.ops.len() - 1)
    }

    /// Adds an op at the end of the body.
    pub fn append(&mut self, op: Op) -> OpId {
        let id = self.add_op(op);
        self.body.ops.push(id);
        id
    }

    /// The value, if the id is of this graph.
    pub fn value(&self, id: ValueId) -> Option<&Value> {
        self.values.get(id.index())
    }

    /// The op, if the id is of this graph.
    pub fn op(&self, id: OpId) -> Option<&Op> {
        self.ops.get(id.index())
    }

    /// Ops of the body and of every nested region, outer before inner, in order.
    pub fn walk(&self) -> Vec<OpId> {
        let mut order = Vec::with_capacity(self.ops.len());
        self.walk_region(&self.body, &mut order);
        order
    }

    fn walk_region(&self, region: &Region, order: &mut Vec<OpId>) {
        for &id in &region.ops {
            order.push(id);
            if let Some(op) = self.op(id) {
                for inner in op.kind.regions() {
                    self.walk_region(inner, order);
                }
            }
        }
    }
}

impl Module {
    /// Adds a weight and returns its id. The caller keeps names unique; the verifier checks.
    pub fn add_weight(&mut self, weight: Weight) -> WeightId {
        self.weights.push(weight);
        WeightId::new(self.weights.len() - 1)
    }

    /// The weight, if the id is of this module.
    pub fn weight(&self, id: WeightId) -> Option<&Weight> {
        self.weights.get(id.index())
    }

    /// Every weight with every part of its storage.
    pub fn storage_parts(&self) -> impl Iterator<Item = (&Weight, &Storage)> {
        let weights = self.weights.iter();
        weights.flat_map(|w| w.storage.parts().iter().map(move |part| (w, part)))
    }

    /// The op that a reference names.
    pub fn op(&self, at: OpRef) -> Option<&Op> {
        self.graphs.get(at.graph)?.op(at.op)
    }

    /// The op that a reference names, to be changed.
    pub fn op_mut(&mut self, at: OpRef) -> Option<&mut Op> {
        self.graphs.get_mut(at.graph)?.ops.get_mut(at.op.index())
    }

    /// Every op of every graph, in order.
    pub fn walk(&self) -> Vec<OpRef> {
        let refs = |(graph, g): (usize, &Graph)| {
            g.walk()
                .into_iter()
                .map(move |op| OpRef { graph, op })
                .collect::<Vec<_>>()
        };
        self.graphs.iter().enumerate().flat_map(refs).collect()
    }
}

impl Attrs {
    /// The regions among the attributes, in order.
    pub fn regions(&self) -> Vec<&Region> {
        fn collect<'a>(attr: &'a Attr, found: &mut Vec<&'a Region>) {
            match attr {
                Attr::Region(r) => found.push(r),
                Attr::List(list) => list.iter().for_each(|a| collect(a, found)),
                Attr::Dict(dict) => dict.iter().for_each(|(_, a)| collect(a, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        self.iter().for_each(|(_, a)| collect(a, &mut found));
        found
    }

    /// The regions among the attributes, to be changed.
    pub fn regions_mut(&mut self) -> Vec<&mut Region> {
        fn collect<'a>(attr: &'a mut Attr, found: &mut Vec<&'a mut Region>) {
            match attr {
                Attr::Region(r) => found.push(r),
                Attr::List(list) => list.iter_mut().for_each(|a| collect(a, found)),
                Attr::Dict(dict) => dict.0.iter_mut().for_each(|(_, a)| collect(a, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        self.0.iter_mut().for_each(|(_, a)| collect(a, &mut found));
        found
    }

    /// The weights among the attributes, in order.
    pub fn weights(&self) -> Vec<WeightId> {
        fn collect(attr: &Attr, found: &mut Vec<WeightId>) {
            match attr {
                Attr::Weight(w) => found.push(*w),
                Attr::List(list) => list.iter().for_each(|a| collect(a, found)),
                Attr::Dict(dict) => dict.iter().for_each(|(_, a)| collect(a, found)),
                _ => {}
            }
        }
        let mut found = Vec::new();
        self.iter().for_each(|(_, a)| collect(a, &mut found));
        found
    }
}
