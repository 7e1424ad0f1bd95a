//! What ONNX ops make, by their types: one table per group of ops.

use super::fact::Fact;
use super::size::{Names, Size};
use crate::ir::{Attr, OnnxOp};
use crate::weights::DType;

mod contrib;
mod elementwise;
mod layout;
mod matrix;
mod quantized;
mod reduce;
mod select;
mod window;

/// What follows for a node's results; `None` where nothing does.
type Rule = fn(&Node<'_>, &mut Names) -> Option<Vec<Fact>>;

/// Op names and the rule that they share.
type Table = &'static [(&'static [&'static str], Rule)];

const STANDARD: [Table; 7] = [
    elementwise::RULES,
    layout::RULES,
    matrix::RULES,
    quantized::RULES,
    reduce::RULES,
    select::RULES,
    window::RULES,
];

/// A node and what is known of its inputs.
pub(super) struct Node<'a> {
    pub(super) onnx: &'a OnnxOp,
    /// Inputs in order; `None` where one is left out.
    pub(super) inputs: Vec<Option<Fact>>,
    /// How many results it has.
    pub(super) results: usize,
    /// The tensor in its attribute `value`.
    pub(super) value: Option<Fact>,
}

/// What an op makes; empty where there is no rule for it.
pub(super) fn apply(node: &Node<'_>, names: &mut Names) -> Vec<Fact> {
    let tables: &[Table] = match node.onnx.domain.as_str() {
        "" | "ai.onnx" => &STANDARD,
        "com.microsoft" => &[contrib::RULES],
        _ => &[],
    };
    let mut rows = tables.iter().flat_map(|table| table.iter());
    let found = rows.find(|(ops, _)| ops.contains(&node.onnx.op_type.as_str()));
    found
        .and_then(|(_, rule)| rule(node, names))
        .unwrap_or_default()
}

impl Node<'_> {
    fn fact(&self, at: usize) -> Option<&Fact> {
        self.inputs.get(at)?.as_ref()
    }

    fn has(&self, at: usize) -> bool {
        self.fact(at).is_some()
    }

    fn dtype(&self, at: usize) -> Option<DType> {
        self.fact(at)?.dtype
    }

    fn shape(&self, at: usize) -> Option<&[Size]> {
        self.fact(at)?.shape.as_deref()
    }

    /// Known numbers of an input.
    fn numbers(&self, at: usize) -> Option<Vec<i64>> {
        self.fact(at)?.numbers()
    }

    /// An integer attribute; `None` where it is there but no integer, as one that a caller gives.
    fn int(&self, name: &str, default: i64) -> Option<i64> {
        match self.onnx.attrs.get(name) {
            None => Some(default),
            Some(attr) => attr.as_int(),
        }
    }

    /// A list attribute; the outer `None` where it is there but no list.
    #[allow(clippy::option_option)]
    fn ints(&self, name: &str) -> Option<Option<&[i64]>> {
        match self.onnx.attrs.get(name) {
            None => Some(None),
            Some(attr) => Some(Some(attr.as_ints()?)),
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        match self.onnx.attrs.get(name) {
            None => Some(""),
            Some(attr) => attr.as_str(),
        }
    }

    /// Numbers that older versions have as attribute `name` and newer ones as input `at`. The outer
    /// `None` where they are not known, the inner where they are not given.
    #[allow(clippy::option_option)]
    fn numbers_of(&self, name: &str, at: usize) -> Option<Option<Vec<i64>>> {
        if self.has(at) {
            return Some(Some(self.numbers(at)?));
        }
        Some(self.ints(name)?.map(<[i64]>::to_vec))
    }

    /// The element type that attribute `name` numbers.
    #[allow(clippy::option_option)]
    fn dtype_attr(&self, name: &str) -> Option<Option<DType>> {
        match self.onnx.attrs.get(name) {
            None => Some(None),
            Some(Attr::Int(number)) => Some(Some(DType::from_onnx(i32::try_from(*number).ok()?)?)),
            Some(_) => None,
        }
    }
}

/// Position `axis` of `rank`, counted from the end where negative.
fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let signed = i64::try_from(rank).ok()?;
    let axis = if axis < 0 {
        axis.checked_add(signed)?
    } else {
        axis
    };
    usize::try_from(axis).ok().filter(|at| *at < rank)
}

/// Positions of all `axes` of `rank`.
fn axes_of(axes: &[i64], rank: usize) -> Option<Vec<usize>> {
    axes.iter().map(|&axis| axis_of(axis, rank)).collect()
}

/// One result.
fn one(dtype: Option<DType>, shape: Option<Vec<Size>>) -> Option<Vec<Fact>> {
    Some(vec![Fact::new(dtype, shape)])
}

/// The product of sizes.
fn product<'a>(sizes: impl IntoIterator<Item = &'a Size>) -> Option<Size> {
    let mut sizes = sizes.into_iter();
    sizes.try_fold(Size::of(1), |product, size| product.times(size))
}

/// A shape of `rank` sizes that nothing is known of.
fn unnamed(rank: usize, names: &mut Names) -> Vec<Size> {
    (0..rank).map(|_| names.unnamed()).collect()
}

/// What two shapes are broadcast to.
pub(super) fn broadcast(a: &[Size], b: &[Size], names: &mut Names) -> Vec<Size> {
    let rank = a.len().max(b.len());
    let unit = Size::of(1);
    let at = |shape: &[Size], axis: usize| {
        let from_end = rank - axis;
        let axis = shape.len().checked_sub(from_end);
        axis.and_then(|axis| shape.get(axis))
            .unwrap_or(&unit)
            .clone()
    };
    (0..rank)
        .map(|axis| names.broadcast(&at(a, axis), &at(b, axis)))
        .collect()
}
