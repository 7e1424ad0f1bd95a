//! Low-rank factors as they are stored, each made up for what the other lost.
//!
//! `V` is quantized in the metric `H` (its rows are weights of the same inputs),
//! `U` is solved again by least squares for the `V` that is stored, and quantized
//! in the metric `V H Vᵀ` of what it sees. Then once more the other way round.

use super::whitened::{unwhiten, whiten, whitened_svd_of};
use super::{Feedback, GptqOptions, HessianError, Metric, Order, Whitened, gptq};
use crate::numeric::lowrank::{
    Block, Decomposition, Factor, FactorFormat, LowRank, LowRankError, Options, Rank, Side,
};
use crate::numeric::matrix::{Matrix, norm2};
use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatMut, MatRef, Par};

/// Damping of the small systems that factors are solved from.
const RIDGE: f64 = 1e-7;

/// The best low-rank term of `e` `[rows, n]` in a metric, in a stored format.
///
/// `feedback` is of the same metric, in any order. Returns the term and the
/// damped objective of what it leaves.
///
/// # Errors
/// As [`whitened_svd`](super::whitened_svd); factors above the range of `f16`.
///
/// # Cost
/// That of [`whitened_svd`](super::whitened_svd), a few products with matrices
/// of `rank` columns, GPTQ of the factors.
pub fn whitened_low_rank(
    e: &[f32],
    rows: usize,
    metric: &Metric,
    feedback: &Feedback,
    rank: usize,
    format: FactorFormat,
    options: &Options,
) -> Result<(LowRank, f64), HessianError> {
    let rank = Rank::Fixed(rank);
    let done = whitened_term(e, rows, (metric, feedback), rank, format, options)?;
    Ok((done.low_rank, done.total - done.kept))
}

/// [`whitened_low_rank`] of any kind of rank; energies are damped objectives.
pub(super) fn whitened_term(
    e: &[f32],
    rows: usize,
    (metric, feedback): (&Metric, &Feedback),
    rank: Rank,
    format: FactorFormat,
    options: &Options,
) -> Result<Decomposition, HessianError> {
    metric.check(e, rows)?;
    if feedback.n() != metric.n() {
        let (cols, n) = (feedback.n(), metric.n());
        return Err(HessianError::Width { cols, n });
    }
    let white = whiten(e, rows, feedback);
    let found = whitened_svd_of(white.view(), feedback, rank, options)?;
    let (total, reached) = (found.total, found.reached);
    let (low_rank, left) = stored(&white, (metric, feedback), found, format)?;
    Ok(Decomposition {
        low_rank,
        total,
        kept: total - left,
        reached,
    })
}

/// The factors of `white` `[rows, n]` (`E C`, in the metric of `feedback`), stored, and the objective
/// that they leave of it.
pub(super) fn stored(
    white: &Matrix,
    (metric, feedback): (&Metric, &Feedback),
    found: Whitened,
    format: FactorFormat,
) -> Result<(LowRank, f64), HessianError> {
    let block = Block {
        row0: 0,
        rows: white.rows,
        col0: 0,
        cols: white.cols,
        rank: found.rank,
    };
    let problem = Problem {
        white,
        metric,
        feedback,
        format,
        block,
    };
    problem.store_both(found)
}

/// A term that is being rounded.
struct Problem<'a> {
    /// `E C`.
    white: &'a Matrix,
    metric: &'a Metric<'a>,
    feedback: &'a Feedback,
    format: FactorFormat,
    block: Block,
}

impl Problem<'_> {
    /// Stores the factors that were found, the second time for the left one that is stored.
    fn store_both(&self, found: Whitened) -> Result<(LowRank, f64), HessianError> {
        if found.rank == 0 {
            let term = self.term(Factor::F32(Vec::new()), Factor::F32(Vec::new()))?;
            return Ok((term, found.total));
        }
        if self.format == FactorFormat::F32 {
            let term = self.term(Factor::F32(found.u), Factor::F32(found.v))?;
            return Ok((term, (found.total - found.kept).max(0.0)));
        }
        let best = self.round(found.v)?;
        let (u, _) = best.0.decode_factors();
        let next = self.round(self.solve_v(&u)?)?;
        Ok(if next.1 < best.1 { next } else { best })
    }

    /// Stores `v`, solves for `u`, stores that; also gives the objective left.
    fn round(&self, v: Vec<f32>) -> Result<(LowRank, f64), HessianError> {
        let (rows, n, rank) = (self.block.rows, self.block.cols, self.block.rank);
        let v = self.store(Side::V, v, self.metric, self.feedback)?;
        let white_v = whiten(&v.decode(Side::V, &[self.block]), rank, self.feedback);
        let b = MatRef::from_row_major_slice(&white_v.data, rank, n);
        let a = MatRef::from_row_major_slice(&self.white.data, rows, n);
        let second = gram(b);
        let u = solve(&second, product(b, a.transpose()), Side::U, self.block)?;
        let h = row_major(second.as_ref());
        let (metric, feedback, _) = Metric::with_feedback(&h, rank, RIDGE, Order::Activation)?;
        let u = self.store(Side::U, row_major(u.transpose()), &metric, &feedback)?;
        let term = self.term(u, v)?;
        let (u, _) = term.decode_factors();
        let mut left = self.white.data.clone();
        let out = MatMut::from_row_major_slice_mut(&mut left, rows, n);
        let u = MatRef::from_row_major_slice(&u, rows, rank);
        matmul(out, Accum::Add, u, b, -1.0, Par::Seq);
        let objective = norm2(&left);
        Ok((term, objective))
    }

    /// The best `v` for a `u`: least squares.
    fn solve_v(&self, u: &[f32]) -> Result<Vec<f32>, HessianError> {
        let (rows, n, rank) = (self.block.rows, self.block.cols, self.block.rank);
        let u = MatRef::from_row_major_slice(u, rows, rank).transpose();
        let white = MatRef::from_row_major_slice(&self.white.data, rows, n);
        let v = solve(&gram(u), product(u, white), Side::V, self.block)?;
        Ok(unwhiten(row_major(v.as_ref()), rank, self.feedback))
    }

    /// Rounds a factor to the format; codes with feedback in its metric.
    fn store(
        &self,
        side: Side,
        mut values: Vec<f32>,
        metric: &Metric,
        feedback: &Feedback,
    ) -> Result<Factor, HessianError> {
        let (Some(scheme), Some(group)) = (self.format.scheme(), self.format.group(side)) else {
            let blocks = [self.block];
            return Ok(Factor::encode(side, &blocks, values, self.format)?);
        };
        let (rows, _) = side.shape(&self.block);
        let options = GptqOptions {
            rounds: 1,
            ..GptqOptions::default()
        };
        let done = gptq(&mut values, rows, metric, feedback, scheme, group, &options);
        let block = 0;
        let matrix = done
            .map_err(|error| match error {
                HessianError::Quant(source) => LowRankError::Quant {
                    side,
                    block,
                    source,
                }
                .into(),
                other => other,
            })?
            .matrix;
        Ok(Factor::Coded {
            scheme,
            codes: matrix.codes,
            scales: matrix.scales,
        })
    }

    fn term(&self, u: Factor, v: Factor) -> Result<LowRank, HessianError> {
        let (u, v) = if self.block.rank == 0 {
            let empty = |side| Factor::encode(side, &[self.block], Vec::new(), self.format);
            (empty(Side::U)?, empty(Side::V)?)
        } else {
            (u, v)
        };
        let (rows, cols) = (self.block.rows, self.block.cols);
        Ok(LowRank::new(rows, cols, vec![self.block], u, v)?)
    }
}

/// `a · aᵀ` in `f64`, with a little added to the diagonal.
fn gram(a: MatRef<'_, f32>) -> Mat<f64> {
    let wide = Mat::from_fn(a.nrows(), a.ncols(), |i, j| f64::from(a[(i, j)]));
    let mut out = Mat::zeros(a.nrows(), a.nrows());
    let wide = wide.as_ref();
    matmul(
        out.as_mut(),
        Accum::Replace,
        wide,
        wide.transpose(),
        1.0,
        Par::Seq,
    );
    let n = a.nrows();
    let mean = (0..n).map(|i| out[(i, i)]).sum::<f64>() / n.max(1) as f64;
    for i in 0..n {
        out[(i, i)] += RIDGE * mean + f64::MIN_POSITIVE;
    }
    out
}

/// `a · b`.
fn product(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> Mat<f32> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    out
}

/// `gram⁻¹ · right`.
fn solve(
    gram: &Mat<f64>,
    right: Mat<f32>,
    side: Side,
    block: Block,
) -> Result<Mat<f32>, HessianError> {
    let none = LowRankError::NoConvergence {
        rows: side.shape(&block).0,
        cols: side.shape(&block).1,
    };
    let factor = gram.llt(faer::Side::Lower).map_err(|_| none)?;
    let mut wide = Mat::from_fn(right.nrows(), right.ncols(), |i, j| {
        f64::from(right[(i, j)])
    });
    factor.solve_in_place(wide.as_mut());
    Ok(Mat::from_fn(wide.nrows(), wide.ncols(), |i, j| {
        wide[(i, j)] as f32
    }))
}

/// The values of a matrix, row after row.
fn row_major<T: Copy + Into<f64>>(a: MatRef<'_, T>) -> Vec<f32> {
    let (rows, cols) = (a.nrows(), a.ncols());
    let values = (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j)));
    values.map(|at| a[at].into() as f32).collect()
}
