//! AVX2 with FMA and F16C.
//!
//! Four rows are unpacked to bytes, block after block, and multiplied with all tokens of the part.
//! Entry points are safe: they run only behind [`super::Kind::Avx2`], which proves that the features
//! exist. Codes of 8 bits are taken as signed, less 128, since a pair of products of larger ones
//! would not fit 16 bits.
#![allow(unsafe_code)]

use super::activations::Rows;
use super::{BLOCK, QuantRows};
use crate::exec::kernels::Write;
use crate::exec::pool::Tile;
use std::arch::x86_64::*;
use std::cell::RefCell;

/// Rows that go together.
const ROWS: usize = 4;

/// Unpacked rows.
#[derive(Default)]
struct Unpacked {
    /// `[ROWS, blocks]`.
    codes: Vec<[u8; BLOCK]>,
    /// Scale and zero point less the codes' offset, `[ROWS, blocks]`.
    params: Vec<(f32, i32)>,
    /// Scales of one row's groups.
    scales: Vec<f32>,
}

thread_local! {
    /// The rows that this thread works on.
    static UNPACKED: RefCell<Unpacked> = RefCell::default();
}

/// Products with 8-bit activations for a tile of the output.
pub(super) fn int8(w: &QuantRows<'_>, x: &Rows, write: Write, mut tile: Tile<'_, f32>) {
    UNPACKED.with_borrow_mut(|unpacked| {
        // SAFETY: `Kind::Avx2` proved the features.
        unsafe {
            match w.scheme.bits {
                8 => products::<8>(w, x, write, &mut tile, unpacked),
                4 => products::<4>(w, x, write, &mut tile, unpacked),
                3 => products::<3>(w, x, write, &mut tile, unpacked),
                _ => products::<2>(w, x, write, &mut tile, unpacked),
            }
        }
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
fn products<const BITS: usize>(
    w: &QuantRows<'_>,
    x: &Rows,
    write: Write,
    tile: &mut Tile<'_, f32>,
    unpacked: &mut Unpacked,
) {
    let blocks = w.cols.div_ceil(BLOCK);
    let range = tile.cols();
    for first in range.clone().step_by(ROWS) {
        let count = ROWS.min(range.end - first);
        unpacked.codes.clear();
        unpacked.params.clear();
        for i in 0..ROWS {
            // Rows beyond the last repeat it.
            unpack_row::<BITS>(w, first + i.min(count - 1), unpacked);
        }
        for t in tile.rows() {
            let sums = four_rows::<BITS>(unpacked, x, t, blocks);
            let out = &mut tile.row_mut(t)[first - range.start..][..count];
            for (out, sum) in out.iter_mut().zip(sums) {
                write.put(out, sum);
            }
        }
    }
}

/// Appends the codes and parameters of a row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_row<const BITS: usize>(w: &QuantRows<'_>, row: usize, out: &mut Unpacked) {
    let offset = if BITS == 8 { 128 } else { 0 };
    let packed = w.row_codes(row).chunks(BLOCK / 8 * BITS);
    let Some(shift) = w.shift() else {
        // Columns: their scales are in the activations, their zero points in the sums.
        out.params.extend(packed.clone().map(|_| (1.0, 1)));
        return out
            .codes
            .extend(packed.map(|packed| bytes(unpack::<BITS>(packed))));
    };
    row_scales(w, row, &mut out.scales);
    let symmetric = i32::from(w.scheme.midpoint()) - offset;
    for (b, packed) in packed.enumerate() {
        out.codes.push(bytes(unpack::<BITS>(packed)));
        let group = b >> shift;
        let zero = match w.zeros {
            None => symmetric,
            Some(_) => i32::from(w.zero(row, group)) - offset,
        };
        out.params.push((out.scales[group], zero));
    }
}

/// The scales of a row's groups.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn row_scales(w: &QuantRows<'_>, row: usize, out: &mut Vec<f32>) {
    out.clear();
    let stored = &w.scales[2 * row * w.per_row..][..2 * w.per_row];
    for eight in stored.chunks(16) {
        let mut padded = [0; 16];
        padded[..eight.len()].copy_from_slice(eight);
        let mut scales = [0.0; 8];
        // SAFETY: 16 bytes are read from an array of 16, eight values written to one of eight.
        unsafe {
            let half = _mm_loadu_si128(padded.as_ptr().cast());
            _mm256_storeu_ps(scales.as_mut_ptr(), _mm256_cvtph_ps(half));
        }
        out.extend_from_slice(&scales[..eight.len() / 2]);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn bytes(v: __m256i) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    // SAFETY: 32 bytes are written to an array of 32.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) };
    out
}

/// 32 codes in their order; 8-bit ones less 128. What is missing at a row's end is 0 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack<const BITS: usize>(packed: &[u8]) -> __m256i {
    let mut padded = [0; BLOCK];
    padded[..packed.len()].copy_from_slice(packed);
    // SAFETY: 32 and 16 bytes are read from an array of 32.
    let (all, low) = unsafe {
        let from = padded.as_ptr().cast::<__m256i>();
        (_mm256_loadu_si256(from), _mm_loadu_si128(from.cast()))
    };
    match BITS {
        8 => _mm256_xor_si256(all, _mm256_set1_epi8(-128)),
        4 => halves::<4>(low),
        3 => threes(low),
        _ => {
            // Pairs of codes as nibbles, then single codes.
            let nibbles = halves::<4>(low);
            halves::<2>(_mm256_castsi256_si128(nibbles))
        }
    }
}

/// Each of 16 bytes to two: its low `BITS` and the next ones.
#[inline]
#[target_feature(enable = "avx2")]
fn halves<const BITS: i32>(packed: __m128i) -> __m256i {
    let mask = _mm_set1_epi8((1 << BITS) - 1);
    let low = _mm_and_si128(packed, mask);
    let high = _mm_and_si128(_mm_srli_epi16::<BITS>(packed), mask);
    _mm256_set_m128i(_mm_unpackhi_epi8(low, high), _mm_unpacklo_epi8(low, high))
}

/// 32 codes of 3 bits from 12 bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn threes(packed: __m128i) -> __m256i {
    let both = _mm256_broadcastsi128_si256(packed);
    // Each dword takes the two bytes that hold its four codes, 12 bits.
    let from = _mm256_setr_epi8(
        0, 1, -1, -1, 1, 2, -1, -1, 3, 4, -1, -1, 4, 5, -1, -1, //
        6, 7, -1, -1, 7, 8, -1, -1, 9, 10, -1, -1, 10, 11, -1, -1,
    );
    let dwords = _mm256_shuffle_epi8(both, from);
    // Every second starts in the middle of a byte.
    let dwords = _mm256_srlv_epi32(dwords, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    let field = |v, mask| _mm256_and_si256(v, _mm256_set1_epi32(mask));
    _mm256_or_si256(
        _mm256_or_si256(
            field(dwords, 0x7),
            field(_mm256_slli_epi32::<5>(dwords), 0x700),
        ),
        _mm256_or_si256(
            field(_mm256_slli_epi32::<10>(dwords), 0x7_0000),
            field(_mm256_slli_epi32::<15>(dwords), 0x700_0000),
        ),
    )
}

/// The products of four unpacked rows with a token.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn four_rows<const BITS: usize>(
    w: &Unpacked,
    x: &Rows,
    token: usize,
    blocks: usize,
) -> [f32; ROWS] {
    let first = token * (x.stride / BLOCK);
    let codes = x.codes[token * x.stride..].as_chunks::<BLOCK>().0.iter();
    let x = codes.zip(&x.scales[first..]).zip(&x.sums[first..]);
    let mut sums = [_mm256_setzero_ps(); ROWS];
    for (b, ((x, a), sum)) in x.take(blocks).enumerate() {
        // SAFETY: 32 bytes are read from an array of 32.
        let x = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
        for (i, total) in sums.iter_mut().enumerate() {
            let at = i * blocks + b;
            let (scale, zero) = w.params[at];
            // SAFETY: as above.
            let codes = unsafe { _mm256_loadu_si256(w.codes[at].as_ptr().cast()) };
            let pairs = if BITS == 8 {
                let signed = _mm256_sign_epi8(x, codes);
                _mm256_maddubs_epi16(_mm256_abs_epi8(codes), signed)
            } else {
                _mm256_maddubs_epi16(codes, x)
            };
            let dot = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            let minus = _mm256_zextsi128_si256(_mm_cvtsi32_si128(-zero * sum));
            let dot = _mm256_cvtepi32_ps(_mm256_add_epi32(dot, minus));
            *total = _mm256_fmadd_ps(dot, _mm256_set1_ps(scale * a), *total);
        }
    }
    sums.map(|sum| total(sum))
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn total(sum: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// Decodes a row with row-wise groups.
pub(super) fn decode_row(w: &QuantRows<'_>, row: usize, out: &mut [f32]) {
    assert_eq!(out.len(), w.cols, "length of the output");
    UNPACKED.with_borrow_mut(|unpacked| {
        // SAFETY: `Kind::Avx2` proved the features.
        unsafe {
            match w.scheme.bits {
                8 => decode::<8>(w, row, out, unpacked),
                4 => decode::<4>(w, row, out, unpacked),
                3 => decode::<3>(w, row, out, unpacked),
                _ => decode::<2>(w, row, out, unpacked),
            }
        }
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
fn decode<const BITS: usize>(
    w: &QuantRows<'_>,
    row: usize,
    out: &mut [f32],
    unpacked: &mut Unpacked,
) {
    unpacked.codes.clear();
    unpacked.params.clear();
    unpack_row::<BITS>(w, row, unpacked);
    let blocks = unpacked.codes.iter().zip(&unpacked.params);
    for (out, (codes, &(scale, zero))) in out.chunks_mut(BLOCK).zip(blocks) {
        let (scale, zero) = (_mm256_set1_ps(scale), _mm256_set1_epi32(zero));
        let mut values = [0.0; BLOCK];
        for (codes, values) in codes.chunks_exact(8).zip(values.chunks_exact_mut(8)) {
            // SAFETY: eight bytes are read from eight, eight values written to eight.
            unsafe {
                let codes = _mm_loadl_epi64(codes.as_ptr().cast());
                let codes = if BITS == 8 {
                    _mm256_cvtepi8_epi32(codes)
                } else {
                    _mm256_cvtepu8_epi32(codes)
                };
                let value = _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, zero));
                _mm256_storeu_ps(values.as_mut_ptr(), _mm256_mul_ps(value, scale));
            }
        }
        out.copy_from_slice(&values[..out.len()]);
    }
}

/// `Σ x y`, in 32 running sums.
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    // SAFETY: `Kind::Avx2` proved the features.
    unsafe { dot_256(x, y) }
}

#[target_feature(enable = "avx2,fma")]
fn dot_256(x: &[f32], y: &[f32]) -> f32 {
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<32>(), y.as_chunks::<32>());
    let mut sums = [_mm256_setzero_ps(); 4];
    for (x, y) in xs.iter().zip(ys) {
        for (q, sum) in sums.iter_mut().enumerate() {
            // SAFETY: eight of the 32 values are read, `q` is below 4.
            let (x, y) = unsafe {
                (
                    _mm256_loadu_ps(x.as_ptr().add(8 * q)),
                    _mm256_loadu_ps(y.as_ptr().add(8 * q)),
                )
            };
            *sum = _mm256_fmadd_ps(x, y, *sum);
        }
    }
    let [a, b, c, d] = sums;
    let sum = total(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)));
    let rest = x_rest.iter().zip(y_rest).map(|(x, y)| x * y);
    sum + rest.sum::<f32>()
}
