//! Attention: scores, softmax, and the sum over values.

use super::activation::close;
use super::expr::{Expr, Function};
use super::mask::Mask;
use super::sample::{PROBES, Size};
use super::view::{Atom, View, fixed, product, tidy};
use super::{In, Raiser};
use crate::ir::{Native, OnnxOp, Op, Operand};

/// What an op's attributes say of its mask.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Known {
    pub(super) causal: bool,
    pub(super) window: Option<u64>,
}

/// What a single node of attention is given; views are `[B,heads,S,head_dim]`.
pub(super) struct Call {
    pub(super) q: View,
    pub(super) k: View,
    pub(super) v: View,
    pub(super) scale: Option<f64>,
    pub(super) softcap: Option<f64>,
    pub(super) masks: Vec<Mask>,
    pub(super) known: Known,
}

/// `softcap(scale · q·kᵀ) + masks`
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scores {
    /// `[…, S, D]`
    q: View,
    /// `[…, D, T]`
    k: View,
    scale: f64,
    softcap: Option<f64>,
    pub(super) masks: Vec<Mask>,
    known: Known,
    /// Whether a number was added to all of them.
    shifted: bool,
    /// The highest number that stands for a hidden score.
    hidden: f64,
}

impl Scores {
    /// The same of other views.
    pub(super) fn map_views(&self, change: impl Fn(&View) -> View) -> Self {
        Self {
            q: change(&self.q),
            k: change(&self.k),
            ..self.clone()
        }
    }
}

impl Raiser<'_> {
    /// MatMul of two activations.
    pub(super) fn product_of(&mut self, op: &Op) -> Option<Expr> {
        let &[a, b] = op.inputs.as_slice() else {
            return None;
        };
        if let Some(Expr::Chances(scores)) = self.expr(a) {
            let v = self.leaf(b)?;
            return self.attention(&scores, &v).map(Expr::Leaf);
        }
        let (x, y) = (self.factored(a)?, self.factored(b)?);
        if x.1.axes.len() < 3 || y.1.axes.len() < 3 {
            self.near("a product of two activations of fewer than three axes", "");
            return None;
        }
        Some(Expr::Scores(Box::new(Scores {
            q: x.1,
            k: y.1,
            scale: x.0 * y.0,
            softcap: None,
            masks: Vec::new(),
            known: Known::default(),
            shifted: false,
            hidden: f64::NEG_INFINITY,
        })))
    }

    fn factored(&mut self, operand: Operand) -> Option<(f64, View)> {
        match self.expr(operand)?.scaled_view() {
            Some(found) => Some(found),
            None => Some((1.0, self.leaf(operand)?)),
        }
    }

    /// Sums and products of scores.
    pub(super) fn scores_of(&mut self, expr: &Expr) -> Option<Expr> {
        match expr {
            Expr::Product(factor, powers) => match powers.as_slice() {
                [(Expr::Scores(scores), 1.0)] if scores.softcap.is_none() && *factor > 0.0 => {
                    let mut scores = scores.clone();
                    scores.scale *= factor;
                    scores.hidden *= factor;
                    if scores.hidden > super::mask::BLOCKED {
                        self.near(
                            "scores that are scaled behind a mask, and then not hidden",
                            "",
                        );
                        return None;
                    }
                    Some(Expr::Scores(scores))
                }
                [(Expr::Call(Function::Tanh, inner), 1.0)] => {
                    let Expr::Scores(scores) = &**inner else {
                        return None;
                    };
                    if !scores.masks.is_empty() || scores.softcap.is_some() || scores.shifted {
                        return None;
                    }
                    let mut scores = scores.clone();
                    scores.scale *= factor;
                    scores.softcap = Some(*factor);
                    Some(Expr::Scores(scores))
                }
                _ => None,
            },
            Expr::Sum(constant, terms) => {
                // Softmax does not see what is added to all scores alike.
                let at = terms.iter().position(|t| matches!(t, Expr::Scores(_)))?;
                let Some(Expr::Scores(scores)) = terms.get(at) else {
                    return None;
                };
                let mut scores = scores.clone();
                scores.shifted |= *constant != 0.0;
                for (_, term) in terms.iter().enumerate().filter(|(i, _)| *i != at) {
                    let Expr::Side(side) = term else {
                        self.near("scores plus something that depends on activations", "");
                        return None;
                    };
                    scores.masks.push(Mask::Added(*side));
                    scores.hidden = scores.hidden.max(self.hiding(*side));
                }
                Some(Expr::Scores(scores))
            }
            _ => None,
        }
    }

    /// `Where(keep, scores, −∞)` and its reverse; NaN replaced in chances.
    pub(super) fn masked(&mut self, op: &Op) -> Option<Expr> {
        let &[choice, a, b] = op.inputs.as_slice() else {
            return None;
        };
        let (x, y) = (self.expr(a)?, self.expr(b)?);
        match (x, y) {
            (Expr::Number(_), Expr::Chances(scores)) => {
                let tests = |(op, onnx): (&Op, &OnnxOp)| {
                    onnx.op_type == "IsNaN" && op.inputs.first() == Some(&b)
                };
                self.maker(choice)
                    .is_some_and(tests)
                    .then_some(Expr::Chances(scores))
            }
            (Expr::Scores(mut scores), Expr::Number(low)) if low <= super::mask::BLOCKED => {
                self.known_choice(choice)?;
                scores.masks.push(Mask::Kept(choice));
                scores.hidden = scores.hidden.max(low);
                Some(Expr::Scores(scores))
            }
            (Expr::Number(low), Expr::Scores(mut scores)) if low <= super::mask::BLOCKED => {
                self.known_choice(choice)?;
                scores.masks.push(Mask::Dropped(choice));
                scores.hidden = scores.hidden.max(low);
                Some(Expr::Scores(scores))
            }
            _ => None,
        }
    }

    /// The highest number of an added mask that hides.
    fn hiding(&self, mask: Operand) -> f64 {
        let tensors = self.facts.side(mask);
        let all = tensors.iter().flatten();
        let all = all.flat_map(|t| t.values().unwrap_or_default());
        let hides = all.filter(|v| **v <= super::mask::BLOCKED);
        hides.copied().fold(f64::NEG_INFINITY, f64::max)
    }

    fn known_choice(&mut self, choice: Operand) -> Option<()> {
        if self.facts.side(choice).is_some() {
            return Some(());
        }
        self.near(
            "scores chosen by what depends on token ids or activations",
            "",
        );
        None
    }

    pub(super) fn softmax(&mut self, op: &Op, onnx: &OnnxOp) -> Option<Expr> {
        let input = *op.inputs.first()?;
        let Expr::Scores(scores) = self.expr(input)? else {
            return None;
        };
        let rank = i64::try_from(self.facts.sizes(input)?.len()).ok()?;
        // Before opset 13 all axes from the first one on were one, if not told otherwise.
        let first = self.module.meta.opset().is_some_and(|opset| opset < 13);
        let axis = super::eval::int(onnx, "axis", if first { 1 } else { -1 });
        if axis != -1 && axis != rank - 1 {
            self.near(&format!("softmax over axis {axis} of {rank}"), "");
            return None;
        }
        Some(Expr::Chances(scores))
    }

    /// Scores whose leading axes are reshaped are the same scores.
    pub(super) fn moved_scores(&self, name: &str, expr: &Expr, result: Operand) -> Option<Expr> {
        let (Expr::Scores(scores) | Expr::Chances(scores)) = expr else {
            return None;
        };
        if !matches!(name, "Reshape" | "Unsqueeze" | "Squeeze") {
            return None;
        }
        let (rows, cols) = (size(&scores.q, 2)?, size(&scores.k, 1)?);
        let shape = self.facts.sizes(result)?;
        matches!(shape.as_slice(), [.., r, c] if *r == rows && *c == cols).then(|| expr.clone())
    }

    /// The op, seen as `[…, S, D]` like the query.
    fn attention(&mut self, scores: &Scores, v: &View) -> Option<View> {
        let mut turned: Vec<usize> = (0..scores.k.axes.len()).collect();
        let last = turned.len().checked_sub(2)?;
        turned.get_mut(last..)?.reverse();
        let k = scores.k.transpose(&turned)?;
        let (q, heads, head_dim, repeat) = self.lanes(&scores.q, None)?;
        let (k, kv_heads, key_dim, group) = self.lanes(&k, Some(&scores.q))?;
        let (v, v_heads, value_dim, v_group) = self.lanes(v, Some(&scores.q))?;
        if repeat != 1 || head_dim != key_dim || value_dim != head_dim {
            let why = format!("attention with heads of {head_dim}, {key_dim} and {value_dim}");
            self.near(&why, "");
            return None;
        }
        if kv_heads != v_heads || group != v_group || kv_heads.checked_mul(group)? != heads {
            self.near("attention whose keys and values have unlike heads", "");
            return None;
        }
        if k.past.is_some() != v.past.is_some() {
            self.near("attention to the past of keys or values alone", "");
            return None;
        }
        let sizes = [size(&scores.q, 2)?, size(&scores.k, 1)?];
        let shown = match self.mask(&scores.masks, sizes) {
            Ok(shown) => shown,
            Err(why) => {
                self.near(&why, "");
                return None;
            }
        };
        let causal = shown.causal || scores.known.causal;
        let plain = (head_dim as f64).powf(-0.5);
        let scale = match close(scores.scale, plain) {
            true => plain,
            false => super::norm::decimal(scores.scale),
        };
        let cache = causal.then_some(self.caches);
        self.caches += u64::from(causal);
        let op = Native::Attention {
            heads: heads as u64,
            kv_heads: kv_heads as u64,
            head_dim: head_dim as u64,
            scale,
            causal,
            window: shown.window.or(scores.known.window),
            softcap: scores.softcap,
            cache,
        };
        let inputs = [&q, &k, &v].map(|view| In::Source(view.base));
        let mut inputs = inputs.to_vec();
        inputs.push(shown.keys);
        let made = self.native(op, inputs, q.dims.clone());
        // The result has the query's axes, whatever was cut to get it.
        Some(q.over(made))
    }

    /// A view of heads: settled, heads, width of each, and how often each is repeated.
    fn lanes(&mut self, view: &View, query: Option<&View>) -> Option<(View, usize, usize, usize)> {
        let mut view = view.clone();
        // Where the query has heads and this has none, they share one.
        if let Some(query) = query
            && query.axes.len() == view.axes.len()
        {
            let count = view.axes.len().checked_sub(2)?;
            for (own, theirs) in view.axes.iter_mut().zip(&query.axes).take(count) {
                let size = product(theirs)?;
                let constant = theirs.iter().all(|a| a.dim == Some(2));
                if own.is_empty() && constant && fixed(size).is_some_and(|s| s > 1) {
                    own.push(Atom {
                        dim: None,
                        stride: 0,
                        size,
                    });
                }
            }
        }
        if view.dims.len() != 3 {
            self.near(
                "attention over something else than [batch, length, width]",
                "",
            );
            return None;
        }
        let past = view.past.take();
        if past.is_some() {
            // Without the past, it is all of what is new.
            let length = *view.dims.get(1)?;
            let seq = view.axes.iter_mut().flatten().find(|a| a.dim == Some(1))?;
            seq.size = length;
        }
        let mut settled = self.settled(&view)?;
        settled.past = past;
        let (wide, lead) = settled.axes.split_last()?;
        let (seq, lead) = lead.split_last()?;
        let lead = tidy(&lead.concat());
        let head_dim = match wide.as_slice() {
            [a] if a.dim == Some(2) && a.stride == 1 => fixed(a.size)?,
            _ => return None,
        };
        let runs = |a: &Atom| a.dim == Some(1) && a.stride == 1;
        if !(matches!(seq.as_slice(), [a] if runs(a)) || settled.dims.get(1) == Some(&[1; PROBES]))
        {
            return None;
        }
        let lead: Vec<Atom> = lead.into_iter().filter(|a| a.dim != Some(0)).collect();
        let (heads, repeat) = match lead.as_slice() {
            [] => (1, 1),
            [h] if h.dim == Some(2) && h.stride == head_dim => (fixed(h.size)?, 1),
            [r] if r.dim.is_none() => (1, fixed(r.size)?),
            [h, r] if h.dim == Some(2) && h.stride == head_dim && r.dim.is_none() => {
                (fixed(h.size)?, fixed(r.size)?)
            }
            _ => {
                self.near("attention whose heads are not slices of the width", "");
                return None;
            }
        };
        let width = fixed(*settled.dims.last()?)?;
        (heads.checked_mul(head_dim)? == width).then_some((settled, heads, head_dim, repeat))
    }

    /// `[B,S,heads·head_dim]` or `[B,heads,S,head_dim]` as the latter.
    pub(super) fn by_heads(&mut self, view: &View, heads: i64) -> Option<View> {
        if view.axes.len() == 4 {
            return Some(view.clone());
        }
        let heads = usize::try_from(heads).ok().filter(|h| *h > 0)?;
        let mut shape = view.shape()?;
        let width = fixed(shape.pop()?)?;
        shape.extend([[heads; PROBES], [width.checked_div(heads)?; PROBES]]);
        view.reshape(&shape)?.transpose(&[0, 2, 1, 3])
    }

    /// Attention of views `[B,heads,S,head_dim]`, by a single node.
    pub(super) fn attend(&mut self, call: Call) -> Option<View> {
        let Call {
            q,
            mut k,
            mut v,
            scale,
            softcap,
            masks,
            known,
        } = call;
        let heads = |view: &View| fixed(product(view.axes.get(1)?)?);
        let group = heads(&q)?.checked_div(heads(&k)?)?;
        if group > 1 {
            (k, v) = (k.repeat(1, group)?, v.repeat(1, group)?);
        }
        let width = fixed(product(q.axes.last()?)?)?;
        let scores = Scores {
            q,
            k: k.transpose(&[0, 1, 3, 2])?,
            scale: scale.unwrap_or((width as f64).powf(-0.5)),
            softcap,
            masks,
            known,
            shifted: false,
            hidden: f64::NEG_INFINITY,
        };
        self.attention(&scores, &v)
    }
}

/// Size of an axis, counted from the end.
fn size(view: &View, from_end: usize) -> Option<Size> {
    product(view.axes.get(view.axes.len().checked_sub(from_end)?)?)
}
