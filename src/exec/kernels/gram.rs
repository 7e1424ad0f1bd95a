//! Second moments of activations: `Xᵀ·X`, its upper triangle.

use super::gemm::{self, Left, PANEL, Right};
use super::scratch;
use super::vector::{Isa, LANES};
use crate::exec::pool::Pool;

/// Rows of a tile of the sums.
const TILE_ROWS: usize = 2 * PANEL;
/// Longest stretch of a sum whose operands stay in the second-level cache.
const DEPTH: usize = 512;
/// Activations that are turned and packed at once, about.
const AT_ONCE: usize = 4 << 20;

/// `out[i, j] += Σ_t x[t, i] · x[t, j]` for `j ≥ i`.
///
/// `x` is `[tokens, width]`, `out` `[width, width]`; entries below the diagonal are left as they are
/// or, close to it, are sums too. Sums are in `f32`, of up to 512 tokens before they are added;
/// `tokens · width²` multiplications, memory for two copies of some tokens.
///
/// # Panics
/// A slice does not fit the shapes.
pub fn add_upper(pool: &Pool, x: &[f32], tokens: usize, width: usize, out: &mut [f32]) {
    assert!(tokens.checked_mul(width) == Some(x.len()));
    assert!(width.checked_mul(width) == Some(out.len()));
    if width == 0 || tokens == 0 {
        return;
    }
    let most = (AT_ONCE / width).clamp(64, 2048) / LANES * LANES;
    for part in x.chunks(most * width) {
        add_part(pool, part, part.len() / width, width, out);
    }
}

fn add_part(pool: &Pool, x: &[f32], tokens: usize, width: usize, out: &mut [f32]) {
    let isa = Isa::detect();
    let blocks = width.div_ceil(PANEL);
    let padded = tokens.next_multiple_of(LANES);
    let (turned_len, packed_len) = (blocks * PANEL * padded, blocks * PANEL * tokens);
    scratch::with(turned_len + packed_len, |room| {
        let (turned, packed) = room.split_at_mut(turned_len);
        pool.split(turned, PANEL * padded, (1, PANEL * padded), |mut tile| {
            let block = tile.rows().start;
            let (first, row) = (block * PANEL, tile.row_mut(block));
            let count = PANEL.min(width - first);
            gemm::pack_panel(isa, &x[first..], width, tokens, count, row);
        });
        pool.split(packed, PANEL * tokens, (1, PANEL * tokens), |mut tile| {
            let block = tile.rows().start;
            let (first, row) = (block * PANEL, tile.row_mut(block));
            let count = PANEL.min(width - first);
            for (to, from) in row.chunks_mut(PANEL).zip(x.chunks(width)) {
                let (values, rest) = to.split_at_mut(count);
                values.copy_from_slice(&from[first..first + count]);
                rest.fill(0.0);
            }
        });
        let (turned, packed) = (&*turned, &*packed);
        pool.split(out, width, (TILE_ROWS, PANEL), |mut tile| {
            let (rows, cols) = (tile.rows(), tile.cols());
            if cols.end <= rows.start {
                return;
            }
            let panel = &packed[cols.start * tokens..][..PANEL * tokens];
            for from in (0..tokens).step_by(DEPTH) {
                let depth = DEPTH.min(tokens - from);
                let left = &turned[rows.start * padded + from..];
                let right = Right {
                    data: &panel[from * PANEL..],
                    stride: PANEL,
                    lanes: cols.len(),
                };
                let left = Left::new(left, padded, rows.len());
                gemm::product_into_rows(isa, depth, left, right, &mut tile, (0, 0), true);
            }
        });
    });
}

/// `out[i] += Σ_t x[t, i]²`, in the order of the tokens.
///
/// # Panics
/// `x` is no whole number of rows as long as `out`.
pub fn add_squares(x: &[f32], out: &mut [f32]) {
    assert!(out.is_empty() && x.is_empty() || x.len().is_multiple_of(out.len()));
    for row in x.chunks(out.len().max(1)) {
        for (sum, value) in out.iter_mut().zip(row) {
            *sum += value * value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        let one = |i: usize| ((i * 2654435761) % 1009) as f32 / 504.5 - 1.0;
        (0..n).map(one).collect()
    }

    #[test]
    fn sums_are_those_of_double_precision() {
        for (tokens, width) in [(1, 1), (3, 50), (700, 97), (513, 48), (40, 161)] {
            let x = values(tokens * width);
            let mut out = vec![0f32; width * width];
            add_upper(&Pool::new(2), &x, tokens, width, &mut out);
            let mut squares = vec![0f32; width];
            add_squares(&x, &mut squares);
            for i in 0..width {
                for j in i..width {
                    let row = |t: usize| f64::from(x[t * width + i]) * f64::from(x[t * width + j]);
                    let sum: f64 = (0..tokens).map(row).sum();
                    let found = f64::from(out[i * width + j]);
                    assert!(
                        (sum - found).abs() < 1e-5 * tokens as f64,
                        "{tokens} {width} {i} {j}"
                    );
                }
                let (a, b) = (squares[i], out[i * width + i]);
                assert!((a - b).abs() <= 1e-4 * b.abs() + 1e-6);
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let x = values(600 * 200);
        let sums = |threads| {
            let mut out = vec![0f32; 200 * 200];
            add_upper(&Pool::new(threads), &x, 600, 200, &mut out);
            out
        };
        let one = sums(1);
        assert!([2, 3, 5].into_iter().all(|n| sums(n) == one));
    }

    #[test]
    fn many_columns_take_their_tokens_in_parts() {
        let (tokens, width) = (150, 70_000 / 64);
        let x = values(tokens * width);
        let mut whole = vec![0f32; width * width];
        add_upper(&Pool::new(2), &x, tokens, width, &mut whole);
        let at = |i: usize, j: usize| -> f64 {
            let row = |t: usize| f64::from(x[t * width + i]) * f64::from(x[t * width + j]);
            (0..tokens).map(row).sum()
        };
        for (i, j) in [(0, 0), (3, 1000), (1092, 1092), (500, 777)] {
            assert!((at(i, j) - f64::from(whole[i * width + j])).abs() < 1e-3);
        }
    }
}
