//! Removes what has no effect: no-ops, dead ops, empty terms, duplicate and unused constants.
//!
//! Exporters leave identities, constants that nobody reads, and one constant under several names;
//! passes leave terms of rank 0. Behind this pass, what is equal is one thing, and what is there is
//! used. Linears stay even where nothing uses their result, and so do weights that no graph
//! declares: a checkpoint without a known architecture is made of these. Names, documentation and
//! metadata of the module, its inputs and its outputs are kept.
//!
//! Before: `%a = onnx.Identity(%x)  %b = scale %a {factor=1.0}  %y = linear %b { dense(@w) }`
//! After:  `%y = linear %x { dense(@w) }`
//!
//! Cost: linear in ops and weights; reads no weight's data.
//! Source: -

use std::collections::{HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use super::shared::walk::{Live, region_outputs, region_weights};
use crate::ir::patch::Patch;
use crate::ir::{
    Attrs, Module, Native, Op, OpKind, OpRef, Operand, Storage, Term, ValueId, Weight, WeightId,
};
use crate::pass::{ModulePass, Pass, PassError, Remark, RemarkKind, Rewrite};

/// Options of `canonicalize`: none.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {}

/// The pass.
pub struct Canonicalize;

impl ModulePass for Canonicalize {
    fn run(&self, rewrite: &mut Rewrite<'_>) -> Result<Patch, PassError> {
        let (module, remarks) = (rewrite.module, &mut *rewrite.remarks);
        let mut patch = Patch::new(module, "canonicalize");
        let merged = duplicates(module);
        let mut used: HashSet<WeightId> = HashSet::new();
        let mut candidates: HashSet<WeightId> = declared(module).into_iter().collect();
        let mut counts = Counts::default();
        for graph in 0..module.graphs.len() {
            let forwarded = no_ops(module, graph);
            let mut live = Live::new(module, graph);
            live.remove(forwarded.ops.iter().copied());
            counts.no_ops += forwarded.ops.len();
            let all = live.ops();
            let ops = forwarded.ops.iter().chain(&all);
            let weights = ops.filter_map(|&op| Some(module.op(OpRef { graph, op })?.weights()));
            candidates.extend(weights.flatten());
            let resolve = |operand| resolved(operand, &forwarded.values, &merged);
            let dead = live.remove_dead(resolve);
            counts.dead_ops += dead.len();
            for op in forwarded.ops.iter().chain(&dead) {
                patch.replace(OpRef { graph, op: *op }, Vec::new());
            }
            for id in live.ops() {
                let at = OpRef { graph, op: id };
                let Some(op) = module.op(at) else { continue };
                let (new, empty) = rewritten(op, resolve, &merged);
                counts.empty_terms += empty;
                used.extend(new.weights());
                if new != *op {
                    patch.replace(at, vec![new]);
                }
            }
            used.extend(live.regions().into_iter().flat_map(region_weights));
        }
        let mut unused: Vec<_> = candidates.difference(&used).copied().collect();
        unused.sort_unstable();
        counts.weights = unused.len();
        unused.into_iter().for_each(|w| patch.drop_weight(w));
        if !patch.is_empty() {
            remarks.push(counts.remark(module));
        }
        Ok(patch)
    }
}

#[derive(Default)]
struct Counts {
    no_ops: usize,
    dead_ops: usize,
    empty_terms: usize,
    weights: usize,
}

impl Counts {
    fn remark(&self, module: &Module) -> Remark {
        let parts = [
            (self.no_ops, "no-ops"),
            (self.dead_ops, "dead ops"),
            (self.empty_terms, "empty terms"),
            (self.weights, "unused or duplicate constants"),
        ];
        let parts = parts.iter().filter(|(n, _)| *n > 0);
        let parts: Vec<_> = parts.map(|(n, what)| format!("{n} {what}")).collect();
        let text = format!("removed {}", parts.join(", "));
        Remark::new(RemarkKind::Passed, &module.name, text)
    }
}

/// Ops that hand their input on, and what their results stand for.
#[derive(Default)]
struct Forwarded {
    ops: Vec<crate::ir::OpId>,
    values: HashMap<ValueId, Operand>,
}

fn no_ops(module: &Module, graph: usize) -> Forwarded {
    let mut found = Forwarded::default();
    let Some(g) = module.graphs.get(graph) else {
        return found;
    };
    // An output keeps its name, and with it the op that makes it.
    let outputs = region_outputs(g);
    for id in g.walk() {
        let Some(op) = g.op(id) else { continue };
        let [Some(result)] = op.results.as_slice() else {
            continue;
        };
        if outputs.contains(&Operand::Value(*result)) {
            continue;
        }
        if let Some(input) = handed_on(op) {
            found.ops.push(id);
            found.values.insert(*result, input);
        }
    }
    found
}

/// The input that an op without effect hands on.
fn handed_on(op: &Op) -> Option<Operand> {
    let [input @ (Operand::Value(_) | Operand::Weight(_))] = op.inputs.as_slice() else {
        return None;
    };
    let nothing = match &op.kind {
        OpKind::Native(Native::Scale { factor }) => *factor == 1.0,
        OpKind::Onnx(onnx) => is_standard(&onnx.domain) && onnx.op_type == "Identity",
        _ => false,
    };
    nothing.then_some(*input)
}

/// The standard ONNX domain, whose operators have no side effects.
fn is_standard(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

fn resolved(
    mut operand: Operand,
    values: &HashMap<ValueId, Operand>,
    merged: &HashMap<WeightId, WeightId>,
) -> Operand {
    // Values are made before they are used, so chains end.
    while let Operand::Value(v) = operand
        && let Some(&next) = values.get(&v)
    {
        operand = next;
    }
    match operand {
        Operand::Weight(w) => Operand::Weight(merged.get(&w).copied().unwrap_or(w)),
        other => other,
    }
}

/// The op with its operands resolved and without terms that add nothing, and how many these were.
fn rewritten(
    op: &Op,
    resolve: impl Fn(Operand) -> Operand,
    merged: &HashMap<WeightId, WeightId>,
) -> (Op, usize) {
    let mut new = op.clone();
    new.inputs.iter_mut().for_each(|i| *i = resolve(*i));
    let merge = |w: &mut WeightId| *w = merged.get(w).copied().unwrap_or(*w);
    if let OpKind::Linear(linear) = &mut new.kind {
        linear.bias.iter_mut().for_each(merge);
    }
    let mut empty = 0;
    if let Some(matrix) = new.kind.matrix_mut() {
        let before = matrix.terms.len();
        matrix.terms.retain(|t| !is_empty(t));
        empty = before - matrix.terms.len();
        for term in &mut matrix.terms {
            term.for_each_weight(merge);
        }
    }
    (new, empty)
}

fn is_empty(term: &Term) -> bool {
    match term {
        Term::LowRank(l) => l.blocks.iter().all(|b| b.rank == 0),
        Term::Sparse(s) => s.nnz == 0,
        Term::Columns(c) => c.count == 0,
        Term::Dense(_) | Term::Quant(_) | Term::Trellis(_) | Term::Custom(_) => false,
    }
}

/// Weights that graphs declare, those left out that a caller may replace by an input.
fn declared(module: &Module) -> Vec<WeightId> {
    let mut found = Vec::new();
    for (index, graph) in module.graphs.iter().enumerate() {
        let inputs: HashSet<&str> = graph
            .body
            .inputs
            .iter()
            .filter_map(|&v| Some(graph.value(v)?.name.as_str()))
            .collect();
        for region in Live::new(module, index).regions() {
            found.extend(region.weights.iter().copied().filter(|&w| {
                module
                    .weight(w)
                    .is_some_and(|w| !inputs.contains(w.name.as_str()))
            }));
        }
    }
    found
}

/// Constants that are an earlier one again: the same bytes in the same place, or with the same hash,
/// declared by the same graph and described alike.
fn duplicates(module: &Module) -> HashMap<WeightId, WeightId> {
    let mut owners: HashMap<WeightId, (usize, usize)> = HashMap::new();
    for graph in 0..module.graphs.len() {
        for (number, region) in Live::new(module, graph).regions().into_iter().enumerate() {
            owners.extend(region.weights.iter().map(|&w| (w, (graph, number))));
        }
    }
    let mut first: HashMap<String, WeightId> = HashMap::new();
    let mut merged = HashMap::new();
    for (index, weight) in module.weights.iter().enumerate() {
        let id = WeightId::new(index);
        let Some(content) = content(weight) else {
            continue;
        };
        let mut meta: Attrs = weight.meta.clone();
        meta.remove("name");
        let owner = owners.get(&id);
        let key = format!(
            "{:?} {:?} {owner:?} {meta:?} {content}",
            weight.dtype, weight.dims
        );
        match first.get(&key) {
            Some(&same) => {
                merged.insert(id, same);
            }
            None => {
                first.insert(key, id);
            }
        }
    }
    merged
}

fn content(weight: &Weight) -> Option<String> {
    if let Some(hash) = &weight.sha256 {
        return Some(hash.clone());
    }
    match &weight.storage {
        Storage::Absent => None,
        storage => Some(format!("{storage:?}")),
    }
}

pass_entry!("canonicalize", Options, |_: Options| Ok(Pass::Module(
    Box::new(Canonicalize)
)));
