//! Gradients of sums, products and slices.

use super::{chunks, sum_rows};
use crate::exec::pool::Pool;
use std::ops::Range;

/// Values per part.
const PART: usize = 32 << 10;

/// `Σ_t dy_t`, `[width]`.
pub fn sum_of_rows(pool: &Pool, dy: &[f32], width: usize) -> Vec<f32> {
    let rows = dy.len() / width.max(1);
    sum_rows(pool, rows, width, |range, sums| {
        for row in dy[range.start * width..range.end * width].chunks(width.max(1)) {
            sums.iter_mut().zip(row).for_each(|(s, x)| *s += x);
        }
    })
}

/// The gradient by a `short` operand that was repeated along the first axes: the sum of the repeats.
///
/// `values(i)` is the gradient before summing at place `i` of `0..len`.
pub fn sum_of_repeats(
    pool: &Pool,
    len: usize,
    short: usize,
    values: impl Fn(usize) -> f32 + Sync,
) -> Vec<f32> {
    let mut out = vec![0f32; short];
    chunks(pool, &mut out, PART / 8, |i, chunk| {
        let first = i * (PART / 8);
        for (at, o) in chunk.iter_mut().enumerate() {
            let places = (first + at..len).step_by(short.max(1));
            *o = places.map(&values).sum();
        }
    });
    out
}

/// Puts rows of a slice's gradient into zeros of the width that was sliced.
///
/// # Panics
/// The columns lie outside of the rows.
pub fn unslice(pool: &Pool, dy: &[f32], width: usize, columns: Range<usize>, dx: &mut [f32]) {
    let part = columns.len();
    assert!(columns.end <= width && dy.len() * width == dx.len() * part);
    if width == 0 {
        return;
    }
    let rows = (PART / width).max(1);
    chunks(pool, dx, rows * width, |i, chunk| {
        for (r, row) in chunk.chunks_mut(width).enumerate() {
            let at = (i * rows + r) * part;
            row.fill(0.0);
            row[columns.clone()].copy_from_slice(&dy[at..at + part]);
        }
    });
}

/// Adds rows of `dy` to the rows of `dw`, `[entries, width]`, that they came from, in order.
///
/// Rows are shared out among parts by their columns, so that no two parts write one place.
///
/// # Panics
/// An id is outside of the table.
pub fn scatter(pool: &Pool, dy: &[f32], ids: &[usize], width: usize, dw: &mut [f32]) {
    const COLUMNS: usize = 64;
    dw.fill(0.0);
    let rows = dw.len().checked_div(width).unwrap_or(0);
    assert!(ids.iter().all(|&id| id < rows));
    pool.split(dw, width, (rows, COLUMNS), |mut tile| {
        let cols = tile.cols();
        for (t, &id) in ids.iter().enumerate() {
            let from = &dy[t * width..][cols.clone()];
            let to = tile.row_mut(id);
            to.iter_mut().zip(from).for_each(|(o, x)| *o += x);
        }
    });
}
