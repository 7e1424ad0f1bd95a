//! Turns the decomposed subgraphs of ONNX exporters into native ops.
//!
//! An exporter spells attention as a dozen nodes, a rotation as a dozen more, and each exporter
//! does it in its own way. Raised, an ONNX model is the module that its checkpoint would have been
//! imported as: it runs on the native executor with a KV cache, and is calibrated, trained and
//! planned like its twin. Raised are norms, rotations, attention with its masks, activation
//! functions, rotations by Hadamard blocks, sums, products and scales, positions and embeddings, as
//! single ops (opset 23 and
//! `com.microsoft`) and decomposed. Run it behind `find-linears`; `run` and `eval` do both by
//! themselves. Keys and values of earlier calls as inputs and outputs become the cache.
//!
//! Reshapes and transpositions are followed as views, arithmetic as expressions in a normal form.
//! What does not depend on activations (shapes, positions, rotation tables, masks) is computed at
//! sample sizes, short and long, and recognised by its numbers where these agree. What stays
//! `onnx.*` is named in remarks.
//!
//! Before: `%a = onnx.Sigmoid(%x)` and `%y = onnx.Mul(%x, %a)`
//! After:  `%y = activate %x {function="silu"}`
//!
//! Cost: linear in nodes; reads data of small weights, not of matrices.
//! Source: ONNX operator reference; contrib operators of ONNX Runtime.

use std::collections::{BTreeMap, HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use crate::ir::patch::{Patch, normalize};
use crate::ir::{Graph, Module, OnnxOp, Op, OpId, OpKind, Operand, ValueId, WeightId};
use crate::pass::{ModulePass, Pass, PassError, Remark, Rewrite};
use expr::Expr;
use probe::Facts;
use sample::Size;
use view::{Source, View};

mod activation;
mod agree;
mod angles;
mod arith;
mod attention;
mod contrib;
mod doubt;
mod embed;
mod emit;
mod eval;
mod expr;
mod far;
mod hadamard;
mod indexing;
mod layout;
mod mask;
mod missed;
mod movement;
mod norm;
mod probe;
mod reduce;
mod rope;
mod sample;
mod scores;
mod tensor;
mod view;

/// Options of `raise`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Sequences are whole: no padding, and positions count up. Inputs that say otherwise go.
    pub whole: bool,
}

/// The pass.
pub struct Raise {
    options: Options,
    /// Whether keys and values of earlier calls may become the cache.
    cache: bool,
}

/// Raises a module to be run: a decoder's sequences are whole.
///
/// A decoder is a module with cached attention; its inputs of masks and positions go, so that it
/// runs on tokens alone. A module without ONNX nodes stays as it is.
///
/// # Errors
/// As [`raise_module`].
pub fn raise_to_run(module: &mut Module) -> Result<Vec<Remark>, PassError> {
    let source = module.clone();
    let remarks = raise_module(module, &Options::default())?;
    let ops = module.graphs.first().into_iter().flat_map(|g| &g.ops);
    let mut kinds = ops.map(|op| &op.kind);
    let cached = |kind: &OpKind| {
        matches!(
            kind,
            OpKind::Native(crate::ir::Native::Attention { cache: Some(_), .. })
        )
    };
    let inputs = module.graphs.first().map_or(0, |g| g.body.inputs.len());
    if inputs < 2 || !kinds.any(cached) {
        return Ok(remarks);
    }
    *module = source;
    raise_module(module, &Options { whole: true })
}

/// Raises a module that is run on inputs of its source: masks and positions stay, and where `past` is among
/// the inputs, keys and values of earlier calls too, so that none becomes a cache.
///
/// # Errors
/// As [`raise_module`].
pub fn raise_as_is(module: &mut Module, past: bool) -> Result<Vec<Remark>, PassError> {
    raise_by(module, (Options::default(), !past))
}

/// Whether an input of this name is keys or values of earlier calls.
pub fn is_past(name: &str) -> bool {
    sample::is_past(name)
}

/// Raises a module of ONNX nodes: linears first, then everything else.
///
/// A module without ONNX nodes stays as it is.
///
/// # Errors
/// The module breaks an invariant, or a patch does not fit it.
pub fn raise_module(module: &mut Module, options: &Options) -> Result<Vec<Remark>, PassError> {
    raise_by(module, (options.clone(), true))
}

fn raise_by(
    module: &mut Module,
    (options, cache): (Options, bool),
) -> Result<Vec<Remark>, PassError> {
    let is_onnx = |op: &Op| matches!(op.kind, OpKind::Onnx(_));
    let mut remarks = Vec::new();
    let find = super::find_linears::ENTRY;
    let linears = (find.build)(serde_json::Map::new())?;
    let rest = Pass::Module(Box::new(Raise { options, cache }));
    for (entry, pass) in [(find, linears), (ENTRY, rest)] {
        if !module.graphs.iter().any(|g| g.ops.iter().any(is_onnx)) {
            break;
        }
        let Pass::Module(pass) = pass else {
            continue;
        };
        let mut said = Vec::new();
        let patch = pass.run(&mut Rewrite::new(module, &mut said))?;
        if !patch.is_empty() {
            patch.apply(module).map_err(PassError::new)?;
            *module = normalize(module);
        }
        said.iter_mut()
            .for_each(|r| r.pass = entry.name.to_string());
        remarks.extend(said);
    }
    Ok(remarks)
}

impl ModulePass for Raise {
    fn run(&self, rewrite: &mut Rewrite<'_>) -> Result<Patch, PassError> {
        let (module, remarks) = (rewrite.module, &mut *rewrite.remarks);
        let Some(graph) = module.graphs.first() else {
            return Ok(Patch::new(module, "raise"));
        };
        let whole = self.options.whole;
        let samples = agree::Samples::of(module, graph, whole);
        let emitted = match self.cache {
            false => samples.raised(false, None).emitted(),
            // Where some of the past is read otherwise than by attention, it stays as it is.
            true => match samples.raised(true, None).emitted() {
                Err(why) => samples.raised(false, Some(&why)).emitted(),
                done => done,
            },
        };
        let (patch, said) = emitted.map_err(PassError)?;
        remarks.extend(said);
        Ok(patch)
    }
}

/// An input of a new op.
#[derive(Clone, Copy, Debug, PartialEq)]
enum In {
    Source(Source),
    Weight(WeightId),
    None,
}

/// A new op.
struct Made {
    kind: OpKind,
    name: String,
    inputs: Vec<In>,
    /// Sizes of its result.
    dims: Vec<Size>,
    /// Index of the last op of the graph that it needs; 0 where it needs none.
    anchor: usize,
    /// All rows of the batch are equal.
    uniform: bool,
}

/// What became of an op.
struct Done {
    op: OpId,
    /// What its first result is.
    form: Option<Expr>,
    /// New ops at hand then.
    made: usize,
    /// New weights at hand then.
    weights: usize,
}

struct Raiser<'a> {
    module: &'a Module,
    graph: &'a Graph,
    facts: Facts<'a>,
    patch: Patch,
    /// What values are; those that are missing are themselves.
    forms: HashMap<ValueId, Expr>,
    made: Vec<Made>,
    makers: HashMap<ValueId, (usize, OpId)>,
    slices: HashMap<(Source, usize, usize), Source>,
    rows: HashMap<(WeightId, usize), WeightId>,
    /// Entries of the Walsh–Hadamard matrices among weights.
    entries: HashMap<WeightId, Option<f64>>,
    positions: Option<Source>,
    /// Whether keys and values of earlier calls become the cache.
    cache: bool,
    /// Whether sequences are whole.
    whole: bool,
    caches: u64,
    /// Outputs that the cache replaces.
    kept: Vec<ValueId>,
    /// Why something that looked right was left, and where.
    near: BTreeMap<String, Vec<String>>,
    /// What masks show; layers share them.
    shown: Vec<mask::Known>,
    /// The op at hand.
    name: String,
    /// Weights named so far.
    named: usize,
    /// Ops that are left alone, since they show one thing in short sequences and another in long ones.
    left: HashSet<OpId>,
    /// What became of each op.
    log: Vec<Done>,
}

impl<'a> Raiser<'a> {
    fn new(
        (module, graph): (&'a Module, &'a Graph),
        facts: Facts<'a>,
        (cache, whole): (bool, bool),
        left: &HashSet<OpId>,
    ) -> Self {
        let mut makers = HashMap::new();
        for (index, &id) in graph.body.ops.iter().enumerate() {
            let results = graph.op(id).into_iter().flat_map(|op| &op.results);
            makers.extend(results.flatten().map(|&value| (value, (index, id))));
        }
        Self {
            module,
            graph,
            facts,
            patch: Patch::new(module, "raise"),
            forms: HashMap::new(),
            made: Vec::new(),
            makers,
            slices: HashMap::new(),
            rows: HashMap::new(),
            entries: HashMap::new(),
            positions: None,
            cache,
            whole,
            caches: 0,
            kept: Vec::new(),
            near: BTreeMap::new(),
            shown: Vec::new(),
            name: String::new(),
            named: 0,
            left: left.clone(),
            log: Vec::new(),
        }
    }

    /// Goes through the graph once.
    fn raised(mut self) -> Self {
        let graph = self.graph;
        for &id in &graph.body.ops {
            let Some(op) = graph.op(id) else { continue };
            let result = op.results.iter().flatten().next();
            let value = result.and_then(|&id| graph.value(id));
            self.name = match op.name.is_empty() {
                true => value.map_or(String::new(), |v| v.name.clone()),
                false => op.name.clone(),
            };
            let form = match &op.kind {
                _ if self.left.contains(&id) => {
                    let seen = self.facts.samples().map(|s| s.length);
                    let [short, _] = seen;
                    let what =
                        format!("what holds in sequences of {short} tokens and not in longer ones");
                    self.near(&what, "");
                    None
                }
                OpKind::Onnx(onnx) => self.onnx(op, onnx),
                OpKind::Linear(linear) => self.linear(op, linear),
                OpKind::Embedding(embedding) => self.embedding(op, embedding),
                OpKind::Native(_) | OpKind::Moe(_) | OpKind::Grad(_) => None,
            };
            if let (Some(form), Some(Some(result))) = (&form, op.results.first()) {
                self.forms.insert(*result, form.clone());
            }
            self.log.push(Done {
                op: id,
                form,
                made: self.made.len(),
                weights: self.patch.added().len(),
            });
        }
        self.finish();
        self
    }

    /// Makes ops of what outputs, and ops that stay as they are, read.
    fn finish(&mut self) {
        let graph = self.graph;
        let mut read = graph.body.outputs.clone();
        for op in graph.body.ops.iter().filter_map(|&id| graph.op(id)) {
            let known = |id: ValueId| {
                self.forms.contains_key(&id) || self.facts.side(Operand::Value(id)).is_some()
            };
            if !op.results.iter().flatten().any(|&id| known(id)) {
                read.extend(&op.inputs);
            }
        }
        for operand in read {
            if matches!(operand, Operand::Value(_)) {
                self.leaf(operand);
            }
        }
    }

    /// What a node's first result is, where it is more than itself.
    fn onnx(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let result = Operand::Value((*op.results.first()?)?);
        if self.facts.side(result).is_some() {
            return None;
        }
        if !matches!(onnx.domain.as_str(), "" | "ai.onnx") {
            return self.contributed(op, onnx);
        }
        match onnx.op_type.as_str() {
            "Identity" | "Dropout" | "Cast" | "CastLike" => self.same(op),
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => {
                self.norm_op(op, onnx)
            }
            "RotaryEmbedding" => self.rotary_op(op, onnx),
            "Attention" => self.attention_op(op, onnx),
            "Gelu" | "Swish" => self.activation_op(op, onnx),
            "MatMul" => self.product_of(op),
            "Softmax" => self.softmax(op, onnx),
            "Where" => self.masked(op),
            name => self
                .arithmetic(name, op, onnx)
                .or_else(|| self.moved(name, op, onnx)),
        }
    }

    /// An op that hands its input on: casts between floats are the executor's business.
    fn same(&mut self, op: &Op) -> Option<Expr> {
        let input = *op.inputs.first()?;
        let result = Operand::Value((*op.results.first()?)?);
        let float = |o| self.facts.get(o, 0).is_some_and(|t| t.dtype.is_float());
        (float(input) && float(result)).then(|| self.expr(input))?
    }

    /// What an operand is.
    fn expr(&self, operand: Operand) -> Option<Expr> {
        if let Operand::Value(id) = operand
            && let Some(form) = self.forms.get(&id)
        {
            return Some(match form {
                Expr::Walsh(walsh) => Expr::Leaf(walsh.plain.clone()),
                form => form.clone(),
            });
        }
        if let Some(number) = self.facts.number(operand) {
            return Some(Expr::Number(number));
        }
        if self.facts.side(operand).is_some() {
            return Some(Expr::Side(operand));
        }
        match operand {
            Operand::Value(id) => {
                let dims = self.facts.sizes(operand)?;
                Some(Expr::Leaf(View::whole(Source::Old(id), dims)))
            }
            Operand::Weight(_) => Some(Expr::Side(operand)),
            Operand::None => None,
        }
    }

    /// An operand as a view, with the ops that it takes.
    fn leaf(&mut self, operand: Operand) -> Option<View> {
        let expr = self.expr(operand)?;
        if let Expr::Leaf(view) = expr {
            return Some(view);
        }
        let view = self.lowered(expr)?;
        if let Operand::Value(id) = operand {
            self.forms.insert(id, Expr::Leaf(view.clone()));
        }
        Some(view)
    }

    /// Adds an op; its place follows from its inputs.
    fn make(&mut self, kind: OpKind, inputs: Vec<In>, dims: Vec<Size>) -> Source {
        let anchor = inputs.iter().map(|input| match input {
            In::Source(source) => self.anchor(*source),
            In::Weight(_) | In::None => 0,
        });
        let uniform = |input: &In| match input {
            In::Source(Source::New(at)) => self.made.get(*at).is_some_and(|m| m.uniform),
            In::Source(Source::Old(_)) => false,
            In::Weight(_) | In::None => true,
        };
        self.made.push(Made {
            kind,
            name: self.name.clone(),
            anchor: anchor.max().unwrap_or(0),
            uniform: inputs.iter().all(uniform),
            inputs,
            dims,
        });
        Source::New(self.made.len() - 1)
    }

    /// Where in the graph a value can be had.
    fn anchor(&self, source: Source) -> usize {
        match source {
            Source::Old(id) => self.makers.get(&id).map_or(0, |(index, _)| index + 1),
            Source::New(at) => self.made.get(at).map_or(0, |made| made.anchor),
        }
    }

    fn native(&mut self, op: crate::ir::Native, inputs: Vec<In>, dims: Vec<Size>) -> Source {
        self.make(OpKind::Native(op), inputs, dims)
    }

    /// A native op on every element of a view.
    fn applied(&mut self, op: crate::ir::Native, view: &View, more: &[In]) -> Option<View> {
        let view = self.settled(view)?;
        let mut inputs = vec![In::Source(view.base)];
        inputs.extend(more);
        let made = self.native(op, inputs, view.dims.clone());
        Some(view.over(made))
    }

    /// Remembers why something that looked right was left.
    fn near(&mut self, why: &str, place: &str) {
        let place = if place.is_empty() { &self.name } else { place };
        let places = self.near.entry(why.to_string()).or_default();
        if places.last().is_none_or(|last| last != place) {
            places.push(place.to_string());
        }
    }
}

pass_entry!("raise", Options, |options: Options| Ok(Pass::Module(
    Box::new(Raise {
        options,
        cache: true
    })
)));
