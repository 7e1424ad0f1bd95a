//! AVX2 and AVX-512.
//!
//! A token is made only where its features are on ([`super::multiversion!`]),
//! and its methods are always inlined there.
#![allow(unsafe_code)]

use super::{LANES, Simd};
use std::arch::x86_64::*;

/// One or several intrinsics; the token at hand proves the features.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: `self` exists only where the features do; loads and stores
        // are unaligned and within the array that the reference names.
        unsafe { $($body)* }
    };
}

/// The token of AVX-512 F, BW, VL and DQ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// Claims that the features are on.
    ///
    /// # Safety
    /// They must be, wherever the token is used.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Avx512(())
    }
}

impl Simd for Avx512 {
    type F = __m512;
    type D = [__m512d; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        intrinsics!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        intrinsics!(_mm512_loadu_ps(x.as_ptr()))
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        intrinsics!(_mm512_storeu_ps(out.as_mut_ptr(), x))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        intrinsics!(_mm512_mask_blend_ps(
            _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ),
            y,
            x
        ))
    }

    #[inline(always)]
    fn ceil(self, x: Self::F) -> Self::F {
        const UP: i32 = _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC;
        intrinsics!(_mm512_roundscale_ps(x, UP))
    }

    #[inline(always)]
    fn round_bf16(self, x: Self::F) -> Self::F {
        intrinsics!({
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), odd);
            let kept = _mm512_set1_epi32(-0x1_0000);
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_add_epi32(bits, up), kept))
        })
    }

    #[inline(always)]
    fn first_min(self, x: Self::F) -> usize {
        intrinsics!({
            let low = _mm512_castps512_ps256(x);
            let least = least_of_256(_mm256_min_ps(low, _mm512_extractf32x8_ps(x, 1)));
            let mask = _mm512_cmp_ps_mask(x, _mm512_set1_ps(least), _CMP_EQ_OQ);
            mask.trailing_zeros() as usize % LANES
        })
    }

    #[inline(always)]
    fn max_abs(self, acc: Self::F, x: Self::F) -> Self::F {
        intrinsics!({
            let magnitude = _mm512_castps_si512(_mm512_abs_ps(x));
            _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(acc), magnitude))
        })
    }

    #[inline(always)]
    fn fold_max_abs(self, acc: Self::F) -> u32 {
        intrinsics!({
            let x = _mm512_castps_si512(acc);
            let x = _mm256_max_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
            fold_max_256(x)
        })
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        intrinsics!({
            let high = _mm512_extractf32x8_ps(x, 1);
            sum_256(_mm256_add_ps(_mm512_castps512_ps256(x), high))
        })
    }

    #[inline(always)]
    fn store_low_bytes(self, x: Self::F, out: &mut [u8; LANES]) {
        intrinsics!({
            let bytes = _mm512_cvtepi32_epi8(_mm512_castps_si512(x));
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        })
    }

    #[inline(always)]
    fn zero_sums(self) -> Self::D {
        intrinsics!([_mm512_setzero_pd(); 2])
    }

    #[inline(always)]
    fn add_squares(self, sums: Self::D, x: Self::F) -> Self::D {
        intrinsics!({
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
            let high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
            // Squares of an f32 are exact in f64, so fusing changes nothing.
            [
                _mm512_fmadd_pd(low, low, sums[0]),
                _mm512_fmadd_pd(high, high, sums[1]),
            ]
        })
    }

    #[inline(always)]
    fn total(self, sums: Self::D) -> f64 {
        intrinsics!({
            let x = _mm512_add_pd(sums[0], sums[1]);
            let high = _mm512_extractf64x4_pd(x, 1);
            total_256(_mm256_add_pd(_mm512_castpd512_pd256(x), high))
        })
    }
}

/// The token of AVX2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Claims that the feature is on.
    ///
    /// # Safety
    /// It must be, wherever the token is used.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Avx2(())
    }
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type D = [__m256d; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        intrinsics!([_mm256_set1_ps(x); 2])
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        intrinsics!([
            _mm256_loadu_ps(x.as_ptr()),
            _mm256_loadu_ps(x.as_ptr().add(8))
        ])
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        intrinsics!({
            _mm256_storeu_ps(out.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), x[1]);
        })
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        intrinsics!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        intrinsics!([
            _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps(a[0], b[0], _CMP_LT_OQ)),
            _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps(a[1], b[1], _CMP_LT_OQ)),
        ])
    }

    #[inline(always)]
    fn ceil(self, x: Self::F) -> Self::F {
        intrinsics!([_mm256_ceil_ps(x[0]), _mm256_ceil_ps(x[1])])
    }

    #[inline(always)]
    fn round_bf16(self, x: Self::F) -> Self::F {
        intrinsics!({
            let round = |x: __m256| {
                let bits = _mm256_castps_si256(x);
                let odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
                let up = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd);
                let kept = _mm256_set1_epi32(-0x1_0000);
                _mm256_castsi256_ps(_mm256_and_si256(_mm256_add_epi32(bits, up), kept))
            };
            [round(x[0]), round(x[1])]
        })
    }

    #[inline(always)]
    fn first_min(self, x: Self::F) -> usize {
        intrinsics!({
            let least = _mm256_set1_ps(least_of_256(_mm256_min_ps(x[0], x[1])));
            let low = _mm256_movemask_ps(_mm256_cmp_ps(x[0], least, _CMP_EQ_OQ));
            let high = _mm256_movemask_ps(_mm256_cmp_ps(x[1], least, _CMP_EQ_OQ));
            (low | high << 8).trailing_zeros() as usize % LANES
        })
    }

    #[inline(always)]
    fn max_abs(self, acc: Self::F, x: Self::F) -> Self::F {
        intrinsics!({
            let mask = _mm256_set1_epi32(i32::MAX);
            let max = |acc: __m256, x: __m256| {
                let magnitude = _mm256_and_si256(_mm256_castps_si256(x), mask);
                _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(acc), magnitude))
            };
            [max(acc[0], x[0]), max(acc[1], x[1])]
        })
    }

    #[inline(always)]
    fn fold_max_abs(self, acc: Self::F) -> u32 {
        intrinsics!({
            let (a, b) = (_mm256_castps_si256(acc[0]), _mm256_castps_si256(acc[1]));
            fold_max_256(_mm256_max_epi32(a, b))
        })
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        intrinsics!(sum_256(_mm256_add_ps(x[0], x[1])))
    }

    #[inline(always)]
    fn store_low_bytes(self, x: Self::F, out: &mut [u8; LANES]) {
        intrinsics!({
            let mask = _mm256_set1_epi32(0xff);
            let low = _mm256_and_si256(_mm256_castps_si256(x[0]), mask);
            let high = _mm256_and_si256(_mm256_castps_si256(x[1]), mask);
            // Packing interleaves 128-bit halves; the permutation undoes that.
            let words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0b11_01_10_00);
            let halves = (
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256(words, 1),
            );
            let bytes = _mm_packus_epi16(halves.0, halves.1);
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
        })
    }

    #[inline(always)]
    fn zero_sums(self) -> Self::D {
        intrinsics!([_mm256_setzero_pd(); 4])
    }

    #[inline(always)]
    fn add_squares(self, sums: Self::D, x: Self::F) -> Self::D {
        intrinsics!({
            let square = |sum: __m256d, x: __m128| {
                let x = _mm256_cvtps_pd(x);
                _mm256_add_pd(sum, _mm256_mul_pd(x, x))
            };
            [
                square(sums[0], _mm256_castps256_ps128(x[0])),
                square(sums[1], _mm256_extractf128_ps(x[0], 1)),
                square(sums[2], _mm256_castps256_ps128(x[1])),
                square(sums[3], _mm256_extractf128_ps(x[1], 1)),
            ]
        })
    }

    #[inline(always)]
    fn total(self, sums: Self::D) -> f64 {
        intrinsics!({
            let low = _mm256_add_pd(sums[0], sums[2]);
            let high = _mm256_add_pd(sums[1], sums[3]);
            total_256(_mm256_add_pd(low, high))
        })
    }
}

/// The largest of 8 non-negative integers.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn fold_max_256(x: __m256i) -> u32 {
    // SAFETY: as the caller claims.
    unsafe {
        let x = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        let x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0b01_00_11_10));
        let x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0b10_11_00_01));
        _mm_cvtsi128_si32(x) as u32
    }
}

/// The least of 8 lanes.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn least_of_256(x: __m256) -> f32 {
    // SAFETY: as the caller claims.
    unsafe {
        let x = _mm_min_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        let x = _mm_min_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_min_ss(x, _mm_shuffle_ps(x, x, 1)))
    }
}

/// The sum of 8 lanes, halves first.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn sum_256(x: __m256) -> f32 {
    // SAFETY: as the caller claims.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)))
    }
}

/// The sum of 4 lanes, halves first.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn total_256(x: __m256d) -> f64 {
    // SAFETY: as the caller claims.
    unsafe {
        let x = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
        _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)))
    }
}
