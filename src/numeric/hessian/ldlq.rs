//! Error feedback over blocks of columns, for any quantizer.

use super::{Blocks, HessianError};
use crate::numeric::matrix::check_shape;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Columns whose errors are passed on by one product.
const SPAN: usize = 128;

/// Quantizes `w` `[rows, n]` block by block, from the last to the first.
///
/// `quantize(block, target, reconstruction)` gets `[rows, width]` slices (the
/// last block may be narrower) and fills in what its code of `target` decodes
/// to. Blocks are of positions: where the feedback has an order, column `i` of
/// block `j` is input `blocks.inputs()[j * width + i]`. Block LDLQ of QuIP#
/// (Tseng et al., 2024).
///
/// `w` is left holding the residual `W - Ŵ`. Returns `Σ_j tr(e_j D_j e_jᵀ)` with
/// the errors `e_j` of the targets, which is the damped objective
/// `tr(E (H + shift) Eᵀ)` of the residual.
///
/// # Errors
/// A slice of the wrong length; what `quantize` returns.
///
/// # Cost
/// `rows * n² / 2` multiply-adds beside the quantizer.
pub fn ldlq<Error: From<HessianError>>(
    w: &mut [f32],
    rows: usize,
    blocks: &Blocks,
    mut quantize: impl FnMut(usize, &[f32], &mut [f32]) -> Result<(), Error>,
) -> Result<f64, Error> {
    let n = blocks.n();
    check_shape(rows, n, w.len()).map_err(HessianError::from)?;
    let width = blocks.width();
    let span = width.max(SPAN / width * width);
    let mut permuted = Permuted::new(w, rows, blocks.inputs());
    // Corrections of a span [rows, span], from errors behind it.
    let mut ahead = vec![0f32; rows * span];
    let (mut target, mut decoded) = (Vec::new(), Vec::new());
    let mut total = 0.0;
    for s0 in (0..n.div_ceil(span)).rev().map(|s| s * span) {
        let s1 = (s0 + span).min(n);
        let ahead = &mut ahead[..rows * (s1 - s0)];
        corrections(permuted.data(), blocks, rows, s1..n, s0..s1, ahead);
        for j0 in (s0..s1).step_by(width).rev() {
            let j1 = (j0 + width).min(s1);
            let w_block = j1 - j0;
            target.resize(rows * w_block, 0.0);
            decoded.clear();
            decoded.resize(rows * w_block, 0.0);
            corrections(permuted.data(), blocks, rows, j1..s1, j0..j1, &mut target);
            for (r, t) in target.chunks_mut(w_block).enumerate() {
                let known = &ahead[r * (s1 - s0) + j0 - s0..][..w_block];
                let own = &permuted.data()[r * n + j0..][..w_block];
                for ((t, a), w) in t.iter_mut().zip(known).zip(own) {
                    *t += a + w;
                }
            }
            quantize(j0 / width, &target, &mut decoded)?;
            total += cost(&target, &decoded, blocks.variance(j0 / width), w_block);
            for (r, q) in decoded.chunks(w_block).enumerate() {
                let own = &mut permuted.data_mut()[r * n + j0..][..w_block];
                own.iter_mut().zip(q).for_each(|(w, q)| *w -= q);
            }
        }
    }
    permuted.put_back(blocks.inputs());
    Ok(total)
}

/// `out = E[:, from] · L[from, to]`, all `[rows, …]` row-major.
fn corrections(
    e: &[f32],
    blocks: &Blocks,
    rows: usize,
    from: std::ops::Range<usize>,
    to: std::ops::Range<usize>,
    out: &mut [f32],
) {
    let n = blocks.n();
    let out = MatMut::from_row_major_slice_mut(out, rows, to.len());
    let e = MatRef::from_row_major_slice(e, rows, n).subcols(from.start, from.len());
    let l = MatRef::from_row_major_slice(blocks.lower(), n, n);
    let l = l.submatrix(from.start, to.start, from.len(), to.len());
    matmul(out, Accum::Replace, e, l, 1.0, Par::Seq);
}

/// `tr(e D eᵀ)` of the error of a block.
fn cost(target: &[f32], decoded: &[f32], d: &[f64], width: usize) -> f64 {
    // Σ_r e_r D e_rᵀ = Σ_ik D_ik (eᵀ e)_ik.
    let mut moments = vec![0.0; width * width];
    let mut e = vec![0.0; width];
    for (t, q) in target.chunks(width).zip(decoded.chunks(width)) {
        for ((e, t), q) in e.iter_mut().zip(t).zip(q) {
            *e = f64::from(t - q);
        }
        for (i, row) in moments.chunks_mut(width).enumerate() {
            let x = e[i];
            row.iter_mut().zip(&e).for_each(|(m, e)| *m += x * e);
        }
    }
    moments.iter().zip(d).map(|(m, d)| m * d).sum()
}

/// A matrix whose columns lie in the order of the feedback while it is in use.
struct Permuted<'a> {
    w: &'a mut [f32],
    copy: Option<Vec<f32>>,
    rows: usize,
}

impl<'a> Permuted<'a> {
    fn new(w: &'a mut [f32], rows: usize, inputs: &[u32]) -> Self {
        let natural = inputs.iter().enumerate().all(|(i, &p)| i == p as usize);
        let copy = (!natural).then(|| {
            let n = inputs.len();
            let mut copy = vec![0.0; w.len()];
            for (out, row) in copy.chunks_mut(n).zip(w.chunks(n)) {
                for (o, &i) in out.iter_mut().zip(inputs) {
                    *o = row[i as usize];
                }
            }
            copy
        });
        Permuted { w, copy, rows }
    }

    fn data(&self) -> &[f32] {
        self.copy.as_deref().unwrap_or(self.w)
    }

    fn data_mut(&mut self) -> &mut [f32] {
        match &mut self.copy {
            Some(copy) => copy,
            None => self.w,
        }
    }

    fn put_back(self, inputs: &[u32]) {
        let Some(copy) = self.copy else { return };
        let n = copy.len() / self.rows.max(1);
        for (row, from) in self.w.chunks_mut(n.max(1)).zip(copy.chunks(n.max(1))) {
            for (x, &i) in from.iter().zip(inputs) {
                row[i as usize] = *x;
            }
        }
    }
}
