//! Integer codes with error feedback, scales and codes fitted in the metric.
//!
//! Codes are chosen column by column as in GPTQ (Frantar et al., ICLR 2023) with
//! static groups: scales are chosen before, from the weights. What GPTQ leaves
//! is then lowered by turns: scales by least squares, codes by coordinate
//! descent (as in QuantEase, Behdin et al., 2023), both in the full metric. No
//! step is taken that doesn't lower the objective.

mod descent;
mod state;

use super::{Feedback, HessianError, Metric};
use crate::numeric::matrix::norm2;
use crate::numeric::quant::{
    Group, PanelGrid, QuantMatrix, ScaleMethod, Scheme, SumsOfSquares, weighted_params,
};
use state::State;

/// How [`gptq()`] chooses scales and how long it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GptqOptions {
    /// Scales from the range of a group, or of least squared error, each column
    /// weighted by its conditional variance: what its rounding error will cost.
    pub scales: ScaleMethod,
    /// Passes of GPTQ, at least 1. Before the second and later ones, scales are
    /// fitted to what the pass before rounded: weights plus feedback.
    ///
    /// Later passes need [`ScaleMethod::Lsq`].
    pub sweeps: usize,
    /// Most rounds of fitting scales and codes by turns; 0 is GPTQ alone.
    pub rounds: usize,
    /// Rounds end when one lowers the objective by less than this fraction.
    pub tolerance: f64,
}

impl Default for GptqOptions {
    fn default() -> Self {
        GptqOptions {
            scales: ScaleMethod::Lsq,
            sweeps: 2,
            rounds: 4,
            tolerance: 2e-3,
        }
    }
}

impl GptqOptions {
    /// GPTQ as published: scales from the range, one pass, nothing after.
    pub fn plain() -> Self {
        GptqOptions {
            scales: ScaleMethod::AbsMax,
            sweeps: 1,
            rounds: 0,
            tolerance: 0.0,
        }
    }
}

/// A matrix quantized in a metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Gptq {
    /// Codes, scales and zero points.
    pub matrix: QuantMatrix,
    /// Sums of squares of the weights and of the residual, without the metric.
    pub sums: SumsOfSquares,
    /// `tr(E (H + shift) Eᵀ)` after every pass and every round; never rising.
    ///
    /// Followed from step to step in `f32`; [`objective`](super::objective())
    /// computes that of the residual anew.
    pub trace: Vec<f64>,
}

/// Rows that are worked on at a time; bounds the memory.
const TILE_ROWS: usize = 1024;

/// Quantizes `residual` `[rows, n]` in a metric and leaves `W - Ŵ` in it.
///
/// `feedback` is of the same metric; linears that share their inputs share both.
/// Rows don't depend on each other: tiles of rows give the same codes (but for
/// where `tolerance` ends the rounds).
///
/// # Errors
/// Column groups; what [`quantize`](crate::numeric::quant::quantize) refuses.
///
/// # Cost
/// A pass: `rows * n² / 2` multiply-adds; a round: four times that. Holds
/// 20 bytes per weight of up to 1024 rows.
pub fn gptq(
    residual: &mut [f32],
    rows: usize,
    metric: &Metric,
    feedback: &Feedback,
    scheme: Scheme,
    group: Group,
    options: &GptqOptions,
) -> Result<Gptq, HessianError> {
    metric.check(residual, rows)?;
    let n = metric.n();
    if feedback.n() != n {
        let cols = feedback.n();
        return Err(HessianError::Width { cols, n });
    }
    let passes = options.sweeps.max(1) + options.rounds;
    let mut all = Gptq {
        matrix: State::new(0, n, scheme, group)?.into_matrix(scheme, group)?,
        sums: SumsOfSquares::default(),
        trace: vec![0.0; passes],
    };
    let mut parts = Vec::new();
    for r0 in (0..rows).step_by(TILE_ROWS) {
        let count = TILE_ROWS.min(rows - r0);
        let w = &mut residual[r0 * n..(r0 + count) * n];
        let tile = Tile {
            metric,
            feedback,
            scheme,
            options,
            first_row: r0,
        };
        let (state, trace) = tile.run(w, count, group)?;
        // A tile that ended early stays where it is.
        let last = trace.last().copied().unwrap_or(0.0);
        for (i, sum) in all.trace.iter_mut().enumerate() {
            *sum += trace.get(i).copied().unwrap_or(last);
        }
        let matrix = state.into_matrix(scheme, group)?;
        let weight = norm2(w);
        matrix.subtract_rows(0..count, w);
        let residual = norm2(w);
        all.sums += SumsOfSquares { weight, residual };
        parts.push(matrix);
    }
    if !parts.is_empty() {
        all.matrix = QuantMatrix::concat_rows(parts)?;
    }
    Ok(all)
}

/// What the tiles of a matrix share.
struct Tile<'a> {
    metric: &'a Metric<'a>,
    feedback: &'a Feedback,
    scheme: Scheme,
    options: &'a GptqOptions,
    first_row: usize,
}

impl Tile<'_> {
    /// Quantizes rows of weights; returns them and the objective of every step.
    fn run(&self, w: &[f32], rows: usize, group: Group) -> Result<(State, Vec<f64>), HessianError> {
        let Tile {
            metric, options, ..
        } = *self;
        let grid = PanelGrid::new(self.scheme);
        let mut state = State::new(rows, self.feedback.n(), self.scheme, group)?;
        let weights = self.column_weights();
        self.choose_scales(&mut state, w, &weights)?;
        let mut total = state.round_with_feedback(w, self.feedback, &grid);
        let mut trace = vec![total];
        for _ in 1..options.sweeps {
            if options.scales == ScaleMethod::Lsq {
                let before = state.clone();
                let targets = state.targets_by_row();
                self.choose_scales(&mut state, &targets, &weights)?;
                state.round_with_feedback(w, self.feedback, &grid);
                total = state.keep_better_rows(&before);
            }
            trace.push(total);
        }
        // Nothing to do for an empty matrix.
        let rounds = if w.is_empty() { 0 } else { options.rounds };
        for _ in 0..rounds {
            let fall = state.fit_scales(metric) + state.descend(metric, &grid);
            total = (total - fall).max(0.0);
            trace.push(total);
            if fall <= options.tolerance * total {
                break;
            }
        }
        Ok((state, trace))
    }

    /// Conditional variances by input, of unit mean.
    fn column_weights(&self) -> Vec<f32> {
        let variances = self.feedback.variances_by_input();
        let mean = variances.iter().sum::<f64>() / variances.len().max(1) as f64;
        variances.iter().map(|x| (x / mean) as f32).collect()
    }

    /// Scales and zero points of all groups of `w` `[rows, n]`.
    fn choose_scales(
        &self,
        state: &mut State,
        w: &[f32],
        weights: &[f32],
    ) -> Result<(), HessianError> {
        let (n, width) = (state.n, state.group_width);
        for (r, row) in w.chunks(n.max(1)).enumerate().take(state.rows) {
            for (g, w) in row.chunks(width).enumerate() {
                let at = (self.first_row + r, g * width, g);
                let weights = &weights[g * width..][..w.len()];
                let params = weighted_params(w, weights, self.scheme, self.options.scales, at)?;
                state.set_params(r, g, params.scale, f32::from(params.zero));
            }
        }
        Ok(())
    }
}
