//! Compression in the metric of the inputs.
//!
//! A linear `y = W x` that is replaced by `Ŵ` errs by `E x`, `E = W - Ŵ`. Over
//! calibration inputs, the sum of squares of that is `tr(E H Eᵀ)` with the
//! second moment `H = Σ x xᵀ` `[n, n]`. Everything here makes that small:
//!
//! - [`gptq()`]: integer codes with error feedback, scales fitted in the metric;
//! - [`ldlq()`]: the same feedback in blocks of columns for any other quantizer,
//!   and [`water_fill`], which spreads bits over the blocks;
//! - [`whitened_svd`]: the low-rank term that lowers the objective most, and
//!   [`whitened_low_rank`], its factors in a stored format, and
//!   [`whitened_leaves`] over a hierarchy of blocks, [`whitened_levels`] over a
//!   sum of levels;
//! - [`refine()`]: quantizer and factors by turns, never worse;
//! - [`outliers()`]: entries that a quantizer had better leave alone.
//!
//! `H` is made positive definite by damping: a fraction of its mean diagonal is
//! added to the diagonal. Inputs that are always zero (dead channels) count as
//! inputs of mean size that correlate with nothing, so their weights are rounded
//! plainly.
//!
//! Functions work on one matrix, use no threads and give the same bits each time.

mod factor;
mod factors;
mod feedback;
mod gptq;
mod ldlq;
mod leaves;
mod objective;
mod outliers;
mod outputs;
mod refine;
mod water;
mod whitened;

pub use factors::whitened_low_rank;
pub use feedback::{Blocks, Feedback, Order};
pub use gptq::{Gptq, GptqOptions, gptq};
pub use ldlq::ldlq;
pub use leaves::whitened_leaves;
pub use objective::{damped_objective, objective, relative_objective, row_objectives};
pub use outliers::outliers;
pub use outputs::whitened_levels;
pub use refine::{RefineOptions, Refined, refine};
pub use water::{WaterError, water_fill};
pub use whitened::{Whitened, whitened_svd};

use super::lowrank::LowRankError;
use super::matrix::{ShapeError, check_shape};
use super::quant::QuantError;
use super::sparse::SparseError;

/// Why something can't be done in a metric.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum HessianError {
    /// The second moment or the weights have the wrong length.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// An entry of the second moment is NaN or infinite.
    #[error("second moment [{row}, {col}] is {value}: calibrate again, an input was not finite")]
    NotFinite {
        /// Row of the entry.
        row: usize,
        /// Column of the entry.
        col: usize,
        /// The entry.
        value: f32,
    },
    /// A sum of squares is negative.
    #[error("second moment [{index}, {index}] is {value}, but a sum of squares is never negative")]
    Negative {
        /// Index on the diagonal.
        index: usize,
        /// The entry.
        value: f32,
    },
    /// A damping that isn't a fraction.
    #[error("damping {damp} isn't a number of 0 or more: 0.01 to 0.025 are usual")]
    Damping {
        /// The damping asked for.
        damp: f64,
    },
    /// Damping doesn't make the second moment positive definite.
    #[error(
        "the second moment isn't positive definite even with damping {damp}: it is no sum of x·xᵀ"
    )]
    NotPositive {
        /// The highest damping tried.
        damp: f64,
    },
    /// Weights and metric of different width.
    #[error("a matrix of {cols} inputs in a metric of {n}")]
    Width {
        /// Columns of the matrix.
        cols: usize,
        /// Size of the metric.
        n: usize,
    },
    /// One scale per column, under which columns can't be quantized one by one.
    #[error("error feedback has no column groups: use groups of 32, 64 or 128, or rows")]
    ColumnGroups,
    /// A matrix that can't be quantized.
    #[error(transparent)]
    Quant(#[from] QuantError),
    /// A matrix that can't be decomposed.
    #[error(transparent)]
    LowRank(#[from] LowRankError),
    /// A matrix that can't be split.
    #[error(transparent)]
    Sparse(#[from] SparseError),
}

/// What had to be done to a second moment; for remarks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Conditioning {
    /// Inputs that are always zero.
    pub dead: usize,
    /// Damping asked for, as a fraction of the mean diagonal.
    pub damp: f64,
    /// Damping in use: higher where that was not enough.
    pub damp_used: f64,
    /// Factorizations that were tried.
    pub tries: usize,
}

/// A damped second moment `H` `[n, n]` of the inputs of a linear.
#[derive(Clone, Debug)]
pub struct Metric<'a> {
    n: usize,
    h: &'a [f32],
    /// Of `h`, with the mean of the others for dead channels.
    diagonal: Vec<f64>,
    dead: Vec<bool>,
    /// Mean of `diagonal`, 1 if all channels are dead.
    mean: f64,
    damp: f64,
}

impl<'a> Metric<'a> {
    /// Checks `h` `[n, n]`, symmetric, and damps it until it is positive definite.
    ///
    /// `damp` is a fraction of the mean diagonal. Where the Cholesky
    /// factorization fails, it is raised tenfold.
    ///
    /// # Errors
    /// A wrong length, entries that aren't finite, a negative diagonal, a matrix
    /// that isn't positive definite with the tenfold of its diagonal added.
    ///
    /// # Cost
    /// One factorization (`n³ / 3`), which is dropped: what needs a factor may
    /// need another order. Holds no copy of `h`.
    pub fn new(h: &'a [f32], n: usize, damp: f64) -> Result<(Self, Conditioning), HessianError> {
        let mut metric = Metric::unchecked(h, n, damp)?;
        let natural: Vec<usize> = (0..n).collect();
        let (_, tries) = factor::factor_damped(&mut metric, &natural)?;
        let conditioning = metric.conditioning(damp, tries);
        Ok((metric, conditioning))
    }

    /// As [`Metric::new`], and the feedback in the order asked for, which is all
    /// that is factored.
    pub fn with_feedback(
        h: &'a [f32],
        n: usize,
        damp: f64,
        order: Order,
    ) -> Result<(Self, Feedback, Conditioning), HessianError> {
        let mut metric = Metric::unchecked(h, n, damp)?;
        let (feedback, tries) = Feedback::damped(&mut metric, order)?;
        let conditioning = metric.conditioning(damp, tries);
        Ok((metric, feedback, conditioning))
    }

    /// Everything but the factorization.
    pub(crate) fn unchecked(h: &'a [f32], n: usize, damp: f64) -> Result<Self, HessianError> {
        check_shape(n, n, h.len())?;
        if !damp.is_finite() || damp < 0.0 {
            return Err(HessianError::Damping { damp });
        }
        if let Some(at) = h.iter().position(|x| !x.is_finite()) {
            let (row, col, value) = (at / n, at % n, h[at]);
            return Err(HessianError::NotFinite { row, col, value });
        }
        let raw = (0..n).map(|i| h[i * n + i]);
        if let Some((index, value)) = raw.clone().enumerate().find(|(_, x)| *x < 0.0) {
            return Err(HessianError::Negative { index, value });
        }
        let dead: Vec<bool> = raw.clone().map(|x| x == 0.0).collect();
        let live = dead.iter().filter(|dead| !**dead).count();
        let sum: f64 = raw.clone().map(f64::from).sum();
        let mean = if live > 0 { sum / live as f64 } else { 1.0 };
        let diagonal = raw.map(|x| if x == 0.0 { mean } else { f64::from(x) });
        Ok(Metric {
            n,
            h,
            diagonal: diagonal.collect(),
            dead,
            mean,
            damp,
        })
    }

    fn conditioning(&self, damp: f64, tries: usize) -> Conditioning {
        Conditioning {
            dead: self.dead.iter().filter(|dead| **dead).count(),
            damp,
            damp_used: self.damp,
            tries,
        }
    }

    /// Number of inputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The second moment as given, `[n, n]`, not damped.
    pub fn second_moment(&self) -> &'a [f32] {
        self.h
    }

    /// What is added to every entry of the diagonal.
    pub fn shift(&self) -> f64 {
        self.damp * self.mean
    }

    /// The diagonal, damped; dead channels have the mean of the others.
    pub fn diagonal(&self) -> Vec<f64> {
        self.diagonal.iter().map(|x| x + self.shift()).collect()
    }

    /// Entry `[i, j]` of the damped metric.
    fn entry(&self, i: usize, j: usize) -> f64 {
        if i == j {
            self.diagonal[i] + self.shift()
        } else if self.dead[i] || self.dead[j] {
            0.0
        } else {
            f64::from(self.h[i * self.n + j])
        }
    }

    /// Checks that `w` is a `[rows, n]` matrix.
    fn check(&self, w: &[f32], rows: usize) -> Result<(), HessianError> {
        Ok(check_shape(rows, self.n, w.len())?)
    }
}

#[cfg(test)]
mod tests;
