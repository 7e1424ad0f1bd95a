//! Dot products of stored rows with a few tokens.
// Closures over vectors may stay calls outside of the kernel's instruction set: loops instead.
#![allow(unsafe_code, clippy::needless_range_loop)]

use super::{FEW, Write};
use crate::exec::kernels::vector::{Isa, LANES, Vector, dispatch, prefetch};
use crate::exec::pool::Tile;
use crate::numeric::float::{Float, decode_into};

/// Rows that are read side by side.
const SIDE: usize = 4;
/// Bytes by which rows are fetched ahead: the hardware follows four streams a little late.
const AHEAD: usize = 1536;

/// A format that vectors are loaded from.
pub(super) trait Stored {
    /// Bytes per value.
    const BYTES: usize;
    /// The format.
    const FORMAT: Float;

    /// # Safety
    /// 16 values are stored at `at`.
    unsafe fn load<S: Vector>(s: S, at: *const u8) -> S::V;

    /// Fewer than 16 values, zeros behind them.
    #[inline(always)]
    fn load_part<S: Vector>(s: S, bytes: &[u8]) -> S::V {
        let mut lanes = [0.0; LANES];
        let count = (bytes.len() / Self::BYTES).min(LANES);
        decode_into(Self::FORMAT, bytes, &mut lanes[..count]);
        s.load_array(&lanes)
    }
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Stored for F32 {
    const BYTES: usize = 4;
    const FORMAT: Float = Float::F32;

    #[inline(always)]
    unsafe fn load<S: Vector>(s: S, at: *const u8) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(at.cast()) }
    }
}

impl Stored for F16 {
    const BYTES: usize = 2;
    const FORMAT: Float = Float::F16;

    #[inline(always)]
    unsafe fn load<S: Vector>(s: S, at: *const u8) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(at) }
    }
}

impl Stored for Bf16 {
    const BYTES: usize = 2;
    const FORMAT: Float = Float::Bf16;

    #[inline(always)]
    unsafe fn load<S: Vector>(s: S, at: *const u8) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(at) }
    }
}

/// Products of the rows in `data` (one per column of the tile) with 1 to 4 tokens `x`.
pub(super) fn rows(
    isa: Isa,
    format: Float,
    data: &[u8],
    x: &[f32],
    tokens: usize,
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    assert!(tokens <= FEW);
    match format {
        Float::F16 => rows_f16(isa, data, x, tokens, write, tile),
        Float::Bf16 => rows_bf16(isa, data, x, tokens, write, tile),
        _ => rows_f32(isa, data, x, tokens, write, tile),
    }
}

dispatch! {
    fn rows_f32(data: &[u8], x: &[f32], tokens: usize, write: Write, tile: &mut Tile<'_, f32>) = body::<_, F32>;
}
dispatch! {
    fn rows_f16(data: &[u8], x: &[f32], tokens: usize, write: Write, tile: &mut Tile<'_, f32>) = body::<_, F16>;
}
dispatch! {
    fn rows_bf16(data: &[u8], x: &[f32], tokens: usize, write: Write, tile: &mut Tile<'_, f32>) = body::<_, Bf16>;
}

#[inline(always)]
fn body<S: Vector, F: Stored>(
    s: S,
    data: &[u8],
    x: &[f32],
    tokens: usize,
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    match tokens {
        0 => {}
        1 => each::<S, F, 1, 2>(s, data, x, write, tile),
        2 => each::<S, F, 2, 1>(s, data, x, write, tile),
        3 => each::<S, F, 3, 1>(s, data, x, write, tile),
        _ => each::<S, F, 4, 1>(s, data, x, write, tile),
    }
}

/// All rows, with `T` tokens and `U` running sums per row and token.
#[inline(always)]
fn each<S: Vector, F: Stored, const T: usize, const U: usize>(
    s: S,
    data: &[u8],
    x: &[f32],
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    let cols = x.len() / T;
    let size = cols * F::BYTES;
    let rows = tile.cols().len();
    let first_token = tile.rows().start;
    assert!(data.len() >= rows * size && x.len() == T * cols);
    let tokens: [&[f32]; T] = std::array::from_fn(|t| &x[t * cols..(t + 1) * cols]);
    for row in (0..rows).step_by(SIDE) {
        let count = SIDE.min(rows - row);
        // Rows that do not exist are computed as copies of the last one and not stored.
        let side: [&[u8]; SIDE] =
            std::array::from_fn(|i| &data[(row + i.min(count - 1)) * size..][..size]);
        let sums = dots::<S, F, T, U>(s, side, tokens, cols);
        for t in 0..T {
            let out = &mut tile.row_mut(first_token + t)[row..row + count];
            for (o, sums) in out.iter_mut().zip(&sums) {
                *o = match write {
                    Write::Overwrite => sums[t],
                    Write::Add => *o + sums[t],
                };
            }
        }
    }
}

/// Dot products of four rows with `T` tokens.
#[inline(always)]
fn dots<S: Vector, F: Stored, const T: usize, const U: usize>(
    s: S,
    rows: [&[u8]; SIDE],
    tokens: [&[f32]; T],
    cols: usize,
) -> [[f32; T]; SIDE] {
    let mut acc = [[[s.splat(0.0); U]; T]; SIDE];
    let full = cols / (U * LANES) * (U * LANES);
    for at in (0..full).step_by(U * LANES) {
        for u in 0..U {
            let col = at + u * LANES;
            let mut x = [s.splat(0.0); T];
            for t in 0..T {
                // SAFETY: `col + 16` is at most the length of tokens and rows.
                x[t] = unsafe { s.load(tokens[t].as_ptr().add(col)) };
            }
            for r in 0..SIDE {
                let at = rows[r].as_ptr().wrapping_add(col * F::BYTES);
                if (u * LANES * F::BYTES).is_multiple_of(64) {
                    prefetch(at.wrapping_add(AHEAD));
                }
                // SAFETY: as above.
                let w = unsafe { F::load(s, at) };
                for t in 0..T {
                    acc[r][t][u] = s.fma(w, x[t], acc[r][t][u]);
                }
            }
        }
    }
    for col in (full..cols).step_by(LANES) {
        let end = (col + LANES).min(cols);
        let mut x = [s.splat(0.0); T];
        for t in 0..T {
            x[t] = s.load_part(&tokens[t][col..end]);
        }
        for r in 0..SIDE {
            let w = F::load_part(s, &rows[r][col * F::BYTES..end * F::BYTES]);
            for t in 0..T {
                acc[r][t][0] = s.fma(w, x[t], acc[r][t][0]);
            }
        }
    }
    let mut out = [[0.0; T]; SIDE];
    for r in 0..SIDE {
        for t in 0..T {
            let mut all = acc[r][t][0];
            for u in 1..U {
                all = s.add(all, acc[r][t][u]);
            }
            out[r][t] = s.sum(all);
        }
    }
    out
}
