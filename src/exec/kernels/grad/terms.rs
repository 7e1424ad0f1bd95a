//! From the gradient by a matrix, `[rows, cols]`, to gradients by what its terms store.

use super::super::sparse::{ColumnsView, CsrView};
use super::chunks;
use crate::exec::pool::Pool;
use crate::numeric::quant::Group;

/// Rows of a part.
const ROWS: usize = 16;

/// By scales: each the sum of `dw · unit` over its group, `unit` being decoded with scales of one.
///
/// `decode(row, out)` gives a row of `unit`.
pub fn scales(
    pool: &Pool,
    (rows, cols): (usize, usize),
    group: Group,
    dw: &[f32],
    decode: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    by_group(pool, (rows, cols), group, |row, out| {
        decode(row, out);
        let dw = &dw[row * cols..(row + 1) * cols];
        out.iter_mut().zip(dw).for_each(|(u, d)| *u *= d);
    })
}

/// By zero points: each minus its scale times the sum of `dw` over its group.
pub fn zeros(
    pool: &Pool,
    (rows, cols): (usize, usize),
    group: Group,
    dw: &[f32],
    scales: &[f32],
) -> Vec<f32> {
    let sums = by_group(pool, (rows, cols), group, |row, out| {
        out.copy_from_slice(&dw[row * cols..(row + 1) * cols]);
    });
    sums.iter()
        .zip(scales)
        .map(|(sum, scale)| -sum * scale)
        .collect()
}

/// Sums of values over groups; `values(row, out)` gives a row.
fn by_group(
    pool: &Pool,
    (rows, cols): (usize, usize),
    group: Group,
    values: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let size = match group {
        Group::Column => {
            return super::sum_rows(pool, rows, cols, |range, sums| {
                let mut row_values = vec![0f32; cols];
                for row in range {
                    values(row, &mut row_values);
                    sums.iter_mut().zip(&row_values).for_each(|(s, x)| *s += x);
                }
            });
        }
        Group::Row => cols,
        Group::Size(size) => size as usize,
    };
    let per_row = cols.div_ceil(size.max(1));
    let mut out = vec![0f32; rows * per_row];
    chunks(pool, &mut out, ROWS * per_row, |i, chunk| {
        let mut row_values = vec![0f32; cols];
        for (at, sums) in chunk.chunks_mut(per_row.max(1)).enumerate() {
            values(ROWS * i + at, &mut row_values);
            for (sum, part) in sums.iter_mut().zip(row_values.chunks(size.max(1))) {
                *sum = part.iter().sum();
            }
        }
    });
    out
}

/// By scales of 16 rows each, `unit` being decoded with scales of one.
///
/// `decode(first, out)` gives rows from `first` on, 16 of them or as many as there are.
pub fn stripe_scales(
    pool: &Pool,
    (rows, cols): (usize, usize),
    dw: &[f32],
    decode: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut out = vec![0f32; rows.div_ceil(16)];
    chunks(pool, &mut out, 1, |stripe, sum| {
        let first = 16 * stripe;
        let count = 16.min(rows - first);
        let mut unit = vec![0f32; count * cols];
        decode(first, &mut unit);
        let dw = &dw[first * cols..(first + count) * cols];
        let rows = unit.chunks(cols.max(1)).zip(dw.chunks(cols.max(1)));
        let row = |(u, d): (&[f32], &[f32])| -> f32 { u.iter().zip(d).map(|(u, d)| u * d).sum() };
        sum[0] = rows.map(row).sum();
    });
    out
}

/// By the entries of a sparse term.
pub fn entries(w: &CsrView<'_>, dw: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(w.values.len() / 2);
    for row in 0..w.rows {
        out.extend(
            w.places(row)
                .map(|col| dw.get(row * w.cols + col).copied().unwrap_or(0.0)),
        );
    }
    out
}

/// By the entries of whole columns, `[rows, columns]`.
pub fn column_entries(w: &ColumnsView<'_>, dw: &[f32]) -> Vec<f32> {
    let row = |row: usize| {
        w.columns
            .iter()
            .map(move |&c| dw[row * w.cols + c as usize])
    };
    (0..w.rows).flat_map(row).collect()
}

/// The transpose of `[rows, cols]`.
pub fn turned(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let column = |c: usize| (0..rows).map(move |r| values[r * cols + c]);
    (0..cols).flat_map(column).collect()
}
