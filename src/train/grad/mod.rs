//! Backward graphs: a module with losses becomes a module that computes their gradients too.
//!
//! [`differentiate`] walks the first graph's ops backward and emits for each what its rule says
//! ([`rules`]: a row per op; [`parameters`]: a row per part of a term). The result is an ordinary
//! module: printed, parsed, verified and run like any other. Its outputs are the source's, then one
//! per wanted gradient; several uses of a value or a parameter are added up.
//!
//! With [`Wanted::checkpoint`] each layer's forward ops are emitted once more in front of their
//! gradients, so that only what lives between layers is kept until then.

mod emit;
mod experts;
mod parameters;
mod rules;

use std::collections::{HashMap, HashSet};

use crate::ir::shapes::Shapes;
use crate::ir::site::layer_of;
use crate::ir::{GradKind, Graph, Module, Op, OpId, OpKind, Operand, Part, ValueId, WeightId};
use crate::store;

pub use parameters::of_op;
pub use rules::has_rule;

/// A trainable tensor: a part of a term, or a vector that an op takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Parameter {
    /// The weight that it is stored in; of coded factors, that of the codes.
    pub weight: WeightId,
    /// Which matrix of a stack.
    pub index: Option<u64>,
    /// What it is.
    pub what: What,
}

/// What kind of tensor a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    /// A part of a term.
    Part(Part),
    /// A gain, a bias: a weight that an op takes as it is.
    Vector,
}

/// What gradients are wanted by.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Parameters.
    pub parameters: Vec<Parameter>,
    /// Values: inputs of the graph, or anything that is made in it.
    pub values: Vec<ValueId>,
    /// Make each layer's values again instead of keeping them.
    pub checkpoint: bool,
}

/// A module that computes losses and gradients.
#[derive(Clone, Debug)]
pub struct Joint {
    /// It. Outputs are the source's, then one per parameter, then one per value.
    pub module: Module,
    /// How many outputs the source had.
    pub outputs: usize,
}

/// Why a module cannot be differentiated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GradError {
    /// The module has no graph, or none of its ops is a loss.
    #[error(
        "the graph has no loss to start from; add one (loss.cross_entropy, loss.kl, loss.mean_square)"
    )]
    NoLoss,
    /// No rule for an op that stands between a parameter and a loss.
    #[error("no gradient for {op}{}: {problem}", named(name))]
    NoRule {
        /// What the op is called in text.
        op: String,
        /// The op's name in its source; may be empty.
        name: String,
        /// What is missing, and what to do.
        problem: String,
    },
    /// No loss depends on the parameter.
    #[error("no loss depends on {0}")]
    Unreached(String),
}

fn named(name: &str) -> String {
    match name.is_empty() {
        true => String::new(),
        false => format!(" {name:?}"),
    }
}

/// The graph of losses and gradients of a module's first graph.
///
/// Cost: linear in ops. Every loss of the body is a root with gradient one.
///
/// # Errors
/// [`GradError::NoRule`] names the first op that has none.
pub fn differentiate(module: &Module, wanted: &Wanted) -> Result<Joint, GradError> {
    let graph = module.graphs.first().ok_or(GradError::NoLoss)?;
    let losses: Vec<OpId> = graph
        .body
        .ops
        .iter()
        .copied()
        .filter(|&id| is_loss(graph, id))
        .collect();
    if losses.is_empty() {
        return Err(GradError::NoLoss);
    }
    let shapes = store::shapes(module);
    let mut backward = Backward::new(module, graph, &shapes, wanted);
    let blocks = match wanted.checkpoint {
        true => blocks(graph),
        false => vec![graph.body.ops.clone()],
    };
    for (number, ops) in blocks.iter().enumerate().rev() {
        // The last block's values live still.
        let again = number + 1 < blocks.len();
        if again && ops.iter().any(|&id| backward.has_gradient(id)) {
            backward.emit_again(ops);
        }
        for &id in ops.iter().rev() {
            backward.step(id)?;
        }
        backward.renamed.clear();
    }
    backward.finish()
}

fn is_loss(graph: &Graph, id: OpId) -> bool {
    let op = graph.op(id);
    op.is_some_and(|op| loss_of(op).is_some())
}

fn loss_of(op: &Op) -> Option<crate::ir::Training> {
    match &op.kind {
        OpKind::Grad(grad) => match &grad.kind {
            GradKind::Op(training) => training.gradient(),
            GradKind::Of(_) => None,
        },
        _ => None,
    }
}

/// Consecutive ops of one layer each, cut where layers' numbers change.
fn blocks(graph: &Graph) -> Vec<Vec<OpId>> {
    let mut blocks: Vec<Vec<OpId>> = vec![Vec::new()];
    let mut layer = None;
    for &id in &graph.body.ops {
        let own = graph.op(id).and_then(|op| layer_of(&op.name));
        if own.is_some() && own != layer {
            blocks.push(Vec::new());
            layer = own;
        }
        if let Some(block) = blocks.last_mut() {
            block.push(id);
        }
    }
    blocks
}

/// The walk from losses back to parameters.
pub(super) struct Backward<'a> {
    source: &'a Module,
    /// The graph that ops are read from.
    from: &'a Graph,
    shapes: &'a Shapes,
    wanted: &'a Wanted,
    parameters: HashSet<Parameter>,
    /// Values that depend on what gradients are wanted by.
    active: HashSet<ValueId>,
    /// The graph that ops go to: the source's, and more.
    graph: Graph,
    /// Ops of the region that is written.
    ops: Vec<OpId>,
    /// The gradient by each value, as far as its users have been walked.
    by_value: HashMap<ValueId, ValueId>,
    by_parameter: HashMap<Parameter, ValueId>,
    /// Values of a layer that were made again.
    renamed: HashMap<ValueId, ValueId>,
}

impl<'a> Backward<'a> {
    fn new(source: &'a Module, from: &'a Graph, shapes: &'a Shapes, wanted: &'a Wanted) -> Self {
        let parameters: HashSet<Parameter> = wanted.parameters.iter().copied().collect();
        let mut active: HashSet<ValueId> = wanted.values.iter().copied().collect();
        for &id in &from.body.ops {
            let Some(op) = from.op(id) else { continue };
            if depends(from, op, &parameters, &active) {
                active.extend(op.results.iter().flatten());
            }
        }
        Self {
            source,
            from,
            shapes,
            wanted,
            parameters,
            active,
            graph: from.clone(),
            ops: from.body.ops.clone(),
            by_value: HashMap::new(),
            by_parameter: HashMap::new(),
            renamed: HashMap::new(),
        }
    }

    /// Whether an op's result has a gradient, or is a loss.
    fn has_gradient(&self, id: OpId) -> bool {
        let Some(op) = self.from.op(id) else {
            return false;
        };
        let mut results = op.results.iter().flatten();
        loss_of(op).is_some() || results.any(|v| self.by_value.contains_key(v))
    }

    /// Emits what an op's rule says.
    fn step(&mut self, id: OpId) -> Result<(), GradError> {
        let from = self.from;
        let Some(op) = from.op(id) else {
            return Ok(());
        };
        let mut results = op.results.iter().flatten();
        if !results.any(|v| self.active.contains(v)) {
            return Ok(());
        }
        if let Some(gradient) = loss_of(op) {
            return self.root(op, gradient);
        }
        let dy = match op.results.as_slice() {
            [Some(result)] => self.by_value.get(result).copied(),
            results => {
                let some = results
                    .iter()
                    .flatten()
                    .any(|v| self.by_value.contains_key(v));
                if some {
                    return Err(rules::none(op, "it has several results"));
                }
                None
            }
        };
        match dy {
            Some(dy) => rules::apply(self, op, dy),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<Joint, GradError> {
        let mut outputs = self.from.body.outputs.clone();
        let count = outputs.len();
        for parameter in &self.wanted.parameters {
            let found = self.by_parameter.get(parameter).copied();
            let named = parameter.name(self.source);
            let value = found.ok_or_else(|| GradError::Unreached(named.clone()))?;
            self.graph.values[value.index()].name = format!("grad.{named}");
            outputs.push(Operand::Value(value));
        }
        for value in &self.wanted.values {
            let name = self.from.value(*value).map_or("", |v| &v.name);
            let found = self.by_value.get(value).copied();
            let unreached = || GradError::Unreached(format!("%{name}"));
            let gradient = found.ok_or_else(unreached)?;
            if self.graph.values[gradient.index()].name.is_empty() {
                self.graph.values[gradient.index()].name = format!("grad.%{name}");
            }
            outputs.push(Operand::Value(gradient));
        }
        self.graph.body.ops = self.ops;
        self.graph.body.outputs = outputs;
        let mut module = self.source.clone();
        if let Some(first) = module.graphs.first_mut() {
            *first = self.graph;
        }
        Ok(Joint {
            module,
            outputs: count,
        })
    }
}

/// Whether an op reads a wanted parameter or an active value.
fn depends(
    graph: &Graph,
    op: &Op,
    parameters: &HashSet<Parameter>,
    active: &HashSet<ValueId>,
) -> bool {
    let by_value = op.inputs.iter().any(|input| match input {
        Operand::Value(v) => active.contains(v),
        _ => false,
    });
    let inner = op.kind.regions().into_iter().flat_map(|region| &region.ops);
    let mut inner = inner.filter_map(|&id| graph.op(id));
    by_value
        || parameters::of_op(op).iter().any(|p| parameters.contains(p))
        || inner.any(|op| parameters::of_op(op).iter().any(|p| parameters.contains(p)))
}

impl Parameter {
    /// A name for messages and outputs: the weight's, and which matrix of a stack.
    pub fn name(&self, module: &Module) -> String {
        let weight = module.weight(self.weight).map_or("", |w| &w.name);
        let index = self
            .index
            .map_or(String::new(), |index| format!("[{index}]"));
        format!("{weight}{index}")
    }
}

/// Every parameter that the ops of a module's first graph have, in order, each once.
pub fn parameters(module: &Module) -> Vec<Parameter> {
    let mut seen = HashSet::new();
    let Some(graph) = module.graphs.first() else {
        return Vec::new();
    };
    let ops = graph.walk();
    let ops = ops.iter().filter_map(|&id| graph.op(id));
    let all = ops.filter(|op| !matches!(op.kind, OpKind::Grad(_)));
    all.flat_map(parameters::of_op)
        .filter(|p| seen.insert(*p))
        .collect()
}
