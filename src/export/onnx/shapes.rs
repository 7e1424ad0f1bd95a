//! Shapes of a native module's values, for the types of its outputs.

use std::collections::HashMap;

use crate::ir::{Dim, Graph, Native, Op, OpKind, Operand, Type, ValueId};

/// The shape of every value of the graph's body that follows from its inputs.
pub(super) fn last_dims(graph: &Graph) -> HashMap<ValueId, Vec<Dim>> {
    let mut known: HashMap<ValueId, Vec<Dim>> = HashMap::new();
    for &input in &graph.body.inputs {
        if let Some(Type::Tensor(tensor)) = graph.value(input).and_then(|value| value.ty.as_ref())
            && let Some(shape) = &tensor.shape
        {
            known.insert(input, shape.clone());
        }
    }
    for op in graph.body.ops.iter().filter_map(|&id| graph.op(id)) {
        let first = op.inputs.iter().find_map(|operand| match operand {
            Operand::Value(id) => known.get(id),
            _ => None,
        });
        let shape = first.cloned().and_then(|shape| result(op, shape));
        if let (Some(shape), Some(Some(result))) = (shape, op.results.first()) {
            known.insert(*result, shape);
        }
    }
    known
}

fn result(op: &Op, mut shape: Vec<Dim>) -> Option<Vec<Dim>> {
    let known = |n: u64| Dim::Known(n as i64);
    match &op.kind {
        OpKind::Linear(linear) => *shape.last_mut()? = known(linear.matrix.out_features),
        OpKind::Embedding(embedding) => shape.push(known(embedding.matrix.in_features)),
        OpKind::Native(Native::Slice { width, .. }) => *shape.last_mut()? = known(*width),
        OpKind::Native(Native::Attention {
            heads, head_dim, ..
        }) => {
            *shape.last_mut()? = known(heads.saturating_mul(*head_dim));
        }
        OpKind::Native(Native::FirstToken) if shape.len() > 1 => {
            shape.remove(1);
        }
        OpKind::Native(_) | OpKind::Moe(_) => {}
        OpKind::Grad(_) | OpKind::Onnx(_) => return None,
    }
    Some(shape)
}
