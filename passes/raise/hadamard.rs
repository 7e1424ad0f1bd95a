//! Rotations by Walsh–Hadamard blocks with signs, as rotated terms are exported: Mul by signs over the
//! norm, a product with one block's matrix; or the product first, and back.

use super::expr::Expr;
use super::view::{View, fixed};
use super::{In, Raiser, Source};
use crate::ir::{Layout, Linear, Native, Op, OpKind, Operand, Term, WeightId};
use crate::numeric::hadamard::{MAX_BLOCK, Rotation};
use crate::weights::DType;

/// Walsh–Hadamard blocks of a view.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Walsh {
    /// What goes into the blocks.
    pub(super) view: View,
    /// What comes out of them, where signs don't follow.
    pub(super) plain: View,
    /// Size of the blocks.
    pub(super) block: usize,
    /// Size of the matrix's entries.
    pub(super) entry: f64,
}

impl Raiser<'_> {
    /// The blocks whose result an operand is.
    pub(super) fn walsh(&self, operand: Operand) -> Option<&Walsh> {
        match operand {
            Operand::Value(id) => match self.forms.get(&id)? {
                Expr::Walsh(walsh) => Some(walsh),
                _ => None,
            },
            _ => None,
        }
    }

    /// A linear by the matrix of a block: with the signs in front of it a rotation. `plain` is its
    /// result as a view of a new linear, where it is one.
    pub(super) fn walsh_of(
        &mut self,
        op: &Op,
        linear: &Linear,
        plain: Option<&View>,
    ) -> Option<Expr> {
        let plainly = linear.bias.is_none() && linear.scale == 1.0 && linear.layout == Layout::Rows;
        let block = usize::try_from(linear.matrix.in_features).ok()?;
        let square = linear.matrix.out_features == linear.matrix.in_features;
        let sized = block.is_power_of_two() && (2..=MAX_BLOCK).contains(&block);
        let [Term::Dense(matrix)] = linear.matrix.terms.as_slice() else {
            return None;
        };
        if !(plainly && square && sized && matrix.index.is_none()) {
            return None;
        }
        let entry = self.entry_of(matrix.weight, block)?;
        let view = self.leaf(*op.inputs.first()?)?;
        let view = self.settled(&view)?;
        // Blocks are runs of the last dimension, from its first element on.
        let last = view.dims.len().checked_sub(1)?;
        let [run] = view.axes.last()?.as_slice() else {
            return None;
        };
        if run.dim != Some(last) || run.stride != 1 || fixed(run.size) != Some(block) {
            return None;
        }
        if let Some(rotated) = self.behind_signs(&view, block, entry) {
            return Some(rotated);
        }
        let result = (*op.results.first()?)?;
        let plain = match plain {
            Some(view) => view.clone(),
            None => View::whole(
                Source::Old(result),
                self.facts.sizes(Operand::Value(result))?,
            ),
        };
        let walsh = Walsh {
            view,
            plain,
            block,
            entry,
        };
        Some(Expr::Walsh(Box::new(walsh)))
    }

    /// The size of the entries, where a weight is the Walsh–Hadamard matrix `[block, block]` times that.
    fn entry_of(&mut self, id: WeightId, block: usize) -> Option<f64> {
        if let Some(&known) = self.entries.get(&id) {
            return known;
        }
        let found = self.facts.read(id).and_then(|tensor| {
            let values = tensor.values()?;
            let entry = *values.first()?;
            let sign = |at: usize| match ((at / block) & (at % block)).count_ones() % 2 {
                0 => entry,
                _ => -entry,
            };
            let same = values.iter().enumerate().all(|(at, &v)| v == sign(at));
            (entry > 0.0 && values.len() == block * block && same).then_some(entry)
        });
        self.entries.insert(id, found);
        found
    }

    /// `R x`, where the view is `x` times signs over the norm.
    fn behind_signs(&mut self, view: &View, block: usize, entry: f64) -> Option<Expr> {
        let Source::New(at) = view.base else {
            return None;
        };
        let made = self.made.get(at)?;
        let OpKind::Native(Native::Mul) = made.kind else {
            return None;
        };
        let &[In::Source(x), In::Weight(signs)] = made.inputs.as_slice() else {
            return None;
        };
        let width = fixed(*view.dims.last()?)?;
        let seed = self.seed_of(Operand::Weight(signs), width, block, entry)?;
        let op = Native::Hadamard {
            block: block as u64,
            seed,
            inverse: false,
        };
        let made = self.native(op, vec![In::Source(x)], view.dims.clone());
        Some(Expr::Leaf(view.over(made)))
    }

    /// `Rᵀ x`, where `a` are blocks of x and `b` signs over the norm.
    pub(super) fn turned_back(&mut self, a: Operand, b: Operand) -> Option<Expr> {
        let walsh = self.walsh(a)?.clone();
        let width = fixed(*walsh.view.dims.last()?)?;
        if !walsh.view.keeps_columns() {
            return None;
        }
        let seed = self.seed_of(b, width, walsh.block, walsh.entry)?;
        let op = Native::Hadamard {
            block: walsh.block as u64,
            seed,
            inverse: true,
        };
        Some(Expr::Leaf(self.applied(op, &walsh.view, &[])?))
    }

    /// The seed of `width` signs that, over the norm of a block, an operand is.
    fn seed_of(&self, signs: Operand, width: usize, block: usize, entry: f64) -> Option<u64> {
        let tensor = match signs {
            Operand::Weight(_) => self.facts.get(signs, 0)?,
            _ => self.facts.constant(signs)?,
        };
        if tensor.shape.last() != Some(&width) {
            return None;
        }
        let values = tensor.values()?;
        // The norm is a number of the tensor's own type.
        let rounding = match tensor.dtype {
            DType::BF16 => 1.0 / 256.0,
            DType::F16 => 1.0 / 2048.0,
            _ => 1e-6,
        };
        let norm = (block as f64).sqrt().recip() / entry;
        let is_sign = |v: &f64| (v.abs() - norm).abs() <= rounding * norm;
        if values.len() != width || !values.iter().all(is_sign) {
            return None;
        }
        let negative: Vec<bool> = values.iter().map(|v| *v < 0.0).collect();
        Some(Rotation::from_signs(block, &negative)?.seed)
    }
}
