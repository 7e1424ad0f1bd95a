//! NEON: four weights at once.
//!
//! Entry points are safe: they run only behind [`super::Kind::Neon`], which proves the feature.
#![allow(unsafe_code)]

use super::int8::Sums;
use super::{Decoded, with_wrap};
use crate::numeric::trellis::{OFFSET, TILE, multiplier};
use std::arch::aarch64::*;

/// Decodes a tile of the right length.
pub(super) fn decode_tile(tile: &[u8], bits: u8, states_log2: u8, out: &mut Decoded) {
    // SAFETY: `Kind::Neon` proved the feature.
    unsafe { decode_tile_body(tile, bits, states_log2, out) }
}

#[target_feature(enable = "neon")]
fn decode_tile_body(tile: &[u8], bits: u8, states_log2: u8, out: &mut Decoded) {
    let bytes = with_wrap(tile);
    let factor = multiplier(states_log2, bits);
    let bits = usize::from(bits.clamp(1, 8));
    let mask = vdupq_n_u32((1 << states_log2) - 1);
    // Four windows of half a row: their three bytes, and the shift to the right.
    let mut index = [[0xFFu8; 16]; 2];
    let mut shift = [[0i32; 4]; 2];
    for i in 0..8 {
        let start = i * bits;
        for byte in 0..3 {
            index[i / 4][4 * (i % 4) + byte] = (start / 8 + byte) as u8;
        }
        shift[i / 4][i % 4] = -((start % 8) as i32);
    }
    for (half, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        // SAFETY: halves of rows start at most 31 * 8 bytes into 272; arrays have 16 bytes.
        let four = |i: usize| unsafe {
            let from = vld1q_u8(bytes.as_ptr().add(bits * half));
            let windows = vreinterpretq_u32_u8(vqtbl1q_u8(from, vld1q_u8(index[i].as_ptr())));
            let states = vandq_u32(vshlq_u32(windows, vld1q_s32(shift[i].as_ptr())), mask);
            let product = vreinterpretq_u8_u32(vmulq_n_u32(states, factor));
            vmovn_u32(vpaddlq_u16(vpaddlq_u8(product)))
        };
        let sum = vreinterpretq_s16_u16(vcombine_u16(four(0), four(1)));
        let codes = vsubq_s16(sum, vdupq_n_s16(OFFSET as i16));
        // SAFETY: eight integers.
        unsafe { vst1q_s16(out.as_mut_ptr(), codes) };
    }
}

/// Adds products of pairs of tiles with blocks of 32 activations.
pub(super) fn dot(tiles: &[[Decoded; 2]], x: &[[i8; 32]], scales: &[f32], sums: &mut Sums) {
    // SAFETY: `Kind::Neon` proved the feature.
    unsafe { dot_body(tiles, x, scales, sums) }
}

#[target_feature(enable = "neon")]
fn dot_body(tiles: &[[Decoded; 2]], x: &[[i8; 32]], scales: &[f32], sums: &mut Sums) {
    for ((tiles, x), &scale) in tiles.iter().zip(x).zip(scales) {
        for (row, sums) in sums.iter_mut().enumerate() {
            for four in 0..2 {
                // Four sums of two neighbouring columns each, of both tiles.
                let mut dot = vdupq_n_s32(0);
                for (half, tile) in tiles.iter().enumerate() {
                    // SAFETY: eight integers of a row and as many activations.
                    unsafe {
                        let w = vld1q_s16(tile.as_ptr().add(TILE * row + 8 * four));
                        let x = vmovl_s8(vld1_s8(x.as_ptr().add(TILE * half + 8 * four)));
                        let low = vmull_s16(vget_low_s16(w), vget_low_s16(x));
                        let high = vmull_s16(vget_high_s16(w), vget_high_s16(x));
                        dot = vaddq_s32(dot, vpaddq_s32(low, high));
                    }
                }
                // SAFETY: four of eight sums.
                unsafe {
                    let at = sums.as_mut_ptr().add(4 * four);
                    let sum = vfmaq_n_f32(vld1q_f32(at), vcvtq_f32_s32(dot), scale);
                    vst1q_f32(at, sum);
                }
            }
        }
    }
}
