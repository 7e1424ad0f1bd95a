//! `tr(E H Eᵀ)`.

use super::{HessianError, Metric};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

/// Columns of `H` and rows of `E` that are converted to `f64` at a time.
const COLS: usize = 256;
const ROWS: usize = 512;

/// `tr(E H Eᵀ)` of an error `e` `[rows, n]`: the squared error of the outputs,
/// summed over the calibration tokens. Not damped.
///
/// # Errors
/// A slice of the wrong length.
///
/// # Cost
/// `rows * n²` multiply-adds in `f64`: errors with feedback cancel to a small
/// part of their terms.
pub fn objective(metric: &Metric, e: &[f32], rows: usize) -> Result<f64, HessianError> {
    Ok(row_objectives(metric, e, rows)?.iter().sum())
}

/// [`objective`] of every row.
pub fn row_objectives(metric: &Metric, e: &[f32], rows: usize) -> Result<Vec<f64>, HessianError> {
    metric.check(e, rows)?;
    let n = metric.n();
    let h = MatRef::from_row_major_slice(metric.second_moment(), n, n);
    let mut out = vec![0.0; rows];
    for j0 in (0..n).step_by(COLS) {
        let width = COLS.min(n - j0);
        // By symmetry, columns before the block count twice and those behind not at all.
        let right = Mat::from_fn(j0 + width, width, |i, j| {
            let x = f64::from(h[(i, j0 + j)]);
            if i < j0 { 2.0 * x } else { x }
        });
        for (panel, out) in e.chunks(ROWS * n.max(1)).zip(out.chunks_mut(ROWS)) {
            let count = out.len();
            let left = MatRef::from_row_major_slice(panel, count, n);
            let left = Mat::from_fn(count, j0 + width, |r, i| f64::from(left[(r, i)]));
            let mut product = Mat::<f64>::zeros(count, width);
            let (a, b) = (left.as_ref(), right.as_ref());
            matmul(product.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
            for j in 0..width {
                for (r, out) in out.iter_mut().enumerate() {
                    *out += product[(r, j)] * left[(r, j0 + j)];
                }
            }
        }
    }
    Ok(out)
}

/// `tr(E H' Eᵀ)` with the damped metric `H'`: what all quantizers here minimise.
///
/// # Errors and cost
/// As [`objective`].
pub fn damped_objective(metric: &Metric, e: &[f32], rows: usize) -> Result<f64, HessianError> {
    let n = metric.n();
    let plain = objective(metric, e, rows)?;
    let raw = metric.second_moment();
    let more: Vec<f64> = (0..n)
        .map(|j| metric.entry(j, j) - f64::from(raw[j * n + j]))
        .collect();
    let squares = e.chunks(n.max(1)).map(|row| {
        let terms = row.iter().zip(&more);
        terms
            .map(|(x, m)| m * f64::from(*x) * f64::from(*x))
            .sum::<f64>()
    });
    Ok(plain + squares.sum::<f64>())
}

/// `tr(E H Eᵀ) / tr(W H Wᵀ)`; 0 if both are zero.
///
/// # Errors and cost
/// As [`objective`], twice.
pub fn relative_objective(
    metric: &Metric,
    e: &[f32],
    w: &[f32],
    rows: usize,
) -> Result<f64, HessianError> {
    let error = objective(metric, e, rows)?;
    let whole = objective(metric, w, rows)?;
    Ok(if whole > 0.0 {
        error / whole
    } else if error > 0.0 {
        f64::INFINITY
    } else {
        0.0
    })
}
