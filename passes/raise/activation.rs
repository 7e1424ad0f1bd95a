//! Activation functions: recognised by their values.

use super::Raiser;
use super::expr::{Expr, Function, erf};
use super::view::View;
use crate::ir::{Activation, Native, OnnxOp, Op};

/// Arguments at which functions are told apart.
const ARGUMENTS: [f64; 7] = [-4.1, -2.3, -0.8, -0.1, 0.3, 1.2, 3.7];

/// Difference at which two functions are two: GELU and its tanh form differ by up to 5e-4.
const TOLERANCE: f64 = 1e-5;

fn known(function: Activation, x: f64) -> f64 {
    match function {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
    }
}

impl Raiser<'_> {
    /// A function of one view as an op; scales and tanh are `lazily` made, since a larger pattern
    /// may hold them.
    pub(super) fn activation(&mut self, expr: &Expr, lazily: bool) -> Option<View> {
        let view = expr.argument()?.clone();
        let is = |function: Activation| {
            let same = |&x: &f64| (expr.at(x) - known(function, x)).abs() < TOLERANCE;
            ARGUMENTS.iter().all(same)
        };
        let mut functions = vec![Activation::Silu, Activation::Gelu, Activation::GeluTanh];
        if lazily {
            functions.extend([Activation::Relu, Activation::Tanh]);
        }
        if let Some(function) = functions.into_iter().find(|f| is(*f)) {
            return self.applied(Native::Activate { function }, &view, &[]);
        }
        match expr {
            Expr::Product(factor, powers) => match powers.as_slice() {
                [(Expr::Leaf(_), 1.0)] if lazily => {
                    self.applied(Native::Scale { factor: *factor }, &view, &[])
                }
                [(Expr::Call(Function::Tanh, inner), 1.0)] => match inner.scaled_view() {
                    Some((scale, _)) if close(scale * factor, 1.0) => {
                        self.applied(Native::Softcap { cap: *factor }, &view, &[])
                    }
                    _ => None,
                },
                _ => self.quick_gelu(expr, &view),
            },
            _ => None,
        }
    }

    /// `x · σ(a·x)` is `silu(a·x) / a`.
    fn quick_gelu(&mut self, expr: &Expr, view: &View) -> Option<View> {
        const A: f64 = 1.702;
        let same = |&x: &f64| (expr.at(x) - known(Activation::Silu, A * x) / A).abs() < TOLERANCE;
        if !ARGUMENTS.iter().all(same) {
            return None;
        }
        let inner = self.applied(Native::Scale { factor: A }, view, &[])?;
        let function = Activation::Silu;
        let silu = self.applied(Native::Activate { function }, &inner, &[])?;
        self.applied(Native::Scale { factor: 1.0 / A }, &silu, &[])
    }

    /// Gelu of opset 20 and Swish of opset 24.
    pub(super) fn activation_op(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let view = self.leaf(*op.inputs.first()?)?;
        let tanh = onnx
            .attrs
            .get("approximate")
            .and_then(crate::ir::Attr::as_str)
            == Some("tanh");
        let function = match onnx.op_type.as_str() {
            "Swish" if super::eval::float(onnx, "alpha").unwrap_or(1.0) == 1.0 => Activation::Silu,
            "Gelu" if tanh => Activation::GeluTanh,
            "Gelu" => Activation::Gelu,
            _ => return None,
        };
        Some(Expr::Leaf(self.applied(
            Native::Activate { function },
            &view,
            &[],
        )?))
    }
}

pub(super) fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-5 * a.abs().max(b.abs())
}
