//! Gradients of the kernels: `dy` is the gradient of the loss by a kernel's result.
//!
//! As elsewhere work is cut into parts by the shapes alone and sums run in a fixed order, so
//! results are bit-identical for any pool.

pub mod activation;
pub mod attention;
pub mod elementwise;
pub mod loss;
pub mod low_rank;
pub mod norm;
pub mod terms;

use super::math::exp;
use super::vector::{Isa, LANES, Vector, dispatch};
use crate::exec::pool::{Pool, Split};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use std::ops::Range;

/// Rows of a part of a product: some eight parts, but none too small to be worth its packing.
fn rows_per_part(rows: usize) -> usize {
    rows.div_ceil(8).clamp(16, 256)
}

/// Calls `part(i, chunk)` for each `len` values of `out`; the last chunk may be shorter.
pub fn chunks<T: Send>(
    pool: &Pool,
    out: &mut [T],
    len: usize,
    part: impl Fn(usize, &mut [T]) + Sync,
) {
    let len = len.max(1);
    let whole = out.len() / len;
    let (full, rest) = out.split_at_mut(whole * len);
    let width = rest.len();
    let mut splits = [
        Split {
            out: full,
            width: len,
            tile: (1, len),
        },
        Split {
            out: rest,
            width,
            tile: (1, width),
        },
    ];
    pool.split_all(&mut splits, |which, mut tile| {
        let row = tile.rows().start;
        part(if which == 0 { row } else { whole }, tile.row_mut(row));
    });
}

/// `out[:, cols] (+)= left · right`, where `out` is row-major, `stride` wide.
///
/// # Panics
/// Shapes do not fit.
pub fn product(
    pool: &Pool,
    (out, stride, cols): (&mut [f32], usize, Range<usize>),
    left: MatRef<'_, f32>,
    right: MatRef<'_, f32>,
    accum: Accum,
) {
    if cols.is_empty() || left.nrows() == 0 {
        return;
    }
    assert_eq!(out.len(), left.nrows() * stride);
    let rows = rows_per_part(left.nrows());
    chunks(pool, out, rows * stride, |i, chunk| {
        let count = chunk.len() / stride;
        let target = MatMut::from_row_major_slice_mut(chunk, count, stride);
        let target = target.subcols_mut(cols.start, cols.len());
        let left = left.subrows(i * rows, count);
        matmul(target, accum, left, right, 1.0, Par::Seq);
    });
}

/// Columns of a row-major matrix `stride` wide.
pub fn columns(values: &[f32], stride: usize, cols: Range<usize>) -> MatRef<'_, f32> {
    let rows = values.len().checked_div(stride).unwrap_or(0);
    MatRef::from_row_major_slice(values, rows, stride).subcols(cols.start, cols.len())
}

/// `Σ_t dy_t x_tᵀ`, `[out, in]`, for `dy` `[tokens, out]` and `x` `[tokens, in]`.
///
/// # Panics
/// A slice does not fit the shapes.
pub fn outer(pool: &Pool, dy: &[f32], x: &[f32], out: usize, inp: usize, dw: &mut [f32]) {
    let left = columns(dy, out, 0..out).transpose();
    product(
        pool,
        (dw, inp, 0..inp),
        left,
        columns(x, inp, 0..inp),
        Accum::Replace,
    );
}

/// Rows of a matrix that are decoded at once, by their width.
fn panel(cols: usize) -> usize {
    ((1 << 20) / cols.max(1))
        .clamp(16, 4096)
        .next_multiple_of(16)
}

/// `dx (+)= dy · W`, the rows of W `[rows, cols]` decoded some at a time by `decode(rows, out)`.
///
/// # Panics
/// A slice does not fit the shapes.
pub fn transposed(
    pool: &Pool,
    (rows, cols): (usize, usize),
    dy: &[f32],
    dx: &mut [f32],
    accum: Accum,
    decode: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    let (height, mut accum) = (panel(cols), accum);
    let mut values = vec![0f32; height.min(rows) * cols];
    for start in (0..rows).step_by(height) {
        let count = height.min(rows - start);
        let values = &mut values[..count * cols];
        chunks(pool, values, 16 * cols, |i, chunk| {
            let first = start + 16 * i;
            decode(first..first + chunk.len() / cols.max(1), chunk);
        });
        let left = columns(dy, rows, start..start + count);
        product(
            pool,
            (dx, cols, 0..cols),
            left,
            columns(values, cols, 0..cols),
            accum,
        );
        accum = Accum::Add;
    }
}

/// Sums over rows in blocks: `block(rows, sums)` adds its rows' share to zeros, and the shares are
/// added in order. `len` values come out.
pub fn sum_rows(
    pool: &Pool,
    rows: usize,
    len: usize,
    block: impl Fn(Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let each = rows.div_ceil(16).max(8);
    let blocks = rows.div_ceil(each);
    let mut shares = vec![0f32; blocks * len];
    chunks(pool, &mut shares, len, |i, share| {
        block(i * each..((i + 1) * each).min(rows), share);
    });
    let mut sums = vec![0f32; len];
    for share in shares.chunks(len.max(1)) {
        sums.iter_mut().zip(share).for_each(|(s, x)| *s += x);
    }
    sums
}

dispatch! {
    /// `x = e^(x − shift)`
    pub(crate) fn exp_at(shift: f32, x: &mut [f32]) = exp_body;
}

#[inline(always)]
fn exp_body<S: Vector>(s: S, shift: f32, x: &mut [f32]) {
    let shift = s.splat(shift);
    let (full, rest) = x.as_chunks_mut::<LANES>();
    for part in full {
        *part = s.to_array(exp(s, s.sub(s.load_array(part), shift)));
    }
    let last = exp(s, s.sub(s.load_part(rest), shift));
    s.store_part(last, rest);
}

/// Turns scores into probabilities; gives the logarithm of the sum of their exponentials.
pub(crate) fn softmax(isa: Isa, x: &mut [f32]) -> f32 {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if top == f32::NEG_INFINITY {
        x.fill(0.0);
        return top;
    }
    exp_at(isa, top, x);
    let sum: f64 = x.iter().map(|&e| f64::from(e)).sum();
    let factor = (1.0 / sum) as f32;
    x.iter_mut().for_each(|e| *e *= factor);
    (f64::from(top) + sum.ln()) as f32
}

/// Turns scores into logarithms of probabilities.
pub fn log_softmax(x: &mut [f32]) {
    let mut copy = x.to_vec();
    let sum = softmax(Isa::detect(), &mut copy);
    x.iter_mut().for_each(|x| *x -= sum);
}
