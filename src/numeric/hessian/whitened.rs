//! The low-rank term that lowers the objective most.
//!
//! With `H = C Cᵀ`, `tr((E - L) H (E - L)ᵀ) = ‖E C - L C‖²`, so the best `L` of
//! rank `r` is `SVD_r(E C) C⁻¹` (Eckart and Young). Any factor `C` gives the same
//! `L`; QERA (Zhang et al., ICLR 2025) and CALDERA (Saha et al., 2024) take the
//! symmetric root. The triangular one is at hand in [`Feedback`].

use super::{Feedback, HessianError};
use crate::numeric::lowrank::svd::truncated;
use crate::numeric::lowrank::{Options, Rank, Svd};
use crate::numeric::matrix::{MatRef, Matrix, check_shape};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{
    solve_unit_lower_triangular_in_place, solve_unit_upper_triangular_in_place,
};
use faer::{Accum, MatMut, MatRef as FaerRef, Par};

/// Factors `u` `[rows, rank]` and `v` `[rank, n]` of a low-rank term.
#[derive(Clone, Debug, PartialEq)]
pub struct Whitened {
    /// Orthonormal columns `[rows, rank]`, row-major.
    pub u: Vec<f32>,
    /// `[rank, n]`, row-major; carries the singular values.
    pub v: Vec<f32>,
    /// The rank.
    pub rank: usize,
    /// What each of them takes off the objective, falling.
    pub energies: Vec<f64>,
    /// Damped objective of the matrix.
    pub total: f64,
    /// What the term takes off it.
    pub kept: f64,
    /// Whether the energy asked for was reached (true for fixed ranks).
    pub reached: bool,
}

/// The rank-`r` term `u · v` nearest to `e` `[rows, n]` in the damped metric.
///
/// # Errors
/// A slice of the wrong length, values that aren't finite, no convergence.
///
/// # Cost
/// `rows * n²` multiply-adds and a decomposition of a `[rows, n]` matrix: exact
/// or randomized as `options` say.
pub fn whitened_svd(
    e: &[f32],
    rows: usize,
    feedback: &Feedback,
    rank: usize,
    options: &Options,
) -> Result<Whitened, HessianError> {
    check_shape(rows, feedback.n(), e.len())?;
    let white = whiten(e, rows, feedback);
    whitened_svd_of(white.view(), feedback, Rank::Fixed(rank), options)
}

/// [`whitened_svd`] of `E C`.
pub(super) fn whitened_svd_of(
    white: MatRef,
    feedback: &Feedback,
    rank: Rank,
    options: &Options,
) -> Result<Whitened, HessianError> {
    let svd = truncated(white, rank, options)?;
    let (rank, total, kept, reached) = (svd.rank(), svd.total, svd.kept, svd.reached);
    let energies = svd.s.iter().map(|&s| f64::from(s) * f64::from(s)).collect();
    let (u, white_v) = Svd::into_factors(svd);
    let v = unwhiten(white_v, rank, feedback);
    Ok(Whitened {
        u,
        v,
        rank,
        energies,
        total,
        kept,
        reached,
    })
}

/// `E C` `[rows, n]`: its squares sum to the damped objective.
pub(super) fn whiten(e: &[f32], rows: usize, feedback: &Feedback) -> Matrix {
    let n = feedback.n();
    let mut out = Matrix::zeros(rows, n);
    if e.is_empty() {
        return out;
    }
    let mut permuted = vec![0f32; e.len()];
    for (out, row) in permuted.chunks_mut(n).zip(e.chunks(n)) {
        for (o, &input) in out.iter_mut().zip(feedback.inputs()) {
            *o = row[input as usize];
        }
    }
    let a = FaerRef::from_row_major_slice(&permuted, rows, n);
    let l = FaerRef::from_row_major_slice(feedback.lower(), n, n);
    let target = MatMut::from_row_major_slice_mut(&mut out.data, rows, n);
    matmul(target, Accum::Replace, a, l, 1.0, Par::Seq);
    let roots: Vec<f32> = feedback
        .variances()
        .iter()
        .map(|d| d.sqrt() as f32)
        .collect();
    for row in out.data.chunks_mut(n) {
        row.iter_mut().zip(&roots).for_each(|(x, root)| *x *= root);
    }
    out
}

/// `V C⁻¹` of `V` `[rank, n]`.
pub(super) fn unwhiten(mut v: Vec<f32>, rank: usize, feedback: &Feedback) -> Vec<f32> {
    let n = feedback.n();
    if v.is_empty() {
        return v;
    }
    let variances = feedback.variances();
    for row in v.chunks_mut(n) {
        for (x, d) in row.iter_mut().zip(variances) {
            *x = (f64::from(*x) / d.sqrt()) as f32;
        }
    }
    // X · L = V is Lᵀ · Xᵀ = Vᵀ.
    let l = FaerRef::from_row_major_slice(feedback.lower(), n, n);
    let columns = MatMut::from_row_major_slice_mut(&mut v, rank, n).transpose_mut();
    solve_unit_upper_triangular_in_place(l.transpose(), columns, Par::Seq);
    let mut out = vec![0f32; v.len()];
    for (out, row) in out.chunks_mut(n).zip(v.chunks(n)) {
        for (x, &input) in row.iter().zip(feedback.inputs()) {
            out[input as usize] = *x;
        }
    }
    out
}

/// `T C⁻ᵀ` of `T` `[rows, n]`: whitens `E H` as [`whiten`] does `E`.
pub(super) fn whiten_product(t: &[f32], rows: usize, feedback: &Feedback) -> Matrix {
    let n = feedback.n();
    let mut out = Matrix::zeros(rows, n);
    if t.is_empty() {
        return out;
    }
    for (out, row) in out.data.chunks_mut(n).zip(t.chunks(n)) {
        for (o, &input) in out.iter_mut().zip(feedback.inputs()) {
            *o = row[input as usize];
        }
    }
    // M D^½ Lᵀ = T is L · (M D^½)ᵀ = Tᵀ.
    let l = FaerRef::from_row_major_slice(feedback.lower(), n, n);
    let columns = MatMut::from_row_major_slice_mut(&mut out.data, rows, n).transpose_mut();
    solve_unit_lower_triangular_in_place(l, columns, Par::Seq);
    let variances = feedback.variances();
    for row in out.data.chunks_mut(n) {
        for (x, d) in row.iter_mut().zip(variances) {
            *x = (f64::from(*x) / d.sqrt()) as f32;
        }
    }
    out
}
