//! Nodes that move elements, on views.

use super::eval::{int, listed};
use super::expr::Expr;
use super::movement::{self, Cut};
use super::sample::{PROBES, Size};
use super::tensor::Tensor;
use super::view::{ONE, View, fixed, product};
use super::{In, Raiser};
use crate::ir::{Native, OnnxOp, Op, OpKind, Operand};

impl Raiser<'_> {
    pub(super) fn moved(&mut self, name: &str, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let first = *op.inputs.first()?;
        let result = Operand::Value((*op.results.first()?)?);
        match name {
            "Split" => return self.split(op, onnx),
            "Concat" => return self.joined(op, onnx),
            _ => {}
        }
        let expr = self.movable(first)?;
        if let Some(scores) = self.moved_scores(name, &expr, result) {
            return Some(scores);
        }
        let shape = || self.facts.sizes(result);
        match name {
            "Reshape" | "Flatten" | "Squeeze" => {
                let shape = shape()?;
                expr.map_view(|v| v.reshape(&shape))
            }
            "Unsqueeze" => {
                let axes = listed(onnx, "axes", &self.inputs(op, 0), 1)?;
                expr.map_view(|v| v.unsqueeze(&movement::new_axes(&axes, v.axes.len())?))
            }
            "Transpose" => {
                expr.map_view(|v| v.transpose(&movement::permutation(onnx, v.axes.len())?))
            }
            "Expand" => {
                let shape = shape()?;
                expr.map_view(|v| v.expand(&shape))
            }
            "Slice" => {
                let cuts = [0, 1].map(|probe| movement::slices(onnx, &self.inputs(op, probe)));
                let [Some(a), Some(b)] = cuts else {
                    return None;
                };
                expr.map_view(|v| cut(v, &a, &b))
            }
            "Gather" => self.gathered(op, onnx, &expr),
            _ => None,
        }
    }

    /// What an operand is, if its elements can be followed; what can be an op becomes one.
    fn movable(&mut self, operand: Operand) -> Option<Expr> {
        if let Some(walsh) = self.walsh(operand) {
            return Some(Expr::Walsh(Box::new(walsh.clone())));
        }
        let expr = self.expr(operand)?;
        let follows = match &expr {
            Expr::Leaf(_) | Expr::Turned(..) | Expr::Half(_) | Expr::Partial(_) => true,
            Expr::Scores(_) | Expr::Chances(_) => true,
            other => other.scaled_view().is_some(),
        };
        if follows {
            return Some(expr);
        }
        self.leaf(operand).map(Expr::Leaf)
    }

    /// The inputs of a node at a probe.
    pub(super) fn inputs(&self, op: &Op, probe: usize) -> Vec<Option<Tensor>> {
        op.inputs
            .iter()
            .map(|&i| self.facts.get(i, probe))
            .collect()
    }

    fn gathered(&mut self, op: &Op, onnx: &OnnxOp, expr: &Expr) -> Option<Expr> {
        let index = *op.inputs.get(1)?;
        let rank = self.facts.sizes(*op.inputs.first()?)?.len();
        let axis = super::tensor::axis_of(int(onnx, "axis", 0), rank)?;
        let size = |view: &View| fixed(product(view.axes.get(axis)?)?);
        let index = self.facts.constant(index)?;
        let values = index.integers()?;
        if index.rank() == 0 {
            let at = *values.first()?;
            if let Expr::Leaf(view) = expr
                && at == 0
                && axis == 1
                && view.is_whole()
                && view.dims.len() == 3
                && fixed(*view.dims.get(1)?).is_none()
            {
                return self.first_token(view);
            }
            return expr.map_view(|v| v.pick(axis, super::tensor::axis_of(at, size(v)?)?));
        }
        // Consecutive elements are a slice; runs of each element repeat it.
        let first = *values.first()?;
        let runs = |n: i64| values.iter().enumerate().all(|(i, &v)| v == i as i64 / n);
        expr.map_view(|v| {
            let size = size(v)?;
            let times = values.len().checked_div(size)?;
            if times > 1 && times * size == values.len() && runs(times as i64) {
                return v.repeat(axis, times);
            }
            let step = values
                .windows(2)
                .all(|w| matches!(w, [a, b] if *b == a + 1));
            let start = usize::try_from(first).ok()?;
            step.then(|| v.slice(axis, [start; PROBES], [values.len(); PROBES], 1))?
        })
    }

    fn first_token(&mut self, view: &View) -> Option<Expr> {
        let dims: Vec<Size> = [view.dims.first()?, view.dims.last()?].map(|d| *d).to_vec();
        let made = self.native(
            Native::FirstToken,
            vec![In::Source(view.base)],
            dims.clone(),
        );
        Some(Expr::Leaf(View::whole(made, dims)))
    }

    fn split(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let expr = self.movable(*op.inputs.first()?)?;
        let pieces = [0, 1].map(|p| movement::pieces(onnx, &self.inputs(op, p), op.results.len()));
        let [Some((axis, a)), Some((_, b))] = pieces else {
            return None;
        };
        let mut first = None;
        for (at, ((s0, w0), (s1, w1))) in a.into_iter().zip(b).enumerate() {
            let part = expr.map_view(|v| v.slice(axis, [s0, s1], [w0, w1], 1));
            let (Some(part), Some(Some(result))) = (part, op.results.get(at)) else {
                continue;
            };
            match at {
                0 => first = Some(part),
                _ => {
                    self.forms.insert(*result, part);
                }
            }
        }
        first
    }

    /// Concat: of the past and what is new, of turned halves, of what was split.
    fn joined(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let result = Operand::Value((*op.results.first()?)?);
        let rank = self.facts.sizes(result)?.len();
        let axis = super::tensor::axis_of(int(onnx, "axis", 0), rank)?;
        let empty = |&input: &Operand| {
            let sizes = self.facts.sizes(input);
            sizes.is_some_and(|s| s.get(axis).or(s.first()) == Some(&[0; PROBES]))
        };
        let parts: Vec<Operand> = op.inputs.iter().copied().filter(|i| !empty(i)).collect();
        if let &[one] = parts.as_slice() {
            return self.expr(one);
        }
        if let &[past, new] = parts.as_slice()
            && let Some(joined) = self.with_past(past, new, axis)
        {
            return Some(joined);
        }
        let parts: Vec<Expr> = parts.iter().map(|&i| self.expr(i)).collect::<Option<_>>()?;
        let [a, b] = parts.as_slice() else {
            return None;
        };
        self.turned(a, b, axis)
            .or_else(|| self.rotated_halves(a, b, axis))
            .or_else(|| self.partly_rotated(a, b, axis))
            .or_else(|| beside(a.view()?, b.view()?, axis).map(Expr::Leaf))
    }

    /// Keys or values of earlier calls and of this one.
    fn with_past(&mut self, past: Operand, new: Operand, axis: usize) -> Option<Expr> {
        self.is_cache(past).then_some(())?;
        let view = self.leaf(new)?;
        self.behind(&view, past, axis).map(Expr::Leaf)
    }

    /// The value that an operand is a copy of.
    fn origin(&self, operand: Operand) -> Option<crate::ir::ValueId> {
        match self.expr(operand)? {
            Expr::Leaf(view) if view.is_whole() => match view.base {
                super::view::Source::Old(id) => Some(id),
                super::view::Source::New(_) => None,
            },
            _ => None,
        }
    }

    /// Whether an operand is an input of keys or values that may become a cache.
    fn is_cache(&self, past: Operand) -> bool {
        let Some(id) = self.origin(past) else {
            return false;
        };
        let named = self.graph.value(id).map_or("", |v| v.name.as_str());
        self.cache && self.graph.body.inputs.contains(&id) && super::sample::is_past(named)
    }

    /// A view with the past in front of it.
    pub(super) fn behind(&self, view: &View, past: Operand, axis: usize) -> Option<View> {
        let id = self.origin(past)?;
        if !self.is_cache(past) || view.past.is_some() {
            return None;
        }
        let old = self.facts.sizes(past)?;
        let mut axes = view.axes.clone();
        let [atom] = axes.get_mut(axis)?.as_mut_slice() else {
            return None;
        };
        if atom.dim != Some(1) {
            return None;
        }
        let [p0, p1] = *old.get(axis)?;
        let [s0, s1] = atom.size;
        atom.size = [p0.checked_add(s0)?, p1.checked_add(s1)?];
        Some(View {
            axes,
            past: Some(id),
            ..view.clone()
        })
    }

    /// What a value was made by, if an ONNX node.
    pub(super) fn maker(&self, operand: Operand) -> Option<(&Op, &OnnxOp)> {
        let Operand::Value(value) = operand else {
            return None;
        };
        let op = self.graph.op(self.makers.get(&value)?.1)?;
        match &op.kind {
            OpKind::Onnx(onnx) => Some((op, onnx)),
            _ => None,
        }
    }
}

/// Two neighbouring pieces of an axis as one.
pub(super) fn beside(a: &View, b: &View, axis: usize) -> Option<View> {
    let (x, y) = (a.axes.get(axis)?, b.axes.get(axis)?);
    let (size, more) = (fixed(product(x)?)?, fixed(product(y)?)?);
    let (mut first, second) = match (x.as_slice(), y.as_slice()) {
        (&[first], &[second]) => (first, second),
        // Single elements have no atom: their distance is the stride.
        ([], []) => {
            let last = a.dims.len().checked_sub(1)?;
            let atom = super::view::Atom {
                dim: Some(last),
                stride: b.start.checked_sub(a.start)?,
                size: ONE,
            };
            (atom, atom)
        }
        _ => return None,
    };
    let last = a.dims.len().checked_sub(1);
    let follows = a.start.checked_add(size.checked_mul(first.stride)?)? == b.start;
    if first.dim != last || second.dim != last || second.stride != first.stride || !follows {
        return None;
    }
    first.size = [size.checked_add(more)?; PROBES];
    let mut axes = a.axes.clone();
    *axes.get_mut(axis)? = vec![first];
    let joined = View { axes, ..a.clone() };
    let mut other = b.clone();
    *other.axes.get_mut(axis)? = joined.axes.get(axis)?.clone();
    other.start = a.start;
    (other == joined).then_some(joined)
}

fn cut(view: &View, a: &[Cut], b: &[Cut]) -> Option<View> {
    let mut view = view.clone();
    for (&(axis, s0, n0, step), &(other, s1, n1, also)) in a.iter().zip(b) {
        let step = usize::try_from(step).ok()?;
        if axis != other || also != step as i64 {
            return None;
        }
        view = view.slice(axis, [s0, s1], [n0, n1], step)?;
    }
    Some(view)
}
