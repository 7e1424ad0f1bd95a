//! Types and shapes of values, inferred.
//!
//! An analysis: what it finds stands in a table beside the module and is never written into it, so
//! that a model goes out as it came in. It starts at the types that the module states, applies a
//! rule per op (native ops, ONNX ops, branches, loops) and computes small integer tensors on the
//! way, names included: an exporter's `Shape → Gather → Concat → Reshape` ends in a shape. An op
//! without a rule, or with an input that matters and is not known, gives an unknown result. Where
//! rule and statement disagree, the dimension is unknown.
//!
//! Named dimensions keep their names; sums and products of them are texts such as `S + past` and
//! `2*S`. A size that no one named is `?1`, `?2`, …: within one module, equal texts mean equal
//! sizes. Sizes are taken as they are in a run that succeeds; empty tensors aside, a `Reshape`
//! with a name as a target keeps that size.

use super::{Attr, Dim, Graph, Module, OnnxOp, Op, OpKind, Operand, Type, ValueId, Weight};
use crate::weights::DType;

mod fact;
mod grad;
mod infer;
mod native;
mod rules;
mod size;
#[cfg(test)]
mod tests;

/// Bytes of a constant that is read.
pub const MAX_CONSTANT_BYTES: u64 = 4096;

/// Which statements of the module are starting points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The types of graph inputs alone, which callers keep to.
    Inputs,
    /// Every type that the module states.
    Stated,
}

/// What is known of one value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Element type, of a tensor.
    pub dtype: Option<DType>,
    /// Shape, of a tensor.
    pub dims: Option<Vec<Dim>>,
    /// Type, as far as the element type is known or the value is no tensor.
    pub ty: Option<Type>,
    /// Elements of a small integer or bool tensor, row-major, where all are known.
    pub elements: Option<Vec<i64>>,
}

/// What is known of every value of a module.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    graphs: Vec<Vec<Known>>,
}

impl Shapes {
    /// All that is known of a value of graph number `graph`.
    pub fn of(&self, graph: usize, value: ValueId) -> Option<&Known> {
        self.graphs.get(graph)?.get(value.index())
    }

    /// The type of a value; its shape may be `None`.
    pub fn ty(&self, graph: usize, value: ValueId) -> Option<&Type> {
        self.of(graph, value)?.ty.as_ref()
    }

    /// The shape of a value, where its rank is known.
    pub fn dims(&self, graph: usize, value: ValueId) -> Option<&[Dim]> {
        self.of(graph, value)?.dims.as_deref()
    }

    /// The number of dimensions of a value.
    pub fn rank(&self, graph: usize, value: ValueId) -> Option<usize> {
        Some(self.dims(graph, value)?.len())
    }

    /// The size of a value's dimension `axis`, counted from the end where negative.
    pub fn size(&self, graph: usize, value: ValueId, axis: isize) -> Option<u64> {
        let dims = self.dims(graph, value)?;
        let at = match usize::try_from(axis) {
            Ok(at) => at,
            Err(_) => dims.len().checked_sub(axis.unsigned_abs())?,
        };
        match dims.get(at)? {
            Dim::Known(size) => u64::try_from(*size).ok(),
            _ => None,
        }
    }

    /// The shape of an operand: a value's, or a weight's own.
    pub fn operand_dims(
        &self,
        module: &Module,
        graph: usize,
        operand: Operand,
    ) -> Option<Vec<Dim>> {
        match operand {
            Operand::None => None,
            Operand::Value(value) => Some(self.dims(graph, value)?.to_vec()),
            Operand::Weight(id) => {
                let dims = module.weight(id)?.dims.iter();
                dims.map(|&d| Some(Dim::Known(i64::try_from(d).ok()?)))
                    .collect()
            }
        }
    }
}

/// Infers from all that the module states, reading inline constants only; `store::shapes` reads
/// those in files too.
pub fn infer(module: &Module) -> Shapes {
    infer_with(module, Trust::Stated, &mut |_| None)
}

/// Infers with `read` for the bytes of constants of at most [`MAX_CONSTANT_BYTES`] that are not
/// inline; it may give `None`.
///
/// Cost: linear in ops and results; each constant is read once.
pub fn infer_with(
    module: &Module,
    trust: Trust,
    read: &mut dyn FnMut(&Weight) -> Option<Vec<u8>>,
) -> Shapes {
    let mut inference = infer::Inference::new(module, trust, read);
    let graphs = 0..module.graphs.len();
    Shapes {
        graphs: graphs.map(|graph| inference.graph(graph)).collect(),
    }
}

/// Whether an op is a call of the model-local function that is this graph.
pub fn calls(op: &Op, function: &Graph) -> bool {
    matches!(&op.kind, OpKind::Onnx(onnx) if names(onnx, function))
}

fn names(onnx: &OnnxOp, function: &Graph) -> bool {
    let domain = function.body.meta.get("domain").and_then(Attr::as_str);
    let name = &function.body.name;
    // The second of a name has domain and overload around it.
    let qualified = || format!("{}::{}::{}", onnx.domain, onnx.op_type, onnx.overload) == *name;
    domain.unwrap_or_default() == onnx.domain && (*name == onnx.op_type || qualified())
}
