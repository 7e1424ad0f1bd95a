//! AVX-512 with VNNI and VBMI.
//!
//! Entry points are safe: they run only behind [`super::Kind::Avx512`], which proves that the
//! features exist. Pointers come from [`QuantRows`], whose lengths were checked; what a vector
//! would read beyond a row is masked off.
#![allow(unsafe_code)]

mod decode;
mod few;
mod many;
mod quantize;

pub(super) use decode::{decode_row, dot, dot_row};
pub(super) use few::{Few, few};
pub(super) use many::{TILE_ROWS, many};
pub(super) use quantize::{interleave, quantize_token};

use super::QuantRows;
use std::arch::x86_64::*;

/// Columns that 16 blocks span: what one vector of block scales covers.
const SPAN: usize = 512;

/// A mask of the first `count` of 64.
fn mask64(count: usize) -> __mmask64 {
    if count >= 64 { !0 } else { (1 << count) - 1 }
}

/// A mask of the first `count` of 16.
fn mask16(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}

/// Where the scales and zero points of 16 neighbouring blocks lie.
#[derive(Clone, Copy)]
struct Groups {
    /// Which of the loaded groups a block is of.
    index: __m512i,
    /// A group is `32 << shift` columns.
    shift: u32,
    /// Loaded at once: those of [`SPAN`] columns.
    loaded: usize,
}

/// Reads scales and zero points of blocks. `None` stands for columns: scale 1, zero point 1.
#[derive(Clone, Copy)]
struct Params(Option<Groups>);

impl Params {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
    fn new(w: &QuantRows<'_>) -> Self {
        Params(w.shift().map(|shift| {
            let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let shift = shift.min(31);
            Groups {
                index: _mm512_srlv_epi32(lane, _mm512_set1_epi32(shift as i32)),
                shift,
                loaded: (16 >> shift.min(4)).max(1),
            }
        }))
    }

    /// Scales of blocks `16 * span..` of a row; 0 beyond the last group.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
    fn scales(self, w: &QuantRows<'_>, row: usize, span: usize) -> __m512 {
        let Some(groups) = self.0 else {
            return _mm512_set1_ps(1.0);
        };
        let first = (16 * span) >> groups.shift;
        let count = groups.loaded.min(w.per_row - first);
        let at = 2 * (row * w.per_row + first);
        debug_assert!(at + 2 * count <= w.scales.len());
        // SAFETY: `count` scales from `at` on are stored; others are masked off.
        let half = unsafe {
            let from = w.scales.as_ptr().add(at).cast();
            _mm_prefetch::<_MM_HINT_T0>(w.scales.as_ptr().wrapping_add(at + 1024).cast());
            _mm256_maskz_loadu_epi16(mask16(count), from)
        };
        _mm512_permutexvar_ps(groups.index, _mm512_cvtph_ps(half))
    }

    /// Stored zero points of blocks `16 * span..` of a row, as integers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
    fn zeros(self, w: &QuantRows<'_>, row: usize, span: usize) -> __m512i {
        let (Some(groups), Some(zeros)) = (self.0, w.zeros) else {
            return _mm512_set1_epi32(1);
        };
        let bits = usize::from(w.scheme.bits);
        let row_bytes = crate::numeric::quant::packed_len(w.scheme.bits, w.per_row);
        let bit = ((16 * span) >> groups.shift) * bits;
        let count = (row_bytes - bit / 8).min(16);
        let at = row * row_bytes + bit / 8;
        debug_assert!(at + count <= zeros.len());
        // SAFETY: `count` bytes from `at` on are stored; others are masked off.
        let packed = unsafe {
            let from = zeros.as_ptr().add(at).cast();
            _mm_maskz_loadu_epi8(mask16(count), from)
        };
        let codes = if bits == 8 {
            packed
        } else {
            // 16 codes of up to 4 bits are in 64 bits; byte `i` takes those from `i * bits` on.
            let low =
                _mm_broadcastq_epi64(_mm_srl_epi64(packed, _mm_cvtsi32_si128((bit % 8) as i32)));
            let step = bits as i64 * 0x0706_0504_0302_0100;
            let from = _mm_set_epi64x(step + bits as i64 * 0x0808_0808_0808_0808, step);
            let mask = _mm_set1_epi8(w.scheme.max_code() as i8);
            _mm_and_si128(_mm_multishift_epi64_epi8(from, low), mask)
        };
        _mm512_permutexvar_epi32(groups.index, _mm512_cvtepu8_epi32(codes))
    }
}

/// Puts 16 dwords of 3 bytes (8 codes of 3 bits) where 48 bytes were.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn spread_three(packed: __m512i) -> __m512i {
    const FROM: [u8; 64] = {
        let mut from = [0; 64];
        let mut i = 0;
        while i < 64 {
            from[i] = (i / 4 * 3 + if i % 4 < 3 { i % 4 } else { 0 }) as u8;
            i += 1;
        }
        from
    };
    // SAFETY: 64 bytes are read from an array of 64.
    let from = unsafe { _mm512_loadu_epi8(FROM.as_ptr().cast()) };
    _mm512_permutexvar_epi8(from, packed)
}

/// For each dword of packed codes, codes `4 * part..4 * part + 4` as bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn four_codes<const BITS: usize>(packed: __m512i, part: usize) -> __m512i {
    let b = BITS as i64;
    let first = 4 * part as i64 * b * 0x0101_0101_0101_0101;
    let within = b * 0x0302_0100_0302_0100 + 0x2020_2020_0000_0000;
    let from = _mm512_set1_epi64(first + within);
    let mask = _mm512_set1_epi8(((1u32 << BITS) - 1) as i8);
    _mm512_and_si512(_mm512_multishift_epi64_epi8(from, packed), mask)
}

/// Transposes a 16 × 16 matrix of dwords.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn transpose(v: &mut [__m512i; 16]) {
    let mut t = *v;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    // Quarter `q` of `u[4 i + j]` is column `4 q + j` of rows `4 i..`.
    let mut u = t;
    for i in 0..4 {
        u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for j in 0..4 {
        let (a, b, c, d) = (u[j], u[4 + j], u[8 + j], u[12 + j]);
        let low_ab = _mm512_shuffle_i32x4::<0x44>(a, b);
        let low_cd = _mm512_shuffle_i32x4::<0x44>(c, d);
        let high_ab = _mm512_shuffle_i32x4::<0xee>(a, b);
        let high_cd = _mm512_shuffle_i32x4::<0xee>(c, d);
        v[j] = _mm512_shuffle_i32x4::<0x88>(low_ab, low_cd);
        v[4 + j] = _mm512_shuffle_i32x4::<0xdd>(low_ab, low_cd);
        v[8 + j] = _mm512_shuffle_i32x4::<0x88>(high_ab, high_cd);
        v[12 + j] = _mm512_shuffle_i32x4::<0xdd>(high_ab, high_cd);
    }
}

/// Evaluates an expression with the bits of a scheme as the constant `$b`.
macro_rules! for_bits {
    ($bits:expr, $b:ident => $call:expr) => {
        match $bits {
            8 => {
                const $b: usize = 8;
                $call
            }
            4 => {
                const $b: usize = 4;
                $call
            }
            3 => {
                const $b: usize = 3;
                $call
            }
            _ => {
                const $b: usize = 2;
                $call
            }
        }
    };
}
use for_bits;
