//! What linears, embeddings and the transformer set make.

use super::fact::Fact;
use super::infer::Inference;
use super::size::Size;
use crate::ir::{Attr, Layout, Native, Op, OpKind};
use crate::weights::DType;

impl Inference<'_> {
    /// The result of an op that is no ONNX node and has no regions.
    pub(super) fn native(&mut self, op: &Op) -> Option<Fact> {
        let x = self.operand(*op.inputs.first()?)?;
        let count = |n: u64| i64::try_from(n).ok().map(Size::of);
        match &op.kind {
            OpKind::Linear(linear) => {
                let out = count(linear.matrix.out_features)?;
                let shape = x
                    .shape
                    .and_then(|shape| with_outputs(shape, linear.layout, out));
                Some(Fact::new(x.dtype, shape))
            }
            OpKind::Embedding(embedding) => {
                let width = count(embedding.matrix.in_features)?;
                let shape = x.shape.map(|mut shape| {
                    shape.push(width);
                    shape
                });
                Some(Fact::new(spelled_dtype(op), shape))
            }
            OpKind::Native(native) => self.transformer(op, native, x),
            OpKind::Moe(_) | OpKind::Grad(_) | OpKind::Onnx(_) => None,
        }
    }

    fn transformer(&mut self, op: &Op, native: &Native, x: Fact) -> Option<Fact> {
        let last = |mut shape: Vec<Size>, width: u64| {
            *shape.last_mut()? = Size::of(i64::try_from(width).ok()?);
            Some(shape)
        };
        let shape = match native {
            Native::Add | Native::Mul => {
                let y = self.operand(*op.inputs.get(1)?)?;
                match (x.shape, y.shape) {
                    (Some(a), Some(b)) => Some(super::rules::broadcast(&a, &b, &mut self.names)),
                    _ => None,
                }
            }
            Native::Slice { width, .. } => x.shape.and_then(|shape| last(shape, *width)),
            Native::Attention {
                heads, head_dim, ..
            } => {
                let width = heads.checked_mul(*head_dim)?;
                x.shape.and_then(|shape| last(shape, width))
            }
            Native::FirstToken => {
                let shape = x.shape.filter(|shape| shape.len() > 1);
                shape.map(|mut shape| {
                    shape.remove(1);
                    shape
                })
            }
            _ => x.shape,
        };
        let dtype = match native {
            Native::Positions => Some(DType::I64),
            _ => x.dtype,
        };
        Some(Fact::new(dtype, shape))
    }
}

fn with_outputs(mut shape: Vec<Size>, layout: Layout, out: Size) -> Option<Vec<Size>> {
    let axis = match layout {
        Layout::Rows => shape.len().checked_sub(1)?,
        Layout::Columns => shape.len().checked_sub(2)?,
        Layout::Channels(_) => 1,
    };
    *shape.get_mut(axis)? = out;
    Some(shape)
}

/// The element type that an embedding's node had in the source.
fn spelled_dtype(op: &Op) -> Option<DType> {
    let Attr::Dict(spelled) = op.meta.get("spelling")? else {
        return None;
    };
    let name = spelled.get("dtype")?.as_str()?;
    DType::all().find(|dtype| dtype.name() == name)
}
