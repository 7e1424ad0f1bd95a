//! Norms: root mean square and layer, decomposed or as one node.

use super::expr::Expr;
use super::view::{View, fixed};
use super::{In, Raiser};
use crate::ir::{Attr, Native, OnnxOp, Op, OpKind, Operand, WeightId};

/// `Sum(eps, [Mean(inner)])`: eps and what the mean is of.
fn mean_plus(expr: &Expr) -> Option<(f64, &Expr)> {
    match expr {
        Expr::Mean(inner) => Some((0.0, inner)),
        Expr::Sum(eps, terms) => match terms.as_slice() {
            [Expr::Mean(inner)] => Some((*eps, inner)),
            _ => None,
        },
        _ => None,
    }
}

/// The base of a square.
fn square(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::Product(1.0, powers) => match powers.as_slice() {
            [(base, 2.0)] => Some(base),
            _ => None,
        },
        _ => None,
    }
}

/// `x · mean(x²) ^ −½` and a gain: x, eps, gain.
fn normed(expr: &Expr) -> Option<(&Expr, f64, Option<Operand>)> {
    let Expr::Product(1.0, powers) = expr else {
        return None;
    };
    let root = |(_, power): &&(Expr, f64)| *power == -0.5;
    let (base, _) = powers.iter().find(root)?;
    let (eps, inner) = mean_plus(base)?;
    let eps = decimal(eps);
    let x = square(inner)?;
    let mut gain = None;
    let mut seen = false;
    for (factor, power) in powers {
        match factor {
            f if f == base && *power == -0.5 => {}
            f if f == x && *power == 1.0 && !seen => seen = true,
            Expr::Side(side) if *power == 1.0 && gain.is_none() => gain = Some(*side),
            _ => return None,
        }
    }
    seen.then_some((x, eps, gain))
}

/// `x − mean(x)`
fn centred(expr: &Expr) -> Option<&View> {
    let Expr::Sum(0.0, terms) = expr else {
        return None;
    };
    let [a, b] = terms.as_slice() else {
        return None;
    };
    let is = |x: &Expr, mean: &Expr| match mean.scaled() {
        (-1.0, Expr::Mean(inner)) => *inner == *x,
        _ => false,
    };
    match (a, b) {
        (Expr::Leaf(view), mean) | (mean, Expr::Leaf(view)) => {
            is(&Expr::Leaf(view.clone()), mean).then_some(view)
        }
        _ => None,
    }
}

impl Raiser<'_> {
    /// A root-mean-square norm; without `gain` only where it has one.
    pub(super) fn rms_norm(&mut self, expr: &Expr, gain: bool) -> Option<View> {
        let (x, eps, side) = normed(expr)?;
        let view = x.view()?.clone();
        if side.is_none() && gain {
            return None;
        }
        let (width, slice) = self.normed_width(&view)?;
        let (gain, unit_offset) = self.gain(side, width)?;
        let op = Native::RmsNorm {
            eps,
            unit_offset,
            slice,
        };
        self.applied(op, &view, &[In::Weight(gain)])
    }

    /// The width that a norm over the last axis covers, and whether it is a slice of more.
    fn normed_width(&mut self, view: &View) -> Option<(usize, Option<u64>)> {
        let settled = self.settled(view)?;
        let axis = settled.axes.last()?;
        let last = settled.dims.len().checked_sub(1)?;
        let [atom] = axis.as_slice() else {
            return None;
        };
        let (width, whole) = (fixed(atom.size)?, fixed(*settled.dims.last()?)?);
        if atom.dim != Some(last) || atom.stride != 1 {
            self.near("a norm over an axis that is not the width", "");
            return None;
        }
        Some((width, (width != whole).then_some(width as u64)))
    }

    /// A gain as a weight, and whether 1 is added to it.
    fn gain(&mut self, side: Option<Operand>, width: usize) -> Option<(WeightId, bool)> {
        let Some(side) = side else {
            return Some((self.folded(&vec![1.0; width]), false));
        };
        if let Some(inner) = self.one_plus(side) {
            return Some((self.vector(inner, width)?, true));
        }
        Some((self.vector(side, width)?, false))
    }

    /// What 1 is added to in the graph.
    fn one_plus(&self, side: Operand) -> Option<Operand> {
        let Operand::Value(mut value) = side else {
            return None;
        };
        loop {
            let op = self.graph.op(self.makers.get(&value)?.1)?;
            let OpKind::Onnx(onnx) = &op.kind else {
                return None;
            };
            match (onnx.op_type.as_str(), op.inputs.as_slice()) {
                ("Cast" | "Identity", [Operand::Value(inner)]) => value = *inner,
                ("Add", &[a, b]) if self.facts.number(b) == Some(1.0) => return Some(a),
                ("Add", &[a, b]) if self.facts.number(a) == Some(1.0) => return Some(b),
                _ => return None,
            }
        }
    }

    /// A layer norm, with its bias, or without where there is none.
    pub(super) fn layer_norm(&mut self, expr: &Expr, biased: bool) -> Option<View> {
        let (product, bias) = match expr {
            Expr::Sum(0.0, terms) if biased => match terms.as_slice() {
                [product, Expr::Side(bias)] | [Expr::Side(bias), product] => (product, Some(*bias)),
                _ => return None,
            },
            other => (other, None),
        };
        let (difference, eps, side) = normed(product)?;
        let view = centred(difference)?.clone();
        let (width, None) = self.normed_width(&view)? else {
            self.near("a layer norm of each head", "");
            return None;
        };
        let (gain, false) = self.gain(side, width)? else {
            return None;
        };
        let mut inputs = vec![In::Weight(gain)];
        if let Some(bias) = bias {
            inputs.push(In::Weight(self.vector(bias, width)?));
        }
        self.applied(Native::LayerNorm { eps }, &view, &inputs)
    }

    /// LayerNormalization, RMSNormalization and SimplifiedLayerNormalization.
    pub(super) fn norm_op(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let x = *op.inputs.first()?;
        let rank = i64::try_from(self.facts.sizes(x)?.len()).ok()?;
        let axis = super::eval::int(onnx, "axis", -1);
        if axis != -1 && axis != rank - 1 {
            self.near(&format!("a norm from axis {axis} on"), "");
            return None;
        }
        let more = op.results.iter().skip(1).any(Option::is_some);
        if more {
            self.near("a norm with more than one result", "");
            return None;
        }
        let view = self.leaf(x)?;
        let gain = op.inputs.get(1).copied();
        let bias = op.inputs.get(2).copied().filter(|b| *b != Operand::None);
        let made = self.norm(&onnx.op_type, &view, (gain, bias), epsilon(onnx))?;
        Some(Expr::Leaf(made))
    }

    /// A norm by the name of its node.
    pub(super) fn norm(
        &mut self,
        name: &str,
        view: &View,
        (gain, bias): (Option<Operand>, Option<Operand>),
        eps: f64,
    ) -> Option<View> {
        let (width, slice) = self.normed_width(view)?;
        let (gain, unit_offset) = self.gain(gain, width)?;
        if !name.ends_with("LayerNormalization") || name.contains("Simplified") {
            let op = Native::RmsNorm {
                eps,
                unit_offset,
                slice,
            };
            return self.applied(op, view, &[In::Weight(gain)]);
        }
        if slice.is_some() || unit_offset {
            return None;
        }
        let mut inputs = vec![In::Weight(gain)];
        if let Some(bias) = bias {
            inputs.push(In::Weight(self.vector(bias, width)?));
        }
        self.applied(Native::LayerNorm { eps }, view, &inputs)
    }
}

/// The epsilon of a norm's node.
pub(super) fn epsilon(onnx: &OnnxOp) -> f64 {
    match onnx.attrs.get("epsilon").and_then(Attr::as_float) {
        Some(eps) => decimal(f64::from(eps)),
        None => 1e-5,
    }
}

/// An f32 as the shortest decimal that it stands for: what the model's author wrote.
pub(super) fn decimal(x: f64) -> f64 {
    let single = x as f32;
    match f64::from(single) == x {
        true => single.to_string().parse().unwrap_or(x),
        false => x,
    }
}
