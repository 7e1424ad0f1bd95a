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

/// Calls `each(i, weights)` for every 64 weights of a row; those beyond its end are finite.
///
/// Codes, zero points and scales have 8 significant bits, so that the fused form is as exact as
/// the difference times the scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn each_chunk<const BITS: usize>(
    w: &QuantRows<'_>,
    row: usize,
    mut each: impl FnMut(usize, [__m512; 4]),
) {
    let params = Params::new(w);
    let packed = w.row_codes(row);
    let mut scales = _mm512_setzero_ps();
    let mut minus = _mm512_setzero_ps();
    for i in 0..w.cols.div_ceil(64) {
        let block = i * 64 / BLOCK;
        if block.is_multiple_of(16) {
            scales = params.scales(w, row, block / 16);
            let zeros = if w.zeros.is_some() {
                _mm512_cvtepi32_ps(params.zeros(w, row, block / 16))
            } else {
                _mm512_set1_ps(f32::from(1u8 << (BITS - 1)))
            };
            minus = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(zeros, scales));
        }
        let at = i * 8 * BITS;
        let mask = mask64((packed.len() - at).min(8 * BITS));
        // SAFETY: `at` is inside the row; bytes beyond the row are masked off.
        let packed = unsafe {
            let from = packed.as_ptr().add(at);
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(1024).cast());
            _mm512_maskz_loadu_epi8(mask, from.cast())
        };
        let codes = codes::<BITS>(packed);
        let quarters = [
            _mm512_castsi512_si128(codes),
            _mm512_extracti32x4_epi32::<1>(codes),
            _mm512_extracti32x4_epi32::<2>(codes),
            _mm512_extracti32x4_epi32::<3>(codes),
        ];
        let mut values = [_mm512_setzero_ps(); 4];
        for (q, (value, codes)) in values.iter_mut().zip(quarters).enumerate() {
            let lane = _mm512_set1_epi32((block % 16 + q / 2) as i32);
            let code = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes));
            let scale = _mm512_permutexvar_ps(lane, scales);
            *value = _mm512_fmadd_ps(code, scale, _mm512_permutexvar_ps(lane, minus));
        }
        each(i, values);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn decode<const BITS: usize>(w: &QuantRows<'_>, row: usize, out: &mut [f32]) {
    each_chunk::<BITS>(w, row, |i, values| {
        let out = &mut out[64 * i..];
        for (q, value) in values.into_iter().enumerate() {
            let at = 16 * q;
            // SAFETY: lanes beyond the slice are masked off.
            unsafe {
                if out.len() >= 64 {
                    _mm512_storeu_ps(out.as_mut_ptr().add(at), value);
                } else {
                    let mask = mask16(out.len().saturating_sub(at));
                    _mm512_mask_storeu_ps(out.as_mut_ptr().wrapping_add(at), mask, value);
                }
            }
        }
    });
}

/// The product of a row with one token, decoded in registers.
pub(in super::super) fn dot_row(w: &QuantRows<'_>, row: usize, x: &[f32]) -> f32 {
    assert_eq!(x.len(), w.cols, "length of the activations");
    // SAFETY: `Kind::Avx512` proved the features.
    unsafe { for_bits!(w.scheme.bits, B => dot_of::<B>(w, row, x)) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn dot_of<const BITS: usize>(w: &QuantRows<'_>, row: usize, x: &[f32]) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 4];
    each_chunk::<BITS>(w, row, |i, values| {
        let x = &x[64 * i..];
        for (q, (value, sum)) in values.into_iter().zip(&mut sums).enumerate() {
            let at = 16 * q;
            // SAFETY: lanes beyond the slice are masked off.
            let x = unsafe {
                if x.len() >= 64 {
                    _mm512_loadu_ps(x.as_ptr().add(at))
                } else {
                    let mask = mask16(x.len().saturating_sub(at));
                    _mm512_maskz_loadu_ps(mask, x.as_ptr().wrapping_add(at))
                }
            };
            *sum = _mm512_fmadd_ps(value, x, *sum);
        }
    });
    total(sums)
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn total([a, b, c, d]: [__m512; 4]) -> f32 {
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
}

/// `Σ x y`, in 64 running sums.
pub(in super::super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    // SAFETY: `Kind::Avx512` proved the features.
    unsafe { dot_512(x, y) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn dot_512(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 4];
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<64>(), y.as_chunks::<64>());
    for (x, y) in xs.iter().zip(ys) {
        for (q, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 16 of the 64 values are read, `q` is below 4.
            let (x, y) = unsafe {
                (
                    _mm512_loadu_ps(x.as_ptr().add(16 * q)),
                    _mm512_loadu_ps(y.as_ptr().add(16 * q)),
                )
            };
            *sum = _mm512_fmadd_ps(x, y, *sum);
        }
    }
    for ((x, y), sum) in x_rest.chunks(16).zip(y_rest.chunks(16)).zip(&mut sums) {
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
    total(sums)
}
