//! Products with `f32` activations: tiles decode to `f32` in the cache.

use super::{Level, TrellisRows, decode_tile};
use crate::exec::Pool;
use crate::exec::kernels::gemm::{self, Left, PANEL, Right};
use crate::exec::kernels::vector::Isa;
use crate::exec::kernels::{Write, float, scratch};
use crate::exec::pool::Tile;
use crate::numeric::trellis::{SEQUENCE, TILE};
use std::ops::Range;

/// Tokens up to which rows are multiplied one by one.
const FEW: usize = float::FEW;

/// Values that a part of a product of few tokens decodes: they stay in a core's cache.
const SCRATCH: usize = 32 << 10;

/// Rows of a decoded tile for many tokens.
const HEIGHT: usize = 4 * TILE;

/// Column blocks of a decoded tile for many tokens: with [`HEIGHT`], 128 KiB.
const DEPTH: usize = 32;

/// Tokens of a tile of the output: a multiple of the panel.
const TOKENS: usize = 4 * PANEL;

/// `out [+]= x wᵀ` for `f32` activations `[tokens, cols]`; `out` is `[tokens, rows]`.
///
/// Weights decode exactly; only the sums round.
///
/// # Panics
/// If `x` or `out` has another length.
pub fn matmul_exact(
    pool: &Pool,
    w: &TrellisRows<'_>,
    x: &[f32],
    tokens: usize,
    write: Write,
    out: &mut [f32],
) {
    matmul_at(Level::detect(), pool, w, x, tokens, write, out);
}

/// [`matmul_exact`] with tiles decoded at a level.
pub(super) fn matmul_at(
    level: Level,
    pool: &Pool,
    w: &TrellisRows<'_>,
    x: &[f32],
    tokens: usize,
    write: Write,
    out: &mut [f32],
) {
    assert_eq!(tokens.checked_mul(w.cols), Some(x.len()), "activations");
    assert_eq!(tokens.checked_mul(w.rows), Some(out.len()), "output");
    if w.cols == 0 {
        if write == Write::Overwrite {
            out.fill(0.0);
        }
        return;
    }
    let starts = w.starts();
    if tokens <= FEW {
        let stripes = (SCRATCH / (TILE * w.cols)).clamp(1, 32);
        let part = (tokens, stripes * TILE);
        pool.split(out, w.rows, part, |mut tile| {
            let rows = tile.cols();
            scratch::with(rows.len() * w.cols, |values| {
                decode(level, w, &starts, rows, 0..w.bits.len(), values);
                float::few_decoded(values, x, tokens, write, &mut tile);
            });
        });
        return;
    }
    gemm::with_packed(pool, x, tokens, w.cols, |packed| {
        pool.split(out, w.rows, (TOKENS, HEIGHT), |mut tile| {
            many(level, w, &starts, packed, tokens, write, &mut tile);
        });
    });
}

/// Decodes rows of `w` to `f32`, `[rows, cols]`; those of one tile of 16 cost what one of them does.
///
/// # Panics
/// If there are no such rows or `out` is shorter.
pub fn decode_rows(w: &TrellisRows<'_>, rows: Range<usize>, out: &mut [f32]) {
    assert!(rows.end <= w.rows, "rows {rows:?} of {}", w.rows);
    let out = &mut out[..rows.len() * w.cols];
    let blocks = 0..w.bits.len();
    decode(Level::detect(), w, &w.starts(), rows, blocks, out);
}

/// Decodes rows of some column blocks, row-major without gaps.
fn decode(
    level: Level,
    w: &TrellisRows<'_>,
    starts: &[usize],
    rows: Range<usize>,
    blocks: Range<usize>,
    out: &mut [f32],
) {
    let width = w.cols.min(blocks.end * TILE) - blocks.start * TILE;
    let mut tile = [0; SEQUENCE];
    let mut row = rows.start;
    while row < rows.end {
        let (block, inside) = (row / TILE, row % TILE);
        let count = (TILE - inside).min(rows.end - row);
        let out = &mut out[(row - rows.start) * width..][..count * width];
        let (codes, step) = (w.stripe(block), w.step(block));
        for c in blocks.clone() {
            let bytes = &codes[starts[c]..starts[c + 1]];
            decode_tile(level, bytes, w.bits[c], w.states_log2, &mut tile);
            let first = (c - blocks.start) * TILE;
            let cols = TILE.min(width - first);
            for (out, tile) in out
                .chunks_exact_mut(width)
                .zip(tile[inside * TILE..].chunks(TILE))
            {
                for (out, &c) in out[first..first + cols].iter_mut().zip(tile) {
                    *out = f32::from(c) * step;
                }
            }
        }
        row += count;
    }
}

/// A tile of `[tokens, rows]`.
fn many(
    level: Level,
    w: &TrellisRows<'_>,
    starts: &[usize],
    packed: &[f32],
    tokens: usize,
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    let isa = Isa::detect();
    let (rows, token_range) = (tile.cols(), tile.rows());
    let mut add = write == Write::Add;
    for first in (0..w.bits.len()).step_by(DEPTH) {
        let blocks = first..w.bits.len().min(first + DEPTH);
        let start = first * TILE;
        let depth = w.cols.min(blocks.end * TILE) - start;
        scratch::with(rows.len() * depth, |values| {
            decode(level, w, starts, rows.clone(), blocks, values);
            for first in token_range.clone().step_by(PANEL) {
                let lanes = PANEL.min(tokens - first);
                let stride = gemm::panel_stride(lanes);
                let right = Right {
                    data: &packed[first * w.cols + start * stride..],
                    stride,
                    lanes,
                };
                let left = Left::new(values, depth, rows.len());
                let at = (first - token_range.start, 0);
                gemm::product_into_columns(isa, depth, left, right, tile, at, add);
            }
        });
        add = true;
    }
}
