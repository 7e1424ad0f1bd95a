//! Products with 8-bit activations: which kernel runs on which part.

use super::Kind;
use super::activations::{Int8Activations, Layout};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::{QuantRows, exact, rows_per_part, scalar};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::exec::Pool;
use crate::exec::kernels::Write;

/// Tokens per part of a product of many.
const TOKENS_PER_PART: usize = 1024;

/// `out [+]= x wᵀ` for 8-bit activations; `out` is `[tokens, rows]`.
///
/// Integer products per 32 along `in`, `f32` sums of those. Groups that are no power of two times
/// 32 take a slower way that decodes both sides.
///
/// # Panics
/// If the activations have another width than `w` or `out` another length.
pub fn matmul_int8(
    pool: &Pool,
    w: &QuantRows<'_>,
    x: &Int8Activations<'_>,
    write: Write,
    out: &mut [f32],
) {
    assert_eq!(x.cols, w.cols, "width of the activations");
    assert_eq!(x.tokens.checked_mul(w.rows), Some(out.len()), "output");
    if let Some(folded) = x.folded(pool, w) {
        return product(pool, w, &folded, write, out);
    }
    if w.shift().is_none() {
        let values = x.decode();
        return exact::matmul_at(x.level, pool, w, &values, x.tokens, write, out);
    }
    product(pool, w, x, write, out);
}

fn product(pool: &Pool, w: &QuantRows<'_>, x: &Int8Activations<'_>, write: Write, out: &mut [f32]) {
    match &x.layout {
        #[cfg(target_arch = "x86_64")]
        Layout::Blocks(blocks) => {
            let tile = (TOKENS_PER_PART, avx512::TILE_ROWS);
            pool.split(out, w.rows, tile, |tile| {
                avx512::many(w, blocks, write, tile)
            });
        }
        #[cfg(not(target_arch = "x86_64"))]
        Layout::Blocks(_) => {}
        Layout::Rows(rows) => {
            let tile = (TOKENS_PER_PART, rows_per_part(w));
            match x.level.0 {
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 => {
                    let x = avx512::Few::new(w, rows, x.tokens);
                    pool.split(out, w.rows, tile, |tile| avx512::few(w, &x, write, tile));
                }
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => {
                    pool.split(out, w.rows, tile, |tile| avx2::int8(w, rows, write, tile))
                }
                #[cfg(target_arch = "aarch64")]
                Kind::Neon => {
                    pool.split(out, w.rows, tile, |tile| neon::int8(w, rows, write, tile))
                }
                _ => pool.split(out, w.rows, tile, |tile| scalar::int8(w, rows, write, tile)),
            }
        }
    }
}
