//! AVX2: a row of a tile at once.
//!
//! Entry points are safe: they run only behind [`super::Kind::Avx2`], which proves that the
//! features exist.
#![allow(unsafe_code)]

use super::int8::Sums;
use super::{Decoded, with_wrap};
use crate::numeric::trellis::{OFFSET, TILE, multiplier};
use std::arch::x86_64::*;

/// How eight windows are taken from the bytes of half a row, four and four.
#[repr(C, align(32))]
#[derive(Clone, Copy)]
struct Windows {
    /// Three bytes for each window, the same in both halves of a register.
    bytes: [[u8; 32]; 2],
    /// Where windows start in those.
    shifts: [[u32; 8]; 2],
}

const fn windows(bits: usize) -> Windows {
    let mut out = Windows {
        bytes: [[0x80; 32]; 2],
        shifts: [[0; 8]; 2],
    };
    let mut i = 0;
    while i < 16 {
        let (four, lane) = (i / 8, i % 8);
        let start = (4 * four + lane % 4) * bits;
        let mut byte = 0;
        while byte < 3 {
            out.bytes[four][4 * lane + byte] = (start / 8 + byte) as u8;
            byte += 1;
        }
        out.shifts[four][lane] = (start % 8) as u32;
        i += 1;
    }
    out
}

/// By bits per weight, less one.
static WINDOWS: [Windows; 8] = [
    windows(1),
    windows(2),
    windows(3),
    windows(4),
    windows(5),
    windows(6),
    windows(7),
    windows(8),
];

/// Decodes a tile of the right length.
pub(super) fn decode_tile(tile: &[u8], bits: u8, states_log2: u8, out: &mut Decoded) {
    // SAFETY: `Kind::Avx2` proved the features.
    unsafe { decode_tile_body(tile, bits, states_log2, out) }
}

#[target_feature(enable = "avx2,fma")]
fn decode_tile_body(tile: &[u8], bits: u8, states_log2: u8, out: &mut Decoded) {
    let bytes = with_wrap(tile);
    let bits = usize::from(bits.clamp(1, 8));
    let windows = &WINDOWS[bits - 1];
    let factor = multiplier(states_log2, bits as u8);
    let low_factor = _mm256_set1_epi16(factor as i16);
    let high_factor = _mm256_set1_epi16((factor >> 16) as i16);
    let mask = _mm256_set1_epi32((1 << states_log2) - 1);
    let ones = _mm256_set1_epi8(1);
    let offset = _mm256_set1_epi16(OFFSET as i16);
    for (row, out) in out.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
        // SAFETY: rows and their halves start at most 31 * 8 bytes into 272; tables are 32 bytes.
        unsafe {
            let start = bytes.as_ptr().add(2 * bits * row);
            let first = _mm_loadu_si128(start.cast());
            let second = _mm_loadu_si128(start.add(bits).cast());
            let halves = _mm256_set_m128i(second, first);
            let four = |i: usize| {
                let bytes = _mm256_loadu_si256(windows.bytes[i].as_ptr().cast());
                let shifts = _mm256_loadu_si256(windows.shifts[i].as_ptr().cast());
                let window = _mm256_srlv_epi32(_mm256_shuffle_epi8(halves, bytes), shifts);
                _mm256_and_si256(window, mask)
            };
            let states = _mm256_packus_epi32(four(0), four(1));
            let low = _mm256_mullo_epi16(states, low_factor);
            let carried = _mm256_mulhi_epu16(states, low_factor);
            let high = _mm256_add_epi16(carried, _mm256_mullo_epi16(states, high_factor));
            let sum = _mm256_add_epi16(
                _mm256_maddubs_epi16(low, ones),
                _mm256_maddubs_epi16(high, ones),
            );
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_sub_epi16(sum, offset));
        }
    }
}

/// Adds products of pairs of tiles with blocks of 32 activations.
pub(super) fn dot(tiles: &[[Decoded; 2]], x: &[[i8; 32]], scales: &[f32], sums: &mut Sums) {
    // SAFETY: `Kind::Avx2` proved the features.
    unsafe { dot_body(tiles, x, scales, sums) }
}

#[target_feature(enable = "avx2,fma")]
fn dot_body(tiles: &[[Decoded; 2]], x: &[[i8; 32]], scales: &[f32], sums: &mut Sums) {
    for ((tiles, x), &scale) in tiles.iter().zip(x).zip(scales) {
        let scale = _mm256_set1_ps(scale);
        // SAFETY: both halves are 16 bytes.
        let x = unsafe {
            let x: *const __m128i = x.as_ptr().cast();
            [
                _mm256_cvtepi8_epi16(_mm_loadu_si128(x)),
                _mm256_cvtepi8_epi16(_mm_loadu_si128(x.add(1))),
            ]
        };
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: rows are 16 integers, sums eight values.
            unsafe {
                let first = _mm256_loadu_si256(tiles[0].as_ptr().add(TILE * row).cast());
                let second = _mm256_loadu_si256(tiles[1].as_ptr().add(TILE * row).cast());
                let dot = _mm256_add_epi32(
                    _mm256_madd_epi16(first, x[0]),
                    _mm256_madd_epi16(second, x[1]),
                );
                let before = _mm256_loadu_ps(sums.as_ptr());
                let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, before);
                _mm256_storeu_ps(sums.as_mut_ptr(), sum);
            }
        }
    }
}
