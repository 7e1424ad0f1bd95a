//! Products with 8-bit activations: which kernel runs on which part.

use super::Kind;
use super::activations::{Int8Activations, Layout, Rows};
#[cfg(target_arch = "aarch64")]
use super::neon;
use super::{QuantRows, alone, exact, rows_per_part, scalar};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::exec::Pool;
use crate::exec::kernels::Write;
use crate::exec::pool::{Split, Tile};
#[cfg(target_arch = "x86_64")]
use crate::numeric::quant::Group;

/// Tokens per part of a product of many.
const TOKENS_PER_PART: usize = 1024;

/// A matrix and where its product goes.
pub struct Product<'a> {
    /// The matrix.
    pub w: QuantRows<'a>,
    /// Whether the product is added to what is there.
    pub write: Write,
    /// `[tokens, rows]`.
    pub out: &'a mut [f32],
}

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
    matmul_int8_all(pool, &mut [Product { w: *w, write, out }], x);
}

/// [`matmul_int8`] of several matrices with the same input, as one job of the pool.
///
/// # Panics
/// As [`matmul_int8`].
pub fn matmul_int8_all(pool: &Pool, products: &mut [Product<'_>], x: &Int8Activations<'_>) {
    let mut plain = Vec::with_capacity(products.len());
    for product in products {
        let w = product.w;
        assert_eq!(x.cols, w.cols, "width of the activations");
        assert_eq!(
            x.tokens.checked_mul(w.rows),
            Some(product.out.len()),
            "output"
        );
        if let Some(folded) = x.folded(pool, &w) {
            together(pool, &mut [product], &folded);
        } else if w.shift().is_none() {
            let values = x.decode();
            let (write, out) = (product.write, &mut *product.out);
            exact::matmul_at(x.level, pool, &w, &values, x.tokens, write, out);
        } else {
            plain.push(product);
        }
    }
    let codes = plain.iter().map(|p| p.w.codes.len()).sum();
    pool.alone(alone(codes, x.tokens), || together(pool, &mut plain, x));
}

/// Products that one kernel takes.
fn together(pool: &Pool, products: &mut [&mut Product<'_>], x: &Int8Activations<'_>) {
    if products.is_empty() {
        return;
    }
    let matrices: Vec<(QuantRows<'_>, Write)> = products.iter().map(|p| (p.w, p.write)).collect();
    let mut splits: Vec<Split<'_, f32>> = products
        .iter_mut()
        .map(|product| Split {
            width: product.w.rows,
            tile: (TOKENS_PER_PART, part_rows(&product.w, x)),
            out: product.out,
        })
        .collect();
    match &x.layout {
        #[cfg(target_arch = "x86_64")]
        Layout::Blocks(blocks) => pool.split_all(&mut splits, |i, tile| {
            let (w, write) = &matrices[i];
            avx512::many(w, blocks, *write, tile);
        }),
        #[cfg(not(target_arch = "x86_64"))]
        Layout::Blocks(_) => {}
        Layout::Rows(rows) => match x.level.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => {
                let orders = Orders::new(&matrices, rows, x.tokens);
                pool.split_all(&mut splits, |i, tile| {
                    let (w, write) = &matrices[i];
                    avx512::few(w, orders.get(i), *write, tile);
                });
            }
            _ => pool.split_all(&mut splits, |i, tile| {
                let (w, write) = &matrices[i];
                one_by_one(x.level.0, w, rows, *write, tile);
            }),
        },
    }
}

/// Output rows of a part.
fn part_rows(w: &QuantRows<'_>, x: &Int8Activations<'_>) -> usize {
    match &x.layout {
        #[cfg(target_arch = "x86_64")]
        Layout::Blocks(_) => avx512::TILE_ROWS,
        _ => rows_per_part(w),
    }
}

fn one_by_one(kind: Kind, w: &QuantRows<'_>, x: &Rows, write: Write, tile: Tile<'_, f32>) {
    match kind {
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => avx2::int8(w, x, write, tile),
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => neon::int8(w, x, write, tile),
        _ => scalar::int8(w, x, write, tile),
    }
}

/// Activations in the orders of some matrices' codes: one for all that agree.
#[cfg(target_arch = "x86_64")]
struct Orders {
    orders: Vec<avx512::Few>,
    of: Vec<usize>,
}

#[cfg(target_arch = "x86_64")]
impl Orders {
    fn new(matrices: &[(QuantRows<'_>, Write)], x: &Rows, tokens: usize) -> Self {
        let mut keys = Vec::with_capacity(1);
        let mut orders = Vec::with_capacity(1);
        let of = matrices.iter().map(|(w, _)| {
            let key = (w.scheme, w.group == Group::Column, w.zeros.is_some());
            keys.iter().position(|k| *k == key).unwrap_or_else(|| {
                keys.push(key);
                orders.push(avx512::Few::new(w, x, tokens));
                orders.len() - 1
            })
        });
        let of = of.collect();
        Self { orders, of }
    }

    fn get(&self, matrix: usize) -> &avx512::Few {
        &self.orders[self.of[matrix]]
    }
}
