//! Arithmetic: nodes as expressions, and expressions as native ops.

use super::expr::{Expr, Function};
use super::reduce;
use super::view::{Source, View, fixed};
use super::{In, Raiser};
use crate::ir::{Native, OnnxOp, Op, OpKind, Operand, Storage, Weight, WeightId};

impl Raiser<'_> {
    pub(super) fn arithmetic(&mut self, name: &str, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let first = *op.inputs.first()?;
        let call =
            |raiser: &mut Self, function| Some(Expr::Call(function, Box::new(raiser.expr(first)?)));
        let whole = match name {
            "Add" | "Sub" | "Mul" | "Div" | "Sum" => self.pair(name, op)?,
            "Neg" => self.expr(first)?.negated(),
            "Sqrt" => self.expr(first)?.power(0.5),
            "Reciprocal" => self.expr(first)?.power(-1.0),
            "Pow" => {
                let power = self.facts.number(*op.inputs.get(1)?)?;
                if power == 2.0 {
                    self.leaf(first);
                }
                self.expr(first)?.power(power)
            }
            "Erf" => call(self, Function::Erf)?,
            "Tanh" => call(self, Function::Tanh)?,
            "Sigmoid" => call(self, Function::Sigmoid)?,
            "Exp" => call(self, Function::Exp)?,
            "Relu" => call(self, Function::Relu)?,
            "ReduceMean" => return self.mean(op, onnx),
            _ => return None,
        };
        Some(self.recognised(whole))
    }

    fn pair(&mut self, name: &str, op: &Op) -> Option<Expr> {
        let &[a, b] = op.inputs.as_slice() else {
            return None;
        };
        if name == "Mul" && a == b {
            self.leaf(a);
        }
        if name == "Mul"
            && let Some(turned) = self.turned_back(a, b).or_else(|| self.turned_back(b, a))
        {
            return Some(turned);
        }
        let (x, y) = (self.expr(a)?, self.expr(b)?);
        if ![(a, &x), (b, &y)]
            .into_iter()
            .all(|(o, e)| self.spans(op, o, e))
        {
            return None;
        }
        Some(match name {
            "Add" | "Sum" => x.plus(y),
            "Sub" => x.plus(y.negated()),
            "Mul" => x.times(y),
            _ => x.times(y.power(-1.0)),
        })
    }

    /// Whether an input has as many elements as the result, or is broadcast in a known way: along
    /// the last axis (means), or over the batch (embeddings of positions).
    fn spans(&self, op: &Op, input: Operand, expr: &Expr) -> bool {
        let shapes = || {
            let result = Operand::Value((*op.results.first()?)?);
            Some((self.facts.sizes(result)?, self.facts.sizes(input)?))
        };
        let Some((result, own)) = shapes() else {
            return false;
        };
        if self.facts.side(input).is_some() || matches!(input, Operand::Weight(_)) {
            return own.len() <= result.len();
        }
        if let Expr::Leaf(view) = expr
            && self.is_uniform(view.base)
        {
            return own.len() <= result.len();
        }
        let Some((last, lead)) = own.split_last() else {
            return result.is_empty();
        };
        let Some((full, rest)) = result.split_last() else {
            return false;
        };
        lead == rest && (last == full || *last == super::view::ONE)
    }

    fn mean(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let first = *op.inputs.first()?;
        let both = [0, 1].map(|probe| {
            let inputs: Vec<_> = op
                .inputs
                .iter()
                .map(|&i| self.facts.get(i, probe))
                .collect();
            let rank = inputs.first()?.as_ref()?.rank();
            Some((reduce::axes(onnx, &inputs)?, rank))
        });
        let [Some((axes, rank)), _] = both else {
            return None;
        };
        let kept = super::eval::int(onnx, "keepdims", 1) != 0;
        if axes != [rank.checked_sub(1)?] || !kept {
            self.near(&format!("mean over axes {axes:?} of {rank}"), "");
            return None;
        }
        self.leaf(first);
        Some(Expr::Mean(Box::new(self.expr(first)?)))
    }

    /// An expression, or the native op that it is.
    pub(super) fn recognised(&mut self, expr: Expr) -> Expr {
        let found = match &expr {
            Expr::Sum(..) => self
                .scores_of(&expr)
                .or_else(|| self.rotated(&expr))
                .or_else(|| Some(Expr::Leaf(self.layer_norm(&expr, true)?)))
                .or_else(|| Some(Expr::Leaf(self.sum(&expr)?))),
            Expr::Product(..) => self
                .scores_of(&expr)
                .or_else(|| Some(Expr::Leaf(self.rms_norm(&expr, true)?)))
                .or_else(|| Some(Expr::Leaf(self.activation(&expr, false)?)))
                .or_else(|| Some(Expr::Leaf(self.product(&expr)?))),
            Expr::Call(Function::Relu, _) => self.activation(&expr, true).map(Expr::Leaf),
            _ => None,
        };
        found.unwrap_or(expr)
    }

    /// An expression as a view, with all the ops that it takes.
    pub(super) fn lowered(&mut self, expr: Expr) -> Option<View> {
        match &expr {
            Expr::Leaf(view) => Some(view.clone()),
            Expr::Call(..) => self.activation(&expr, true),
            Expr::Sum(..) => self
                .layer_norm(&expr, true)
                .or_else(|| self.activation(&expr, true))
                .or_else(|| self.sum_with_sides(&expr)),
            Expr::Product(..) => self
                .rms_norm(&expr, false)
                .or_else(|| self.layer_norm(&expr, false))
                .or_else(|| self.activation(&expr, true))
                .or_else(|| self.scaled_by_weight(&expr)),
            _ => None,
        }
    }

    /// Terms of which at least two are activations, added up.
    fn sum(&mut self, expr: &Expr) -> Option<View> {
        let Expr::Sum(_, terms) = expr else {
            return None;
        };
        let leaves = terms.iter().filter(|t| t.scaled_view().is_some());
        if leaves.count() < 2 {
            return None;
        }
        self.sum_with_sides(expr)
    }

    fn sum_with_sides(&mut self, expr: &Expr) -> Option<View> {
        let Expr::Sum(constant, terms) = expr else {
            return None;
        };
        if *constant != 0.0 {
            return None;
        }
        // Nothing is made unless all of it can be.
        let fits = |t: &Expr| t.scaled_view().is_some() || matches!(t, Expr::Side(_));
        if !terms.iter().all(fits) {
            return None;
        }
        let first = terms.iter().position(|t| t.scaled_view().is_some())?;
        let mut total = self.lowered(terms.get(first)?.clone())?;
        for (at, term) in terms.iter().enumerate() {
            if at == first {
                continue;
            }
            total = match term {
                Expr::Side(side) => {
                    let width = fixed(*total.dims.last()?)?;
                    let vector = self.vector(*side, width)?;
                    total.keeps_columns().then_some(())?;
                    self.applied(Native::Add, &total, &[In::Weight(vector)])?
                }
                other => {
                    let view = self.lowered(other.clone())?;
                    self.together(Native::Add, &total, &view)?
                }
            };
        }
        Some(total)
    }

    /// The product of two activations.
    fn product(&mut self, expr: &Expr) -> Option<View> {
        let Expr::Product(factor, powers) = expr else {
            return None;
        };
        let [(a, 1.0), (b, 1.0)] = powers.as_slice() else {
            return None;
        };
        let ready = |e: &Expr| match e {
            Expr::Leaf(_) => true,
            Expr::Call(Function::Tanh, inner) => matches!(**inner, Expr::Leaf(_)),
            _ => false,
        };
        if !(ready(a) && ready(b)) {
            return None;
        }
        let (a, b) = (self.lowered(a.clone())?, self.lowered(b.clone())?);
        let made = self.together(Native::Mul, &a, &b)?;
        match *factor {
            1.0 => Some(made),
            factor => self.applied(Native::Scale { factor }, &made, &[]),
        }
    }

    /// `x · @w`, a weight per column.
    fn scaled_by_weight(&mut self, expr: &Expr) -> Option<View> {
        let Expr::Product(factor, powers) = expr else {
            return None;
        };
        let (view, side) = match powers.as_slice() {
            [(Expr::Leaf(view), 1.0), (Expr::Side(side), 1.0)]
            | [(Expr::Side(side), 1.0), (Expr::Leaf(view), 1.0)] => (view, *side),
            _ => return None,
        };
        if !view.keeps_columns() {
            return None;
        }
        let vector = self.vector(side, fixed(*view.dims.last()?)?)?;
        let made = self.applied(Native::Mul, view, &[In::Weight(vector)])?;
        match *factor {
            1.0 => Some(made),
            factor => self.applied(Native::Scale { factor }, &made, &[]),
        }
    }

    /// An op of two activations, element by element.
    fn together(&mut self, op: Native, a: &View, b: &View) -> Option<View> {
        let ready = |raiser: &mut Self, view: &View| {
            // What is the same for the whole batch may leave it out.
            let whole = view
                .dims
                .last()
                .copied()
                .and_then(fixed)
                .map(|width| (0, width));
            match raiser.is_uniform(view.base) && view.columns() == whole {
                true => Some(view.clone()),
                false => raiser.settled(view),
            }
        };
        let (a, b) = (ready(self, a)?, ready(self, b)?);
        let (a, b) = match self.is_uniform(a.base) && !self.is_uniform(b.base) {
            true => (b, a),
            false => (a, b),
        };
        let rows = |view: &View, lead: usize| {
            let mut axes = vec![Vec::new(); lead];
            axes.extend(view.axes.clone());
            for axis in &mut axes {
                axis.retain(|atom| atom.dim != Some(0));
            }
            axes
        };
        let lead = a.axes.len().checked_sub(b.axes.len())?;
        let same = a.axes == b.axes || (self.is_uniform(b.base) && rows(&a, 0) == rows(&b, lead));
        if a.dims != b.dims || !same {
            return None;
        }
        let inputs = vec![In::Source(a.base), In::Source(b.base)];
        let made = self.native(op, inputs, a.dims.clone());
        Some(a.over(made))
    }

    pub(super) fn is_uniform(&self, source: Source) -> bool {
        match source {
            Source::New(at) => self.made.get(at).is_some_and(|m| m.uniform),
            Source::Old(_) => false,
        }
    }

    /// A view that covers its base, cut out of it where it didn't.
    pub(super) fn settled(&mut self, view: &View) -> Option<View> {
        let (start, width) = view.columns()?;
        if view.past.is_some() || !view.covers_rows() {
            return None;
        }
        if start == 0 && view.dims.last() == Some(&[width; 2]) {
            return Some(view.clone());
        }
        let mut dims = view.dims.clone();
        *dims.last_mut()? = [width; 2];
        let key = (view.base, start, width);
        let made = match self.slices.get(&key) {
            Some(&made) => made,
            None => {
                let op = Native::Slice {
                    start: start as u64,
                    width: width as u64,
                };
                let made = self.native(op, vec![In::Source(view.base)], dims.clone());
                self.slices.insert(key, made);
                made
            }
        };
        Some(View {
            base: made,
            dims,
            start: 0,
            ..view.clone()
        })
    }

    /// A constant vector of this width as a weight.
    pub(super) fn vector(&mut self, side: Operand, width: usize) -> Option<WeightId> {
        let tensor = match self.facts.constant(side) {
            Some(tensor) => tensor,
            // What the sizes decide is no constant; a large weight's numbers are not followed.
            None if self.is_stored(side) => self.facts.get(side, 0)?,
            None => return None,
        };
        if tensor.shape.last() != Some(&width) || super::tensor::count(&tensor.shape) != Some(width)
        {
            return None;
        }
        if let Some(id) = self.weight_behind(side)
            && let Some(weight) = self.module.weight(id)
            && weight.dtype.is_float()
        {
            if weight.dims == [width as u64] {
                return Some(id);
            }
            let mut flat = weight.clone();
            flat.name = self.fresh("flat");
            flat.dims = vec![width as u64];
            return Some(self.patch.add_weight(flat));
        }
        if let Operand::Weight(id) = side {
            // A row that was cut out of a table.
            return Some(id);
        }
        Some(self.folded(tensor.values()?))
    }

    /// A name for a new weight.
    pub(super) fn fresh(&mut self, what: &str) -> String {
        self.named += 1;
        let taken = |name: &str| self.module.weights.iter().any(|w| w.name == name);
        let mut name = format!("{}.{what}{}", self.name, self.named);
        while taken(&name) {
            name.push('_');
        }
        name
    }

    /// A new vector.
    pub(super) fn folded(&mut self, values: &[f64]) -> WeightId {
        let bytes = values
            .iter()
            .flat_map(|&v| (v as f32).to_le_bytes())
            .collect();
        let name = self.fresh("folded");
        self.patch.add_weight(Weight {
            name,
            dtype: crate::weights::DType::F32,
            dims: vec![values.len() as u64],
            storage: Storage::Inline(bytes),
            sha256: None,
            meta: crate::ir::Attrs::new(),
        })
    }

    /// Whether an operand is a stored tensor, of the module or of those that raising adds.
    fn is_stored(&self, operand: Operand) -> bool {
        matches!(operand, Operand::Weight(_)) || self.weight_behind(operand).is_some()
    }

    /// The weight whose elements an operand is, through nodes that keep them as they are.
    pub(super) fn weight_behind(&self, operand: Operand) -> Option<WeightId> {
        let mut at = operand;
        for _ in 0..16 {
            let value = match at {
                Operand::Weight(id) => return self.module.weight(id).map(|_| id),
                Operand::Value(value) => value,
                Operand::None => return None,
            };
            let (_, id) = self.makers.get(&value)?;
            let op = self.graph.op(*id)?;
            let OpKind::Onnx(onnx) = &op.kind else {
                return None;
            };
            at = match onnx.op_type.as_str() {
                "Identity" | "Reshape" | "Unsqueeze" | "Squeeze" => *op.inputs.first()?,
                "Cast" if self.facts.get(at, 0)?.dtype.is_float() => *op.inputs.first()?,
                "Constant" => match onnx.attrs.get("value")? {
                    crate::ir::Attr::Weight(id) => Operand::Weight(*id),
                    _ => return None,
                },
                _ => return None,
            };
        }
        None
    }
}
