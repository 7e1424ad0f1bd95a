//! Sums of rows, each times an activation: few tokens with a matrix stored `[in, out]`.
// Closures over vectors may stay calls outside of the kernel's instruction set: loops instead.
#![allow(unsafe_code, clippy::needless_range_loop)]

use super::FEW;
use super::dot::{Bf16, F16, F32, Stored};
use crate::exec::kernels::vector::{Isa, LANES, Vector, dispatch, prefetch};
use crate::numeric::float::Float;

/// `sums[t, c] += Σ_i x[t, i] · w[i, c]` over rows of `stride` stored values, 1 to 4 tokens.
pub(super) fn columns(
    isa: Isa,
    format: Float,
    data: &[u8],
    stride: usize,
    x: &[f32],
    width: usize,
    sums: &mut [f32],
) {
    assert!(sums.len() <= FEW * width && stride >= width);
    match format {
        Float::F16 => columns_f16(isa, data, stride, x, width, sums),
        Float::Bf16 => columns_bf16(isa, data, stride, x, width, sums),
        _ => columns_f32(isa, data, stride, x, width, sums),
    }
}

dispatch! {
    fn columns_f32(data: &[u8], stride: usize, x: &[f32], width: usize, sums: &mut [f32]) = body::<_, F32>;
}
dispatch! {
    fn columns_f16(data: &[u8], stride: usize, x: &[f32], width: usize, sums: &mut [f32]) = body::<_, F16>;
}
dispatch! {
    fn columns_bf16(data: &[u8], stride: usize, x: &[f32], width: usize, sums: &mut [f32]) = body::<_, Bf16>;
}

#[inline(always)]
fn body<S: Vector, F: Stored>(
    s: S,
    data: &[u8],
    stride: usize,
    x: &[f32],
    width: usize,
    sums: &mut [f32],
) {
    if width == 0 || sums.is_empty() {
        return;
    }
    match sums.len() / width {
        1 => groups::<S, F, 1, 8>(s, data, stride, x, width, sums),
        2 => groups::<S, F, 2, 8>(s, data, stride, x, width, sums),
        3 => groups::<S, F, 3, 4>(s, data, stride, x, width, sums),
        _ => groups::<S, F, 4, 4>(s, data, stride, x, width, sums),
    }
}

/// `T` tokens, `G` rows at a time.
#[inline(always)]
fn groups<S: Vector, F: Stored, const T: usize, const G: usize>(
    s: S,
    data: &[u8],
    stride: usize,
    x: &[f32],
    width: usize,
    sums: &mut [f32],
) {
    let rows = x.len() / T;
    let full = rows / G * G;
    for row in (0..full).step_by(G) {
        group::<S, F, T, G>(s, data, stride, x, rows, row, width, sums);
    }
    for row in full..rows {
        group::<S, F, T, 1>(s, data, stride, x, rows, row, width, sums);
    }
}

/// Adds rows `row .. row + G`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn group<S: Vector, F: Stored, const T: usize, const G: usize>(
    s: S,
    data: &[u8],
    stride: usize,
    x: &[f32],
    rows: usize,
    row: usize,
    width: usize,
    sums: &mut [f32],
) {
    let from: [&[u8]; G] = std::array::from_fn(|g| {
        let start = (row + g) * stride * F::BYTES;
        &data[start..start + width * F::BYTES]
    });
    let mut factors = [[s.splat(0.0); G]; T];
    for t in 0..T {
        for g in 0..G {
            factors[t][g] = s.splat(x[t * rows + row + g]);
        }
    }
    let full = width / LANES * LANES;
    assert!(sums.len() >= T * width);
    for at in (0..full).step_by(LANES) {
        let mut w = [s.splat(0.0); G];
        for g in 0..G {
            let at = from[g].as_ptr().wrapping_add(at * F::BYTES);
            prefetch(at.wrapping_add(G * stride * F::BYTES));
            // SAFETY: the row has 16 values from `at`.
            w[g] = unsafe { F::load(s, at) };
        }
        for t in 0..T {
            // SAFETY: `sums` has `T` rows of `width` values.
            unsafe {
                let place = sums.as_mut_ptr().add(t * width + at);
                let mut sum = s.load(place);
                for g in 0..G {
                    sum = s.fma(w[g], factors[t][g], sum);
                }
                s.store(sum, place);
            }
        }
    }
    if full < width {
        let mut w = [s.splat(0.0); G];
        for g in 0..G {
            w[g] = F::load_part(s, &from[g][full * F::BYTES..]);
        }
        for t in 0..T {
            let place = &mut sums[t * width + full..(t + 1) * width];
            let mut sum = s.load_part(place);
            for g in 0..G {
                sum = s.fma(w[g], factors[t][g], sum);
            }
            s.store_part(sum, place);
        }
    }
}
