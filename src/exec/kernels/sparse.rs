//! Products with sparse terms: single entries in compressed rows, or whole columns.

use super::Write;
use super::float::{self, FloatRows};
use super::gemm::{self, PANEL};
use super::scratch;
use super::vector::{Isa, LANES, Vector, dispatch};
use crate::exec::pool::{Pool, Tile};
use crate::numeric::float::{Float, decode_into};
use std::ops::Range;

/// Tokens of a tile.
const TILE_TOKENS: usize = 4 * PANEL;

/// Entries of a matrix `[rows, cols]` in compressed sparse rows, as stored.
#[derive(Clone, Copy, Debug)]
pub struct CsrView<'a> {
    /// Rows (`out`).
    pub rows: usize,
    /// Columns (`in`).
    pub cols: usize,
    /// `f16[nnz]`
    pub values: &'a [u8],
    /// `u16[nnz]`, or `u32[nnz]` where there are more than 65536 columns.
    pub columns: &'a [u8],
    /// `u32[rows + 1]`
    pub offsets: &'a [u8],
}

/// Whole columns of a matrix `[rows, cols]`.
#[derive(Clone, Copy, Debug)]
pub struct ColumnsView<'a> {
    /// Rows (`out`).
    pub rows: usize,
    /// Columns (`in`).
    pub cols: usize,
    /// Which columns.
    pub columns: &'a [u32],
    /// `f16[rows, columns]`
    pub values: &'a [u8],
}

/// Why stored entries are no sparse matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SparseError {
    /// A part is too short or too long.
    #[error("{what}: {expected} bytes were expected, {actual} given")]
    Length {
        /// Which part.
        what: &'static str,
        /// The length that fits.
        expected: usize,
        /// The length given.
        actual: usize,
    },
    /// Offsets that decrease or do not span the entries.
    #[error("the offsets of row {row} do not follow those before")]
    Offsets {
        /// The row.
        row: usize,
    },
    /// A column beyond the last.
    #[error("entry {entry} is in column {column} of {cols}")]
    Column {
        /// Which entry.
        entry: usize,
        /// Its column.
        column: usize,
        /// Columns of the matrix.
        cols: usize,
    },
}

impl CsrView<'_> {
    /// Whether lengths, offsets and columns make sense; reads all of them but the values.
    ///
    /// # Errors
    /// Says what does not.
    pub fn check(&self) -> Result<(), SparseError> {
        let length = |what, expected: usize, actual: usize| {
            if expected == actual {
                return Ok(());
            }
            Err(SparseError::Length {
                what,
                expected,
                actual,
            })
        };
        let entries = self.values.len() / 2;
        length("values", entries * 2, self.values.len())?;
        let each = if self.wide() { 4 } else { 2 };
        length("columns", entries * each, self.columns.len())?;
        let expected = self.rows.saturating_add(1).saturating_mul(4);
        length("offsets", expected, self.offsets.len())?;
        let mut end = 0;
        for (row, offset) in self.offsets.as_chunks::<4>().0.iter().enumerate() {
            let offset = u32::from_le_bytes(*offset) as usize;
            let first = row == 0 && offset != 0;
            let last = row == self.rows && offset != entries;
            if offset < end || offset > entries || first || last {
                return Err(SparseError::Offsets { row });
            }
            end = offset;
        }
        let outside = (0..entries).find(|&i| self.column(i) >= self.cols);
        outside.map_or(Ok(()), |entry| {
            Err(SparseError::Column {
                entry,
                column: self.column(entry),
                cols: self.cols,
            })
        })
    }

    fn wide(&self) -> bool {
        self.cols > 65536
    }

    /// Column of entry `i`; beyond the last if there is no such entry.
    #[inline(always)]
    fn column(&self, i: usize) -> usize {
        let column = if self.wide() {
            let bytes = self.columns.as_chunks::<4>().0.get(i);
            bytes.map(|b| u32::from_le_bytes(*b) as usize)
        } else {
            let bytes = self.columns.as_chunks::<2>().0.get(i);
            bytes.map(|b| usize::from(u16::from_le_bytes(*b)))
        };
        column.unwrap_or(usize::MAX)
    }

    /// The columns of the entries of a row.
    pub(crate) fn places(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        self.entries(row).map(|entry| self.column(entry))
    }

    /// The entries of a row.
    #[inline(always)]
    fn entries(&self, row: usize) -> Range<usize> {
        let offsets = self.offsets.as_chunks::<4>().0;
        let at = |i: usize| {
            offsets
                .get(i)
                .map_or(0, |b| u32::from_le_bytes(*b) as usize)
        };
        let end = at(row + 1).min(self.values.len() / 2);
        at(row).min(end)..end
    }
}

/// `out[t, o] (+)= Σ_i x[t, i] · W[o, i]` over the stored entries.
///
/// # Panics
/// `x` or `out` does not fit the shape. Entries that [`CsrView::check`] would refuse are left out.
pub fn matmul_csr(
    pool: &Pool,
    w: &CsrView<'_>,
    x: &[f32],
    tokens: usize,
    write: Write,
    out: &mut [f32],
) {
    assert!(tokens.checked_mul(w.cols) == Some(x.len()));
    assert!(tokens.checked_mul(w.rows) == Some(out.len()));
    let isa = Isa::detect();
    // Some thousands of entries to a part.
    let each = w.values.len() / 2 / w.rows.max(1);
    if tokens == 1 {
        let rows = (8192 / each.max(1)).clamp(16, 2048);
        pool.split(out, w.rows, (1, rows), |mut tile| {
            one_token(isa, w, x, write, &mut tile);
        });
        return;
    }
    gemm::with_packed(pool, x, tokens, w.cols, |packed| {
        let rows = (2048 / each.max(1)).clamp(16, 256);
        pool.split(out, w.rows, (TILE_TOKENS, rows), |mut tile| {
            lanes(isa, w, packed, tokens, write, &mut tile);
        });
    });
}

dispatch! {
    fn one_token(w: &CsrView<'_>, x: &[f32], write: Write, tile: &mut Tile<'_, f32>) = one_token_body;
}

dispatch! {
    fn lanes(w: &CsrView<'_>, packed: &[f32], tokens: usize, write: Write, tile: &mut Tile<'_, f32>) = lanes_body;
}

/// Entries that are decoded at once.
const CHUNK: usize = 4 * LANES;

#[inline(always)]
fn one_token_body<S: Vector>(
    _: S,
    w: &CsrView<'_>,
    x: &[f32],
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    let rows = tile.cols();
    let token = tile.rows().start;
    for (row, o) in rows.zip(tile.row_mut(token)) {
        let entries = w.entries(row);
        let mut sums = [0.0f32; 4];
        let mut values = [0.0; CHUNK];
        for first in entries.clone().step_by(CHUNK) {
            let end = (first + CHUNK).min(entries.end);
            let values = &mut values[..end - first];
            decode_into(Float::F16, &w.values[2 * first..2 * end], values);
            for (i, &value) in values.iter().enumerate() {
                let x = x.get(w.column(first + i)).copied().unwrap_or(0.0);
                sums[i % 4] = value.mul_add(x, sums[i % 4]);
            }
        }
        write.put(o, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
}

#[inline(always)]
fn lanes_body<S: Vector>(
    s: S,
    w: &CsrView<'_>,
    packed: &[f32],
    tokens: usize,
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    let token_range = tile.rows();
    for panel in token_range.clone().step_by(PANEL) {
        let count = PANEL.min(tokens - panel);
        let stride = gemm::panel_stride(count);
        let columns = &packed[panel * w.cols..][..stride * w.cols];
        match stride / LANES {
            1 => panel_body::<S, 1>(s, w, columns, panel, count, write, tile),
            2 => panel_body::<S, 2>(s, w, columns, panel, count, write, tile),
            _ => panel_body::<S, 3>(s, w, columns, panel, count, write, tile),
        }
    }
}

/// All rows of the tile for one panel of `N` vectors of tokens.
#[inline(always)]
fn panel_body<S: Vector, const N: usize>(
    s: S,
    w: &CsrView<'_>,
    columns: &[f32],
    first: usize,
    count: usize,
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    let rows = tile.cols();
    let columns = columns.as_chunks::<LANES>().0;
    for row in rows.clone() {
        let entries = w.entries(row);
        let mut sums = [s.splat(0.0); N];
        let mut values = [0.0; CHUNK];
        for start in entries.clone().step_by(CHUNK) {
            let end = (start + CHUNK).min(entries.end);
            let values = &mut values[..end - start];
            decode_into(Float::F16, &w.values[2 * start..2 * end], values);
            for (i, &value) in values.iter().enumerate() {
                let column = w.column(start + i);
                if column >= w.cols {
                    continue;
                }
                let value = s.splat(value);
                let lanes = &columns[N * column..N * column + N];
                for n in 0..N {
                    sums[n] = s.fma(value, s.load_array(&lanes[n]), sums[n]);
                }
            }
        }
        for (n, sum) in sums.into_iter().enumerate() {
            let values = s.to_array(sum);
            let tokens = count.saturating_sub(n * LANES).min(LANES);
            for (lane, value) in values.into_iter().enumerate().take(tokens) {
                let out = tile.row_mut(first + n * LANES + lane);
                write.put(&mut out[row - rows.start], value);
            }
        }
    }
}

/// `out[t, o] (+)= Σ_c x[t, columns[c]] · values[o, c]`.
///
/// # Panics
/// A slice does not fit the shapes. Columns beyond the last count as zeros.
pub fn matmul_columns(
    pool: &Pool,
    w: &ColumnsView<'_>,
    x: &[f32],
    tokens: usize,
    write: Write,
    out: &mut [f32],
) {
    assert!(tokens.checked_mul(w.cols) == Some(x.len()));
    let count = w.columns.len();
    scratch::with(tokens * count, |gathered| {
        if count > 0 && w.cols > 0 {
            for (to, from) in gathered.chunks_mut(count).zip(x.chunks(w.cols)) {
                for (to, &column) in to.iter_mut().zip(w.columns) {
                    *to = from.get(column as usize).copied().unwrap_or(0.0);
                }
            }
        }
        float::matmul(pool, &w.dense(), gathered, tokens, write, out);
    });
}

impl<'a> ColumnsView<'a> {
    /// The columns as a matrix of their own.
    fn dense(&self) -> FloatRows<'a> {
        FloatRows {
            data: self.values,
            format: Float::F16,
            rows: self.rows,
            cols: self.columns.len(),
            transposed: false,
        }
    }
}

/// Adds row `row` of the matrix to `out`, `[cols]`.
pub fn add_row_csr(w: &CsrView<'_>, row: usize, out: &mut [f32]) {
    for entry in w.entries(row) {
        let mut value = [0.0];
        decode_into(Float::F16, &w.values[2 * entry..2 * entry + 2], &mut value);
        if let Some(o) = out.get_mut(w.column(entry)) {
            *o += value[0];
        }
    }
}

/// Adds row `row` of the matrix to `out`, `[cols]`.
///
/// # Panics
/// There is no such row.
pub fn add_row_columns(w: &ColumnsView<'_>, row: usize, out: &mut [f32]) {
    scratch::with(w.columns.len(), |values| {
        float::decode_row(&w.dense(), row, values);
        for (&column, value) in w.columns.iter().zip(values) {
            if let Some(o) = out.get_mut(column as usize) {
                *o += *value;
            }
        }
    });
}

#[cfg(test)]
mod tests;
