//! Integer codes in tiles.

use half::f16;
use rayon::prelude::*;

use super::blob::Sections;
use super::recipe::Tile;
use super::{ROWS, Result, TILE};
use crate::numeric::{Group, QuantMatrix};

/// Row tiles that are packed at once.
const AT_ONCE: usize = 256;

/// Packs the tiles of some matrices.
pub(super) fn pack(
    matrices: &[&QuantMatrix],
    tiles: &[Tile],
    out: &mut Sections<'_>,
) -> Result<()> {
    for some in tiles.chunks(AT_ONCE) {
        let packed: Vec<Packed> = some
            .par_iter()
            .map(|tile| match matrices.get(tile.part) {
                Some(matrix) => one(matrix, tile),
                None => Packed::default(),
            })
            .collect();
        for tile in packed {
            out.put("q", &tile.codes)?;
            out.halves("scales", &tile.scales)?;
            if !tile.zeros.is_empty() {
                out.put("zeros", &tile.zeros)?;
            }
        }
    }
    if let Some(matrix) = matrices.first().filter(|m| m.group == Group::Column) {
        let mut scales: Vec<f32> = matrix.scales.iter().map(|s| s.to_f32()).collect();
        scales.resize(scales.len().next_multiple_of(TILE), 0.0);
        out.floats("xscale", &scales)?;
    }
    Ok(())
}

#[derive(Default)]
struct Packed {
    codes: Vec<u8>,
    scales: Vec<f16>,
    zeros: Vec<u8>,
}

/// A row tile.
fn one(matrix: &QuantMatrix, tile: &Tile) -> Packed {
    let bits = matrix.scheme.bits;
    // Blocks of 32 columns that share a byte.
    let padded = matrix
        .cols
        .next_multiple_of(if bits < 4 { 2 * TILE } else { TILE });
    // What stands beyond the matrix meets activations of 0; int8 codes are stored less 128.
    let filler = if bits == 8 { 128 } else { 0 };
    let mut codes = vec![filler; ROWS * padded];
    let mut rows = codes.chunks_mut(padded);
    for r in 0..tile.count as usize {
        if let Some(row) = rows.next() {
            matrix.unpack_codes(tile.row as usize + r, &mut row[..matrix.cols]);
        }
    }
    let mut packed = Packed {
        codes: tile_codes(&codes, padded, bits),
        ..Packed::default()
    };
    let columns = matrix.group == Group::Column;
    let groups = if columns {
        1
    } else {
        matrix.group.per_row(matrix.cols)
    };
    let width = matrix
        .group
        .width(matrix.cols)
        .unwrap_or(matrix.cols)
        .max(1);
    for group in 0..groups {
        let mut scales = [f16::ZERO; ROWS];
        let mut zeros = [0u8; ROWS];
        for r in 0..tile.count as usize {
            let at = 2 * (r % 8) + r / 8;
            let (row, col) = (tile.row as usize + r, group * width);
            scales[at] = match columns {
                true => f16::ONE,
                false => matrix.scales[matrix.scale_index(row, col)],
            };
            zeros[at] = matrix.zero(row, col);
        }
        packed.scales.extend(scales);
        if !matrix.scheme.symmetric {
            match bits {
                8 => packed.zeros.extend(zeros),
                _ => packed
                    .zeros
                    .extend(zeros.chunks(2).map(|z| z[0] | z[1] << 4)),
            }
        }
    }
    packed
}

/// Codes `[16, padded]` of a row tile, in the order of lanes.
///
/// Lane `4 g + t` has four words a unit: word `j` is of row `g + 8 (j % 2)`, its byte `b` of column
/// `16 (j / 2) + 4 t + b` of a block of 32 columns: the fragments of a tensor core's product.
fn tile_codes(codes: &[u8], padded: usize, bits: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(padded * ROWS * usize::from(bits) / 8);
    let at = |row: usize, k: usize| codes[row * padded + k];
    // Lane, word and byte: the row, and the column in a block.
    let places = || {
        (0..32).flat_map(|lane| {
            (0..16).map(move |n| {
                let (j, b) = (n / 4, n % 4);
                (lane / 4 + 8 * (j % 2), 16 * (j / 2) + 4 * (lane % 4) + b)
            })
        })
    };
    match bits {
        8 => {
            for c in (0..padded).step_by(32) {
                out.extend(places().map(|(row, k)| at(row, c + k).wrapping_sub(128)));
            }
        }
        4 => {
            for c in (0..padded).step_by(64) {
                out.extend(places().map(|(row, k)| at(row, c + k) | at(row, c + k + 32) << 4));
            }
        }
        _ => {
            let unit = if bits == 2 { 128 } else { 256 };
            for c in (0..padded).step_by(unit) {
                let pairs = if bits == 2 || c + 128 >= padded { 1 } else { 2 };
                for pair in 0..pairs {
                    let c = c + 128 * pair;
                    let low = |row: usize, k: usize| {
                        (0..4).fold(0, |byte, m| byte | (at(row, c + k + 32 * m) & 3) << (2 * m))
                    };
                    out.extend(places().map(|(row, k)| low(row, k)));
                }
                if bits == 3 {
                    thirds(&mut out, &at, c, pairs);
                }
            }
        }
    }
    out
}

/// The third bits of one or two pairs of column tiles: 8 bytes a lane and pair.
fn thirds(out: &mut Vec<u8>, at: &impl Fn(usize, usize) -> u8, c: usize, pairs: usize) {
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for (pair, high) in (0..pairs).flat_map(|p| [(p, 0), (p, 1)]) {
            for b in 0..4 {
                let k = c + 128 * pair + 16 * high + 4 * t + b;
                let bit = |m: usize, odd: usize| {
                    let third = at(g + 8 * odd, k + 32 * m) >> 2 & 1;
                    third << (((2 * m + 2) & 7) + odd)
                };
                out.push((0..4).fold(0, |byte, m| byte | bit(m, 0) | bit(m, 1)));
            }
        }
    }
}
