//! NEON, the 128-bit vectors of aarch64.
//!
//! Rows are unpacked to bytes and multiplied with all tokens of the part. The entry point is safe:
//! it runs only behind [`super::Kind::Neon`], which proves that the feature exists. Codes of 8 bits
//! are taken as signed, less 128.
#![allow(unsafe_code)]

use super::activations::Rows;
use super::{BLOCK, QuantRows, scalar};
use crate::exec::kernels::Write;
use crate::exec::pool::Tile;
use crate::numeric::quant::{Group, unpack_row};
use std::arch::aarch64::*;

/// Products with 8-bit activations for a tile of the output.
pub(super) fn int8(w: &QuantRows<'_>, x: &Rows, write: Write, mut tile: Tile<'_, f32>) {
    let blocks = w.cols.div_ceil(BLOCK);
    let mut codes = vec![0; blocks * BLOCK];
    let mut params = Vec::new();
    for (i, row) in tile.cols().enumerate() {
        unpack_row(w.scheme.bits, w.row_codes(row), &mut codes[..w.cols]);
        scalar::block_params(w, row, &mut params);
        if w.scheme.bits == 8 {
            codes.iter_mut().for_each(|q| *q ^= 0x80);
            if w.group != Group::Column {
                params.iter_mut().for_each(|(_, zero)| *zero -= 128);
            }
        }
        for t in tile.rows() {
            // SAFETY: `Kind::Neon` proved the feature.
            let sum = unsafe { row_dot(&codes, &params, x, t) };
            write.put(&mut tile.row_mut(t)[i], sum);
        }
    }
}

#[target_feature(enable = "neon")]
fn row_dot(codes: &[u8], params: &[(f32, i32)], x: &Rows, token: usize) -> f32 {
    let first = token * (x.stride / BLOCK);
    let x_codes = x.codes[token * x.stride..].as_chunks::<BLOCK>().0.iter();
    let x = x_codes.zip(&x.scales[first..]).zip(&x.sums[first..]);
    let mut total = vdupq_n_f32(0.0);
    let blocks = codes.as_chunks::<BLOCK>().0.iter().zip(params);
    for ((codes, (scale, zero)), ((x, a), sum)) in blocks.zip(x) {
        let minus = vsetq_lane_s32::<0>(-zero * sum, vdupq_n_s32(0));
        let dot = vaddq_s32(block_dot(codes, x), minus);
        total = vfmaq_n_f32(total, vcvtq_f32_s32(dot), scale * a);
    }
    vaddvq_f32(total)
}

/// `Σ q x` of a block in four lanes.
#[inline]
#[target_feature(enable = "neon")]
fn block_dot(codes: &[u8; BLOCK], x: &[i8; BLOCK]) -> int32x4_t {
    let mut dot = vdupq_n_s32(0);
    for half in 0..2 {
        // SAFETY: 16 bytes are read from each half of arrays of 32.
        let (codes, x) = unsafe {
            (
                vld1q_s8(codes.as_ptr().add(16 * half).cast()),
                vld1q_s8(x.as_ptr().add(16 * half)),
            )
        };
        // Two products of at most 128 * 127 fit 16 bits.
        let pairs = vmull_s8(vget_low_s8(codes), vget_low_s8(x));
        let pairs = vmlal_s8(pairs, vget_high_s8(codes), vget_high_s8(x));
        dot = vpadalq_s16(dot, pairs);
    }
    dot
}
