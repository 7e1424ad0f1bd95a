//! Rotary position embeddings: halves or neighbours turned by angles that positions give.
//!
//! Cosines and sines may be computed from positions or looked up in tables. Their numbers at the
//! probes give the frequencies, the base of the frequencies and how they are stretched.

use super::expr::Expr;
use super::layout::beside;
use super::sample::PROBES;
use super::view::{Source, View, fixed, product};
use super::{In, Raiser};
use crate::ir::{Native, OnnxOp, Op, Operand, RopeScaling};

/// `a·cos ± b·sin`: one of the two results of a rotation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Half {
    /// What is multiplied by the cosine.
    pub(super) a: View,
    /// What is multiplied by the sine.
    pub(super) b: View,
    pub(super) minus: bool,
    pub(super) cos: Operand,
    pub(super) sin: Operand,
    /// The layout that cosine and sine are broadcast to.
    pub(super) layout: View,
}

/// Angles of a rotation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Angles {
    pub(super) positions: Source,
    pub(super) theta: f64,
    pub(super) scaling: Option<RopeScaling>,
}

/// A rotation of a part of each head, waiting for the rest of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Partial {
    pub(super) view: View,
    pub(super) angles: Angles,
    pub(super) interleaved: bool,
}

impl Raiser<'_> {
    /// Sums of products with cosine and sine.
    pub(super) fn rotated(&mut self, expr: &Expr) -> Option<Expr> {
        let Expr::Sum(0.0, terms) = expr else {
            return None;
        };
        let [a, b] = terms.as_slice() else {
            return None;
        };
        if let Some(found) = self.turned_sum(a, b).or_else(|| self.turned_sum(b, a)) {
            return Some(found);
        }
        let (fa, va, sa) = weighed(a)?;
        let (fb, vb, sb) = weighed(b)?;
        let (Expr::Leaf(va), Expr::Leaf(vb)) = (va, vb) else {
            return None;
        };
        // Which is the cosine shows where the halves meet: the minus goes with the sine.
        let (minus, cos, sin) = match (fa, fb) {
            (1.0, -1.0) => (true, (va, sa), (vb, sb)),
            (-1.0, 1.0) => (true, (vb, sb), (va, sa)),
            (1.0, 1.0) => (false, (va, sa), (vb, sb)),
            _ => return None,
        };
        Some(Expr::Half(Box::new(Half {
            layout: cos.0.clone(),
            a: cos.0,
            b: sin.0,
            minus,
            cos: cos.1,
            sin: sin.1,
        })))
    }

    /// `x·cos + turned(x)·sin`
    fn turned_sum(&mut self, a: &Expr, b: &Expr) -> Option<Expr> {
        let (1.0, Expr::Leaf(view), cos) = weighed(a)? else {
            return None;
        };
        let (1.0, Expr::Turned(turned, pairs), sin) = weighed(b)? else {
            return None;
        };
        if view != turned {
            return None;
        }
        let count = fixed(product(view.axes.last()?)?)? / 2;
        let angles = self.angles(cos, sin, &view, (count, pairs))?;
        self.rotation(view, angles, pairs)
    }

    /// Two halves of a view, the second negated and in front: what sine multiplies.
    pub(super) fn turned(&self, a: &Expr, b: &Expr, axis: usize) -> Option<Expr> {
        let ((-1.0, second), (1.0, first)) = (a.scaled_view()?, b.scaled_view()?) else {
            return None;
        };
        if axis + 1 != first.axes.len() {
            return None;
        }
        let pairs = first.axes.get(axis)?.is_empty();
        let whole = beside(&first, &second, axis)?;
        let same = product(first.axes.get(axis)?)? == product(second.axes.get(axis)?)?;
        same.then_some(Expr::Turned(whole, pairs))
    }

    /// Both results of a rotation, side by side.
    pub(super) fn rotated_halves(&mut self, a: &Expr, b: &Expr, axis: usize) -> Option<Expr> {
        let (Expr::Half(a), Expr::Half(b)) = (a, b) else {
            return None;
        };
        if !a.minus || b.minus || axis + 1 != a.a.axes.len() {
            return None;
        }
        // b = second·cos + first·sin, in either order.
        let same = |x: Operand, y: Operand| x == y || self.equal(x, y);
        let straight = b.a == a.b && b.b == a.a && same(b.cos, a.cos) && same(b.sin, a.sin);
        let crossed = b.b == a.b && b.a == a.a && same(b.sin, a.cos) && same(b.cos, a.sin);
        if !(straight || crossed) {
            return None;
        }
        let pairs = a.a.axes.get(axis)?.is_empty();
        let whole = beside(&a.a, &a.b, axis)?;
        let count = fixed(product(a.layout.axes.last()?)?)?;
        let angles = self.angles(a.cos, a.sin, &a.layout, (count, pairs))?;
        self.rotation(whole, angles, pairs)
    }

    fn equal(&self, a: Operand, b: Operand) -> bool {
        let sides = self.facts.side(a).zip(self.facts.side(b));
        sides.is_some_and(|(a, b)| {
            a.iter()
                .zip(&b)
                .all(|(x, y)| x.shape == y.shape && x.data == y.data)
        })
    }

    /// A rotation of whole heads, or of a part of each that waits for the rest.
    fn rotation(&mut self, view: View, angles: Angles, interleaved: bool) -> Option<Expr> {
        if let Some(rotated) = self.rope(&view, &angles, None, interleaved) {
            return Some(Expr::Leaf(rotated));
        }
        Some(Expr::Partial(Box::new(Partial {
            view,
            angles,
            interleaved,
        })))
    }

    /// The rotated part of each head and the rest of it.
    pub(super) fn partly_rotated(&mut self, a: &Expr, b: &Expr, axis: usize) -> Option<Expr> {
        let (Expr::Partial(part), Expr::Leaf(rest)) = (a, b) else {
            return None;
        };
        let whole = beside(&part.view, rest, axis)?;
        let rotary = fixed(product(part.view.axes.get(axis)?)?)?;
        let rotated = self.rope(&whole, &part.angles, Some(rotary), part.interleaved)?;
        Some(Expr::Leaf(rotated))
    }

    /// The op, on a view of whole heads.
    pub(super) fn rope(
        &mut self,
        view: &View,
        angles: &Angles,
        rotary: Option<usize>,
        interleaved: bool,
    ) -> Option<View> {
        let (view, heads, head_dim) = self.heads(view)?;
        let op = Native::Rope {
            heads: heads as u64,
            head_dim: head_dim as u64,
            rotary_dim: rotary.unwrap_or(head_dim) as u64,
            theta: angles.theta,
            interleaved,
            scaling: angles.scaling.clone(),
        };
        let positions = In::Source(angles.positions);
        self.applied(op, &view, &[positions])
    }

    /// A view of `[B,S,heads·head_dim]` whose last axes are of one head: it, heads, head_dim.
    pub(super) fn heads(&mut self, view: &View) -> Option<(View, usize, usize)> {
        let last = view.dims.len().checked_sub(1)?;
        if view.dims.len() != 3 {
            return None;
        }
        let [atom] = view.axes.last()?.as_slice() else {
            return None;
        };
        let head_dim = fixed(atom.size)?;
        // With one head the slice of heads is invisible: its columns are the head's.
        let settled = self.settled(view)?;
        let width = fixed(*settled.dims.last()?)?;
        let whole = atom.dim == Some(last) && atom.stride == 1 && width % head_dim == 0;
        whole.then(|| (settled, width / head_dim, head_dim))
    }

    /// RotaryEmbedding of opset 23.
    pub(super) fn rotary_op(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let &[x, cos, sin, ..] = op.inputs.as_slice() else {
            return None;
        };
        self.rotary(onnx, (x, cos, sin, op.inputs.get(3).copied()))
    }

    /// A node that rotates by tables `[positions, frequencies]` of cosines and sines.
    pub(super) fn rotary(
        &mut self,
        onnx: &OnnxOp,
        (x, cos, sin, ids): (Operand, Operand, Operand, Option<Operand>),
    ) -> Option<Expr> {
        let view = self.leaf(x)?;
        let interleaved = super::eval::int(onnx, "interleaved", 0) != 0;
        let (angles, count) = self.table_angles((cos, sin), ids)?;
        let heads = super::eval::int(onnx, "num_heads", 0).max(0) as usize;
        // `[B,S,width]` or `[B,heads,S,head_dim]`.
        let view = match (view.axes.len(), view.axes.last()?.as_slice()) {
            (3, [atom]) => {
                let width = fixed(atom.size)?;
                let heads = if heads == 0 {
                    width / (2 * count).max(1)
                } else {
                    heads
                };
                let mut shape = view.shape()?;
                shape.pop();
                shape.extend([[heads; PROBES], [width.checked_div(heads)?; PROBES]]);
                view.reshape(&shape)?
            }
            _ => view,
        };
        let rotated = self.rope(&view, &angles, Some(2 * count), interleaved)?;
        let shape = self.facts.sizes(x)?;
        Some(Expr::Leaf(rotated.reshape(&shape)?))
    }
}

/// A factor, what is rotated, and the side that multiplies it.
fn weighed(expr: &Expr) -> Option<(f64, Expr, Operand)> {
    let Expr::Product(factor, powers) = expr else {
        return None;
    };
    match powers.as_slice() {
        [(x, 1.0), (Expr::Side(side), 1.0)] | [(Expr::Side(side), 1.0), (x, 1.0)] => {
            Some((*factor, x.clone(), *side))
        }
        _ => None,
    }
}
