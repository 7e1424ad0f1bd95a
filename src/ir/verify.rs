//! The verifier: what holds in every module that a pass, a plan or an exporter sees.
//!
//! 1. Every id names an element of its arena; every op stands in exactly one region.
//! 2. A value is made once and used only where it is visible: after its making, in the same region
//!    or one nested in it. Names are unique among the values visible at one place.
//! 3. Weight names are unique and not empty; a file or inline weight has as many bytes as its
//!    type says (strings and varints excepted).
//! 4. A matrix has at most one dense term; every term has the shape of its matrix: a dense view
//!    covers it, codes, scales and zero points have the sizes that scheme and group demand, blocks
//!    lie inside, factors and index lists have the lengths that ranks and counts demand.
//! 5. A bias is `[out]`. Native ops have the number of inputs that they need; blocks of rotations are
//!    powers of two up to 512. A weight that is turned when it is read is of floats, from a tensor of
//!    its shape, with blocks that divide its sides.
//! 6. A mixture of experts has at least `top_k` experts, each with one input and one output.
//! 7. The activation of a linear has the width that its matrix takes, where that follows from the
//!    types of the graph's inputs; so has that of a rotation one that its blocks divide.
//! 8. Ops of training have the inputs, results and terms that they need.
//!
//! All violations are reported, not the first alone. A module that passes does not make a back end
//! panic.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::{
    Graph, Linear, Module, Moe, Native, Op, OpId, OpKind, Operand, Region, Storage, ValueId,
};
use crate::weights::DType;

mod grad;
mod rotated;
mod terms;
mod widths;

use rotated::{bad_block, is_block};

/// One broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where: graph, op and its name, or weight.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

/// Every broken invariant of a module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the module breaks {} invariant(s):", self.0.len())?;
        for v in self.0.iter().take(50) {
            writeln!(f, "  {}: {}", v.place, v.what)?;
        }
        if self.0.len() > 50 {
            writeln!(f, "  … and {} more", self.0.len() - 50)?;
        }
        Ok(())
    }
}

/// Checks every invariant. Cost: linear in ops and weights; reads no weight's data.
///
/// # Errors
/// All violations found.
pub fn verify(module: &Module) -> Result<(), Violations> {
    let mut v = Verifier {
        module,
        found: Vec::new(),
    };
    v.weights();
    for graph in &module.graphs {
        GraphCheck::run(&mut v, graph);
    }
    if v.found.is_empty() {
        // Inference relies on the rest.
        v.found = widths::check(module);
    }
    if v.found.is_empty() {
        Ok(())
    } else {
        Err(Violations(v.found))
    }
}

struct Verifier<'a> {
    module: &'a Module,
    found: Vec<Violation>,
}

impl Verifier<'_> {
    fn report(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.found.push(Violation {
            place: place.into(),
            what: what.into(),
        });
    }

    fn weights(&mut self) {
        let mut names = HashSet::new();
        for (index, weight) in self.module.weights.iter().enumerate() {
            let place = format!("weight @{}", weight.name);
            if weight.name.is_empty() {
                self.report(format!("weight {index}"), "has no name");
            } else if !names.insert(&weight.name) {
                self.report(&place, "is declared twice");
            }
            if let Storage::Rotated(rotated) = &weight.storage {
                self.rotated(weight, rotated, &place);
            }
            let size = weight.elements().and_then(|n| weight.dtype.bytes_for(n));
            let Some(have) = weight.storage.raw_bytes() else {
                if matches!(weight.storage, Storage::Concat(_)) {
                    self.report(&place, "a concatenation is of raw files and inline bytes");
                }
                continue;
            };
            if weight.dtype != DType::String && size != Some(have) {
                let dims = &weight.dims;
                let need = size.map_or("more than u64 can count".to_string(), |n| n.to_string());
                let dtype = weight.dtype;
                self.report(
                    &place,
                    format!("{dtype}{dims:?} needs {need} bytes, has {have}"),
                );
            }
        }
    }
}

struct GraphCheck<'v, 'a> {
    v: &'v mut Verifier<'a>,
    graph: &'a Graph,
    placed: Vec<bool>,
    made: Vec<bool>,
    scopes: Vec<(HashMap<&'a str, ValueId>, Vec<ValueId>)>,
    visible: Vec<bool>,
}

impl<'v, 'a> GraphCheck<'v, 'a> {
    fn run(v: &'v mut Verifier<'a>, graph: &'a Graph) {
        let mut check = GraphCheck {
            v,
            graph,
            placed: vec![false; graph.ops.len()],
            made: vec![false; graph.values.len()],
            scopes: Vec::new(),
            visible: vec![false; graph.values.len()],
        };
        check.region(&graph.body, 0);
    }

    fn place(&self) -> String {
        graph_place(self.graph)
    }

    fn op_place(&self, id: OpId) -> String {
        op_place(self.graph, id)
    }

    fn region(&mut self, region: &'a Region, depth: usize) {
        if depth > 64 {
            let place = self.place();
            return self.v.report(place, "regions are nested deeper than 64");
        }
        self.scopes.push((HashMap::new(), Vec::new()));
        for &input in &region.inputs {
            self.make(input, &self.place());
        }
        for &w in &region.weights {
            if self.v.module.weight(w).is_none() {
                let place = self.place();
                self.v
                    .report(place, format!("declares weight {w}, which is not there"));
            }
        }
        for &id in &region.ops {
            self.op(id, depth);
        }
        for &output in &region.outputs {
            let place = format!("{}, output", self.place());
            self.operand(output, &place);
        }
        if let Some((_, values)) = self.scopes.pop() {
            for value in values {
                self.visible[value.index()] = false;
            }
        }
    }

    fn make(&mut self, id: ValueId, place: &str) {
        let Some(value) = self.graph.value(id) else {
            return self
                .v
                .report(place, format!("value {id} is not in the arena"));
        };
        if std::mem::replace(&mut self.made[id.index()], true) {
            self.v
                .report(place, format!("value %{} is made twice", value.name));
        }
        self.visible[id.index()] = true;
        let Some((names, values)) = self.scopes.last_mut() else {
            return;
        };
        values.push(id);
        if !value.name.is_empty() && names.insert(&value.name, id).is_some() {
            self.v
                .report(place, format!("two values are called %{}", value.name));
        }
    }

    fn operand(&mut self, operand: Operand, place: &str) {
        match operand {
            Operand::None => {}
            Operand::Weight(w) => {
                if self.v.module.weight(w).is_none() {
                    self.v
                        .report(place, format!("uses weight {w}, which is not there"));
                }
            }
            Operand::Value(id) => {
                let name = self.graph.value(id).map_or("", |v| &v.name);
                if !self.visible.get(id.index()).copied().unwrap_or(false) {
                    let what = format!("uses %{name} ({id}), which is not made before it");
                    self.v.report(place, what);
                }
            }
        }
    }

    fn op(&mut self, id: OpId, depth: usize) {
        let Some(op) = self.graph.op(id) else {
            let place = self.place();
            return self.v.report(place, format!("{id} is not in the arena"));
        };
        let place = self.op_place(id);
        if std::mem::replace(&mut self.placed[id.index()], true) {
            return self.v.report(place, "stands in two places");
        }
        for &input in &op.inputs {
            self.operand(input, &place);
        }
        self.kind(op, &place);
        for inner in op.kind.regions() {
            self.region(inner, depth + 1);
        }
        for &result in op.results.iter().flatten() {
            self.make(result, &place);
        }
    }

    fn kind(&mut self, op: &Op, place: &str) {
        let inputs = op.inputs.len();
        let one_result = matches!(op.results.as_slice(), [Some(_)]);
        match &op.kind {
            OpKind::Onnx(onnx) => {
                for w in onnx.attrs.weights() {
                    self.operand(Operand::Weight(w), place);
                }
                return;
            }
            OpKind::Native(native) => {
                let (least, most) = native.arity();
                if inputs < least || inputs > most {
                    let what = format!("has {inputs} inputs, needs {least} to {most}");
                    self.v.report(place, what);
                }
                if let Native::Hadamard { block, .. } = native
                    && !is_block(*block)
                {
                    self.v.report(place, bad_block(*block));
                }
            }
            OpKind::Linear(linear) => {
                self.v.matrix(&linear.matrix, place);
                self.bias(linear, place);
                if inputs != 1 {
                    self.v
                        .report(place, format!("has {inputs} inputs, needs 1"));
                }
            }
            OpKind::Embedding(embedding) => {
                self.v.matrix(&embedding.matrix, place);
                if inputs != 1 {
                    self.v
                        .report(place, format!("has {inputs} inputs, needs 1"));
                }
            }
            OpKind::Moe(moe) => self.moe(moe, inputs, place),
            OpKind::Grad(grad) => return self.v.grad(op, grad, place),
        }
        if !one_result {
            self.v.report(place, "has one result, no more and no fewer");
        }
    }

    fn bias(&mut self, linear: &Linear, place: &str) {
        let Some(bias) = linear.bias else { return };
        match self.v.module.weight(bias) {
            None => self.v.report(place, format!("bias {bias} is not there")),
            Some(w) if w.elements() != Some(linear.matrix.out_features) => {
                let (name, dims, out) = (&w.name, &w.dims, linear.matrix.out_features);
                let what = format!("bias @{name} is {dims:?}, the matrix has {out} rows");
                self.v.report(place, what);
            }
            Some(_) => {}
        }
    }

    fn moe(&mut self, moe: &Moe, inputs: usize, place: &str) {
        if inputs != 2 {
            self.v
                .report(place, format!("has {inputs} inputs, needs 2"));
        }
        let experts = moe.experts.len();
        if moe.top_k == 0 || moe.top_k as usize > experts {
            let what = format!("sends a token to {} of {experts} experts", moe.top_k);
            self.v.report(place, what);
        }
        for region in &moe.experts {
            if region.inputs.len() != 1 || region.outputs.len() != 1 {
                let name = &region.name;
                self.v.report(
                    place,
                    format!("expert \"{name}\" needs one input and one output"),
                );
            }
        }
    }
}

fn graph_place(graph: &Graph) -> String {
    format!("graph @{}", graph.body.name)
}

/// Graph, op and its name, or that of its first result.
fn op_place(graph: &Graph, id: OpId) -> String {
    let Some(op) = graph.op(id) else {
        return graph_place(graph);
    };
    let grad;
    let word = match &op.kind {
        OpKind::Grad(op) => {
            grad = op.name();
            &grad
        }
        OpKind::Linear(_) => "linear",
        OpKind::Embedding(_) => "embedding",
        OpKind::Moe(_) => "moe",
        OpKind::Native(n) => n.name(),
        OpKind::Onnx(o) => &o.op_type,
    };
    let result = op.results.iter().flatten().next();
    let result = result.and_then(|r| graph.value(*r)).map_or("", |v| &v.name);
    let name = if op.name.is_empty() { result } else { &op.name };
    format!("{}, {word} \"{name}\"", graph_place(graph))
}
