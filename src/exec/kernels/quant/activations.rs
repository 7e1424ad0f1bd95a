//! Activations in 8 bits.

use super::{BLOCK, Kind, Level, QuantRows};
use crate::exec::Pool;
use crate::numeric::quant::Group;
use crate::numeric::simd::{Level as SimdLevel, Simd, multiversion};
use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

/// Tokens from which kernels that decode a tile for many tokens are faster.
pub(super) const MANY: usize = 6;

/// Tokens whose codes are interleaved.
pub(super) const TOKENS: usize = 8;

/// Multiple that rows of codes are padded to: what the widest kernel takes at once.
const PADDING: usize = 512;

/// Activations `[tokens, cols]` in 8 bits with one scale per 32 along `in`.
///
/// `x ≈ a q` with `a = absmax / 127`, rounded to nearest even, like the activations of ggml's
/// `q8_0` products. Made once and used for every matrix that has the same input. Non-finite
/// activations make every output of their token that sees them NaN.
pub struct Int8Activations<'a> {
    /// What was quantized, for matrices whose columns have scales.
    values: Cow<'a, [f32]>,
    pub(super) tokens: usize,
    pub(super) cols: usize,
    pub(super) level: Level,
    pub(super) layout: Layout,
}

/// How codes lie in memory.
pub(super) enum Layout {
    /// Token after token.
    Rows(Rows),
    /// Eight tokens interleaved, for kernels that keep eight sums.
    Blocks(Vec<Block>),
}

/// Codes of few tokens, token after token.
pub(super) struct Rows {
    /// Codes per token, a multiple of [`PADDING`]; those beyond `cols` are 0.
    pub(super) stride: usize,
    /// `[tokens, stride]`.
    pub(super) codes: Vec<i8>,
    /// `[tokens, stride / 32]`.
    pub(super) scales: Vec<f32>,
    /// Sums of codes (times zero points of columns), `[tokens, stride / 32]`.
    pub(super) sums: Vec<i32>,
}

/// Codes of up to [`TOKENS`] tokens, interleaved.
pub(super) struct Block {
    /// Four neighbouring codes of a token in a word: `[cols / 4, TOKENS]`.
    pub(super) words: Vec<i32>,
    /// `[blocks, TOKENS]`.
    pub(super) scales: Vec<f32>,
    /// Sums with their sign turned, `[blocks, TOKENS]`.
    pub(super) minus_sums: Vec<i32>,
}

impl<'a> Int8Activations<'a> {
    /// Quantizes `x` `[tokens, cols]`.
    ///
    /// # Panics
    /// If `x` has another length.
    pub fn quantize(pool: &Pool, x: &'a [f32], tokens: usize, cols: usize) -> Self {
        Self::quantize_at(Level::detect(), pool, x, tokens, cols)
    }

    pub(super) fn quantize_at(
        level: Level,
        pool: &Pool,
        x: &'a [f32],
        tokens: usize,
        cols: usize,
    ) -> Self {
        assert_eq!(tokens.checked_mul(cols), Some(x.len()), "activations");
        Self::with_weights(level, pool, Cow::Borrowed(x), (tokens, cols), None)
    }

    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Columns (`in`).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// These activations times the scales of the columns of `w`, quantized anew.
    ///
    /// Sums are weighted with the zero points: to a kernel, `w` then has scale 1 and zero point 1.
    pub(super) fn folded(
        &self,
        pool: &Pool,
        w: &QuantRows<'_>,
    ) -> Option<Int8Activations<'static>> {
        if w.group != Group::Column {
            return None;
        }
        let values = folded(&self.values, &w.column_scales());
        let shape = (self.tokens, self.cols);
        let zeros = w.column_zeros();
        Some(Int8Activations::with_weights(
            self.level,
            pool,
            Cow::Owned(values),
            shape,
            Some(&zeros),
        ))
    }

    /// What the codes stand for, `[tokens, cols]`.
    pub(super) fn decode(&self) -> Vec<f32> {
        let rows = rows_of(&self.values, (self.tokens, self.cols), None);
        let mut out = Vec::with_capacity(self.values.len());
        for t in 0..self.tokens {
            let codes = &rows.codes[t * rows.stride..][..self.cols];
            let scales = &rows.scales[t * (rows.stride / BLOCK)..];
            for (codes, scale) in codes.chunks(BLOCK).zip(scales) {
                out.extend(codes.iter().map(|&q| f32::from(q) * scale));
            }
        }
        out
    }

    fn with_weights(
        level: Level,
        pool: &Pool,
        values: Cow<'a, [f32]>,
        (tokens, cols): (usize, usize),
        weights: Option<&[u8]>,
    ) -> Self {
        let layout = if level.0 == Kind::Avx512 && tokens >= MANY && cols > 0 {
            Layout::Blocks(blocks_of(pool, &values, cols, weights))
        } else {
            Layout::Rows(rows_of(&values, (tokens, cols), weights))
        };
        Int8Activations {
            values,
            tokens,
            cols,
            level,
            layout,
        }
    }
}

/// Every token's `x` times the scales of the columns.
pub(super) fn folded(x: &[f32], scales: &[f32]) -> Vec<f32> {
    let rows = x.chunks(scales.len().max(1));
    rows.flat_map(|x| x.iter().zip(scales).map(|(x, s)| x * s))
        .collect()
}

fn rows_of(x: &[f32], (tokens, cols): (usize, usize), weights: Option<&[u8]>) -> Rows {
    let stride = cols.next_multiple_of(PADDING);
    let blocks = stride / BLOCK;
    let mut out = Rows {
        stride,
        codes: vec![0; tokens * stride],
        scales: vec![0.0; tokens * blocks],
        sums: vec![0; tokens * blocks],
    };
    let level = SimdLevel::detect();
    for t in 0..tokens {
        let x = &x[t * cols..][..cols];
        let codes = &mut out.codes[t * stride..][..stride];
        let scales = &mut out.scales[t * blocks..][..blocks];
        let sums = &mut out.sums[t * blocks..][..blocks];
        quantize_token(level, x, weights, codes, scales, sums);
    }
    out
}

fn blocks_of(pool: &Pool, x: &[f32], cols: usize, weights: Option<&[u8]>) -> Vec<Block> {
    let tokens: Vec<&[f32]> = x.chunks(TOKENS * cols).collect();
    let slots: Vec<Mutex<Option<Block>>> = tokens.iter().map(|_| Mutex::new(None)).collect();
    pool.run(tokens.len(), |i| {
        let rows = rows_of(tokens[i], (tokens[i].len() / cols, cols), weights);
        let block = interleave(&rows, cols.div_ceil(BLOCK));
        *slots[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(block);
    });
    let take =
        |slot: Mutex<Option<Block>>| slot.into_inner().unwrap_or_else(PoisonError::into_inner);
    slots.into_iter().filter_map(take).collect()
}

fn interleave(rows: &Rows, blocks: usize) -> Block {
    let mut out = Block {
        words: vec![0; blocks * (BLOCK / 4) * TOKENS],
        scales: vec![0.0; blocks * TOKENS],
        minus_sums: vec![0; blocks * TOKENS],
    };
    let per_token = rows.stride / BLOCK;
    for (t, codes) in rows.codes.chunks(rows.stride).enumerate() {
        for (out, word) in out
            .words
            .chunks_exact_mut(TOKENS)
            .zip(codes.as_chunks::<4>().0)
        {
            out[t] = i32::from_le_bytes(word.map(|q| q as u8));
        }
        let first = t * per_token;
        for (b, out) in out.scales.chunks_exact_mut(TOKENS).enumerate() {
            out[t] = rows.scales[first + b];
        }
        for (b, out) in out.minus_sums.chunks_exact_mut(TOKENS).enumerate() {
            out[t] = -rows.sums[first + b];
        }
    }
    out
}

multiversion! {
    fn quantize_token(x: &[f32], weights: Option<&[u8]>, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) = quantize_token_body;
}

#[inline(always)]
fn quantize_token_body<S: Simd>(
    _simd: S,
    x: &[f32],
    weights: Option<&[u8]>,
    codes: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    let codes = codes.as_chunks_mut::<BLOCK>().0;
    let out = codes.iter_mut().zip(scales).zip(sums);
    for (b, (x, ((codes, scale), sum))) in x.chunks(BLOCK).zip(out).enumerate() {
        *scale = match <&[f32; BLOCK]>::try_from(x) {
            Ok(x) => quantize_block(x, codes),
            Err(_) => {
                let mut padded = [0.0; BLOCK];
                padded[..x.len()].copy_from_slice(x);
                quantize_block(&padded, codes)
            }
        };
        *sum = match weights {
            None => codes.iter().map(|&q| i32::from(q)).sum(),
            Some(weights) => {
                let weights = weights[b * BLOCK..].iter();
                let pairs = codes.iter().zip(weights);
                pairs.map(|(&q, &z)| i32::from(q) * i32::from(z)).sum()
            }
        };
    }
}

/// Quantizes 32 activations; returns their scale.
#[inline(always)]
fn quantize_block(x: &[f32; BLOCK], codes: &mut [i8; BLOCK]) -> f32 {
    // Magnitudes compare as integers; NaN is largest and reaches the scale.
    let largest = x
        .iter()
        .map(|x| x.to_bits() & 0x7fff_ffff)
        .fold(0, u32::max);
    let largest = f32::from_bits(largest);
    if largest < 1e-30 {
        return 0.0; // 1 / largest would overflow
    }
    let inverse = 127.0 / largest;
    for (q, &x) in codes.iter_mut().zip(x) {
        // 1.5 * 2^23: the sum's low bits are the number, rounded to nearest even.
        *q = (x * inverse + 12_582_912.0).to_bits() as i8;
    }
    largest / 127.0
}
