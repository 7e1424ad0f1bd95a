//! Plain Rust: the definition that the vector versions match.

use super::Decoded;
use super::int8::Sums;
use crate::numeric::trellis::{TILE, code, state};

pub(super) fn decode_tile(tile: &[u8], bits: u8, states_log2: u8, out: &mut Decoded) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = code(state(tile, bits, states_log2, i), states_log2, bits) as i16;
    }
}

/// Adds products of pairs of tiles with blocks of 32 activations.
pub(super) fn dot(tiles: &[[Decoded; 2]], x: &[[i8; 32]], scales: &[f32], sums: &mut Sums) {
    for ((tiles, x), &scale) in tiles.iter().zip(x).zip(scales) {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let mut dot = 0;
                for (tile, x) in tiles.iter().zip(x.as_chunks::<TILE>().0) {
                    for col in [2 * lane, 2 * lane + 1] {
                        dot += i32::from(tile[row * TILE + col]) * i32::from(x[col]);
                    }
                }
                *sum = (dot as f32).mul_add(scale, *sum);
            }
        }
    }
}
