//! Reductions over axes.

use super::{Fact, Names, Node, Size, Table, axes_of, axis_of, one, product, unnamed};
use crate::weights::DType;

pub(super) const RULES: Table = &[
    (
        &[
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
        ],
        reduce,
    ),
    (&["ArgMax", "ArgMin"], arg),
];

/// Shape without the axes that are reduced.
fn without(shape: &[Size], axes: &[usize], keep: bool) -> Vec<Size> {
    let each = shape.iter().enumerate();
    each.filter_map(|(at, size)| match axes.contains(&at) {
        true => keep.then(|| Size::of(1)),
        false => Some(size.clone()),
    })
    .collect()
}

fn reduce(node: &Node<'_>, names: &mut Names) -> Option<Vec<Fact>> {
    let x = node.fact(0)?;
    let keep = node.int("keepdims", 1)? != 0;
    let nothing = node.int("noop_with_empty_axes", 0)? != 0;
    let Some(shape) = &x.shape else {
        return one(x.dtype, None);
    };
    let axes = match node.numbers_of("axes", 1) {
        Some(Some(axes)) if !axes.is_empty() => axes_of(&axes, shape.len())?,
        Some(_) if nothing => return one(x.dtype, Some(shape.clone())),
        Some(_) => (0..shape.len()).collect(),
        None => {
            let open = keep.then(|| unnamed(shape.len(), names));
            return one(x.dtype, open);
        }
    };
    let made = Fact::new(x.dtype, Some(without(shape, &axes, keep)));
    let whole = made.elements() == Some(1) && axes.len() == shape.len();
    let data = match (node.onnx.op_type.as_str(), &x.data) {
        ("ReduceProd", Some(data)) if whole && x.dtype == Some(DType::I64) => {
            let known: Option<Vec<Size>> = data.iter().cloned().collect();
            known.map(|sizes| vec![product(&sizes)])
        }
        _ => None,
    };
    Some(vec![made.with_data(data)])
}

fn arg(node: &Node<'_>, _: &mut Names) -> Option<Vec<Fact>> {
    let keep = node.int("keepdims", 1)? != 0;
    let axis = node.int("axis", 0)?;
    let mut made = None;
    if let Some(shape) = node.shape(0) {
        made = Some(without(shape, &[axis_of(axis, shape.len())?], keep));
    }
    one(Some(DType::I64), made)
}
