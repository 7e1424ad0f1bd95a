//! The kernels in plain Rust: the reference, and what any processor can run.

use super::activations::Rows;
use super::{BLOCK, QuantRows};
use crate::exec::kernels::Write;
use crate::exec::pool::Tile;
use crate::numeric::quant::{Group, unpack_row};

/// Decodes a row of any scheme and group to `f32`.
pub(super) fn decode_row(w: &QuantRows<'_>, row: usize, out: &mut [f32]) {
    let mut codes = vec![0; w.cols];
    unpack_row(w.scheme.bits, w.row_codes(row), &mut codes);
    if w.group == Group::Column {
        for (c, (o, &q)) in out.iter_mut().zip(&codes).enumerate() {
            *o = (i32::from(q) - i32::from(w.zero(0, c))) as f32 * w.scale(c);
        }
        return;
    }
    let width = w.group.width(w.cols).unwrap_or(1);
    for (g, (out, codes)) in out.chunks_mut(width).zip(codes.chunks(width)).enumerate() {
        let zero = i32::from(w.zero(row, g));
        let scale = w.scale(row * w.per_row + g);
        for (o, &q) in out.iter_mut().zip(codes) {
            *o = (i32::from(q) - zero) as f32 * scale;
        }
    }
}

/// `Σ x y`, in 16 running sums.
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let (xs, x_rest) = x.as_chunks::<16>();
    let (ys, y_rest) = y.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..16 {
            sums[i] += x[i] * y[i];
        }
    }
    for (i, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
        sums[i % 16] += x * y;
    }
    let mut half = 8;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// Scale and zero point of every block of a row; 1 and 1 for column groups.
pub(super) fn block_params(w: &QuantRows<'_>, row: usize, out: &mut Vec<(f32, i32)>) {
    out.clear();
    let blocks = w.cols.div_ceil(BLOCK);
    let Some(shift) = w.shift() else {
        out.resize(blocks, (1.0, 1));
        return;
    };
    out.extend((0..blocks).map(|b| {
        let group = b >> shift;
        let scale = w.scale(row * w.per_row + group);
        (scale, i32::from(w.zero(row, group)))
    }));
}

/// Products with 8-bit activations for a tile of the output.
pub(super) fn int8(w: &QuantRows<'_>, x: &Rows, write: Write, mut tile: Tile<'_, f32>) {
    let mut codes = vec![0; w.cols];
    let mut params = Vec::new();
    for (i, row) in tile.cols().enumerate() {
        unpack_row(w.scheme.bits, w.row_codes(row), &mut codes);
        block_params(w, row, &mut params);
        for t in tile.rows() {
            let sum = int8_dot(&codes, &params, x, t);
            write.put(&mut tile.row_mut(t)[i], sum);
        }
    }
}

fn int8_dot(codes: &[u8], params: &[(f32, i32)], x: &Rows, token: usize) -> f32 {
    let first = token * (x.stride / BLOCK);
    let (scales, sums) = (&x.scales[first..], &x.sums[first..]);
    let x = x.codes[token * x.stride..].chunks(BLOCK);
    let mut total = 0.0;
    for (b, (codes, x)) in codes.chunks(BLOCK).zip(x).enumerate() {
        let pairs = codes.iter().zip(x);
        let products: i32 = pairs.map(|(&q, &x)| i32::from(q) * i32::from(x)).sum();
        let (scale, zero) = params[b];
        total += (products - zero * sums[b]) as f32 * (scale * scales[b]);
    }
    total
}
