//! Products with group-quantized matrices, read in place from their packed codes.
//!
//! A matrix `[rows, cols]` stays as it lies in its file: codes along `in` as a little-endian bit
//! stream, `f16` scales, packed zero points ([`QuantRows`]). Nothing is repacked; what a thread
//! decodes is a tile that fits its cache.
//!
//! Two ways to multiply:
//! * [`matmul_exact`] takes `f32` activations. Weights decode exactly, so that only sums round.
//! * [`matmul_int8`] takes activations in 8 bits, one scale per 32 along `in`
//!   ([`Int8Activations`]), and sums products of integers. It is several times faster.
//!
//! In both, `Σ (q − z) x` is summed per group and scaled once. Column groups have their scales
//! multiplied into the activations first.
//!
//! Kernels exist for AVX-512 with VNNI and VBMI, for AVX2, for NEON and in plain Rust; the best
//! one is taken at run time. Output rows are cut into parts by the shape alone and sums have a
//! fixed order: for a given processor, results are bit-identical for any number of threads.

// Interleaved tokens and aligned lines are for AVX-512 alone.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

mod activations;
mod exact;
mod int8;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

#[cfg(test)]
mod tests;

pub use activations::Int8Activations;
pub(super) use activations::TokenCodes;
pub use exact::{decode_row, matmul_exact};
pub use int8::{Product, matmul_int8, matmul_int8_all};

use crate::numeric::quant::{Group, QuantError, QuantMatrix, Scheme, packed_len};
use half::f16;

/// Activations that share a scale, and the least group that fast kernels know.
const BLOCK: usize = 32;

/// An instruction set that this processor has.
///
/// Only [`Level::detect`] and [`Level::available`] make one above `Scalar`, so that holding one
/// proves that the instructions exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level(Kind);

/// The instruction sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // not all are made on every architecture
pub(super) enum Kind {
    /// Plain Rust.
    Scalar,
    /// 128-bit vectors of aarch64.
    Neon,
    /// 256-bit vectors with FMA.
    Avx2,
    /// 512-bit vectors with byte products (VNNI) and byte permutations (VBMI).
    Avx512,
}

/// The level of the integer kernels on this processor, by name.
pub(crate) fn level() -> String {
    format!("{:?}", Level::detect().kind())
}

impl Level {
    /// The best level of this processor; the standard library caches the answer.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512vnni")
                && avx2_detected()
            {
                return Level(Kind::Avx512);
            }
            if avx2_detected() {
                return Level(Kind::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Level(Kind::Neon);
        }
        Level(Kind::Scalar)
    }

    /// The instruction set.
    pub(super) fn kind(self) -> Kind {
        self.0
    }

    /// What kernels take off codes, so that 8-bit ones are signed.
    fn code_offset(self, bits: u8) -> u8 {
        match self.0 {
            Kind::Neon | Kind::Avx2 if bits == 8 => 128,
            _ => 0,
        }
    }

    /// Every level that this processor can run, for tests.
    #[cfg(test)]
    pub(super) fn available() -> Vec<Self> {
        let mut levels = vec![Level(Kind::Scalar)];
        #[cfg(target_arch = "x86_64")]
        if avx2_detected() {
            levels.push(Level(Kind::Avx2));
        }
        if !levels.contains(&Level::detect()) {
            levels.push(Level::detect());
        }
        levels
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2_detected() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// A quantized matrix `[rows, cols]` in the bytes of a file.
///
/// The layout is that of [`crate::numeric::quant`]; the bytes need no alignment. Lengths were
/// checked when it was made, and kernels rely on them.
#[derive(Clone, Copy, Debug)]
pub struct QuantRows<'a> {
    codes: &'a [u8],
    scales: &'a [u8],
    zeros: Option<&'a [u8]>,
    rows: usize,
    cols: usize,
    scheme: Scheme,
    group: Group,
    row_bytes: usize,
    per_row: usize,
}

impl<'a> QuantRows<'a> {
    /// Takes stored parts as a matrix: codes, little-endian `f16` scales, packed zero points.
    ///
    /// # Errors
    /// If the scheme is none of ours or a part has another length than the shape asks for.
    pub fn new(
        (rows, cols): (usize, usize),
        scheme: Scheme,
        group: Group,
        codes: &'a [u8],
        scales: &'a [u8],
        zeros: Option<&'a [u8]>,
    ) -> Result<Self, QuantError> {
        if !matches!(scheme.bits, 2 | 3 | 4 | 8) {
            return Err(QuantError::Bits { bits: scheme.bits });
        }
        if group == Group::Size(0) {
            return Err(QuantError::EmptyGroup);
        }
        let length = |what, expected: usize, actual: usize| {
            if expected == actual {
                return Ok(());
            }
            Err(QuantError::Length {
                what,
                rows,
                cols,
                expected,
                actual,
            })
        };
        let row_bytes = packed_len(scheme.bits, cols);
        let per_row = group.per_row(cols);
        length("code bytes", rows.saturating_mul(row_bytes), codes.len())?;
        let scale_bytes = group.count(rows, cols).saturating_mul(2);
        length("scale bytes", scale_bytes, scales.len())?;
        let zero_row = packed_len(scheme.bits, per_row);
        let zero_bytes = match (scheme.symmetric, group) {
            (true, _) => 0,
            (false, Group::Column) => zero_row,
            (false, _) => rows.saturating_mul(zero_row),
        };
        length("zero point bytes", zero_bytes, zeros.map_or(0, <[u8]>::len))?;
        Ok(QuantRows {
            codes,
            scales,
            zeros: (!scheme.symmetric).then_some(zeros.unwrap_or_default()),
            rows,
            cols,
            scheme,
            group,
            row_bytes,
            per_row,
        })
    }

    /// Rows (`out`).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns (`in`).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The packed codes of a row.
    fn row_codes(&self, row: usize) -> &'a [u8] {
        &self.codes[row * self.row_bytes..][..self.row_bytes]
    }

    /// The scale at `index` of the stored scales.
    fn scale(&self, index: usize) -> f32 {
        let at = 2 * index;
        f16::from_le_bytes([self.scales[at], self.scales[at + 1]]).to_f32()
    }

    /// The zero point of `group` in `row`; of a column, with row 0.
    fn zero(&self, row: usize, group: usize) -> u8 {
        let Some(zeros) = self.zeros else {
            return self.scheme.midpoint();
        };
        let row_bytes = packed_len(self.scheme.bits, self.per_row);
        let bit = group * usize::from(self.scheme.bits);
        let at = row * row_bytes + bit / 8;
        let next = if bit / 8 + 1 < row_bytes {
            zeros[at + 1]
        } else {
            0
        };
        let pair = u16::from_le_bytes([zeros[at], next]);
        (pair >> (bit % 8)) as u8 & self.scheme.max_code()
    }

    /// How many times a group is [`BLOCK`], as a power of two, for row-wise groups.
    ///
    /// Rows are one group: any large power does. `None` for column groups and odd sizes.
    fn shift(&self) -> Option<u32> {
        match self.group {
            Group::Row => Some(usize::BITS - 1),
            Group::Size(size) => {
                let times = size / BLOCK as u32;
                let whole = size % BLOCK as u32 == 0 && times.is_power_of_two();
                whole.then(|| times.trailing_zeros())
            }
            Group::Column => None,
        }
    }

    /// Scales of all columns, for column groups.
    fn column_scales(&self) -> Vec<f32> {
        (0..self.cols).map(|c| self.scale(c)).collect()
    }
}

impl QuantMatrix {
    /// The little-endian bytes of the scales, as files hold them.
    pub fn scale_bytes(&self) -> Vec<u8> {
        self.scales.iter().flat_map(|s| s.to_le_bytes()).collect()
    }
}

/// A cache line, so that buffers are aligned to vectors.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Whether one thread is done before another is awake: some microseconds.
fn alone(codes: usize, tokens: usize) -> bool {
    codes.saturating_mul(tokens) <= 32 << 10
}

/// Output rows per part of a product of few tokens: by the shape alone, a multiple of 4.
///
/// Some 24 parts, so that threads end together, but none so small that starting it shows, nor so
/// large that it leaves a core's cache.
fn rows_per_part(w: &QuantRows<'_>) -> usize {
    let bytes = (w.codes.len() / 24).clamp(8 << 10, 64 << 10);
    (bytes / w.row_bytes.max(1))
        .clamp(4, 512)
        .next_multiple_of(4)
}
