//! Products with matrices stored as floating-point numbers, as they are stored.
//!
//! One to four tokens are bound by memory: rows are read once and multiplied by all tokens
//! ([`dot`]; [`axpy`] where the matrix is stored `[in, out]`). More tokens go through
//! [`super::gemm`], 16-bit formats by way of an `f32` tile in the cache.

mod axpy;
mod dot;
mod panels;

pub use panels::{PanelProduct, Panels, matmul_all};

use super::Write;
use super::gemm::{self, Left, PANEL, Right};
use super::scratch;
use super::vector::{Isa, prefetch};
use crate::exec::pool::{Pool, Tile};
use crate::numeric::float::{Float, decode_into};
use std::ops::Range;

/// Most tokens that the memory-bound forms take at once.
pub(super) const FEW: usize = 4;
/// Least and most tokens of a tile of a large product: multiples of the panel.
const TILE_TOKENS: (usize, usize) = (4 * PANEL, 16 * PANEL);
/// Tiles that a large product is cut into where its shape allows.
const TILES: usize = 32;
/// Longest stretch of a sum whose operands stay in the second-level cache.
const DEPTH: usize = 512;
/// Values of a tile that are decoded at once: what leaves room in the second-level cache.
const DECODED: usize = 64 << 10;
/// Rows between the one that is packed and the one that is asked for.
const AHEAD: usize = 24;
/// Bytes of weights in a tile of a memory-bound product.
const TILE_BYTES: usize = 128 << 10;

/// A matrix `[rows, cols]` over stored bytes, little-endian, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct FloatRows<'a> {
    /// The numbers, row-major.
    pub data: &'a [u8],
    /// How each is stored.
    pub format: Float,
    /// Rows (`out`).
    pub rows: usize,
    /// Columns (`in`).
    pub cols: usize,
    /// Stored as `[cols, rows]`.
    pub transposed: bool,
}

impl FloatRows<'_> {
    fn check(&self, x: &[f32], tokens: usize, out: &[f32]) {
        let values = self.rows.checked_mul(self.cols);
        let stored = values.and_then(|n| n.checked_mul(self.format.bits()));
        assert!(
            stored.is_some_and(|bits| bits.div_ceil(8) <= self.data.len()),
            "a matrix [{}, {}] of {:?} in {} bytes",
            self.rows,
            self.cols,
            self.format,
            self.data.len()
        );
        assert!(tokens.checked_mul(self.cols) == Some(x.len()));
        assert!(tokens.checked_mul(self.rows) == Some(out.len()));
    }

    /// Asks for the cache lines of `count` stored values, which need not exist.
    fn prefetch(&self, start: usize, count: usize) {
        let bits = self.format.bits();
        let bytes = (start * bits / 8)..(start + count) * bits / 8;
        for at in bytes.step_by(64) {
            prefetch(self.data.as_ptr().wrapping_add(at));
        }
    }

    /// Decodes stored values `start ..` in storage order.
    fn decode(&self, start: usize, out: &mut [f32]) {
        let bits = self.format.bits();
        if bits >= 8 {
            let bytes = &self.data[start * (bits / 8)..];
            decode_into(self.format, &bytes[..out.len() * (bits / 8)], out);
            return;
        }
        // Two values a byte: the first may be the second of its byte.
        let odd = (start % 2).min(out.len());
        let (first, rest) = out.split_at_mut(odd);
        for o in first {
            let mut pair = [0.0; 2];
            decode_into(self.format, &self.data[start / 2..=start / 2], &mut pair);
            *o = pair[1];
        }
        decode_into(self.format, &self.data[start.div_ceil(2)..], rest);
    }
}

/// `out[t, o] (+)= Σ_i x[t, i] · W[o, i]`.
///
/// `x` is `[tokens, cols]`, `out` `[tokens, rows]`. Sums are in `f32`; their order depends on
/// the number of tokens (up to 4, or more), never on the threads.
///
/// # Panics
/// A slice does not fit the shapes.
pub fn matmul(
    pool: &Pool,
    w: &FloatRows<'_>,
    x: &[f32],
    tokens: usize,
    write: Write,
    out: &mut [f32],
) {
    w.check(x, tokens, out);
    if w.cols == 0 {
        if write == Write::Overwrite {
            out.fill(0.0);
        }
        return;
    }
    match (tokens <= FEW, w.transposed) {
        (true, false) => few_rows(pool, w, x, tokens, write, out),
        (true, true) => few_columns(pool, w, x, tokens, write, out),
        (false, false) => gemm::with_packed(pool, x, tokens, w.cols, |packed| {
            let height = if w.rows < 2048 { 32 } else { 64 };
            // Each tile decodes its rows, so the fewer tiles of tokens the better.
            let across = TILES.div_ceil(w.rows.div_ceil(height));
            let tile = (tile_tokens(tokens.div_ceil(across)), height);
            pool.split(out, w.rows, tile, |mut tile| {
                many_rows(w, packed, tokens, write, &mut tile);
            });
        }),
        (false, true) => pool.split(out, w.rows, (TILE_TOKENS.0, PANEL), |mut tile| {
            many_columns(w, x, write, &mut tile);
        }),
    }
}

/// So many tokens in whole panels, within the bounds of a tile.
fn tile_tokens(tokens: usize) -> usize {
    tokens
        .next_multiple_of(PANEL)
        .clamp(TILE_TOKENS.0, TILE_TOKENS.1)
}

/// Row `row` of the matrix as `f32`.
///
/// # Panics
/// There is no such row, or `out` is not as long as one.
pub fn decode_row(w: &FloatRows<'_>, row: usize, out: &mut [f32]) {
    assert!(row < w.rows && out.len() == w.cols);
    if w.transposed {
        for (col, o) in out.iter_mut().enumerate() {
            w.decode(col * w.rows + row, std::slice::from_mut(o));
        }
    } else {
        w.decode(row * w.cols, out);
    }
}

/// Formats that the memory-bound kernels read directly.
fn direct(format: Float) -> bool {
    matches!(format, Float::F32 | Float::F16 | Float::Bf16)
}

fn few_rows(
    pool: &Pool,
    w: &FloatRows<'_>,
    x: &[f32],
    tokens: usize,
    write: Write,
    out: &mut [f32],
) {
    let isa = Isa::detect();
    let row_bytes = (w.cols * w.format.bits()).div_ceil(8).max(1);
    let height = (TILE_BYTES / row_bytes).clamp(8, 512) / 8 * 8;
    pool.split(out, w.rows, (tokens, height), |mut tile| {
        let rows = tile.cols();
        if direct(w.format) {
            let size = w.cols * w.format.bits() / 8;
            let data = &w.data[rows.start * size..rows.end * size];
            dot::rows(isa, w.format, data, x, tokens, write, &mut tile);
            return;
        }
        scratch::with(rows.len() * w.cols, |values| {
            w.decode(rows.start * w.cols, values);
            let data = gemm::bytes(values);
            dot::rows(isa, Float::F32, data, x, tokens, write, &mut tile);
        });
    });
}

fn few_columns(
    pool: &Pool,
    w: &FloatRows<'_>,
    x: &[f32],
    tokens: usize,
    write: Write,
    out: &mut [f32],
) {
    let isa = Isa::detect();
    // Wide enough to read memory in long stretches, narrow enough that small matrices are shared.
    let width = (w.rows / 8).next_multiple_of(64).clamp(64, 1024);
    pool.split(out, w.rows, (tokens, width), |mut tile| {
        let columns = tile.cols();
        scratch::with(tokens * columns.len(), |sums| {
            sums.fill(0.0);
            if direct(w.format) {
                let size = w.format.bits() / 8;
                let data = &w.data[columns.start * size..];
                axpy::columns(isa, w.format, data, w.rows, x, columns.len(), sums);
            } else {
                decoded_columns(isa, w, x, columns.clone(), sums);
            }
            put_rows(sums, write, &mut tile);
        });
    });
}

/// [`axpy::columns`] over values decoded a few rows at a time.
fn decoded_columns(
    isa: Isa,
    w: &FloatRows<'_>,
    x: &[f32],
    columns: Range<usize>,
    sums: &mut [f32],
) {
    const STEP: usize = 32;
    let width = columns.len();
    let tokens = x.len() / w.cols;
    scratch::with(STEP * width + STEP * tokens, |buffer| {
        let (values, part) = buffer.split_at_mut(STEP * width);
        for first in (0..w.cols).step_by(STEP) {
            let count = STEP.min(w.cols - first);
            for (i, row) in values.chunks_mut(width).take(count).enumerate() {
                w.decode((first + i) * w.rows + columns.start, row);
            }
            let part = &mut part[..tokens * count];
            for (to, from) in part.chunks_mut(count).zip(x.chunks(w.cols)) {
                to.copy_from_slice(&from[first..first + count]);
            }
            let data = gemm::bytes(&values[..count * width]);
            axpy::columns(isa, Float::F32, data, width, part, width, sums);
        }
    });
}

/// The tile of few tokens from its decoded rows, `[tile.cols(), x.len() / tokens]`.
pub(super) fn few_decoded(
    values: &[f32],
    x: &[f32],
    tokens: usize,
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    let data = gemm::bytes(values);
    dot::rows(Isa::detect(), Float::F32, data, x, tokens, write, tile);
}

/// Copies or adds rows to the rows of a tile of the same shape.
pub(super) fn put_rows(values: &[f32], write: Write, tile: &mut Tile<'_, f32>) {
    let width = tile.cols().len();
    for (row, values) in tile.rows().zip(values.chunks(width)) {
        let out = tile.row_mut(row);
        match write {
            Write::Overwrite => out.copy_from_slice(values),
            Write::Add => out.iter_mut().zip(values).for_each(|(o, v)| *o += v),
        }
    }
}

/// Stretches of a sum of `len` terms, about equally long.
fn stretches(len: usize) -> impl Iterator<Item = Range<usize>> {
    let step = len
        .div_ceil(len.div_ceil(DEPTH).max(1))
        .next_multiple_of(16);
    (0..len)
        .step_by(step.max(1))
        .map(move |start| start..(start + step).min(len))
}

/// A tile of `[tokens, rows]` from rows stored `[out, in]`.
fn many_rows(
    w: &FloatRows<'_>,
    packed: &[f32],
    tokens: usize,
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    let rows = tile.cols();
    if w.format == Float::F32 {
        let data = &w.data[4 * rows.start * w.cols..];
        let left =
            |part: &Range<usize>| Left::from_bytes(&data[4 * part.start..], w.cols, rows.len());
        for part in stretches(w.cols) {
            panels((w, packed, tokens), left(&part), &part, write, tile);
        }
    } else if rows.len() * w.cols <= DECODED {
        // In one go: memory is read in one stretch.
        scratch::with(rows.len() * w.cols, |values| {
            w.decode(rows.start * w.cols, values);
            for part in stretches(w.cols) {
                let left = Left::new(&values[part.start..], w.cols, rows.len());
                panels((w, packed, tokens), left, &part, write, tile);
            }
        });
    } else {
        for part in stretches(w.cols) {
            let depth = part.len();
            scratch::with(rows.len() * depth, |values| {
                for (row, values) in rows.clone().zip(values.chunks_mut(depth)) {
                    w.decode(row * w.cols + part.start, values);
                }
                let left = Left::new(values, depth, rows.len());
                panels((w, packed, tokens), left, &part, write, tile);
            });
        }
    }
}

/// Adds the products of a stretch of the sums, panel of tokens by panel.
fn panels(
    (w, packed, tokens): (&FloatRows<'_>, &[f32], usize),
    left: Left<'_>,
    part: &Range<usize>,
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    let isa = Isa::detect();
    let add = write == Write::Add || part.start > 0;
    let range = tile.rows();
    for first in range.clone().step_by(PANEL) {
        let lanes = PANEL.min(tokens - first);
        let stride = gemm::panel_stride(lanes);
        let right = Right {
            data: &packed[first * w.cols + part.start * stride..],
            stride,
            lanes,
        };
        let at = (first - range.start, 0);
        gemm::product_into_columns(isa, part.len(), left, right, tile, at, add);
    }
}

/// A tile of `[tokens, rows]` from a matrix stored `[in, out]`.
fn many_columns(w: &FloatRows<'_>, x: &[f32], write: Write, tile: &mut Tile<'_, f32>) {
    let isa = Isa::detect();
    let (columns, tokens) = (tile.cols(), tile.rows());
    let stride = columns.len().next_multiple_of(16);
    let mut add = write == Write::Add;
    for part in stretches(w.cols) {
        scratch::with(part.len() * stride, |panel| {
            for (i, row) in part.clone().zip(panel.chunks_mut(stride)) {
                // Each row of the stretch lies on another page, where hardware does not look ahead.
                w.prefetch((i + AHEAD) * w.rows + columns.start, columns.len());
                w.decode(i * w.rows + columns.start, &mut row[..columns.len()]);
            }
            let x = &x[tokens.start * w.cols + part.start..];
            let left = Left::new(x, w.cols, tokens.len());
            let right = Right {
                data: panel,
                stride,
                lanes: columns.len(),
            };
            gemm::product_into_rows(isa, part.len(), left, right, tile, (0, 0), add);
        });
        add = true;
    }
}

#[cfg(test)]
pub(crate) mod tests;
