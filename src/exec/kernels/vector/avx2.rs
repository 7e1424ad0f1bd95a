//! AVX2 with FMA: two registers make a vector.
#![allow(unsafe_code, clippy::needless_range_loop)]

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

/// The token of AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Claims that the features are on.
    ///
    /// # Safety
    /// They must be, wherever the token is used.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Avx2(())
    }
}

/// Four rows in each 128-bit lane: `out[j]` lane `l` is column `4l + j` of the rows.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn transpose_lanes(x: [__m256; 4]) -> [__m256; 4] {
    // SAFETY: as the caller claims.
    unsafe {
        let low = _mm256_castps_pd(_mm256_unpacklo_ps(x[0], x[1]));
        let high = _mm256_castps_pd(_mm256_unpackhi_ps(x[0], x[1]));
        let low2 = _mm256_castps_pd(_mm256_unpacklo_ps(x[2], x[3]));
        let high2 = _mm256_castps_pd(_mm256_unpackhi_ps(x[2], x[3]));
        [
            _mm256_castpd_ps(_mm256_unpacklo_pd(low, low2)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(low, low2)),
            _mm256_castpd_ps(_mm256_unpacklo_pd(high, high2)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(high, high2)),
        ]
    }
}

/// Rows become columns.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn transpose_8(x: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: as the caller claims.
    unsafe {
        let a = transpose_lanes([x[0], x[1], x[2], x[3]]);
        let b = transpose_lanes([x[4], x[5], x[6], x[7]]);
        let mut out = x;
        for j in 0..4 {
            out[j] = _mm256_permute2f128_ps(a[j], b[j], 0x20);
            out[4 + j] = _mm256_permute2f128_ps(a[j], b[j], 0x31);
        }
        out
    }
}

/// Writes or adds 8 values.
///
/// # Safety
/// Needs AVX; the caller owns the memory.
#[inline(always)]
pub(super) unsafe fn put_256(x: __m256, at: *mut f32, add: bool) {
    // SAFETY: as the caller claims.
    unsafe {
        let x = if add {
            _mm256_add_ps(_mm256_loadu_ps(at), x)
        } else {
            x
        };
        _mm256_storeu_ps(at, x);
    }
}

/// 8 stored `bf16`.
///
/// # Safety
/// Needs AVX2; the caller owns the memory.
#[inline(always)]
unsafe fn load_bf16_256(at: *const u8) -> __m256 {
    // SAFETY: as the caller claims.
    unsafe {
        let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))
    }
}

/// Magnitudes of `a` with the signs of `b`.
///
/// # Safety
/// Needs AVX.
#[inline(always)]
unsafe fn copy_sign_256(a: __m256, b: __m256) -> __m256 {
    // SAFETY: as the caller claims.
    unsafe {
        let sign = _mm256_set1_ps(-0.0);
        _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b))
    }
}

/// Adds the low bits of `n` to the exponents of `x`.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn add_exponent_256(x: __m256, n: __m256) -> __m256 {
    // SAFETY: as the caller claims.
    unsafe {
        let shifted = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shifted))
    }
}

impl Vector for Avx2 {
    type V = [__m256; 2];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        intrinsics!([_mm256_set1_ps(x); 2])
    }

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> Self::V {
        intrinsics!([_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))])
    }

    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u8) -> Self::V {
        intrinsics!([load_bf16_256(at), load_bf16_256(at.add(16))])
    }

    #[inline(always)]
    unsafe fn load_f16(self, at: *const u8) -> Self::V {
        intrinsics!([
            _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(at.add(16).cast())),
        ])
    }

    #[inline(always)]
    unsafe fn store(self, x: Self::V, at: *mut f32) {
        intrinsics!({
            _mm256_storeu_ps(at, x[0]);
            _mm256_storeu_ps(at.add(8), x[1]);
        })
    }

    #[inline(always)]
    unsafe fn store_transposed(self, x: [Self::V; 8], at: *mut f32, stride: usize, add: bool) {
        for half in 0..2 {
            let mut rows = [x[0][half]; 8];
            for i in 0..8 {
                rows[i] = x[i][half];
            }
            intrinsics!({
                let columns = transpose_8(rows);
                for t in 0..8 {
                    put_256(columns[t], at.add((8 * half + t) * stride), add);
                }
            })
        }
    }

    #[inline(always)]
    fn transpose(self, x: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut out = x;
        for rows in 0..2 {
            for columns in 0..2 {
                let mut block = [x[0][0]; 8];
                for i in 0..8 {
                    block[i] = x[8 * rows + i][columns];
                }
                let block = intrinsics!(transpose_8(block));
                for i in 0..8 {
                    out[8 * columns + i][rows] = block[i];
                }
            }
        }
        out
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        intrinsics!([
            _mm256_fmadd_ps(a[0], b[0], c[0]),
            _mm256_fmadd_ps(a[1], b[1], c[1]),
        ])
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn select_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        intrinsics!([
            _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps(a[0], b[0], _CMP_LT_OQ)),
            _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps(a[1], b[1], _CMP_LT_OQ)),
        ])
    }

    #[inline(always)]
    fn copy_sign(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!([copy_sign_256(a[0], b[0]), copy_sign_256(a[1], b[1])])
    }

    #[inline(always)]
    fn add_exponent(self, x: Self::V, n: Self::V) -> Self::V {
        intrinsics!([add_exponent_256(x[0], n[0]), add_exponent_256(x[1], n[1])])
    }

    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        intrinsics!(sum_256(_mm256_add_ps(x[0], x[1])))
    }

    #[inline(always)]
    fn largest(self, x: Self::V) -> f32 {
        intrinsics!(largest_256(_mm256_max_ps(x[0], x[1])))
    }
}

/// The sum of 8 lanes, halves first.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
pub(super) unsafe fn sum_256(x: __m256) -> f32 {
    // SAFETY: as the caller claims.
    unsafe {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)))
    }
}

/// The largest of 8 lanes.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
pub(super) unsafe fn largest_256(x: __m256) -> f32 {
    // SAFETY: as the caller claims.
    unsafe {
        let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)))
    }
}
