//! Rows to `f32`, and dot products of those.

use super::super::{BLOCK, QuantRows};
use super::{Params, for_bits, mask16, mask64, spread_three};
use std::arch::x86_64::*;

/// Decodes a row with row-wise groups.
pub(in super::super) fn decode_row(w: &QuantRows<'_>, row: usize, out: &mut [f32]) {
    assert_eq!(out.len(), w.cols, "length of the output");
    // SAFETY: `Kind::Avx512` proved the features.
    unsafe { for_bits!(w.scheme.bits, B => decode::<B>(w, row, out)) };
}

/// 64 codes in their order, from `64 * BITS / 8` bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn codes<const BITS: usize>(packed: __m512i) -> __m512i {
    // Each qword gets its eight codes, then each dword its four.
    match BITS {
        8 => packed,
        4 => {
            let dwords = _mm512_cvtepu32_epi64(_mm512_castsi512_si256(packed));
            spread_eight::<4>(dwords)
        }
        3 => {
            let three = spread_three(packed);
            spread_eight::<3>(_mm512_cvtepu32_epi64(_mm512_castsi512_si256(three)))
        }
        _ => {
            let words = _mm512_cvtepu16_epi64(_mm512_castsi512_si128(packed));
            spread_eight::<2>(words)
        }
    }
}

/// For each qword, its first eight codes as bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn spread_eight<const BITS: usize>(packed: __m512i) -> __m512i {
    let from = _mm512_set1_epi64(BITS as i64 * 0x0706_0504_0302_0100);
    let mask = _mm512_set1_epi8(((1u32 << BITS) - 1) as i8);
    _mm512_and_si512(_mm512_multishift_epi64_epi8(from, packed), mask)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn decode<const BITS: usize>(w: &QuantRows<'_>, row: usize, out: &mut [f32]) {
    let params = Params::new(w);
    let packed = w.row_codes(row);
    let mut scales = _mm512_setzero_ps();
    let mut zeros = _mm512_set1_ps(f32::from(w.scheme.midpoint()));
    for (i, out) in out.chunks_mut(64).enumerate() {
        let block = i * 64 / BLOCK;
        if block.is_multiple_of(16) {
            scales = params.scales(w, row, block / 16);
            if w.zeros.is_some() {
                zeros = _mm512_cvtepi32_ps(params.zeros(w, row, block / 16));
            }
        }
        let at = i * 8 * BITS;
        let mask = mask64((packed.len() - at).min(8 * BITS));
        // SAFETY: `at` is inside the row; bytes beyond the row are masked off.
        let v = unsafe { _mm512_maskz_loadu_epi8(mask, packed.as_ptr().add(at).cast()) };
        let codes = codes::<BITS>(v);
        let quarters = [
            _mm512_castsi512_si128(codes),
            _mm512_extracti32x4_epi32::<1>(codes),
            _mm512_extracti32x4_epi32::<2>(codes),
            _mm512_extracti32x4_epi32::<3>(codes),
        ];
        for (q, (out, codes)) in out.chunks_mut(16).zip(quarters).enumerate() {
            let lane = _mm512_set1_epi32((block % 16 + q / 2) as i32);
            let zero = _mm512_permutexvar_ps(lane, zeros);
            let scale = _mm512_permutexvar_ps(lane, scales);
            let code = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes));
            let value = _mm512_mul_ps(_mm512_sub_ps(code, zero), scale);
            // SAFETY: lanes beyond the slice are masked off.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask16(out.len()), value) };
        }
    }
}

/// `Σ x y`, in 64 running sums.
pub(in super::super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    // SAFETY: `Kind::Avx512` proved the features.
    unsafe { dot_512(x, y) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn dot_512(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 4];
    for (x, y) in x.chunks(64).zip(y.chunks(64)) {
        for ((x, y), sum) in x.chunks(16).zip(y.chunks(16)).zip(&mut sums) {
            let mask = mask16(x.len().min(y.len()));
            // SAFETY: lanes beyond the slices are masked off.
            let (x, y) = unsafe {
                (
                    _mm512_maskz_loadu_ps(mask, x.as_ptr()),
                    _mm512_maskz_loadu_ps(mask, y.as_ptr()),
                )
            };
            *sum = _mm512_fmadd_ps(x, y, *sum);
        }
    }
    let [a, b, c, d] = sums;
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
}
