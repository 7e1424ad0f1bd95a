//! AVX-512. A token is made only where its features are on ([`super::dispatch!`]),
//! and its methods are always inlined there.
#![allow(unsafe_code)]

use super::avx2::{largest_256, put_256, sum_256};
use super::{LANES, Vector};
use std::arch::x86_64::*;

/// One or several intrinsics; the token at hand proves the features.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: `self` exists only where the features do; memory is the
        // caller's, as the pointer methods of `Vector` ask.
        unsafe { $($body)* }
    };
}

/// The token of AVX-512 F, BW, VL and DQ with FMA and F16C.
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

/// Four rows in each 128-bit lane: `out[j]` lane `l` is column `4l + j` of the rows.
///
/// # Safety
/// Needs AVX-512F.
#[inline(always)]
unsafe fn transpose_lanes(x: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: as the caller claims.
    unsafe {
        let low = _mm512_castps_pd(_mm512_unpacklo_ps(x[0], x[1]));
        let high = _mm512_castps_pd(_mm512_unpackhi_ps(x[0], x[1]));
        let low2 = _mm512_castps_pd(_mm512_unpacklo_ps(x[2], x[3]));
        let high2 = _mm512_castps_pd(_mm512_unpackhi_ps(x[2], x[3]));
        [
            _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2)),
        ]
    }
}

impl Vector for Avx512 {
    type V = __m512;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        intrinsics!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> Self::V {
        intrinsics!(_mm512_loadu_ps(at))
    }

    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u8) -> Self::V {
        intrinsics!({
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))
        })
    }

    #[inline(always)]
    unsafe fn load_f16(self, at: *const u8) -> Self::V {
        intrinsics!(_mm512_cvtph_ps(_mm256_loadu_si256(at.cast())))
    }

    #[inline(always)]
    unsafe fn store(self, x: Self::V, at: *mut f32) {
        intrinsics!(_mm512_storeu_ps(at, x))
    }

    #[inline(always)]
    unsafe fn store_transposed(self, x: [Self::V; 8], at: *mut f32, stride: usize, add: bool) {
        intrinsics!({
            let a = transpose_lanes([x[0], x[1], x[2], x[3]]);
            let b = transpose_lanes([x[4], x[5], x[6], x[7]]);
            let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
            let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
            for j in 0..4 {
                let (a, b) = (_mm512_castps_pd(a[j]), _mm512_castps_pd(b[j]));
                let low = _mm512_castpd_ps(_mm512_permutex2var_pd(a, first, b));
                let high = _mm512_castpd_ps(_mm512_permutex2var_pd(a, second, b));
                let at = at.add(j * stride);
                put_256(_mm512_castps512_ps256(low), at, add);
                put_256(_mm512_extractf32x8_ps(low, 1), at.add(4 * stride), add);
                put_256(_mm512_castps512_ps256(high), at.add(8 * stride), add);
                put_256(_mm512_extractf32x8_ps(high, 1), at.add(12 * stride), add);
            }
        })
    }

    #[inline(always)]
    fn transpose(self, x: [Self::V; LANES]) -> [Self::V; LANES] {
        intrinsics!({
            // Lane l of a[j] is column 4l + j of the first four rows.
            let a = transpose_lanes([x[0], x[1], x[2], x[3]]);
            let b = transpose_lanes([x[4], x[5], x[6], x[7]]);
            let c = transpose_lanes([x[8], x[9], x[10], x[11]]);
            let d = transpose_lanes([x[12], x[13], x[14], x[15]]);
            let mut out = x;
            for j in 0..4 {
                let (a, b, c, d) = (a[j], b[j], c[j], d[j]);
                let ab = _mm512_shuffle_f32x4(a, b, 0b01_00_01_00);
                let cd = _mm512_shuffle_f32x4(c, d, 0b01_00_01_00);
                let ab2 = _mm512_shuffle_f32x4(a, b, 0b11_10_11_10);
                let cd2 = _mm512_shuffle_f32x4(c, d, 0b11_10_11_10);
                out[j] = _mm512_shuffle_f32x4(ab, cd, 0b10_00_10_00);
                out[4 + j] = _mm512_shuffle_f32x4(ab, cd, 0b11_01_11_01);
                out[8 + j] = _mm512_shuffle_f32x4(ab2, cd2, 0b10_00_10_00);
                out[12 + j] = _mm512_shuffle_f32x4(ab2, cd2, 0b11_01_11_01);
            }
            out
        })
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        intrinsics!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn select_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        intrinsics!(_mm512_mask_blend_ps(
            _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ),
            y,
            x
        ))
    }

    #[inline(always)]
    fn copy_sign(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!({
            let sign = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b))
        })
    }

    #[inline(always)]
    fn add_exponent(self, x: Self::V, n: Self::V) -> Self::V {
        intrinsics!({
            let shifted = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), shifted))
        })
    }

    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        intrinsics!({
            let high = _mm512_extractf32x8_ps(x, 1);
            sum_256(_mm256_add_ps(_mm512_castps512_ps256(x), high))
        })
    }

    #[inline(always)]
    fn largest(self, x: Self::V) -> f32 {
        intrinsics!({
            let high = _mm512_extractf32x8_ps(x, 1);
            largest_256(_mm256_max_ps(_mm512_castps512_ps256(x), high))
        })
    }
}
