//! Attention as a single node: of `com.microsoft`, and of opset 23.

use super::Raiser;
use super::eval::{float, int};
use super::expr::Expr;
use super::mask::Mask;
use super::sample::PROBES;
use super::scores::{Call, Known};
use super::view::{View, fixed, product};
use crate::ir::{Native, OnnxOp, Op, Operand};

fn given(op: &Op, at: usize) -> Option<Operand> {
    op.inputs.get(at).copied().filter(|o| *o != Operand::None)
}

/// An attribute that is absent or zero says nothing.
fn stated(onnx: &OnnxOp, name: &str) -> Option<f64> {
    float(onnx, name)
        .filter(|x| *x != 0.0)
        .map(super::norm::decimal)
}

impl Raiser<'_> {
    /// Views with the past in front, and the results that the cache replaces.
    fn cached(
        &mut self,
        op: &Op,
        view: View,
        past: Option<Operand>,
        present: usize,
    ) -> Option<View> {
        let Some(past) = past else {
            return Some(view);
        };
        let view = self.behind(&view, past, 2)?;
        if let Some(Some(result)) = op.results.get(present) {
            self.kept.push(*result);
        }
        Some(view)
    }

    /// A view `[B,heads,S,head_dim]` as `[B,S,width]`, which it is of.
    fn flat(&self, view: &View) -> Option<Expr> {
        let turned = view.transpose(&[0, 2, 1, 3])?;
        let mut shape = turned.shape()?;
        let (width, heads) = (fixed(shape.pop()?)?, fixed(shape.pop()?)?);
        shape.push([width.checked_mul(heads)?; PROBES]);
        Some(Expr::Leaf(turned.reshape(&shape)?))
    }

    /// Columns of a packed projection.
    fn columns_of(&self, view: &View, first: usize, width: usize) -> Option<View> {
        view.slice(
            view.axes.len().checked_sub(1)?,
            [first; PROBES],
            [width; PROBES],
            1,
        )
    }

    pub(super) fn multi_head(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let heads = int(onnx, "num_heads", 0);
        let (Some(key), Some(value)) = (given(op, 1), given(op, 2)) else {
            self.near("MultiHeadAttention of packed projections", "");
            return None;
        };
        let bias = given(op, 3);
        let mut parts = Vec::new();
        for (at, operand) in [*op.inputs.first()?, key, value].into_iter().enumerate() {
            let mut view = self.leaf(operand)?;
            if let Some(bias) = bias {
                view = self.biased(&view, bias, at)?;
            }
            parts.push(self.by_heads(&view, heads)?);
        }
        let [q, k, v]: [View; 3] = parts.try_into().ok()?;
        let k = self.cached(op, k, given(op, 6), 1)?;
        let v = self.cached(op, v, given(op, 7), 2)?;
        let mut masks = Vec::new();
        if let Some(keys) = given(op, 4) {
            if self.facts.sizes(keys)?.len() != 2 {
                self.near("MultiHeadAttention with lengths for a padding mask", "");
                return None;
            }
            masks.push(Mask::Keys(keys));
        }
        masks.extend(given(op, 5).map(Mask::Added));
        let made = self.attend(Call {
            q,
            k,
            v,
            scale: stated(onnx, "scale"),
            softcap: None,
            masks,
            known: Known {
                causal: int(onnx, "unidirectional", 0) != 0,
                window: None,
            },
        })?;
        self.flat(&made)
    }

    /// A third of a packed bias, added.
    fn biased(&mut self, view: &View, bias: Operand, part: usize) -> Option<View> {
        let values = self.facts.constant(bias)?;
        let all = values.values()?;
        let width = fixed(*view.shape()?.last()?)?;
        let own = all.get(part.checked_mul(width)?..part.checked_add(1)?.checked_mul(width)?)?;
        if own.iter().all(|x| *x == 0.0) {
            return Some(view.clone());
        }
        let weight = self.folded(own);
        self.applied(Native::Add, view, &[super::In::Weight(weight)])
    }

    pub(super) fn group_query(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let (heads, kv_heads) = (int(onnx, "num_heads", 0), int(onnx, "kv_num_heads", 0));
        if int(onnx, "smooth_softmax", 0) > 0 || given(op, 10).is_some() || given(op, 11).is_some()
        {
            self.near("GroupQueryAttention with a bias or sinks", "");
            return None;
        }
        let query = self.leaf(*op.inputs.first()?)?;
        let (q, k, v) = match (given(op, 1), given(op, 2)) {
            (Some(k), Some(v)) => (query, self.leaf(k)?, self.leaf(v)?),
            _ => {
                let width = fixed(*query.shape()?.last()?)?;
                let head = width.checked_div(usize::try_from(heads + 2 * kv_heads).ok()?)?;
                let own = head.checked_mul(usize::try_from(heads).ok()?)?;
                let kv = head.checked_mul(usize::try_from(kv_heads).ok()?)?;
                let part = |first, width| self.columns_of(&query, first, width);
                (part(0, own)?, part(own, kv)?, part(own + kv, kv)?)
            }
        };
        let mut q = self.by_heads(&q, heads)?;
        let mut k = self.by_heads(&k, kv_heads)?;
        let v = self.by_heads(&v, kv_heads)?;
        if int(onnx, "do_rotary", 0) != 0 {
            let tables = (given(op, 7)?, given(op, 8)?);
            let (angles, count) = self.table_angles(tables, given(op, 9))?;
            let pairs = int(onnx, "rotary_interleaved", 0) != 0;
            q = self.rope(&q, &angles, Some(2 * count), pairs)?;
            k = self.rope(&k, &angles, Some(2 * count), pairs)?;
        }
        let k = self.cached(op, k, given(op, 3), 1)?;
        let v = self.cached(op, v, given(op, 4), 2)?;
        let total = product(k.axes.get(2)?)?;
        let keys = self.lengths(given(op, 5)?, total)?;
        let window = u64::try_from(int(onnx, "local_window_size", -1)).ok();
        let made = self.attend(Call {
            q,
            k,
            v,
            scale: stated(onnx, "scale"),
            softcap: stated(onnx, "softcap"),
            masks: keys.map(Mask::Keys).into_iter().collect(),
            known: Known {
                causal: true,
                window,
            },
        })?;
        self.flat(&made)
    }

    /// The mask that lengths of sequences, less one, are counted from; none where all are whole.
    fn lengths(&mut self, lengths: Operand, total: super::sample::Size) -> Option<Option<Operand>> {
        let counts = self.facts.side(lengths)?;
        let all = |t: &super::tensor::Tensor, size: usize| {
            t.values()
                .is_some_and(|v| v.iter().all(|&n| n + 1.0 == size as f64))
        };
        let [a, b] = &counts;
        let [t0, t1] = total;
        if all(a, t0) && all(b, t1) {
            return Some(None);
        }
        for &id in &self.graph.body.inputs {
            let Some(mask) = self.facts.side(Operand::Value(id)) else {
                continue;
            };
            let counted = mask.iter().zip(&counts).all(|(mask, counts)| {
                let width = mask.shape.last().copied().unwrap_or(1).max(1);
                let rows = mask
                    .values()
                    .map(|v| v.chunks(width).map(|r| r.iter().sum::<f64>() - 1.0));
                let own = counts.values().unwrap_or_default();
                mask.rank() == 2 && rows.is_some_and(|rows| rows.eq(own.iter().copied()))
            });
            if counted {
                return Some(Some(Operand::Value(id)));
            }
        }
        self.near("lengths of sequences that are not counted from a mask", "");
        None
    }

    /// Attention of opset 23.
    pub(super) fn attention_op(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let causal = int(onnx, "is_causal", 0) != 0;
        let past = given(op, 4);
        if (causal && past.is_some()) || op.results.get(3).is_some_and(Option::is_some) {
            self.near(
                "Attention with its scores as a result, or causal over a past",
                "",
            );
            return None;
        }
        if given(op, 6).is_some() {
            self.near("Attention with a number of keys for each sequence", "");
            return None;
        }
        let heads = int(onnx, "q_num_heads", 0);
        let kv_heads = int(onnx, "kv_num_heads", heads);
        let query = self.leaf(*op.inputs.first()?)?;
        let (key, value) = (self.leaf(given(op, 1)?)?, self.leaf(given(op, 2)?)?);
        let in_heads = query.axes.len() == 4;
        let q = self.by_heads(&query, heads)?;
        let k = self.by_heads(&key, kv_heads)?;
        let v = self.by_heads(&value, kv_heads)?;
        let k = self.cached(op, k, past, 1)?;
        let v = self.cached(op, v, given(op, 5), 2)?;
        let mask = given(op, 3);
        let truth = |o: Operand| {
            self.facts
                .get(o, 0)
                .is_some_and(|t| t.dtype == crate::weights::DType::Bool)
        };
        let mask = mask.map(|o| {
            if truth(o) {
                Mask::Kept(o)
            } else {
                Mask::Added(o)
            }
        });
        let made = self.attend(Call {
            q,
            k,
            v,
            scale: stated(onnx, "scale"),
            softcap: stated(onnx, "softcap"),
            masks: mask.into_iter().collect(),
            known: Known {
                causal,
                window: None,
            },
        })?;
        match in_heads {
            true => Some(Expr::Leaf(made)),
            false => self.flat(&made),
        }
    }
}
