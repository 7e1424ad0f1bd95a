//! Products with 8-bit activations.

#[cfg(target_arch = "aarch64")]
use super::neon;
use super::{Decoded, Kind, Level, TrellisRows, decode_tile, scalar};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::exec::Pool;
use crate::exec::kernels::Write;
use crate::exec::kernels::quant::{Int8Activations, TokenCodes};
use crate::exec::pool::Tile;
use crate::numeric::trellis::{SEQUENCE, TILE};

/// Eight running sums for each of 16 rows: sum `i` is of columns `2 i` and `2 i + 1` of all tiles.
pub(super) type Sums = [[f32; 8]; TILE];

/// Tokens per part.
const TOKENS_PER_PART: usize = 64;

/// Pairs of tiles that are decoded before they are multiplied: 16 KiB.
const PAIRS: usize = 16;

/// `out [+]= x wᵀ` for 8-bit activations; `out` is `[tokens, rows]`.
///
/// Integer products per 32 along `in`, `f32` sums of those in a fixed order.
///
/// # Panics
/// If the activations have another width than `w` or `out` another length.
pub fn matmul_int8(
    pool: &Pool,
    w: &TrellisRows<'_>,
    x: &Int8Activations<'_>,
    write: Write,
    out: &mut [f32],
) {
    matmul_at(Level::detect(), pool, w, x, write, out);
}

/// [`matmul_int8`] at a level.
pub(super) fn matmul_at(
    level: Level,
    pool: &Pool,
    w: &TrellisRows<'_>,
    x: &Int8Activations<'_>,
    write: Write,
    out: &mut [f32],
) {
    assert_eq!(x.cols(), w.cols, "width of the activations");
    assert_eq!(x.tokens().checked_mul(w.rows), Some(out.len()), "output");
    let starts = w.starts();
    x.by_token(|codes| {
        let part = (TOKENS_PER_PART, w.rows_per_part());
        pool.split(out, w.rows, part, |tile| {
            product(level, w, &starts, codes, write, tile);
        });
    });
}

fn product(
    level: Level,
    w: &TrellisRows<'_>,
    starts: &[usize],
    x: TokenCodes<'_>,
    write: Write,
    mut tile: Tile<'_, f32>,
) {
    let tokens = tile.rows();
    let first = tile.cols().start;
    let mut sums = vec![[[0.0; 8]; TILE]; tokens.len()];
    let mut decoded = Vec::new();
    for row in tile.cols().step_by(TILE) {
        let block = row / TILE;
        sums.fill([[0.0; 8]; TILE]);
        match (level.kind(), &mut *sums) {
            #[cfg(target_arch = "x86_64")]
            (Kind::Avx512, [sums]) => {
                let (codes, scales) = x.token(tokens.start);
                avx512::stripe(w.stripe(block), w.bits, w.states_log2, codes, scales, sums);
            }
            (_, sums) => {
                decoded.resize(PAIRS, [[0; SEQUENCE]; 2]);
                stripe(
                    level,
                    w,
                    (block, starts),
                    x,
                    tokens.start,
                    &mut decoded,
                    sums,
                );
            }
        }
        let step = w.step(block);
        let rows = TILE.min(tile.cols().end - row);
        for (t, sums) in tokens.clone().zip(&sums) {
            let out = &mut tile.row_mut(t)[row - first..][..rows];
            for (out, sums) in out.iter_mut().zip(sums) {
                write.put(out, total(sums) * step);
            }
        }
    }
}

/// Adds the products of 16 rows with several tokens from `first` on.
fn stripe(
    level: Level,
    w: &TrellisRows<'_>,
    (block, starts): (usize, &[usize]),
    x: TokenCodes<'_>,
    first: usize,
    decoded: &mut [[Decoded; 2]],
    sums: &mut [Sums],
) {
    let codes = w.stripe(block);
    for pair in (0..w.bits.len().div_ceil(2)).step_by(PAIRS) {
        let blocks = 2 * pair..w.bits.len().min(2 * (pair + PAIRS));
        let tiles = decoded.as_flattened_mut();
        for (c, tile) in blocks.clone().zip(&mut *tiles) {
            let bytes = &codes[starts[c]..starts[c + 1]];
            decode_tile(level, bytes, w.bits[c], w.states_log2, tile);
        }
        // The other half of the last pair meets activations of 0.
        let tiles = &decoded[..blocks.len().div_ceil(2)];
        for (t, sums) in sums.iter_mut().enumerate() {
            let (codes, scales) = x.token(first + t);
            let (codes, scales) = (&codes[pair..], &scales[pair..]);
            match level.kind() {
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => avx512::dot(tiles, codes, scales, sums),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => avx2::dot(tiles, codes, scales, sums),
                #[cfg(target_arch = "aarch64")]
                Kind::Neon => neon::dot(tiles, codes, scales, sums),
                _ => scalar::dot(tiles, codes, scales, sums),
            }
        }
    }
}

/// The sum of the running sums of a row, halves first.
fn total(s: &[f32; 8]) -> f32 {
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}
