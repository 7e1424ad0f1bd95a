//! What stands around matrices: rows of tables, biases, other layouts, choices of experts.

use super::kernels::elementwise;
use super::matrix::PreparedMatrix;
use super::program::{PreparedLinear, Step};
use super::run::misfit;
use super::tensor::Tensor;
use super::{ExecError, Pool};
use crate::ir::Layout;

/// Rows `ids` of a table, `[ids, width]`.
pub(super) fn gather(
    step: &Step,
    pool: &Pool,
    table: &PreparedMatrix,
    ids: &[i64],
    out: &mut [f32],
) -> Result<(), ExecError> {
    let width = table.cols.max(1);
    for (&id, row) in ids.iter().zip(out.chunks_mut(width)) {
        // ONNX counts negative indices from the end.
        let rows = table.rows as i64;
        let index = if id < 0 { id.saturating_add(rows) } else { id };
        let index = usize::try_from(index).ok().filter(|&i| i < table.rows);
        let problem = || format!("index {id} in a table of {rows}");
        let index = index.ok_or_else(|| misfit(step, problem()))?;
        table.row(pool, index, row)?;
    }
    Ok(())
}

/// `out = out · scale + bias`, rows of `width`.
pub(super) fn affine(pool: &Pool, scale: f32, bias: Option<&[f32]>, out: &mut [f32]) {
    if scale != 1.0 {
        elementwise::scale(pool, scale, out);
    }
    if let Some(bias) = bias {
        elementwise::add_row(pool, bias, out);
    }
}

/// Activations of a linear as rows along `in`, and where that axis was.
pub(super) struct Turned {
    /// `[.., in]`.
    pub(super) values: Vec<f32>,
    axis: usize,
    inner: usize,
}

/// Turns activations so that the linear's axis is the last.
pub(super) fn turned(
    linear: &PreparedLinear,
    x: &Tensor,
    step: &Step,
) -> Result<Turned, ExecError> {
    let (matrix, rank) = (&linear.matrix, x.shape.len());
    let axis = match linear.layout {
        Layout::Rows => rank.checked_sub(1),
        Layout::Columns => rank.checked_sub(2),
        Layout::Channels(spatial) => rank.checked_sub(usize::from(spatial) + 1),
    };
    let axis = axis.filter(|&a| x.shape[a] == matrix.cols);
    let problem = || format!("activations {:?} where `in` is {}", x.shape, matrix.cols);
    let axis = axis.ok_or_else(|| misfit(step, problem()))?;
    let values = x.floats().ok_or_else(|| misfit(step, "needs floats"))?;
    let inner: usize = x.shape[axis + 1..].iter().product();
    Ok(Turned {
        values: turn(values, matrix.cols, inner),
        axis,
        inner,
    })
}

/// A linear along another axis than the last: the activations are turned, multiplied, turned back.
pub(super) fn linear_across(
    pool: &Pool,
    linear: &PreparedLinear,
    x: &Tensor,
    step: &Step,
) -> Result<Tensor, ExecError> {
    let matrix = &linear.matrix;
    let turned = turned(linear, x, step)?;
    let rows = turned.values.len() / matrix.cols.max(1);
    let mut out = vec![0f32; rows * matrix.rows];
    matrix.multiply_exact(pool, &turned.values, &mut out)?;
    affine(pool, linear.scale, linear.bias.as_deref(), &mut out);
    let mut shape = x.shape.clone();
    shape[turned.axis] = matrix.rows;
    Ok(Tensor::f32(&shape, turn(&out, turned.inner, matrix.rows)))
}

/// Turns each `[a, b]` of a row-major stack into `[b, a]`.
fn turn(values: &[f32], a: usize, b: usize) -> Vec<f32> {
    let matrix = |m: &[f32]| -> Vec<f32> {
        (0..b)
            .flat_map(|j| (0..a).map(move |i| (i, j)))
            .map(|(i, j)| m[i * b + j])
            .collect()
    };
    values.chunks((a * b).max(1)).flat_map(matrix).collect()
}

/// The `top_k` experts of each token and their weights, best first.
///
/// Weights are the softmax over all experts, scaled to sum to one with `normalize`. Of equal
/// logits the first expert wins.
pub(super) fn choose(
    logits: &[f32],
    experts: usize,
    top_k: usize,
    normalize: bool,
) -> Vec<Vec<(usize, f32)>> {
    let token = |logits: &[f32]| {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let odds: Vec<f32> = logits.iter().map(|l| (l - top).exp()).collect();
        let all: f32 = odds.iter().sum();
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(top_k);
        let kept: f32 = order.iter().map(|&e| odds[e]).sum();
        let whole = if normalize { kept } else { all };
        order.into_iter().map(|e| (e, odds[e] / whole)).collect()
    };
    logits.chunks(experts.max(1)).map(token).collect()
}
