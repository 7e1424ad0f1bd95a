//! Single ops of `com.microsoft`: norms with skips, activations, rotation, attention.

use super::Raiser;
use super::expr::Expr;
use super::norm::epsilon;
use crate::ir::{Activation, Native, OnnxOp, Op, Operand};

impl Raiser<'_> {
    pub(super) fn contributed(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        if onnx.domain != "com.microsoft" {
            return None;
        }
        match onnx.op_type.as_str() {
            "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => {
                self.skip_norm(op, onnx)
            }
            "Gelu" => self.activated(op, Activation::Gelu),
            "BiasGelu" => self.activated(op, Activation::Gelu),
            "FastGelu" => self.activated(op, Activation::GeluTanh),
            "RotaryEmbedding" => {
                let &[x, ids, cos, sin, ..] = op.inputs.as_slice() else {
                    return None;
                };
                self.rotary(onnx, (x, cos, sin, Some(ids)))
            }
            "MultiHeadAttention" => self.multi_head(op, onnx),
            "GroupQueryAttention" => self.group_query(op, onnx),
            _ => None,
        }
    }

    /// Input, skip, gain, bias, and a bias of the input; the fourth result is the sum.
    fn skip_norm(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let simple = onnx.op_type.contains("Simplified");
        let &[x, skip, gain, ..] = op.inputs.as_slice() else {
            return None;
        };
        let given = |at: usize| op.inputs.get(at).copied().filter(|o| *o != Operand::None);
        let (bias, more) = match simple {
            true => (None, given(3)),
            false => (given(3), given(4)),
        };
        let mut sum = self.leafy(x)?.plus(self.leafy(skip)?);
        if let Some(more) = more {
            sum = sum.plus(self.expr(more)?);
        }
        let sum = self.lowered(sum)?;
        if op
            .results
            .get(1..3)
            .is_some_and(|r| r.iter().any(Option::is_some))
        {
            self.near("mean and deviation of a norm as results", "");
        }
        if let Some(Some(total)) = op.results.get(3) {
            self.forms.insert(*total, Expr::Leaf(sum.clone()));
        }
        let name = match simple {
            true => "SimplifiedLayerNormalization",
            false => "LayerNormalization",
        };
        let eps = match onnx.attrs.get("epsilon") {
            Some(_) => epsilon(onnx),
            None => 1e-12,
        };
        self.norm(name, &sum, (Some(gain), bias), eps)
            .map(Expr::Leaf)
    }

    fn leafy(&mut self, operand: Operand) -> Option<Expr> {
        self.leaf(operand).map(Expr::Leaf)
    }

    fn activated(&mut self, op: &Op, function: Activation) -> Option<Expr> {
        let mut x = self.leafy(*op.inputs.first()?)?;
        if let Some(&bias) = op.inputs.get(1).filter(|o| **o != Operand::None) {
            x = x.plus(self.expr(bias)?);
        }
        let view = self.lowered(x)?;
        self.applied(Native::Activate { function }, &view, &[])
            .map(Expr::Leaf)
    }
}
