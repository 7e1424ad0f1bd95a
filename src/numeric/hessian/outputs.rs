//! What terms of blocks can make up for in the outputs of a whole matrix.
//!
//! With `H = Σ x xᵀ` a term `L` in a block of rows `R` and columns `C` lowers the objective of what is
//! left, `E`, most where `L` is the best approximation of its rank to `E_R H_C H_CC⁻¹` in the metric
//! `H_CC`: the regression of what the outputs lack on the inputs of the block (reduced-rank
//! regression, Izenman 1975). Inputs of other blocks that go along with these are in it.

use super::factors::stored;
use super::whitened::{Whitened, whiten, whiten_product, whitened_svd_of};
use super::{Conditioning, Feedback, HessianError, Metric, Order};
use crate::numeric::lowrank::fit::{Left, Triplets};
use crate::numeric::lowrank::multilevel::{Levels, Taken, diagonal, finest, fit};
use crate::numeric::lowrank::{Block, Decomposition, FactorFormat, LowRank, Options, Rank};
use crate::numeric::matrix::{Matrix, check_shape};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is left of a matrix `[rows, n]`, and its products with the damped metric.
#[derive(Clone)]
pub(super) struct Outputs {
    /// What is left.
    e: Matrix,
    /// That times the metric.
    product: Matrix,
    /// The damped metric `[n, n]`.
    h: Arc<Vec<f32>>,
    /// Of columns that blocks have: the first one and how many.
    parts: Arc<BTreeMap<(usize, usize), Part>>,
}

/// The damped metric of some inputs, and its factor.
struct Part {
    h: Vec<f32>,
    feedback: Feedback,
}

impl Outputs {
    /// All of `e` `[rows, n]` in a damped metric, whose factor is `whole`.
    ///
    /// # Cost
    /// `rows * n²` multiply-adds, a factorization for the columns of each of `blocks`. Holds the
    /// metric, and for each level of blocks a part of it twice.
    pub(super) fn new(
        e: &[f32],
        rows: usize,
        metric: &Metric,
        whole: Feedback,
        blocks: impl Iterator<Item = Block>,
    ) -> Result<Self, HessianError> {
        metric.check(e, rows)?;
        let n = metric.n();
        let h: Vec<f32> = (0..n)
            .flat_map(|i| (0..n).map(move |j| metric.entry(i, j) as f32))
            .collect();
        let mut product = Matrix::zeros(rows, n);
        add_product(&mut product.data, e, &h, (rows, n, n), 1.0);
        let mut parts = BTreeMap::new();
        for block in blocks {
            let key = (block.col0, block.cols);
            if block.cols == n || parts.contains_key(&key) {
                continue;
            }
            let inputs = block.col0..block.col0 + block.cols;
            let own: Vec<f32> = inputs
                .clone()
                .flat_map(|i| h[i * n..][inputs.clone()].iter().copied())
                .collect();
            // Positive definite, as all of it is.
            let (_, feedback, _) = Metric::with_feedback(&own, block.cols, 0.0, Order::Activation)?;
            parts.insert(key, Part { h: own, feedback });
        }
        let feedback = whole;
        let whole = Part {
            h: Vec::new(),
            feedback,
        };
        parts.insert((0, n), whole);
        let e = Matrix::new(rows, n, e.to_vec())?;
        Ok(Outputs {
            e,
            product,
            h: Arc::new(h),
            parts: Arc::new(parts),
        })
    }

    /// The metric of a block's columns, damped, and its factor.
    fn part(&self, block: &Block) -> (&[f32], &Feedback) {
        let part = &self.parts[&(block.col0, block.cols)];
        let h = if block.cols == self.e.cols {
            &self.h
        } else {
            &part.h
        };
        (h.as_slice(), &part.feedback)
    }

    fn found(
        &self,
        target: Matrix,
        block: &Block,
        rank: Rank,
        options: &Options,
    ) -> Result<Triplets, HessianError> {
        let found = whitened_svd_of(target.view(), self.part(block).1, rank, options)?;
        Ok(Triplets {
            u: found.u,
            v: found.v,
            energies: found.energies,
            total: found.total,
            reached: found.reached,
            target,
        })
    }
}

impl Left for Outputs {
    type Error = HessianError;

    fn triplets(
        &self,
        block: &Block,
        rank: Rank,
        options: &Options,
    ) -> Result<Triplets, HessianError> {
        if block.cols == self.e.cols {
            return self.alone(block, rank, options);
        }
        let product = of_block(&self.product, block);
        let target = whiten_product(&product, block.rows, self.part(block).1);
        self.found(target, block, rank, options)
    }

    fn alone(
        &self,
        block: &Block,
        rank: Rank,
        options: &Options,
    ) -> Result<Triplets, HessianError> {
        let target = whiten(&of_block(&self.e, block), block.rows, self.part(block).1);
        self.found(target, block, rank, options)
    }

    fn store(
        &self,
        block: Block,
        triplets: Triplets,
        format: FactorFormat,
    ) -> Result<LowRank, HessianError> {
        let (h, feedback) = self.part(&block);
        let metric = Metric::unchecked(h, block.cols, 0.0)?;
        let found = Whitened {
            rank: triplets.rank(),
            kept: triplets.energies.iter().sum(),
            total: triplets.total,
            reached: triplets.reached,
            energies: triplets.energies,
            u: triplets.u,
            v: triplets.v,
        };
        let (term, _) = stored(&triplets.target, (&metric, feedback), found, format)?;
        let (rows, cols) = (self.e.rows, self.e.cols);
        Ok(LowRank::new(rows, cols, vec![block], term.u, term.v)?)
    }

    fn add(&mut self, term: &LowRank, sign: f32) {
        let n = self.e.cols;
        term.accumulate(0..self.e.rows, &mut self.e.data, sign, 1);
        let Some(block) = term.blocks.first().filter(|block| block.rank > 0) else {
            return;
        };
        let (u, v) = term.decode_factors();
        let mut inner = vec![0f32; block.rank * n];
        let h = &self.h[block.col0 * n..][..block.cols * n];
        add_product(&mut inner, &v, h, (block.rank, block.cols, n), 1.0);
        let rows = &mut self.product.data[block.row0 * n..][..block.rows * n];
        add_product(rows, &u, &inner, (block.rows, block.rank, n), sign);
    }

    fn energy(&self) -> f64 {
        let both = self.e.data.iter().zip(&self.product.data);
        both.map(|(e, p)| f64::from(*e) * f64::from(*p)).sum()
    }
}

/// A contiguous copy of a block.
fn of_block(a: &Matrix, block: &Block) -> Vec<f32> {
    let rows = block.row0..block.row0 + block.rows;
    a.view()
        .block(rows, block.col0..block.col0 + block.cols)
        .to_matrix()
        .data
}

/// `out += factor · a · b` of `[m, k]` and `[k, n]`.
fn add_product(
    out: &mut [f32],
    a: &[f32],
    b: &[f32],
    (m, k, n): (usize, usize, usize),
    factor: f32,
) {
    matmul(
        MatMut::from_row_major_slice_mut(out, m, n),
        Accum::Add,
        MatRef::from_row_major_slice(a, m, k),
        MatRef::from_row_major_slice(b, k, n),
        factor,
        Par::Seq,
    );
}

/// [`multilevel::decompose`] of `e` `[rows, n]` in the metric `h` `[n, n]`.
///
/// Energies are damped objectives. Each block is fitted to all that it can make up for, what inputs
/// outside of it have in common with its own included.
///
/// [`multilevel::decompose`]: crate::numeric::lowrank::multilevel::decompose
///
/// # Errors
/// As [`whitened_low_rank`](super::whitened_low_rank) and [`Metric::new`].
///
/// # Cost
/// Those of the decompositions, and `rows * n²` multiply-adds, a factorization of the metric and for
/// each level of those of its blocks, a triangular solution for each decomposition.
pub fn whitened_levels(
    e: &[f32],
    (rows, n): (usize, usize),
    h: &[f32],
    damp: f64,
    levels: &Levels,
    options: &Options,
) -> Result<(Decomposition, Conditioning), HessianError> {
    check_shape(rows, n, e.len())?;
    let (metric, feedback, conditioning) = Metric::with_feedback(h, n, damp, Order::Activation)?;
    let blocks = (0..=finest(rows, n, levels.depth)).flat_map(|level| diagonal(rows, n, level));
    let left = Outputs::new(e, rows, &metric, feedback, blocks)?;
    let Taken {
        low_rank, reached, ..
    } = fit(&left, (rows, n), levels, options)?;
    drop(left);
    let done = Decomposition::in_metric(&metric, e, rows, low_rank, reached)?;
    Ok((done, conditioning))
}

impl Decomposition {
    /// What a term takes off the damped objective of `e` `[rows, n]`.
    pub(super) fn in_metric(
        metric: &Metric,
        e: &[f32],
        rows: usize,
        low_rank: LowRank,
        reached: bool,
    ) -> Result<Self, HessianError> {
        let total = super::damped_objective(metric, e, rows)?;
        let mut left = e.to_vec();
        low_rank.subtract_from(&mut left);
        let kept = total - super::damped_objective(metric, &left, rows)?;
        Ok(Decomposition {
            low_rank,
            total,
            kept,
            reached,
        })
    }
}
