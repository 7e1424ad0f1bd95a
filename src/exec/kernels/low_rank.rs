//! Products with low-rank terms `Σ_b U_b · V_b`.
//!
//! A block costs `rank · (out + in)` per token through its factors. Where that is more than
//! multiplying `U_b · V_b` out first, which many tokens at a high rank can make worth while, rows
//! of the product are multiplied out a tile at a time.

use super::Write;
use super::float::{self, FloatRows};
use super::gemm::bytes;
use super::quant::{self, QuantRows};
use super::scratch;
use crate::exec::pool::{Pool, Tile};
use crate::numeric::float::Float;
use crate::numeric::lowrank::LowRankError;
use crate::numeric::quant::{Group, Scheme, packed_len};
use crate::numeric::{Block, FactorFormat, Side};
use std::ops::Range;

/// Output rows of a tile, where there are several blocks.
const TILE_ROWS: usize = 128;
/// From so many blocks on, blocks rather than their rows are shared out among threads.
const MANY_BLOCKS: usize = 8;

/// All factors of one side, block after block, as stored.
#[derive(Clone, Copy, Debug)]
pub struct FactorData<'a> {
    /// How the entries are stored.
    pub format: FactorFormat,
    /// Entries or packed codes.
    pub data: &'a [u8],
    /// `f16` scales of the integer formats.
    pub scales: Option<&'a [u8]>,
}

/// A low-rank term of a matrix `[rows, cols]`.
#[derive(Clone, Copy, Debug)]
pub struct LowRankView<'a> {
    /// Rows (`out`).
    pub rows: usize,
    /// Columns (`in`).
    pub cols: usize,
    /// The blocks; they may overlap.
    pub blocks: &'a [Block],
    /// All `U_b` `[rows, rank]`.
    pub u: FactorData<'a>,
    /// All `V_b` `[rank, cols]`.
    pub v: FactorData<'a>,
}

impl LowRankView<'_> {
    /// Whether blocks lie inside the matrix and factors are as long as the blocks ask for.
    ///
    /// # Errors
    /// Says which block or factor does not fit.
    pub fn check(&self) -> Result<(), LowRankError> {
        for (index, block) in self.blocks.iter().enumerate() {
            let inside = |start: usize, len: usize, end: usize| {
                start.checked_add(len).is_some_and(|stop| stop <= end)
            };
            let entries = block.rows.checked_add(block.cols);
            let counted = entries.and_then(|n| n.checked_mul(block.rank));
            if !inside(block.row0, block.rows, self.rows)
                || !inside(block.col0, block.cols, self.cols)
                || counted.is_none()
            {
                return Err(LowRankError::Outside {
                    index,
                    block: *block,
                    rows: self.rows,
                    cols: self.cols,
                });
            }
        }
        for (side, factor) in [(Side::U, &self.u), (Side::V, &self.v)] {
            let sum = |part: fn(&Piece) -> usize| {
                let pieces = self.blocks.iter().map(|b| piece(factor.format, side, b));
                pieces.fold(0usize, |sum, piece| sum.saturating_add(part(&piece)))
            };
            let length = |what, expected, actual| {
                if expected == actual {
                    return Ok(());
                }
                Err(LowRankError::Length {
                    what,
                    side,
                    expected,
                    actual,
                })
            };
            length("data bytes", sum(|p| p.data), factor.data.len())?;
            let scales = factor.scales.map_or(0, <[u8]>::len);
            length("scale bytes", sum(|p| p.scales), scales)?;
        }
        Ok(())
    }
}

/// Bytes of one factor of one block.
struct Piece {
    data: usize,
    scales: usize,
}

fn piece(format: FactorFormat, side: Side, block: &Block) -> Piece {
    let (rows, cols) = side.shape(block);
    match (format.scheme(), format.group(side)) {
        (Some(scheme), Some(group)) => Piece {
            data: rows.saturating_mul(packed_len(scheme.bits, cols)),
            scales: group.count(rows, cols).saturating_mul(2),
        },
        _ => Piece {
            data: format.bytes(side, block),
            scales: 0,
        },
    }
}

/// One factor of one block.
#[derive(Clone, Copy)]
enum Factor<'a> {
    Float(FloatRows<'a>),
    Coded {
        shape: (usize, usize),
        scheme: Scheme,
        group: Group,
        codes: &'a [u8],
        scales: &'a [u8],
    },
}

/// A block with its factors and the place of its inner activations.
struct Part<'a> {
    block: Block,
    u: Factor<'a>,
    v: Factor<'a>,
}

impl<'a> Factor<'a> {
    /// Cuts the next block's factor off both slices.
    fn cut(
        side: Side,
        block: &Block,
        format: FactorFormat,
        data: &mut &'a [u8],
        scales: &mut &'a [u8],
    ) -> Self {
        let (rows, cols) = side.shape(block);
        let piece = piece(format, side, block);
        let (now, later) = data.split_at(piece.data);
        *data = later;
        let (now_scales, later) = scales.split_at(piece.scales);
        *scales = later;
        match (format.scheme(), format.group(side)) {
            (Some(scheme), Some(group)) => Factor::Coded {
                shape: (rows, cols),
                scheme,
                group,
                codes: now,
                scales: now_scales,
            },
            _ => Factor::Float(FloatRows {
                data: now,
                format: match format {
                    FactorFormat::F32 => Float::F32,
                    _ => Float::F16,
                },
                rows,
                cols,
                transposed: false,
            }),
        }
    }

    /// Some of the rows.
    fn rows(self, range: Range<usize>) -> Self {
        match self {
            Factor::Float(w) => {
                let row = w.cols * w.format.bits() / 8;
                Factor::Float(FloatRows {
                    data: &w.data[range.start * row..range.end * row],
                    rows: range.len(),
                    ..w
                })
            }
            Factor::Coded {
                shape: (_, cols),
                scheme,
                group,
                codes,
                scales,
            } => {
                let row = packed_len(scheme.bits, cols);
                let each = 2 * group.per_row(cols);
                Factor::Coded {
                    shape: (range.len(), cols),
                    scheme,
                    group,
                    codes: &codes[range.start * row..range.end * row],
                    scales: &scales[range.start * each..range.end * each],
                }
            }
        }
    }

    /// `out[t, r] (+)= Σ_c x[t, c] · F[r, c]`.
    fn multiply(&self, pool: &Pool, x: &[f32], tokens: usize, write: Write, out: &mut [f32]) {
        match self {
            Factor::Float(w) => float::matmul(pool, w, x, tokens, write, out),
            Factor::Coded { .. } => match self.quantized() {
                Some(w) => quant::matmul_exact(pool, &w, x, tokens, write, out),
                None if write == Write::Overwrite => out.fill(0.0),
                None => {}
            },
        }
    }

    /// The coded matrix; its lengths fit, as they were cut to.
    fn quantized(&self) -> Option<QuantRows<'a>> {
        match *self {
            Factor::Float(_) => None,
            Factor::Coded {
                shape,
                scheme,
                group,
                codes,
                scales,
            } => QuantRows::new(shape, scheme, group, codes, scales, None).ok(),
        }
    }

    /// Decodes row `row`.
    fn decode_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Factor::Float(w) => float::decode_row(w, row, out),
            Factor::Coded { .. } => match self.quantized() {
                Some(w) => quant::decode_row(&w, row, out),
                None => out.fill(0.0),
            },
        }
    }
}

/// All entries of both factors, block after block, row-major.
pub fn decode(w: &LowRankView<'_>) -> [Vec<f32>; 2] {
    let side = |side, factor: &FactorData<'_>| {
        let (mut data, mut scales) = (factor.data, factor.scales.unwrap_or_default());
        let mut out = Vec::new();
        for block in w.blocks {
            let (rows, cols) = Side::shape(side, block);
            let part = Factor::cut(side, block, factor.format, &mut data, &mut scales);
            let start = out.len();
            out.resize(start + rows * cols, 0.0);
            let values = out[start..].chunks_mut(cols.max(1));
            values
                .enumerate()
                .for_each(|(row, out)| part.decode_row(row, out));
        }
        out
    };
    [side(Side::U, &w.u), side(Side::V, &w.v)]
}

/// The blocks with their factors, those of rank 0 left out.
fn parts<'a>(w: &LowRankView<'a>) -> Vec<Part<'a>> {
    let (mut u, mut v) = (w.u.data, w.v.data);
    let mut u_scales = w.u.scales.unwrap_or_default();
    let mut v_scales = w.v.scales.unwrap_or_default();
    let mut part = |block: &Block| Part {
        block: *block,
        u: Factor::cut(Side::U, block, w.u.format, &mut u, &mut u_scales),
        v: Factor::cut(Side::V, block, w.v.format, &mut v, &mut v_scales),
    };
    let all: Vec<Part<'a>> = w.blocks.iter().map(&mut part).collect();
    let some = |p: &Part<'_>| p.block.params() > 0 && p.block.rows > 0 && p.block.cols > 0;
    all.into_iter().filter(some).collect()
}

/// `out[t, o] (+)= Σ_b Σ_r U_b[o, r] · Σ_i V_b[r, i] · x[t, i]`.
///
/// Integer factors are decoded exactly; sums are in `f32`.
///
/// # Panics
/// A slice does not fit the shapes, or [`LowRankView::check`] fails.
pub fn matmul(
    pool: &Pool,
    w: &LowRankView<'_>,
    x: &[f32],
    tokens: usize,
    write: Write,
    out: &mut [f32],
) {
    assert!(tokens.checked_mul(w.cols) == Some(x.len()));
    assert!(tokens.checked_mul(w.rows) == Some(out.len()));
    let parts = parts(w);
    let whole = |p: &Part<'_>| p.block.rows == w.rows && p.block.cols == w.cols;
    if let [part] = &parts[..]
        && whole(part)
        && !multiplies_out(&part.block, tokens)
    {
        scratch::with(tokens * part.block.rank, |inner| {
            part.v.multiply(pool, x, tokens, Write::Overwrite, inner);
            part.u.multiply(pool, inner, tokens, write, out);
        });
        return;
    }
    // Rows of this: the inner activations `[tokens, rank]` of a block, or, for blocks that are
    // multiplied out, its columns of `x`.
    let width = |p: &Part<'_>| tokens * inner_width(&p.block, tokens);
    let widest = parts.iter().map(width).max().unwrap_or(0);
    scratch::with(parts.len() * widest, |inner| {
        project(pool, w.cols, &parts, x, tokens, widest, inner);
        pool.split(out, w.rows, (tokens, TILE_ROWS), |mut tile| {
            assemble(pool, &parts, inner, (widest, tokens), write, &mut tile);
        });
    });
}

/// Whether `U · V` is multiplied out for so many tokens.
fn multiplies_out(block: &Block, tokens: usize) -> bool {
    let through = tokens.saturating_mul(block.params());
    let entries = block.rows.saturating_mul(block.cols);
    through > entries.saturating_mul(block.rank.saturating_add(tokens))
}

/// Activations that a block's rows are products with.
fn inner_width(block: &Block, tokens: usize) -> usize {
    if multiplies_out(block, tokens) {
        block.cols
    } else {
        block.rank
    }
}

/// The activations that each block's rows are products with, one block per row of `inner`.
fn project(
    pool: &Pool,
    cols: usize,
    parts: &[Part<'_>],
    x: &[f32],
    tokens: usize,
    widest: usize,
    inner: &mut [f32],
) {
    if widest == 0 {
        return;
    }
    let one = |part: &Part<'_>, out: &mut [f32]| {
        let block = &part.block;
        let gather = |out: &mut [f32]| {
            for (to, from) in out.chunks_mut(block.cols).zip(x.chunks(cols)) {
                to.copy_from_slice(&from[block.col0..block.col0 + block.cols]);
            }
        };
        if multiplies_out(block, tokens) {
            gather(&mut out[..tokens * block.cols]);
            return;
        }
        let out = &mut out[..tokens * block.rank];
        if block.cols == cols {
            part.v.multiply(pool, x, tokens, Write::Overwrite, out);
            return;
        }
        scratch::with(tokens * block.cols, |columns| {
            gather(columns);
            part.v
                .multiply(pool, columns, tokens, Write::Overwrite, out);
        });
    };
    if parts.len() < MANY_BLOCKS {
        for (part, out) in parts.iter().zip(inner.chunks_mut(widest)) {
            one(part, out);
        }
        return;
    }
    pool.split(inner, widest, (1, widest), |mut tile| {
        let index = tile.rows().start;
        one(&parts[index], tile.row_mut(index));
    });
}

/// One tile of output rows: the blocks that meet it, one after the other.
fn assemble(
    pool: &Pool,
    parts: &[Part<'_>],
    inner: &[f32],
    (widest, tokens): (usize, usize),
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    let rows = tile.cols();
    if write == Write::Overwrite {
        for token in tile.rows() {
            tile.row_mut(token).fill(0.0);
        }
    }
    for (part, inner) in parts.iter().zip(inner.chunks(widest.max(1))) {
        let block = &part.block;
        let start = rows.start.max(block.row0);
        let end = rows.end.min(block.row0 + block.rows);
        if start >= end {
            continue;
        }
        let u = part.u.rows(start - block.row0..end - block.row0);
        let inner = &inner[..tokens * inner_width(block, tokens)];
        scratch::with(tokens * (end - start), |sums| {
            if multiplies_out(block, tokens) {
                multiplied_out(pool, part, &u, end - start, inner, tokens, sums);
            } else {
                u.multiply(pool, inner, tokens, Write::Overwrite, sums);
            }
            for (token, sums) in tile.rows().zip(sums.chunks(end - start)) {
                let out = &mut tile.row_mut(token)[start - rows.start..end - rows.start];
                out.iter_mut().zip(sums).for_each(|(o, s)| *o += s);
            }
        });
    }
}

/// Products with `height` rows of `U`, by way of the same rows of `U · V`.
fn multiplied_out(
    pool: &Pool,
    part: &Part<'_>,
    u: &Factor<'_>,
    height: usize,
    x: &[f32],
    tokens: usize,
    out: &mut [f32],
) {
    let (rank, cols) = (part.block.rank, part.block.cols);
    let lengths = height * rank + rank * cols + height * cols;
    scratch::with(lengths, |buffer| {
        let (left, rest) = buffer.split_at_mut(height * rank);
        let (right, product) = rest.split_at_mut(rank * cols);
        for (row, values) in left.chunks_mut(rank).enumerate() {
            u.decode_row(row, values);
        }
        for (row, values) in right.chunks_mut(cols).enumerate() {
            part.v.decode_row(row, values);
        }
        let stored = |data, rows, cols, transposed| FloatRows {
            data,
            format: Float::F32,
            rows,
            cols,
            transposed,
        };
        let v = stored(bytes(right), cols, rank, true);
        float::matmul(pool, &v, left, height, Write::Overwrite, product);
        let w = stored(bytes(product), height, cols, false);
        float::matmul(pool, &w, x, tokens, Write::Overwrite, out);
    });
}

/// Adds row `row` of the matrix to `out`, `[cols]`.
///
/// # Panics
/// There is no such row, `out` has another length, or [`LowRankView::check`] fails.
pub fn add_row(_pool: &Pool, w: &LowRankView<'_>, row: usize, out: &mut [f32]) {
    assert!(row < w.rows && out.len() == w.cols);
    for part in parts(w) {
        let block = part.block;
        let Some(row) = row.checked_sub(block.row0).filter(|&r| r < block.rows) else {
            continue;
        };
        scratch::with(block.rank + block.cols, |buffer| {
            let (factors, values) = buffer.split_at_mut(block.rank);
            part.u.decode_row(row, factors);
            for (r, &factor) in factors.iter().enumerate() {
                part.v.decode_row(r, values);
                let out = &mut out[block.col0..block.col0 + block.cols];
                for (o, &v) in out.iter_mut().zip(values.iter()) {
                    *o = factor.mul_add(v, *o);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
