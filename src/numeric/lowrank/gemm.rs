//! Products over fixed row panels, the same bits for any number of threads.
//!
//! A product is split into panels of [`PANEL`] rows of the output whether or
//! not threads are used; each panel is one sequential product.

use super::Block;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Output rows per panel: large enough that packing the right side costs little.
const PANEL: usize = 1024;

/// `a · b` into a fresh column-major matrix.
pub(super) fn product(a: MatRef<'_, f32>, b: MatRef<'_, f32>, threads: usize) -> Mat<f32> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    accumulate(out.as_mut(), a, b, Accum::Replace, 1.0, threads);
    out
}

/// `out = [out +] factor * a * b`, panel by panel.
fn accumulate(
    out: MatMut<'_, f32>,
    a: MatRef<'_, f32>,
    b: MatRef<'_, f32>,
    accum: Accum,
    factor: f32,
    threads: usize,
) {
    let mut panels = Vec::new();
    let mut rest = (out, a);
    while rest.1.nrows() > PANEL {
        let (top, bottom) = rest.0.split_at_row_mut(PANEL);
        let (a_top, a_bottom) = rest.1.split_at_row(PANEL);
        panels.push((top, a_top));
        rest = (bottom, a_bottom);
    }
    panels.push(rest);
    let one = |(out, a): (MatMut<'_, f32>, MatRef<'_, f32>)| {
        matmul(out, accum, a, b, factor, Par::Seq);
    };
    if threads > 1 && panels.len() > 1 {
        panels.into_par_iter().for_each(one);
    } else {
        panels.into_iter().for_each(one);
    }
}

/// Adds `factor * u * v` to columns `col0..` of `out`, rows `stride` apart.
#[allow(clippy::too_many_arguments)]
pub(super) fn add_product(
    out: &mut [f32],
    stride: usize,
    col0: usize,
    u: &[f32],
    v: &[f32],
    block: &Block,
    factor: f32,
    threads: usize,
) {
    let rows = u.len() / block.rank;
    let out = MatMut::from_row_major_slice_mut(out, rows, stride);
    let out = out.subcols_mut(col0, block.cols);
    let u = MatRef::from_row_major_slice(u, rows, block.rank);
    let v = MatRef::from_row_major_slice(v, block.rank, block.cols);
    accumulate(out, u, v, Accum::Add, factor, threads);
}
