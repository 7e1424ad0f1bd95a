//! A few tokens with 8-bit activations: rows are multiplied as they stream by.
//!
//! A vector of packed codes becomes up to four vectors of bytes by shifts alone; activations are
//! put in the same order beforehand. The 16 sums of products of a step are scaled by block: a lane
//! never mixes blocks. Four rows go together, and their sums are transposed at the end.

use super::super::activations::Rows;
use super::super::{BLOCK, Line, QuantRows};
use super::{Params, SPAN, for_bits, four_codes, mask64, spread_three};
use crate::exec::kernels::Write;
use crate::exec::pool::Tile;
use crate::numeric::quant::Group;
use std::arch::x86_64::*;

/// Rows that go together.
const ROWS: usize = 4;

/// Codes of a step, the lanes of one vector of sums.
const fn step(bits: usize) -> usize {
    match bits {
        8 => 64,
        2 => 256,
        _ => 128,
    }
}

/// Activations in the order that a scheme's packed codes come apart in.
pub(in super::super) struct Few {
    tokens: usize,
    spans: usize,
    /// Eight vectors of codes per span, `[tokens, spans, 8]`.
    codes: Vec<Line>,
    /// Minus zero point times the sums of codes by lane, `[tokens, spans, steps]`; symmetric only.
    minus: Vec<Line>,
    /// `[tokens, spans, 16]`.
    scales: Vec<f32>,
    /// Minus scale times sum, `[tokens, spans, 16]`; asymmetric only.
    minus_sums: Vec<f32>,
}

impl Few {
    /// Puts activations in the order of `w`'s codes.
    pub(in super::super) fn new(w: &QuantRows<'_>, x: &Rows, tokens: usize) -> Self {
        let spans = x.stride / SPAN;
        let mut few = Few {
            tokens,
            spans,
            codes: Vec::with_capacity(tokens * spans * 8),
            minus: Vec::new(),
            scales: x.scales.clone(),
            minus_sums: Vec::new(),
        };
        // SAFETY: `Kind::Avx512` proved the features.
        unsafe {
            for_bits!(w.scheme.bits, B => order::<B>(x, &mut few.codes));
        }
        let asymmetric = w.zeros.is_some() && w.group != Group::Column;
        if asymmetric {
            let pairs = x.scales.iter().zip(&x.sums);
            few.minus_sums = pairs.map(|(a, &sum)| -a * sum as f32).collect();
        } else if w.group == Group::Column {
            // Sums are weighted by block; the first lane of each takes them.
            few.minus = column_sums(x, step(usize::from(w.scheme.bits)));
        } else {
            let zero = w.scheme.midpoint();
            // SAFETY: as above.
            few.minus = unsafe { for_bits!(w.scheme.bits, B => lane_sums::<B>(&few.codes, zero)) };
        }
        few
    }
}

/// Minus the sums of blocks, each in the first lane of its block.
fn column_sums(x: &Rows, step: usize) -> Vec<Line> {
    let blocks = step / BLOCK;
    let lines = x.sums.chunks_exact(blocks).map(|sums| {
        let mut line = Line([0; 64]);
        for (bytes, sum) in line.0.chunks_exact_mut(64 / blocks).zip(sums) {
            bytes[..4].copy_from_slice(&(-sum).to_le_bytes());
        }
        line
    });
    lines.collect()
}

/// Codes in the order in which [`unpack`] returns weights.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn order<const BITS: usize>(x: &Rows, out: &mut Vec<Line>) {
    let parts = step(BITS) / 64;
    let size = 64 / parts;
    for codes in x.codes.chunks_exact(step(BITS)) {
        let mut lines = [Line([0; 64]); 4];
        for (i, codes) in codes.as_chunks::<64>().0.iter().enumerate() {
            // SAFETY: 64 bytes are read from an array of 64.
            let v = unsafe { _mm512_loadu_epi8(codes.as_ptr()) };
            for (part, line) in lines[..parts].iter_mut().enumerate() {
                let line = &mut line.0[i * size..][..size];
                // SAFETY: `size` bytes are written to a slice of `size`.
                unsafe {
                    let to = line.as_mut_ptr().cast();
                    let by = |bits: u32| _mm_cvtsi32_si128((part as u32 * bits) as i32);
                    match BITS {
                        8 => _mm512_storeu_si512(to, v),
                        4 => {
                            let bytes = _mm512_cvtepi16_epi8(_mm512_srl_epi16(v, by(8)));
                            _mm256_storeu_si256(to.cast(), bytes);
                        }
                        3 => {
                            let dwords = _mm512_cvtepi64_epi32(_mm512_srl_epi64(v, by(32)));
                            _mm256_storeu_si256(to.cast(), dwords);
                        }
                        _ => {
                            let bytes = _mm512_cvtepi32_epi8(_mm512_srl_epi32(v, by(8)));
                            _mm_storeu_si128(to.cast(), bytes);
                        }
                    }
                }
            }
        }
        out.extend_from_slice(&lines[..parts]);
    }
}

/// Minus `zero` times the sum of each lane's codes, per step.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn lane_sums<const BITS: usize>(codes: &[Line], zero: u8) -> Vec<Line> {
    let zeros = _mm512_set1_epi8(zero as i8);
    let sums = codes.chunks_exact(step(BITS) / 64).map(|codes| {
        let mut sum = _mm512_setzero_si512();
        for line in codes {
            sum = _mm512_dpbusd_epi32(sum, zeros, load(line));
        }
        let mut line = Line([0; 64]);
        // SAFETY: a line is 64 bytes, aligned.
        unsafe {
            let minus = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
            _mm512_store_si512(line.0.as_mut_ptr().cast(), minus);
        }
        line
    });
    sums.collect()
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 bytes, aligned.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// A step of packed codes as vectors of bytes, in the order of [`order`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn unpack<const BITS: usize>(packed: __m512i) -> [__m512i; 4] {
    let mask = _mm512_set1_epi8(((1u32 << BITS) - 1) as i8);
    let and = |v| _mm512_and_si512(v, mask);
    match BITS {
        8 => [packed; 4],
        4 => {
            let high = and(_mm512_srli_epi16::<4>(packed));
            [and(packed), high, high, high]
        }
        3 => {
            let packed = spread_three(packed);
            let high = four_codes::<3>(packed, 1);
            [four_codes::<3>(packed, 0), high, high, high]
        }
        _ => [
            and(packed),
            and(_mm512_srli_epi16::<2>(packed)),
            and(_mm512_srli_epi16::<4>(packed)),
            and(_mm512_srli_epi16::<6>(packed)),
        ],
    }
}

/// Products for a tile of the output.
pub(in super::super) fn few(w: &QuantRows<'_>, x: &Few, write: Write, mut tile: Tile<'_, f32>) {
    let mut token = 0;
    while token < x.tokens {
        let count = (x.tokens - token).min(4);
        let (asymmetric, tile) = (!x.minus_sums.is_empty(), &mut tile);
        // SAFETY: `Kind::Avx512` proved the features.
        unsafe {
            match (count, asymmetric) {
                (1, false) => {
                    for_bits!(w.scheme.bits, B => rows::<B, 1, false>(w, x, token, write, tile))
                }
                (2, false) => {
                    for_bits!(w.scheme.bits, B => rows::<B, 2, false>(w, x, token, write, tile))
                }
                (3, false) => {
                    for_bits!(w.scheme.bits, B => rows::<B, 3, false>(w, x, token, write, tile))
                }
                (_, false) => {
                    for_bits!(w.scheme.bits, B => rows::<B, 4, false>(w, x, token, write, tile))
                }
                (1, true) => {
                    for_bits!(w.scheme.bits, B => rows::<B, 1, true>(w, x, token, write, tile))
                }
                (2, true) => {
                    for_bits!(w.scheme.bits, B => rows::<B, 2, true>(w, x, token, write, tile))
                }
                (3, true) => {
                    for_bits!(w.scheme.bits, B => rows::<B, 3, true>(w, x, token, write, tile))
                }
                (_, true) => {
                    for_bits!(w.scheme.bits, B => rows::<B, 4, true>(w, x, token, write, tile))
                }
            }
        }
        token += count;
    }
}

/// Products of `T` tokens from `token` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn rows<const BITS: usize, const T: usize, const ASYMMETRIC: bool>(
    w: &QuantRows<'_>,
    x: &Few,
    token: usize,
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    let params = Params::new(w);
    let range = tile.cols();
    for first in range.clone().step_by(ROWS) {
        let count = ROWS.min(range.end - first);
        // Rows beyond the last repeat it.
        let row = |i: usize| first + i.min(count - 1);
        let a = row_sums::<BITS, T, ASYMMETRIC>(w, x, token, params, row(0));
        let b = row_sums::<BITS, T, ASYMMETRIC>(w, x, token, params, row(1));
        let c = row_sums::<BITS, T, ASYMMETRIC>(w, x, token, params, row(2));
        let d = row_sums::<BITS, T, ASYMMETRIC>(w, x, token, params, row(3));
        for t in 0..T {
            let sums = totals([a[t], b[t], c[t], d[t]]);
            let out = &mut tile.row_mut(token + t)[first - range.start..][..count];
            for (o, sum) in out.iter_mut().zip(sums) {
                write.put(o, sum);
            }
        }
    }
}

/// How far ahead of their use codes are asked for, in bytes.
///
/// Rows lie one after the other: what is ahead is what comes.
const AHEAD: usize = 2048;

/// Sums of the products of one row with `T` tokens, lane by lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn row_sums<const BITS: usize, const T: usize, const ASYMMETRIC: bool>(
    w: &QuantRows<'_>,
    x: &Few,
    token: usize,
    params: Params,
    row: usize,
) -> [__m512; T] {
    let step = step(BITS);
    let steps = SPAN / step;
    let step_bytes = step * BITS / 8;
    let codes = w.row_codes(row).as_ptr();
    let mut sums = [_mm512_setzero_ps(); T];
    for span in 0..x.spans {
        let scale = params.scales(w, row, span);
        let mut scales = [scale; T];
        for (t, scale) in scales.iter_mut().enumerate() {
            let at = ((token + t) * x.spans + span) * 16;
            // SAFETY: `x.scales` is `[tokens, spans, 16]`.
            let a = unsafe { _mm512_loadu_ps(x.scales.as_ptr().add(at)) };
            if ASYMMETRIC {
                // SAFETY: `x.minus_sums` has the same shape.
                let minus = unsafe { _mm512_loadu_ps(x.minus_sums.as_ptr().add(at)) };
                let zero = _mm512_cvtepi32_ps(params.zeros(w, row, span));
                sums[t] = _mm512_fmadd_ps(_mm512_mul_ps(zero, *scale), minus, sums[t]);
            }
            *scale = _mm512_mul_ps(*scale, a);
        }
        let at = span * steps * step_bytes;
        let left = w.row_bytes - at;
        // SAFETY: `at` is inside the row.
        let codes = unsafe { codes.add(at) };
        if left >= steps * step_bytes {
            for v in 0..steps {
                // SAFETY: the whole span is inside the row.
                let packed = unsafe { load_step::<BITS>(codes.add(v * step_bytes)) };
                add_step::<BITS, T, ASYMMETRIC>(packed, x, token, (span, v), &scales, &mut sums);
            }
        } else {
            for v in 0..left.div_ceil(step_bytes) {
                let mask = mask64((left - v * step_bytes).min(step_bytes));
                _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(v * step_bytes + AHEAD).cast());
                // SAFETY: bytes beyond the row are masked off.
                let packed =
                    unsafe { _mm512_maskz_loadu_epi8(mask, codes.add(v * step_bytes).cast()) };
                add_step::<BITS, T, ASYMMETRIC>(packed, x, token, (span, v), &scales, &mut sums);
            }
        }
    }
    sums
}

/// The packed codes of a whole step; asks for those that come later.
///
/// # Safety
/// The step is inside its row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
unsafe fn load_step<const BITS: usize>(codes: *const u8) -> __m512i {
    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD).cast());
    // SAFETY: the caller's promise; a step of 3-bit codes is 48 bytes.
    unsafe {
        if BITS == 3 {
            _mm512_maskz_loadu_epi8(mask64(48), codes.cast())
        } else {
            _mm512_loadu_epi8(codes.cast())
        }
    }
}

/// Adds the products of step `v` of a span.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn add_step<const BITS: usize, const T: usize, const ASYMMETRIC: bool>(
    packed: __m512i,
    x: &Few,
    token: usize,
    (span, v): (usize, usize),
    scales: &[__m512; T],
    sums: &mut [__m512; T],
) {
    let step = step(BITS);
    let (steps, parts) = (SPAN / step, step / 64);
    let lane_block = _mm512_srlv_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm512_set1_epi32((16 * BLOCK / step).trailing_zeros() as i32),
    );
    let block = _mm512_add_epi32(lane_block, _mm512_set1_epi32((v * step / BLOCK) as i32));
    let weights = unpack::<BITS>(packed);
    for t in 0..T {
        let at = (token + t) * x.spans + span;
        // SAFETY: `x.codes` is `[tokens, spans, 8]`, `x.minus` `[tokens, spans, steps]`.
        let (x_codes, mut dot) = unsafe {
            let dot = if ASYMMETRIC {
                _mm512_setzero_si512()
            } else {
                load(x.minus.get_unchecked(at * steps + v))
            };
            (x.codes.as_ptr().add(at * 8 + v * parts), dot)
        };
        for (part, weights) in weights.into_iter().take(parts).enumerate() {
            // SAFETY: as above.
            let x = load(unsafe { &*x_codes.add(part) });
            dot = _mm512_dpbusd_epi32(dot, weights, x);
        }
        let scale = _mm512_permutexvar_ps(block, scales[t]);
        sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sums[t]);
    }
}

/// The totals of four vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx2")]
fn totals([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
    let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    let four = _mm512_add_ps(low, high);
    let two = _mm256_add_ps(
        _mm512_castps512_ps256(four),
        _mm512_extractf32x8_ps::<1>(four),
    );
    let one = _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps::<1>(two));
    let mut out = [0.0; 4];
    // SAFETY: four values are written to an array of four.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), one) };
    out
}
