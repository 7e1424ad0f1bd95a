//! Quantizer and low-rank factors by turns.

use super::objective::damped_objective;
use super::{Feedback, HessianError, Metric, whitened_low_rank};
use crate::numeric::lowrank::{FactorFormat, LowRank, Options};

/// The low-rank term of [`refine()`], and for how long to go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RefineOptions {
    /// Rank of the term.
    pub rank: usize,
    /// How its factors are stored.
    pub format: FactorFormat,
    /// The decomposition.
    pub svd: Options,
    /// Most iterations; each is one quantization and one decomposition.
    pub iterations: usize,
}

/// What [`refine()`] ends with.
#[derive(Clone, Debug, PartialEq)]
pub struct Refined<Code> {
    /// The quantizer's result.
    pub code: Code,
    /// The low-rank term.
    pub low_rank: LowRank,
    /// `W` less both terms, `[rows, n]`.
    pub residual: Vec<f32>,
    /// Damped objective after each iteration, the best so far: never rising.
    pub objectives: Vec<f64>,
}

/// Approximates `w` `[rows, n]` by a quantized and a low-rank term, by turns.
///
/// `quantize` gets what is left of `w` for it and returns its result and what
/// that decodes to, `[rows, n]`. The first time it gets what `start` leaves, or all
/// of `w`. An iteration that doesn't lower the objective is undone and is the last.
/// The scheme is that of LoftQ (Li et al., ICLR 2024) and CALDERA (Saha et al., 2024), in the metric.
///
/// # Errors
/// What `quantize` and [`whitened_low_rank`] return; no iterations.
///
/// # Cost
/// Iterations times both, and an objective in `f64`.
pub fn refine<Code, Error: From<HessianError>>(
    w: &[f32],
    rows: usize,
    metric: &Metric,
    feedback: &Feedback,
    options: &RefineOptions,
    start: Option<&LowRank>,
    mut quantize: impl FnMut(&[f32]) -> Result<(Code, Vec<f32>), Error>,
) -> Result<Refined<Code>, Error> {
    metric.check(w, rows)?;
    let mut best: Option<Refined<Code>> = None;
    let mut target = w.to_vec();
    if let Some(start) = start {
        start.subtract_from(&mut target);
    }
    let mut objectives = Vec::new();
    for _ in 0..options.iterations.max(1) {
        let (code, decoded) = quantize(&target)?;
        metric.check(&decoded, rows)?;
        let mut residual: Vec<f32> = w.iter().zip(&decoded).map(|(w, q)| w - q).collect();
        let RefineOptions {
            rank, format, svd, ..
        } = *options;
        let (low_rank, _) =
            whitened_low_rank(&residual, rows, metric, feedback, rank, format, &svd)?;
        low_rank.subtract_from(&mut residual);
        let objective = damped_objective(metric, &residual, rows)?;
        let before = objectives.last().copied().unwrap_or(f64::INFINITY);
        objectives.push(objective.min(before));
        let falls = objective < before;
        if best.is_none() || falls {
            target.copy_from_slice(w);
            low_rank.subtract_from(&mut target);
            best = Some(Refined {
                code,
                low_rank,
                residual,
                objectives: Vec::new(),
            });
        }
        if !falls {
            break;
        }
    }
    match best {
        Some(best) => Ok(Refined { objectives, ..best }),
        // Not reached: there is at least one iteration.
        None => Err(HessianError::NotPositive { damp: 0.0 }.into()),
    }
}
