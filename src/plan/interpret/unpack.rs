//! From packed tiles back to codes and entries.

use half::{bf16, f16};

use super::Result;
use super::context::Context;
use crate::numeric::trellis::{OFFSET, UNIT, multiplier, tile_bytes};

/// A row tile: what each of its 16 rows is.
pub(super) struct Rows {
    /// `[16, padded]`: codes less their middle where there are no zero points, codes, or entries.
    pub(super) values: Vec<f32>,
    /// Columns of a row, padding included.
    pub(super) padded: usize,
    /// `[groups, 16]` scales by row; empty for dense entries.
    pub(super) scales: Vec<f32>,
    /// `[groups, 16]` zero points by row, less what codes are stored less; empty without.
    pub(super) zeros: Vec<f32>,
    /// Columns that share a scale.
    pub(super) group: usize,
}

/// Row tile `tile` of a linear's base term.
pub(super) fn rows(c: &Context<'_, '_>, tile: usize, cols: usize) -> Result<Option<Rows>> {
    match c.define("FORMAT") {
        0 => codes(c, tile, cols).map(Some),
        format @ 1..=3 => dense(c, format, tile, cols).map(Some),
        4 => trellis(c, tile, cols).map(Some),
        5 => Ok(None),
        other => Err(c.fault(format!("FORMAT={other} is not known"))),
    }
}

fn part<'b>(
    c: &Context<'_, '_>,
    name: &str,
    bytes: &'b [u8],
    index: usize,
    each: usize,
) -> Result<&'b [u8]> {
    c.slice(name, bytes, index * each, each)
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    let pairs = bytes.as_chunks::<2>().0.iter();
    pairs.map(|b| f16::from_le_bytes(*b).to_f32()).collect()
}

fn codes(c: &Context<'_, '_>, tile: usize, cols: usize) -> Result<Rows> {
    let bits = usize::try_from(c.define("BITS")).unwrap_or(0);
    if !matches!(bits, 2 | 3 | 4 | 8) {
        return Err(c.fault(format!("codes of {bits} bits are not known")));
    }
    let padded = cols.next_multiple_of(if bits < 4 { 128 } else { 64 });
    let packed = part(c, "q", c.bytes("q")?, tile, padded * 2 * bits)?;
    let mut values = vec![0f32; 16 * padded];
    let zeros = c.define("ZEROS") == 1;
    // What is taken off a code: its middle, unless zero points are.
    let middle = match (bits, zeros) {
        (8, _) | (_, true) => 0,
        _ => 1i32 << (bits - 1),
    };
    let mut set =
        |row: usize, k: usize, code: i32| values[row * padded + k] = (code - middle) as f32;
    // A word j of lane 4 g + t is of row g + 8 (j % 2); its byte b of column 16 (j / 2) + 4 t + b.
    for (lane, n) in (0..32).flat_map(|lane| (0..16).map(move |n| (lane, n))) {
        let (g, t, j, b) = (lane / 4, lane % 4, n / 4, n % 4);
        let (row, k) = (g + 8 * (j % 2), 16 * (j / 2) + 4 * t + b);
        match bits {
            8 => {
                for block in 0..padded / 32 {
                    let byte = packed[block * 512 + lane * 16 + n];
                    set(row, block * 32 + k, i32::from(byte as i8));
                }
            }
            4 => {
                for column in 0..padded / 64 {
                    let byte = packed[column * 512 + lane * 16 + n];
                    set(row, column * 64 + k, i32::from(byte & 15));
                    set(row, column * 64 + k + 32, i32::from(byte >> 4));
                }
            }
            _ => {
                for pair in 0..padded / 128 {
                    // Three bits: units of two pairs, the third bits behind both; the last may be one.
                    let (unit, second) = (pair / 2, pair % 2);
                    let pairs = (padded / 128 - 2 * unit).min(2);
                    let (low, high) = match bits {
                        2 => (pair * 512, None),
                        _ => {
                            let start = unit * 1536;
                            let thirds = start + pairs * 512 + lane * 8 * pairs + 8 * second;
                            (start + second * 512, Some(thirds + 4 * (j / 2) + b))
                        }
                    };
                    let byte = packed[low + lane * 16 + n];
                    for m in 0..4 {
                        let third = high.map_or(0, |at| {
                            let bit = ((2 * m + 2) & 7) + j % 2;
                            i32::from(packed[at] >> bit & 1) << 2
                        });
                        set(
                            row,
                            pair * 128 + 32 * m + k,
                            i32::from(byte >> (2 * m) & 3) | third,
                        );
                    }
                }
            }
        }
    }
    let group = match usize::try_from(c.define("GROUP")).unwrap_or(0) {
        0 => padded.max(1),
        width => width,
    };
    let groups = cols.div_ceil(group);
    let scales = halves(part(c, "scales", c.bytes("scales")?, tile, groups * 32)?);
    // Rows r and r + 8 are neighbours.
    let order = |values: &[f32]| -> Vec<f32> {
        let of = |group: &[f32]| {
            (0..16)
                .map(|r| group[2 * (r % 8) + r / 8])
                .collect::<Vec<_>>()
        };
        values.chunks_exact(16).flat_map(of).collect()
    };
    let zeros = match (zeros, bits) {
        (false, _) => Vec::new(),
        (true, 8) => {
            let bytes = part(c, "zeros", c.bytes("zeros")?, tile, groups * 16)?;
            let less: Vec<f32> = bytes.iter().map(|&z| f32::from(z) - 128.0).collect();
            order(&less)
        }
        (true, _) => {
            let bytes = part(c, "zeros", c.bytes("zeros")?, tile, groups * 8)?;
            let nibbles = bytes
                .iter()
                .flat_map(|b| [f32::from(b & 15), f32::from(b >> 4)]);
            order(&nibbles.collect::<Vec<_>>())
        }
    };
    Ok(Rows {
        values,
        padded,
        scales: order(&scales),
        zeros,
        group,
    })
}

fn dense(c: &Context<'_, '_>, format: i64, tile: usize, cols: usize) -> Result<Rows> {
    let columns = cols.div_ceil(64);
    let padded = columns * 64;
    let bytes = if format == 3 { 4096 } else { 2048 };
    let packed = part(c, "q", c.bytes("q")?, tile, columns * bytes)?;
    let mut values = vec![0f32; 16 * padded];
    for column in 0..columns {
        let tile = &packed[column * bytes..][..bytes];
        for (i, lane) in (0..4).flat_map(|i| (0..32).map(move |l| (i, l))) {
            let (g, t) = (lane / 4, lane % 4);
            for (half, b) in (0..2).flat_map(|h| (0..4).map(move |b| (h, b))) {
                let value = match format {
                    3 => {
                        let at = ((i * 2 + half) * 32 + lane) * 16 + 4 * b;
                        f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]])
                    }
                    _ => {
                        let at = (i * 32 + lane) * 16 + 8 * half + 2 * b;
                        let pair = [tile[at], tile[at + 1]];
                        match format {
                            2 => bf16::from_le_bytes(pair).to_f32(),
                            _ => f16::from_le_bytes(pair).to_f32(),
                        }
                    }
                };
                values[(g + 8 * half) * padded + column * 64 + 16 * i + 4 * t + b] = value;
            }
        }
    }
    Ok(Rows {
        values,
        padded,
        scales: Vec::new(),
        zeros: Vec::new(),
        group: padded.max(1),
    })
}

/// A row tile of trellis codes: 16 × 16 tiles, each a cyclic string of bits.
fn trellis(c: &Context<'_, '_>, tile: usize, cols: usize) -> Result<Rows> {
    let states = u8::try_from(c.define("BITS")).unwrap_or(0);
    if !(8..=16).contains(&states) {
        return Err(c.fault(format!("a trellis of 2^{states} states is not known")));
    }
    let table = part(c, "zeros", c.bytes("zeros")?, 0, cols.div_ceil(256) * 16)?;
    // Of each 16 bytes the second and third word are bits of 16 blocks of columns.
    let nibbles = table.chunks_exact(16).flat_map(|unit| &unit[4..12]);
    let bits: Vec<u8> = nibbles
        .flat_map(|byte| [byte & 15, byte >> 4])
        .take(cols.div_ceil(16))
        .collect();
    if bits.iter().any(|b| !(1..=8).contains(b)) {
        return Err(c.fault("bits of a column block are none of 1 to 8"));
    }
    let stride: usize = bits.iter().map(|&b| tile_bytes(b)).sum();
    let packed = part(c, "q", c.bytes("q")?, tile, stride)?;
    let padded = cols.next_multiple_of(64);
    let mut values = vec![0f32; 16 * padded];
    let mut start = 0;
    for (block, &bits) in bits.iter().enumerate() {
        let bytes = &packed[start..start + tile_bytes(bits)];
        start += bytes.len();
        for n in 0..256 {
            let first = n * usize::from(bits);
            let bit = |k: usize| {
                let at = (first + k) % (bytes.len() * 8);
                u32::from(bytes[at / 8] >> (at % 8) & 1) << k
            };
            let state = (0..usize::from(states)).map(bit).fold(0, |s, b| s | b);
            let product = state.wrapping_mul(multiplier(states, bits)).to_le_bytes();
            let sum: i32 = product.iter().map(|&b| i32::from(b)).sum();
            values[n / 16 * padded + block * 16 + n % 16] = (sum - OFFSET) as f32;
        }
    }
    let scale = halves(part(c, "scales", c.bytes("scales")?, tile, 2)?)[0] * UNIT;
    Ok(Rows {
        values,
        padded,
        scales: vec![scale; 16],
        zeros: Vec::new(),
        group: padded.max(1),
    })
}
