//! Matrices of an ONNX model, stored `[in, out]`, kept as panels for products of many tokens.
//!
//! A product packs such a matrix each time, 48 columns at a time from rows that lie on different
//! pages; for an encoder of some megabytes that takes a quarter of its time. So small matrices stay
//! packed, within [`KEPT_BYTES`] for the whole process; others are packed again each time. The sums
//! are the same to the last bit.

use super::{FloatRows, TILE_TOKENS, Write, stretches};
use crate::exec::kernels::elementwise::add_at;
use crate::exec::kernels::gemm::{self, Left, PANEL, Right};
use crate::exec::kernels::vector::Isa;
use crate::exec::pool::{Pool, Split, Tile};
use crate::numeric::float::Float;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes of panels that a process keeps.
const KEPT_BYTES: usize = 64 << 20;

static KEPT: AtomicUsize = AtomicUsize::new(0);

/// The columns of a matrix, 48 at a time: panel `p` is `[cols, 48]`, zeros behind the last column.
pub struct Panels {
    values: Vec<f32>,
}

impl Panels {
    /// Packs a matrix of `f32` stored `[in, out]`; none where it is another or the room is spent.
    ///
    /// Cost: one pass over the matrix. Memory: its bytes, counted until this is dropped.
    pub fn new(pool: &Pool, w: &FloatRows<'_>) -> Option<Self> {
        if !w.transposed || w.format != Float::F32 || w.cols == 0 {
            return None;
        }
        let len = w.rows.div_ceil(PANEL).checked_mul(PANEL * w.cols)?;
        let bytes = len.checked_mul(size_of::<f32>())?;
        let room = |kept: usize| kept.checked_add(bytes).filter(|&sum| sum <= KEPT_BYTES);
        KEPT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .ok()?;
        let mut values = vec![0.0; len];
        pool.split(
            &mut values,
            PANEL * w.cols,
            (1, PANEL * w.cols),
            |mut tile| {
                let panel = tile.rows().start;
                let columns = panel * PANEL..w.rows.min((panel + 1) * PANEL);
                for (i, row) in tile.row_mut(panel).chunks_mut(PANEL).enumerate() {
                    w.decode(i * w.rows + columns.start, &mut row[..columns.len()]);
                }
            },
        );
        Some(Self { values })
    }

    /// As [`super::matmul`] of the matrix, for more than four tokens.
    pub fn matmul(
        &self,
        pool: &Pool,
        w: &FloatRows<'_>,
        x: &[f32],
        tokens: usize,
        write: Write,
        out: &mut [f32],
    ) {
        w.check(x, tokens, out);
        pool.split(out, w.rows, (TILE_TOKENS.0, PANEL), |mut tile| {
            self.tile(w.cols, x, write, &mut tile);
        });
    }

    fn tile(&self, cols: usize, x: &[f32], write: Write, tile: &mut Tile<'_, f32>) {
        let isa = Isa::detect();
        let (columns, tokens) = (tile.cols(), tile.rows());
        for part in stretches(cols) {
            let left = Left::new(&x[tokens.start * cols + part.start..], cols, tokens.len());
            let right = Right {
                data: &self.values[columns.start * cols + part.start * PANEL..],
                stride: PANEL,
                lanes: columns.len(),
            };
            let add = write == Write::Add || part.start > 0;
            gemm::product_into_rows(isa, part.len(), left, right, tile, (0, 0), add);
        }
    }
}

/// One of several products with the same activations.
pub struct PanelProduct<'a> {
    /// The matrix, packed.
    pub panels: Arc<Panels>,
    /// The matrix.
    pub w: FloatRows<'a>,
    /// Added to each row of the result, one value for each row of the matrix.
    pub bias: Option<&'a [f32]>,
    /// `[tokens, rows]`.
    pub out: &'a mut [f32],
}

/// `out[t, o] = Σ_i x[t, i] · W[o, i] + bias[o]` of several matrices as one job of the pool: of a
/// small encoder's time every start and end of a job is a part.
///
/// # Panics
/// A slice does not fit the shapes.
pub fn matmul_all(pool: &Pool, products: &mut [PanelProduct<'_>], x: &[f32], tokens: usize) {
    let isa = Isa::detect();
    let mut rest = Vec::with_capacity(products.len());
    let mut splits = Vec::with_capacity(products.len());
    for product in products {
        let w = product.w;
        w.check(x, tokens, product.out);
        assert!(product.bias.is_none_or(|bias| bias.len() == w.rows));
        rest.push((&product.panels, w.cols, product.bias));
        splits.push(Split {
            out: &mut *product.out,
            width: w.rows,
            tile: (TILE_TOKENS.0, PANEL),
        });
    }
    pool.split_all(&mut splits, |which, mut tile| {
        let Some((panels, cols, bias)) = rest.get(which) else {
            return;
        };
        panels.tile(*cols, x, Write::Overwrite, &mut tile);
        if let Some(bias) = bias {
            let bias = &bias[tile.cols()];
            for row in tile.rows() {
                add_at(isa, bias, tile.row_mut(row));
            }
        }
    });
}

impl Drop for Panels {
    fn drop(&mut self) {
        KEPT.fetch_sub(size_of_val(&self.values[..]), Ordering::Relaxed);
    }
}
