//! Products with trellis-coded matrices, read in place from their packed tiles.
//!
//! The layout and the meaning of a tile are those of [`crate::numeric::trellis`]. A weight decodes
//! to an integer in `-510..=510`, times one scale per block of 16 rows. [`matmul_exact`] multiplies
//! `f32` activations with decoded weights, which are exact in `f32`; [`matmul_int8`] sums products
//! of integers, 32 along `in`, with activations in 8 bits.
//!
//! Tiles decode to 16-bit integers: a window of bits per weight, its product with a constant modulo
//! 2^32 as two 16-bit halves, the sum of four bytes. For one token on AVX-512 they never leave the
//! registers. All instruction sets give the same bits, and so does any number of threads.

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

pub use exact::{decode_rows, matmul_exact};
pub use int8::matmul_int8;

use super::quant::{Kind, Level};
use crate::numeric::trellis::{SEQUENCE, TILE, TrellisError, TrellisMatrix, UNIT, tile_bytes};
use half::f16;

/// A trellis-coded matrix `[rows, cols]` in the bytes of a file, at any alignment.
///
/// Lengths were checked when it was made, and kernels rely on them.
#[derive(Clone, Copy, Debug)]
pub struct TrellisRows<'a> {
    codes: &'a [u8],
    scales: &'a [u8],
    bits: &'a [u8],
    rows: usize,
    cols: usize,
    states_log2: u8,
}

/// The integers of a tile, row by row.
type Decoded = [i16; SEQUENCE];

impl<'a> TrellisRows<'a> {
    /// Takes stored parts as a matrix: tiles, little-endian `f16` scales, bits of column blocks.
    ///
    /// # Errors
    /// If states or bits are not supported or a part has another length than the shape asks for.
    pub fn new(
        (rows, cols): (usize, usize),
        states_log2: u8,
        bits: &'a [u8],
        codes: &'a [u8],
        scales: &'a [u8],
    ) -> Result<Self, TrellisError> {
        let stripes = rows.div_ceil(TILE);
        TrellisMatrix::check_parts((rows, cols), states_log2, bits, codes.len(), stripes)?;
        let expected = stripes.saturating_mul(2);
        if scales.len() != expected {
            return Err(TrellisError::Length {
                what: "scale bytes",
                rows,
                cols,
                expected,
                actual: scales.len(),
            });
        }
        Ok(TrellisRows {
            codes,
            scales,
            bits,
            rows,
            cols,
            states_log2,
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

    /// The tiles of 16 rows.
    fn stripe(&self, block: usize) -> &'a [u8] {
        let bytes = self.stripe_bytes();
        &self.codes[block * bytes..][..bytes]
    }

    fn stripe_bytes(&self) -> usize {
        self.codes.len() / self.rows.div_ceil(TILE).max(1)
    }

    /// What an integer of a block of rows is multiplied with.
    fn step(&self, block: usize) -> f32 {
        let at = 2 * block;
        f16::from_le_bytes([self.scales[at], self.scales[at + 1]]).to_f32() * UNIT
    }

    /// Where the tiles of column blocks start in a stripe, and where the last one ends.
    fn starts(&self) -> Vec<usize> {
        let ends = self.bits.iter().scan(0, |end, &bits| {
            *end += tile_bytes(bits);
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// Rows per part of a product of few tokens: by the shape alone, whole blocks.
    fn rows_per_part(&self) -> usize {
        let bytes = (self.codes.len() / 24).clamp(8 << 10, 64 << 10);
        (bytes / self.stripe_bytes().max(1)).clamp(1, 32) * TILE
    }
}

/// Decodes a tile to integers.
fn decode_tile(level: Level, tile: &[u8], bits: u8, states_log2: u8, out: &mut Decoded) {
    assert!(matches!(bits, 1..=8) && tile.len() == tile_bytes(bits));
    match level.kind() {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 => avx512::decode_tile(tile, bits, states_log2, out),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => avx2::decode_tile(tile, bits, states_log2, out),
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => neon::decode_tile(tile, bits, states_log2, out),
        _ => scalar::decode_tile(tile, bits, states_log2, out),
    }
}

/// A tile followed by its own first bytes, for kernels that read 16 bytes from any row's start.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn with_wrap(tile: &[u8]) -> [u8; 256 + 16] {
    let mut out = [0; 256 + 16];
    out[..tile.len()].copy_from_slice(tile);
    out[tile.len()..tile.len() + 16].copy_from_slice(&tile[..16]);
    out
}
