//! Steps on AVX2 and AVX-512.
#![allow(unsafe_code)]

use super::step::{Block, LANES, Lanes};
use crate::numeric::simd::x86::{Avx2, Avx512};
use std::arch::x86_64::*;

/// One or several intrinsics; the token at hand proves the features.
macro_rules! intrinsics {
    ($($body:tt)*) => {
        // SAFETY: `self` exists only where the features do; loads and stores are within the block
        // or the table that the reference names.
        unsafe { $($body)* }
    };
}

/// For each part of a step, which of 32 lanes go where.
const fn spread_lanes<const K: u32>() -> [Block<u16>; LANES] {
    let mut out = [Block([0; LANES]); LANES];
    let mut part = 0;
    while part < LANES {
        let mut i = 0;
        while i < LANES {
            out[part].0[i] = ((part * LANES + i) >> K) as u16 % LANES as u16;
            i += 1;
        }
        part += 1;
    }
    out
}

impl Lanes for Avx512 {
    type V = __m512i;

    #[inline(always)]
    fn load_u(self, x: &Block<u16>) -> Self::V {
        intrinsics!(_mm512_loadu_si512(x.0.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_i(self, x: &Block<i16>) -> Self::V {
        intrinsics!(_mm512_loadu_si512(x.0.as_ptr().cast()))
    }
    #[inline(always)]
    fn store(self, x: Self::V, out: &mut Block<u16>) {
        intrinsics!(_mm512_storeu_si512(out.0.as_mut_ptr().cast(), x))
    }
    #[inline(always)]
    fn splat(self, x: u16) -> Self::V {
        intrinsics!(_mm512_set1_epi16(x as i16))
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_min_epu16(a, b))
    }
    #[inline(always)]
    fn less(self, a: Self::V, b: Self::V) -> u32 {
        intrinsics!(_mm512_cmplt_epu16_mask(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_sub_epi16(a, b))
    }
    #[inline(always)]
    fn add_unsigned(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_adds_epu16(a, b))
    }
    #[inline(always)]
    fn sub_unsigned(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_subs_epu16(a, b))
    }
    #[inline(always)]
    fn add_signed(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_adds_epi16(a, b))
    }
    #[inline(always)]
    fn sub_signed(self, a: Self::V, b: Self::V) -> Self::V {
        intrinsics!(_mm512_subs_epi16(a, b))
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        intrinsics!(_mm512_abs_epi16(a))
    }
    #[inline(always)]
    fn square(self, a: Self::V) -> Self::V {
        intrinsics!(_mm512_mulhrs_epi16(a, a))
    }
    #[inline(always)]
    fn spread<const K: u32>(self, x: Self::V, part: usize) -> Self::V {
        let lanes = &const { spread_lanes::<K>() }[part % LANES];
        intrinsics!(_mm512_permutexvar_epi16(self.load_u(lanes), x))
    }
    #[inline(always)]
    fn least(self, a: Self::V) -> u16 {
        intrinsics!(least(_mm256_min_epu16(
            _mm512_castsi512_si256(a),
            _mm512_extracti64x4_epi64::<1>(a)
        )))
    }
}

/// The least unsigned lane.
///
/// # Safety
/// AVX2 must be on.
#[inline(always)]
unsafe fn least(a: __m256i) -> u16 {
    // SAFETY: the caller's promise.
    unsafe {
        let half = _mm_min_epu16(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
        _mm_cvtsi128_si32(_mm_minpos_epu16(half)) as u16
    }
}

/// How a half of 16 lanes is spread: words of 32 bits to move, then bytes within each 16.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Moves {
    words: [i32; 8],
    bytes: [u8; 32],
}

/// For each part of a step, both halves of it.
const fn spread_moves<const K: u32>() -> [[Moves; 2]; LANES] {
    let none = Moves {
        words: [0; 8],
        bytes: [0; 32],
    };
    let mut out = [[none; 2]; LANES];
    let mut at = 0;
    while at < LANES * LANES {
        let (part, lane) = (at / LANES, at % LANES);
        let (half, quarter) = (lane / 16, lane / 8 % 2);
        // The lane that comes here, and the first one that comes to these eight.
        let from = (at >> K) % 16;
        let first = ((at - lane % 8) >> K) % 16;
        let moves = &mut out[part][half];
        moves.words[4 * quarter] = first as i32 / 2;
        moves.words[4 * quarter + 1] = first as i32 / 2 + 1;
        let byte = 2 * (from - first / 2 * 2) as u8;
        moves.bytes[2 * (lane % 16)] = byte;
        moves.bytes[2 * (lane % 16) + 1] = byte + 1;
        at += 1;
    }
    out
}

/// Applies an operation to both halves.
macro_rules! halves {
    ($f:ident($a:ident, $b:ident)) => {
        intrinsics!([$f($a[0], $b[0]), $f($a[1], $b[1])])
    };
}

impl Lanes for Avx2 {
    type V = [__m256i; 2];

    #[inline(always)]
    fn load_u(self, x: &Block<u16>) -> Self::V {
        let p: *const __m256i = x.0.as_ptr().cast();
        intrinsics!([_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1))])
    }
    #[inline(always)]
    fn load_i(self, x: &Block<i16>) -> Self::V {
        let p: *const __m256i = x.0.as_ptr().cast();
        intrinsics!([_mm256_loadu_si256(p), _mm256_loadu_si256(p.add(1))])
    }
    #[inline(always)]
    fn store(self, x: Self::V, out: &mut Block<u16>) {
        let p: *mut __m256i = out.0.as_mut_ptr().cast();
        intrinsics!(
            _mm256_storeu_si256(p, x[0]);
            _mm256_storeu_si256(p.add(1), x[1])
        )
    }
    #[inline(always)]
    fn splat(self, x: u16) -> Self::V {
        intrinsics!([_mm256_set1_epi16(x as i16); 2])
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_min_epu16(a, b))
    }
    #[inline(always)]
    fn less(self, a: Self::V, b: Self::V) -> u32 {
        // a < b just where b is not the least of both; a packed pair has its quarters in turns.
        let least = self.min(a, b);
        let not_less = halves!(_mm256_cmpeq_epi16(least, b));
        intrinsics!(
            let packed = _mm256_packs_epi16(not_less[0], not_less[1]);
            !_mm256_movemask_epi8(_mm256_permute4x64_epi64::<0b11_01_10_00>(packed)) as u32
        )
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_sub_epi16(a, b))
    }
    #[inline(always)]
    fn add_unsigned(self, a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_adds_epu16(a, b))
    }
    #[inline(always)]
    fn sub_unsigned(self, a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_subs_epu16(a, b))
    }
    #[inline(always)]
    fn add_signed(self, a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_adds_epi16(a, b))
    }
    #[inline(always)]
    fn sub_signed(self, a: Self::V, b: Self::V) -> Self::V {
        halves!(_mm256_subs_epi16(a, b))
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        intrinsics!([_mm256_abs_epi16(a[0]), _mm256_abs_epi16(a[1])])
    }
    #[inline(always)]
    fn square(self, a: Self::V) -> Self::V {
        halves!(_mm256_mulhrs_epi16(a, a))
    }
    #[inline(always)]
    fn spread<const K: u32>(self, x: Self::V, part: usize) -> Self::V {
        let moves = &const { spread_moves::<K>() }[part % LANES];
        let mut out = x;
        for half in 0..2 {
            // The register that the lanes of this half come from.
            let from = x[((part * LANES + 16 * half) >> K) / 16 % 2];
            out[half] = intrinsics!(
                let words = _mm256_loadu_si256(moves[half].words.as_ptr().cast());
                let bytes = _mm256_loadu_si256(moves[half].bytes.as_ptr().cast());
                _mm256_shuffle_epi8(_mm256_permutevar8x32_epi32(from, words), bytes)
            );
        }
        out
    }
    #[inline(always)]
    fn least(self, a: Self::V) -> u16 {
        intrinsics!(least(_mm256_min_epu16(a[0], a[1])))
    }
}
