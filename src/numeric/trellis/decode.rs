//! From codes to weights, one after the other.

use super::{SEQUENCE, UNIT, code};

/// The `states_log2` bits of a tile that start at weight `i`.
///
/// `tile` is taken as a cyclic string of bits, low bits first; `bits` is per weight. No tile, no
/// bits: an empty one gives 0.
#[inline]
pub fn state(tile: &[u8], bits: u8, states_log2: u8, i: usize) -> u32 {
    let at = i * usize::from(bits);
    let mut window = 0u32;
    for k in 0..3 {
        // At most two steps around: a tile has at least 32 bytes unless it is damaged.
        let byte = (at / 8 + k) % tile.len().max(1);
        let byte = tile.get(byte).copied().unwrap_or(0);
        window |= u32::from(byte) << (8 * k);
    }
    (window >> (at % 8)) & ((1u32 << states_log2.min(16)) - 1)
}

/// Decodes a tile of `32 * bits` bytes to 256 weights of scale 1, row by row.
///
/// Never panics; bytes that are missing are taken as zeros.
pub fn decode_tile(tile: &[u8], bits: u8, states_log2: u8, out: &mut [f32; SEQUENCE]) {
    for (i, out) in out.iter_mut().enumerate() {
        let state = state(tile, bits, states_log2, i);
        *out = code(state, states_log2, bits) as f32 * UNIT;
    }
}
