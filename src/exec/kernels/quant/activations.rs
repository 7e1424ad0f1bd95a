//! Activations in 8 bits.

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::{BLOCK, Kind, Level, QuantRows};
use crate::exec::Pool;
use crate::numeric::quant::Group;
use crate::numeric::simd::{Level as SimdLevel, Simd, multiversion};
use std::borrow::Cow;
use std::cell::RefCell;

/// Tokens from which kernels that decode a tile for many tokens are faster.
pub(super) const MANY: usize = 5;

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
    Blocks(Blocks),
}

/// Codes of few tokens, token after token.
#[derive(Default)]
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

/// Codes token after token, for kernels of other formats.
#[derive(Clone, Copy)]
pub(in crate::exec::kernels) struct TokenCodes<'a>(&'a Rows);

impl<'a> TokenCodes<'a> {
    /// Codes of token `t` in blocks of 32 columns, zeros at the end, and the scales of those.
    pub(in crate::exec::kernels) fn token(self, t: usize) -> (&'a [[i8; BLOCK]], &'a [f32]) {
        let Rows {
            stride,
            codes,
            scales,
            ..
        } = self.0;
        let blocks = stride / BLOCK;
        let codes = &codes[t * stride..][..*stride];
        (codes.as_chunks().0, &scales[t * blocks..][..blocks])
    }
}

/// Codes of many tokens, [`TOKENS`] of them interleaved in each block.
pub(super) struct Blocks {
    /// Blocks of 32 columns.
    columns: usize,
    /// One [`Block`] after the other.
    data: Vec<i32>,
}

/// Codes of up to [`TOKENS`] tokens.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// Four neighbouring codes of a token in a word: `[columns, 8, TOKENS]`.
    pub(super) words: &'a [[i32; 8 * TOKENS]],
    /// The bits of scales, `[columns, TOKENS]`.
    pub(super) scales: &'a [[i32; TOKENS]],
    /// Sums with their sign turned, `[columns, TOKENS]`.
    pub(super) minus_sums: &'a [[i32; TOKENS]],
}

impl Blocks {
    /// Integers per block of tokens.
    fn width(columns: usize) -> usize {
        columns * (8 + 2) * TOKENS
    }

    /// Tokens `TOKENS * index..`.
    pub(super) fn get(&self, index: usize) -> Block<'_> {
        let width = Self::width(self.columns);
        let data = &self.data[index * width..][..width];
        let (words, rest) = data.split_at(self.columns * 8 * TOKENS);
        let (scales, minus_sums) = rest.split_at(self.columns * TOKENS);
        Block {
            words: words.as_chunks().0,
            scales: scales.as_chunks().0,
            minus_sums: minus_sums.as_chunks().0,
        }
    }
}

thread_local! {
    /// Buffers of activations that this thread is done with: fresh pages cost more than the work.
    static SPARE: RefCell<Vec<Vec<i32>>> = const { RefCell::new(Vec::new()) };
    /// Codes of the tokens that this thread interleaves.
    static ROWS: RefCell<Rows> = RefCell::default();
}

/// Buffers that a thread keeps.
const SPARE_BUFFERS: usize = 4;

impl Drop for Blocks {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        // A thread that ends may be past its buffers.
        let _ = SPARE.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut()
                && spare.len() < SPARE_BUFFERS
            {
                spare.push(data);
            }
        });
    }
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
        let offset = i16::from(self.level.code_offset(w.scheme.bits));
        let zeros: Vec<i16> = (0..self.cols)
            .map(|c| i16::from(w.zero(0, c)) - offset)
            .collect();
        Some(Int8Activations::with_weights(
            self.level,
            pool,
            Cow::Owned(values),
            shape,
            Some(&zeros),
        ))
    }

    /// Calls `work` with the codes, token after token.
    pub(in crate::exec::kernels) fn by_token<R>(
        &self,
        work: impl FnOnce(TokenCodes<'_>) -> R,
    ) -> R {
        match &self.layout {
            Layout::Rows(rows) => work(TokenCodes(rows)),
            Layout::Blocks(_) => {
                let shape = (self.tokens, self.cols);
                work(TokenCodes(&rows_of(self.level, &self.values, shape, None)))
            }
        }
    }

    /// What the codes stand for, `[tokens, cols]`.
    pub(super) fn decode(&self) -> Vec<f32> {
        let rows = rows_of(self.level, &self.values, (self.tokens, self.cols), None);
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
        weights: Option<&[i16]>,
    ) -> Self {
        let layout = if level.0 == Kind::Avx512 && tokens >= MANY && cols > 0 {
            Layout::Blocks(blocks_of(level, pool, &values, cols, weights))
        } else {
            Layout::Rows(rows_of(level, &values, (tokens, cols), weights))
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

fn rows_of(
    level: Level,
    x: &[f32],
    (tokens, cols): (usize, usize),
    weights: Option<&[i16]>,
) -> Rows {
    let mut out = Rows::default();
    out.fill(level, x, (tokens, cols), weights);
    out
}

impl Rows {
    /// Quantizes tokens. Codes beyond the last block are left as they are: zeros in a new one.
    fn fill(
        &mut self,
        level: Level,
        x: &[f32],
        (tokens, cols): (usize, usize),
        weights: Option<&[i16]>,
    ) {
        let stride = cols.next_multiple_of(PADDING);
        let blocks = stride / BLOCK;
        self.stride = stride;
        self.codes.resize(tokens * stride, 0);
        self.scales.resize(tokens * blocks, 0.0);
        self.sums.resize(tokens * blocks, 0);
        let simd = SimdLevel::detect();
        for t in 0..tokens {
            let x = &x[t * cols..][..cols];
            let codes = &mut self.codes[t * stride..][..stride];
            let scales = &mut self.scales[t * blocks..][..blocks];
            let sums = &mut self.sums[t * blocks..][..blocks];
            match (level.0, weights) {
                #[cfg(target_arch = "x86_64")]
                (Kind::Avx512, None) => avx512::quantize_token(x, codes, scales, sums),
                _ => quantize_token(simd, x, weights, codes, scales, sums),
            }
        }
    }

    /// Puts up to [`TOKENS`] tokens side by side, in the order of [`Block`].
    fn interleave(&self, columns: usize, out: &mut [i32]) {
        let (words, rest) = out.split_at_mut(columns * 8 * TOKENS);
        let (scales, minus_sums) = rest.split_at_mut(columns * TOKENS);
        #[cfg(target_arch = "x86_64")]
        avx512::interleave(&self.codes, self.stride, words);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = words; // no other kernel wants this form
        let blocks = self.stride / BLOCK;
        for t in 0..self.codes.len() / self.stride {
            let from = self.scales[t * blocks..].iter();
            for (out, a) in scales.chunks_exact_mut(TOKENS).zip(from) {
                out[t] = a.to_bits() as i32;
            }
            let from = self.sums[t * blocks..].iter();
            for (out, sum) in minus_sums.chunks_exact_mut(TOKENS).zip(from) {
                out[t] = -sum;
            }
        }
    }
}

fn blocks_of(level: Level, pool: &Pool, x: &[f32], cols: usize, weights: Option<&[i16]>) -> Blocks {
    let columns = cols.div_ceil(BLOCK);
    let width = Blocks::width(columns);
    let count = (x.len() / cols).div_ceil(TOKENS);
    let mut data = SPARE.with_borrow_mut(|spare| spare.pop().unwrap_or_default());
    data.resize(count * width, 0);
    pool.split(&mut data, width, (1, width), |mut tile| {
        let i = tile.rows().start;
        let x = &x[i * TOKENS * cols..];
        let x = &x[..x.len().min(TOKENS * cols)];
        ROWS.with_borrow_mut(|rows| {
            rows.fill(level, x, (x.len() / cols, cols), weights);
            rows.interleave(columns, tile.row_mut(i));
        });
    });
    Blocks { columns, data }
}

multiversion! {
    fn quantize_token(x: &[f32], weights: Option<&[i16]>, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) = quantize_token_body;
}

#[inline(always)]
fn quantize_token_body<S: Simd>(
    _simd: S,
    x: &[f32],
    weights: Option<&[i16]>,
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
