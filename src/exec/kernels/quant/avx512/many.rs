//! Many tokens with 8-bit activations: 16 rows are unpacked once and used for all tokens.
//!
//! A lane is a row. A vector of the tile holds four neighbouring codes of each of 16 rows, so that
//! one instruction multiplies them with four activations of a token, taken from memory as one word.
//! Eight of those make a block of 32, which is then scaled for 16 rows at once.

use super::super::activations::{Block, Blocks, TOKENS};
use super::super::{BLOCK, Line, QuantRows};
use super::{Params, SPAN, for_bits, four_codes, mask16, mask64, spread_three, transpose};
use crate::exec::kernels::Write;
use crate::exec::pool::Tile;
use crate::numeric::quant::Group;
use std::arch::x86_64::*;
use std::cell::RefCell;

/// Rows of a tile. Twice as many were no faster for many tokens and slower for few.
pub(in super::super) const TILE_ROWS: usize = 16;

/// Vectors of codes per block.
const WORDS: usize = BLOCK / 4;

/// 16 unpacked rows.
#[derive(Default)]
struct Rows {
    /// `[blocks, WORDS]`: four codes of each row.
    codes: Vec<Line>,
    /// `[blocks]`: the scale of each row.
    scales: Vec<Line>,
    /// `[blocks]`: the zero point of each row; asymmetric only.
    zeros: Vec<Line>,
}

thread_local! {
    /// The rows that this thread works on.
    static UNPACKED: RefCell<Rows> = RefCell::default();
}

/// Products for a tile of the output, of at most [`TILE_ROWS`] columns.
pub(in super::super) fn many(w: &QuantRows<'_>, x: &Blocks, write: Write, mut tile: Tile<'_, f32>) {
    let blocks = w.cols.div_ceil(BLOCK);
    let asymmetric = w.zeros.is_some() && w.group != Group::Column;
    let shift = match w.group {
        Group::Column => 0,
        _ => u32::from(w.scheme.bits) - 1,
    };
    UNPACKED.with_borrow_mut(|rows| {
        rows.codes.resize(blocks * WORDS, Line([0; 64]));
        rows.scales.resize(blocks, Line([0; 64]));
        rows.zeros
            .resize(if asymmetric { blocks } else { 0 }, Line([0; 64]));
        // SAFETY: `Kind::Avx512` proved the features.
        unsafe { for_bits!(w.scheme.bits, B => unpack::<B>(w, tile.cols(), rows)) };
        for first in tile.rows().step_by(TOKENS) {
            let block = x.get(first / TOKENS);
            let count = TOKENS.min(tile.rows().end - first);
            // SAFETY: as above.
            unsafe {
                if asymmetric {
                    tokens::<true>(rows, block, (first, count), shift, write, &mut tile);
                } else {
                    tokens::<false>(rows, block, (first, count), shift, write, &mut tile);
                }
            }
        }
    });
}

/// Unpacks up to 16 rows, lane by lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn unpack<const BITS: usize>(w: &QuantRows<'_>, range: std::ops::Range<usize>, rows: &mut Rows) {
    // A vector is 16 dwords of `per_dword` codes, in `bytes` bytes.
    let (per_dword, bytes) = match BITS {
        3 => (8, 48),
        _ => (32 / BITS, 64),
    };
    let parts = per_dword / 4;
    prefetch(w, range.clone());
    // Lanes beyond the last row repeat it.
    let each: [usize; 16] = std::array::from_fn(|i| range.start + i.min(range.len() - 1));
    let starts = each.map(|row| w.row_codes(row).as_ptr());
    for (v, at) in (0..w.row_bytes).step_by(bytes).enumerate() {
        let mask = mask64((w.row_bytes - at).min(bytes));
        let mut lanes = [_mm512_setzero_si512(); 16];
        for (lane, start) in lanes.iter_mut().zip(starts) {
            // SAFETY: `at` is inside the row; bytes beyond the row are masked off.
            *lane = unsafe { _mm512_maskz_loadu_epi8(mask, start.add(at).cast()) };
            if BITS == 3 {
                *lane = spread_three(*lane);
            }
        }
        transpose(&mut lanes);
        let first = v * 16 * parts;
        let out = rows.codes.get_mut(first..).unwrap_or_default();
        if out.len() >= 16 * parts {
            for (i, packed) in lanes.into_iter().enumerate() {
                for part in 0..parts {
                    store(&mut out[i * parts + part], codes_of::<BITS>(packed, part));
                }
            }
        } else {
            for (out, packed) in out.chunks_mut(parts).zip(lanes) {
                for (part, out) in out.iter_mut().enumerate() {
                    store(out, codes_of::<BITS>(packed, part));
                }
            }
        }
    }
    let params = Params::new(w);
    for (span, out) in rows.scales.chunks_mut(SPAN / BLOCK).enumerate() {
        let mut lanes = [_mm512_setzero_si512(); 16];
        for (lane, row) in lanes.iter_mut().zip(each) {
            *lane = _mm512_castps_si512(params.scales(w, row, span));
        }
        transpose(&mut lanes);
        out.iter_mut().zip(lanes).for_each(|(out, v)| store(out, v));
    }
    for (span, out) in rows.zeros.chunks_mut(SPAN / BLOCK).enumerate() {
        let mut lanes = [_mm512_setzero_si512(); 16];
        for (lane, row) in lanes.iter_mut().zip(each) {
            *lane = params.zeros(w, row, span);
        }
        transpose(&mut lanes);
        out.iter_mut().zip(lanes).for_each(|(out, v)| store(out, v));
    }
}

/// Asks for rows in the order of memory, since they are read side by side.
///
/// No more than half of a core's first cache; rows that long are streams of their own.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(w: &QuantRows<'_>, rows: std::ops::Range<usize>) {
    let codes = &w.codes[rows.start * w.row_bytes..rows.end * w.row_bytes];
    for line in codes.chunks(64).take(384) {
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
    }
}

/// Codes `4 * part..4 * part + 4` of each dword of packed codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn codes_of<const BITS: usize>(packed: __m512i, part: usize) -> __m512i {
    if BITS == 8 {
        packed
    } else {
        four_codes::<BITS>(packed, part)
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(line: &mut Line, v: __m512i) {
    // SAFETY: a line is 64 bytes, aligned.
    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(line: &Line) -> __m512i {
    // SAFETY: a line is 64 bytes, aligned.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

/// Products of a block of tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn tokens<const ASYMMETRIC: bool>(
    rows: &Rows,
    x: Block<'_>,
    (first, count): (usize, usize),
    shift: u32,
    write: Write,
    tile: &mut Tile<'_, f32>,
) {
    let sums = match count {
        1 => sums_of::<1, ASYMMETRIC>(rows, x, shift),
        2 => sums_of::<2, ASYMMETRIC>(rows, x, shift),
        3 => sums_of::<3, ASYMMETRIC>(rows, x, shift),
        4 => sums_of::<4, ASYMMETRIC>(rows, x, shift),
        5 => sums_of::<5, ASYMMETRIC>(rows, x, shift),
        6 => sums_of::<6, ASYMMETRIC>(rows, x, shift),
        7 => sums_of::<7, ASYMMETRIC>(rows, x, shift),
        _ => sums_of::<8, ASYMMETRIC>(rows, x, shift),
    };
    for (t, sum) in sums.into_iter().take(count).enumerate() {
        let out = tile.row_mut(first + t);
        let (mask, out) = (mask16(out.len()), out.as_mut_ptr());
        // SAFETY: lanes beyond the tile's columns are masked off.
        unsafe {
            let sum = match write {
                Write::Overwrite => sum,
                Write::Add => _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, out)),
            };
            _mm512_mask_storeu_ps(out, mask, sum);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,avx2")]
fn sums_of<const T: usize, const ASYMMETRIC: bool>(
    rows: &Rows,
    x: Block<'_>,
    shift: u32,
) -> [__m512; TOKENS] {
    let mut sums = [_mm512_setzero_ps(); TOKENS];
    let shift = _mm512_set1_epi32(shift as i32);
    let mut zeros = rows.zeros.iter();
    let codes = rows.codes.as_chunks::<WORDS>().0.iter().zip(&rows.scales);
    let columns = x.words.iter().zip(x.scales).zip(x.minus_sums);
    for (((words, a), minus), (codes, scale)) in columns.zip(codes) {
        let mut dots: [__m512i; T] = if ASYMMETRIC {
            // The low half of each lane of a zero point meets the low half of the sum.
            let none = _mm512_setzero_si512();
            let zero = zeros.next().map_or(none, |zero| load(zero));
            std::array::from_fn(|t| _mm512_dpwssd_epi32(none, zero, _mm512_set1_epi32(minus[t])))
        } else {
            std::array::from_fn(|t| _mm512_sllv_epi32(_mm512_set1_epi32(minus[t]), shift))
        };
        for (j, code) in codes.iter().enumerate() {
            let code = load(code);
            for t in 0..T {
                let x = _mm512_set1_epi32(words[j * TOKENS + t]);
                dots[t] = _mm512_dpbusd_epi32(dots[t], code, x);
            }
        }
        let scale = _mm512_castsi512_ps(load(scale));
        for t in 0..T {
            let a = _mm512_set1_ps(f32::from_bits(a[t] as u32));
            let dot = _mm512_cvtepi32_ps(dots[t]);
            sums[t] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, a), sums[t]);
        }
    }
    sums
}
