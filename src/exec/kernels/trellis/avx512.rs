//! AVX-512 with VBMI and VNNI: two rows of a tile at once.
//!
//! Entry points are safe: they run only behind [`super::Kind::Avx512`], which proves that the
//! features exist. Two rows are 32 windows of bits in `4 K` bytes and two more; a byte permutation
//! and a multishift take them apart. Bytes that a tile does not have are masked off.
// Closures over vectors may stay calls outside of their instruction set: loops instead.
#![allow(unsafe_code, clippy::needless_range_loop)]

use super::Decoded;
use super::int8::Sums;
use crate::numeric::trellis::{OFFSET, TILE, multiplier, tile_bytes};
use std::arch::x86_64::*;

/// Bytes by which tiles are fetched ahead.
const AHEAD: usize = 2048;

/// How windows of 16 bits are taken from the bytes of two rows.
#[repr(C, align(64))]
struct Windows {
    /// For each word of 64 bits, its bytes: four windows are in them.
    bytes: [u8; 64],
    /// Where each byte of the windows starts in its word.
    shifts: [u8; 64],
}

const fn windows(bits: usize) -> Windows {
    let mut out = Windows {
        bytes: [0; 64],
        shifts: [0; 64],
    };
    let mut i = 0;
    while i < 64 {
        let (word, window, high) = (i / 8, i % 8 / 2, i % 2);
        let start = 4 * word * bits;
        out.bytes[i] = (start / 8 + i % 8) as u8;
        out.shifts[i] = (start % 8 + window * bits + 8 * high) as u8;
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

/// A tile and what it takes to decode it.
#[derive(Clone, Copy)]
struct Source {
    tile: *const u8,
    /// Bytes of two rows.
    bytes: usize,
    windows: __m512i,
    shifts: __m512i,
    mask: __m512i,
    low: __m512i,
    high: __m512i,
}

impl Source {
    /// # Safety
    /// `tile` points to the bytes of a tile; `bits` is 1 to 8.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
    unsafe fn new(tile: *const u8, bits: u8, states_log2: u8) -> Self {
        let windows = &WINDOWS[usize::from(bits) - 1];
        let factor = multiplier(states_log2, bits);
        // SAFETY: tables of 64 bytes.
        unsafe {
            Source {
                tile,
                bytes: 4 * usize::from(bits),
                windows: _mm512_load_si512(windows.bytes.as_ptr().cast()),
                shifts: _mm512_load_si512(windows.shifts.as_ptr().cast()),
                mask: _mm512_set1_epi16(((1u32 << states_log2) - 1) as i16),
                low: _mm512_set1_epi16(factor as i16),
                high: _mm512_set1_epi16((factor >> 16) as i16),
            }
        }
    }

    /// The integers of rows `2 pair` and `2 pair + 1`, for `pair` of 0 to 7.
    ///
    /// # Safety
    /// The source's tile is readable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
    unsafe fn rows(&self, pair: usize) -> __m512i {
        let own = (1u64 << self.bytes) - 1;
        let next = 0b11u64 << self.bytes;
        // SAFETY: lanes within the tile are read: the last rows' next bytes are the tile's first.
        let bits = unsafe {
            let from = self.tile.add(pair * self.bytes).cast();
            if pair < 7 {
                _mm512_maskz_loadu_epi8(own | next, from)
            } else {
                let first = self.tile.wrapping_sub(self.bytes).cast();
                _mm512_mask_loadu_epi8(_mm512_maskz_loadu_epi8(own, from), next, first)
            }
        };
        let words = _mm512_permutexvar_epi8(self.windows, bits);
        let states = _mm512_multishift_epi64_epi8(self.shifts, words);
        let states = _mm512_and_si512(states, self.mask);
        let low = _mm512_mullo_epi16(states, self.low);
        let carried = _mm512_mulhi_epu16(states, self.low);
        let high = _mm512_add_epi16(carried, _mm512_mullo_epi16(states, self.high));
        let ones = _mm512_set1_epi8(1);
        let sum = _mm512_add_epi16(
            _mm512_maddubs_epi16(low, ones),
            _mm512_maddubs_epi16(high, ones),
        );
        _mm512_sub_epi16(sum, _mm512_set1_epi16(OFFSET as i16))
    }
}

/// Decodes a tile of the right length.
pub(super) fn decode_tile(tile: &[u8], bits: u8, states_log2: u8, out: &mut Decoded) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
    unsafe fn body(tile: &[u8], bits: u8, states_log2: u8, out: &mut Decoded) {
        // SAFETY: the caller checked the length; each two rows are 32 integers.
        unsafe {
            let source = Source::new(tile.as_ptr(), bits, states_log2);
            for pair in 0..TILE / 2 {
                let to = out.as_mut_ptr().add(2 * TILE * pair).cast();
                _mm512_storeu_si512(to, source.rows(pair));
            }
        }
    }
    assert_eq!(tile.len(), tile_bytes(bits));
    // SAFETY: `Kind::Avx512` proved the features.
    unsafe { body(tile, bits, states_log2, out) }
}

/// 16 activations in both halves, as 16 bits.
///
/// # Safety
/// 16 bytes are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
unsafe fn activations(x: *const i8) -> __m512i {
    // SAFETY: the caller's promise.
    let x = unsafe { _mm_loadu_si128(x.cast()) };
    _mm512_broadcast_i64x4(_mm256_cvtepi8_epi16(x))
}

/// The products of the tiles of 16 rows with one token.
pub(super) fn stripe(
    codes: &[u8],
    bits: &[u8],
    states_log2: u8,
    x: &[[i8; 32]],
    scales: &[f32],
    sums: &mut Sums,
) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
    unsafe fn body(
        codes: &[u8],
        bits: &[u8],
        states_log2: u8,
        x: &[[i8; 32]],
        scales: &[f32],
        sums: &mut Sums,
    ) {
        let mut total = [_mm512_setzero_ps(); TILE / 2];
        let mut tile = codes.as_ptr();
        for ((bits, x), &scale) in bits.chunks(2).zip(x).zip(scales) {
            let mut dots = [_mm512_setzero_si512(); TILE / 2];
            for (half, &bits) in bits.iter().enumerate() {
                // SAFETY: the caller checked that the tiles of all column blocks are there.
                unsafe {
                    let x = activations(x.as_ptr().add(TILE * half));
                    let source = Source::new(tile, bits, states_log2);
                    let ahead: *const i8 = tile.wrapping_add(AHEAD).cast();
                    for line in 0..tile_bytes(bits).div_ceil(64) {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64 * line));
                    }
                    for (pair, dots) in dots.iter_mut().enumerate() {
                        *dots = _mm512_dpwssd_epi32(*dots, source.rows(pair), x);
                    }
                    tile = tile.add(tile_bytes(bits));
                }
            }
            let scale = _mm512_set1_ps(scale);
            for pair in 0..TILE / 2 {
                let dot = _mm512_cvtepi32_ps(dots[pair]);
                total[pair] = _mm512_fmadd_ps(dot, scale, total[pair]);
            }
        }
        store(&total, sums);
    }
    assert_eq!(
        codes.len(),
        bits.iter().map(|&b| tile_bytes(b)).sum::<usize>()
    );
    assert!(2 * x.len().min(scales.len()) >= bits.len());
    // SAFETY: `Kind::Avx512` proved the features, and the tiles are there.
    unsafe { body(codes, bits, states_log2, x, scales, sums) }
}

/// Adds products of pairs of tiles with blocks of 32 activations.
pub(super) fn dot(tiles: &[[Decoded; 2]], x: &[[i8; 32]], scales: &[f32], sums: &mut Sums) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
    unsafe fn body(tiles: &[[Decoded; 2]], x: &[[i8; 32]], scales: &[f32], sums: &mut Sums) {
        let mut total = [_mm512_setzero_ps(); TILE / 2];
        let from = sums.as_flattened().as_chunks::<16>().0;
        for (total, from) in total.iter_mut().zip(from) {
            // SAFETY: 16 values.
            *total = unsafe { _mm512_loadu_ps(from.as_ptr()) };
        }
        for ((tiles, x), &scale) in tiles.iter().zip(x).zip(scales) {
            let mut dots = [_mm512_setzero_si512(); TILE / 2];
            for (half, tile) in tiles.iter().enumerate() {
                // SAFETY: both arrays have two halves; two rows are 32 integers.
                unsafe {
                    let x = activations(x.as_ptr().add(TILE * half));
                    for (pair, dots) in dots.iter_mut().enumerate() {
                        let rows = _mm512_loadu_si512(tile.as_ptr().add(2 * TILE * pair).cast());
                        *dots = _mm512_dpwssd_epi32(*dots, rows, x);
                    }
                }
            }
            let scale = _mm512_set1_ps(scale);
            for pair in 0..TILE / 2 {
                let dot = _mm512_cvtepi32_ps(dots[pair]);
                total[pair] = _mm512_fmadd_ps(dot, scale, total[pair]);
            }
        }
        store(&total, sums);
    }
    // SAFETY: `Kind::Avx512` proved the features.
    unsafe { body(tiles, x, scales, sums) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(total: &[__m512; TILE / 2], sums: &mut Sums) {
    let to = sums.as_flattened_mut().as_chunks_mut::<16>().0;
    for (total, to) in total.iter().zip(to) {
        // SAFETY: 16 values.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), *total) };
    }
}
