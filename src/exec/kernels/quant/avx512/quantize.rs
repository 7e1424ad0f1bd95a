//! Activations to 8 bits, and their interleaved form.

use super::super::BLOCK;
use super::super::activations::TOKENS;
use super::{mask16, transpose};
use std::arch::x86_64::*;

/// Quantizes one token by blocks; padding of `codes` is left as it is.
///
/// The same numbers as the plain version gives.
pub(in super::super) fn quantize_token(
    x: &[f32],
    codes: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    // SAFETY: `Kind::Avx512` proved the features.
    unsafe { token(x, codes, scales, sums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn token(x: &[f32], codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let codes = codes.as_chunks_mut::<BLOCK>().0;
    let out = codes.iter_mut().zip(scales).zip(sums);
    for (x, ((codes, scale), sum)) in x.chunks(BLOCK).zip(out) {
        // SAFETY: lanes beyond the slice are masked off.
        let (low, high) = unsafe {
            let rest = x.len().saturating_sub(16);
            let high = x.as_ptr().wrapping_add(16);
            (
                _mm512_maskz_loadu_ps(mask16(x.len()), x.as_ptr()),
                _mm512_maskz_loadu_ps(mask16(rest), high),
            )
        };
        // Magnitudes compare as integers; NaN is largest and reaches the scale.
        let magnitude = |v| _mm512_castps_si512(_mm512_abs_ps(v));
        let largest = _mm512_max_epu32(magnitude(low), magnitude(high));
        let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
        if largest < 1e-30 {
            (*codes, *scale, *sum) = ([0; BLOCK], 0.0, 0);
            continue;
        }
        let inverse = _mm512_set1_ps(127.0 / largest);
        let round = _mm512_set1_ps(12_582_912.0);
        let code = |v| {
            let sum = _mm512_add_ps(_mm512_mul_ps(v, inverse), round);
            _mm512_cvtepi32_epi8(_mm512_castps_si512(sum))
        };
        let both = _mm256_set_m128i(code(high), code(low));
        *scale = largest / 127.0;
        let eights = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), both);
        let four = _mm_add_epi32(
            _mm256_castsi256_si128(eights),
            _mm256_extracti128_si256::<1>(eights),
        );
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
        *sum = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)));
        // SAFETY: 32 bytes are written to an array of 32.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), both) };
    }
}

/// Puts the words of up to eight tokens side by side, `[cols / 4, TOKENS]`.
///
/// `codes` is `[tokens, stride]`.
///
/// # Panics
/// If the stride is no multiple of 64 or less than the columns that `out` has room for.
pub(in super::super) fn interleave(codes: &[i8], stride: usize, out: &mut [i32]) {
    assert!(stride.is_multiple_of(64) && out.len() / TOKENS * 4 <= stride);
    // SAFETY: `Kind::Avx512` proved the features.
    unsafe { interleave_words(codes, stride, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn interleave_words(codes: &[i8], stride: usize, out: &mut [i32]) {
    for (i, out) in out.chunks_mut(16 * TOKENS).enumerate() {
        let mut lanes = [_mm512_setzero_si512(); 16];
        for (lane, codes) in lanes.iter_mut().zip(codes.chunks_exact(stride)) {
            // SAFETY: the stride is a multiple of 64 and no less than the columns.
            *lane = unsafe { _mm512_loadu_epi8(codes.as_ptr().add(64 * i)) };
        }
        transpose(&mut lanes);
        for (out, words) in out.as_chunks_mut::<TOKENS>().0.iter_mut().zip(lanes) {
            // SAFETY: eight words are written to an array of eight.
            unsafe {
                let to = out.as_mut_ptr().cast();
                _mm256_storeu_si256(to, _mm512_castsi512_si256(words));
            }
        }
    }
}
