//! Products with `f32` activations: rows decode to a tile in the cache.

#[cfg(target_arch = "x86_64")]
use super::{Kind, avx2, avx512};
use super::{Level, QuantRows, alone, rows_per_part, scalar};
use crate::exec::Pool;
use crate::exec::kernels::Write;
use crate::exec::pool::Tile;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use std::cell::RefCell;

/// Tokens up to which rows are multiplied one by one.
const FEW: usize = 3;

/// `f32` values of a decoded tile: 256 KiB, so that it stays in a core's cache.
const SCRATCH: usize = 64 * 1024;

thread_local! {
    /// The decoded tile of this thread.
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out [+]= x wᵀ` for `f32` activations `[tokens, cols]`; `out` is `[tokens, rows]`.
///
/// Weights decode exactly; only the sums round.
///
/// # Panics
/// If `x` or `out` has another length.
pub fn matmul_exact(
    pool: &Pool,
    w: &QuantRows<'_>,
    x: &[f32],
    tokens: usize,
    write: Write,
    out: &mut [f32],
) {
    matmul_at(Level::detect(), pool, w, x, tokens, write, out);
}

/// [`matmul_exact`] at a level.
pub(super) fn matmul_at(
    level: Level,
    pool: &Pool,
    w: &QuantRows<'_>,
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
    let decoder = Decoder::new(level, w);
    if tokens <= FEW {
        let part = (tokens, rows_per_part(w));
        pool.alone(alone(w.codes.len(), tokens), || {
            pool.split(out, w.rows, part, |tile| few(&decoder, x, write, tile));
        });
        return;
    }
    let rows = (SCRATCH / w.cols).clamp(16, 512);
    pool.split(out, w.rows, (tokens, rows), |tile| {
        many(&decoder, x, write, tile)
    });
}

/// Decodes row `row` of `w` to `f32`, `[cols]`.
///
/// # Panics
/// If there is no such row or `out` has another length.
pub fn decode_row(w: &QuantRows<'_>, row: usize, out: &mut [f32]) {
    assert!(row < w.rows, "row {row} of {}", w.rows);
    assert_eq!(out.len(), w.cols, "length of the output");
    Decoder::new(Level::detect(), w).decode(row, out);
}

/// Decodes rows at a level.
pub(super) struct Decoder<'a> {
    w: &'a QuantRows<'a>,
    level: Level,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(level: Level, w: &'a QuantRows<'a>) -> Self {
        Decoder { w, level }
    }

    pub(super) fn decode(&self, row: usize, out: &mut [f32]) {
        match self.level.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 if self.w.shift().is_some() => avx512::decode_row(self.w, row, out),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 if self.w.shift().is_some() => avx2::decode_row(self.w, row, out),
            _ => scalar::decode_row(self.w, row, out),
        }
    }

    fn dot(&self, x: &[f32], y: &[f32]) -> f32 {
        match self.level.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => avx512::dot(x, y),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => avx2::dot(x, y),
            _ => scalar::dot(x, y),
        }
    }
}

fn few(w: &Decoder<'_>, x: &[f32], write: Write, mut tile: Tile<'_, f32>) {
    let cols = w.w.cols;
    #[cfg(target_arch = "x86_64")]
    if w.level.0 == Kind::Avx512 && w.w.shift().is_some() && tile.rows().len() == 1 {
        let t = tile.rows().start;
        for (i, row) in tile.cols().enumerate() {
            let sum = avx512::dot_row(w.w, row, &x[t * cols..][..cols]);
            write.put(&mut tile.row_mut(t)[i], sum);
        }
        return;
    }
    DECODED.with_borrow_mut(|scratch| {
        scratch.resize(cols, 0.0);
        for (i, row) in tile.cols().enumerate() {
            w.decode(row, scratch);
            for t in tile.rows() {
                let sum = w.dot(scratch, &x[t * cols..][..cols]);
                write.put(&mut tile.row_mut(t)[i], sum);
            }
        }
    });
}

fn many(w: &Decoder<'_>, x: &[f32], write: Write, mut tile: Tile<'_, f32>) {
    let cols = w.w.cols;
    let rows = tile.cols().len();
    let tokens = tile.rows();
    DECODED.with_borrow_mut(|scratch| {
        scratch.resize(rows * (cols + tokens.len()), 0.0);
        let (decoded, sums) = scratch.split_at_mut(rows * cols);
        for (row, out) in tile.cols().zip(decoded.chunks_exact_mut(cols)) {
            w.decode(row, out);
        }
        let x = &x[tokens.start * cols..][..tokens.len() * cols];
        matmul(
            MatMut::from_row_major_slice_mut(sums, tokens.len(), rows),
            Accum::Replace,
            MatRef::from_row_major_slice(x, tokens.len(), cols),
            MatRef::from_row_major_slice(decoded, rows, cols).transpose(),
            1.0,
            Par::Seq,
        );
        for (t, sums) in tokens.zip(sums.chunks_exact(rows)) {
            for (o, &sum) in tile.row_mut(t).iter_mut().zip(sums) {
                write.put(o, sum);
            }
        }
    });
}
