//! Trellis-coded quantization with a computed code, tail-biting.
//!
//! 256 weights, a tile of 16 rows and 16 columns, are one cyclic string of `256 K` bits. Weight
//! `i` (row `i / 16`, column `i % 16`) is a function of the `L` bits that start at bit `K i`, its
//! **state**: neighbours share `L - K` of them, so that each weight costs `K` bits and yet takes
//! one of `2^L` values. The Viterbi algorithm finds the string whose weights are nearest
//! ([`Encoder`]). Near a Gaussian source's rate–distortion bound with `L = 16`; see
//! `docs/trellis.md` for figures.
//!
//! The value of a state is computed, not looked up: the sum of the four bytes of
//! the state times a [`multiplier`], less its mean ([`code`]). That is nearly Gaussian, and SIMD units sum
//! bytes and multiply them with 8-bit activations in one instruction.
//!
//! Sources: trellis-coded quantization, Marcellin and Fischer 1990; the bitshift trellis with a
//! computed code and tail-biting in two passes, Tseng et al., "QTIP", 2024; sums of the bytes of
//! a product, ExLlamaV3.

mod decode;
mod encode;
mod matrix;
mod quantize;
mod scale;
mod seam;
mod step;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

pub use decode::{decode_tile, state};
pub use encode::Encoder;
pub use matrix::{TrellisError, TrellisMatrix, matrix_bytes};
pub use quantize::{Coded, Coding, QuantizeError, quantize, quantize_stripe};
pub use scale::best_scale;

/// Rows and columns of a tile.
pub const TILE: usize = 16;

/// Weights of a tile, the length of a sequence.
pub const SEQUENCE: usize = TILE * TILE;

/// Bits of a state that are supported.
pub const STATES_LOG2: std::ops::RangeInclusive<u8> = 8..=16;

/// Bits per weight that are supported.
pub const BITS: std::ops::RangeInclusive<u8> = 1..=8;

/// Seams at which a tile can be cut.
pub const SEAMS: std::ops::RangeInclusive<u8> = 1..=8;

/// What a state is multiplied with, modulo 2^32.
///
/// Of some thousand odd numbers, one that codes Gaussian samples well at this many states and
/// bits. 1 for sizes that are not supported.
pub const fn multiplier(states_log2: u8, bits: u8) -> u32 {
    let (row, column) = (states_log2.wrapping_sub(8), bits.wrapping_sub(1));
    if row > 8 || column > 7 {
        return 1;
    }
    scale::MULTIPLIERS[row as usize][column as usize]
}

/// The mean of a sum of four bytes, which is taken off.
pub const OFFSET: i32 = 510;

/// One step of a code: a weight is `scale * code * UNIT`. A power of two, so that this is exact.
pub const UNIT: f32 = 1.0 / 128.0;

/// Bytes of a tile at `bits` per weight.
pub const fn tile_bytes(bits: u8) -> usize {
    SEQUENCE / 8 * bits as usize
}

/// The value of a state at some bits per weight, in `-510..=510`; over all states its deviation is about 147.8.
#[inline]
pub fn code(state: u32, states_log2: u8, bits: u8) -> i32 {
    let product = state.wrapping_mul(multiplier(states_log2, bits));
    let bytes = product.to_le_bytes();
    bytes.iter().map(|&b| i32::from(b)).sum::<i32>() - OFFSET
}
