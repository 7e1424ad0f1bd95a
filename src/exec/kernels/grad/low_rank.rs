//! Gradients through low-rank terms, by way of their factors.

use super::super::low_rank::{LowRankView, decode};
use super::{columns, product};
use crate::exec::pool::Pool;
use faer::{Accum, MatRef};

/// `dx += Σ_b (dy U_b) V_b`.
///
/// # Panics
/// A slice does not fit the shapes.
pub fn transposed(pool: &Pool, w: &LowRankView<'_>, dy: &[f32], dx: &mut [f32]) {
    let [u, v] = decode(w);
    each_block(w, &u, &v, |block, u, v| {
        let dy = columns(dy, w.rows, block.row0..block.row0 + block.rows);
        let mut inner = vec![0f32; dy.nrows() * block.rank];
        let whole = 0..block.rank;
        product(
            pool,
            (&mut inner, block.rank, whole.clone()),
            dy,
            u,
            Accum::Replace,
        );
        let cols = block.col0..block.col0 + block.cols;
        let inner = columns(&inner, block.rank, whole);
        product(pool, (dx, w.cols, cols), inner, v, Accum::Add);
    });
}

/// Gradients by all U_b and all V_b, of `dy` `[tokens, out]` and `x` `[tokens, in]`.
///
/// # Panics
/// A slice does not fit the shapes.
pub fn factors(pool: &Pool, w: &LowRankView<'_>, dy: &[f32], x: &[f32]) -> [Vec<f32>; 2] {
    let [u, v] = decode(w);
    let (mut du, mut dv) = (Vec::with_capacity(u.len()), Vec::with_capacity(v.len()));
    each_block(w, &u, &v, |block, u, v| {
        let dy = columns(dy, w.rows, block.row0..block.row0 + block.rows);
        let x = columns(x, w.cols, block.col0..block.col0 + block.cols);
        let (rank, tokens) = (block.rank, dy.nrows());
        let mut inner = vec![0f32; tokens * rank];
        product(
            pool,
            (&mut inner, rank, 0..rank),
            x,
            v.transpose(),
            Accum::Replace,
        );
        let mut part = vec![0f32; block.rows * rank];
        let right = columns(&inner, rank, 0..rank);
        product(
            pool,
            (&mut part, rank, 0..rank),
            dy.transpose(),
            right,
            Accum::Replace,
        );
        du.extend(part);
        product(pool, (&mut inner, rank, 0..rank), dy, u, Accum::Replace);
        let mut part = vec![0f32; rank * block.cols];
        let left = columns(&inner, rank, 0..rank).transpose();
        product(
            pool,
            (&mut part, block.cols, 0..block.cols),
            left,
            x,
            Accum::Replace,
        );
        dv.extend(part);
    });
    [du, dv]
}

/// The same from the gradient by the whole matrix, `[out, in]`.
///
/// # Panics
/// A slice does not fit the shapes.
pub fn factors_of(pool: &Pool, w: &LowRankView<'_>, dw: &[f32]) -> [Vec<f32>; 2] {
    let [u, v] = decode(w);
    let (mut du, mut dv) = (Vec::with_capacity(u.len()), Vec::with_capacity(v.len()));
    each_block(w, &u, &v, |block, u, v| {
        let dw = columns(dw, w.cols, block.col0..block.col0 + block.cols);
        let dw = dw.subrows(block.row0, block.rows);
        let mut part = vec![0f32; block.rows * block.rank];
        let whole = 0..block.rank;
        product(
            pool,
            (&mut part, block.rank, whole),
            dw,
            v.transpose(),
            Accum::Replace,
        );
        du.extend(part);
        let mut part = vec![0f32; block.rank * block.cols];
        let whole = 0..block.cols;
        product(
            pool,
            (&mut part, block.cols, whole),
            u.transpose(),
            dw,
            Accum::Replace,
        );
        dv.extend(part);
    });
    [du, dv]
}

/// Calls `f` with each block and its factors.
fn each_block(
    w: &LowRankView<'_>,
    u: &[f32],
    v: &[f32],
    mut f: impl FnMut(&crate::numeric::Block, MatRef<'_, f32>, MatRef<'_, f32>),
) {
    let (mut u, mut v) = (u, v);
    for block in w.blocks {
        let (u_now, u_later) = u.split_at(block.rows * block.rank);
        let (v_now, v_later) = v.split_at(block.rank * block.cols);
        (u, v) = (u_later, v_later);
        let left = MatRef::from_row_major_slice(u_now, block.rows, block.rank);
        let right = MatRef::from_row_major_slice(v_now, block.rank, block.cols);
        f(block, left, right);
    }
}
