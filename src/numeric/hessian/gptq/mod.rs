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
    /// The scales at the start: from the range, or of least squared error, each
    /// column weighted by its second moment.
    pub scales: ScaleMethod,
    /// Most rounds of fitting scales and codes by turns; 0 is GPTQ alone.
    pub rounds: usize,
    /// Rounds end when one lowers the objective by less than this fraction.
    pub tolerance: f64,
}

impl Default for GptqOptions {
    fn default() -> Self {
        GptqOptions {
            scales: ScaleMethod::Lsq,
            rounds: 3,
            tolerance: 2e-3,
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
    /// `tr(E (H + shift) Eᵀ)` after GPTQ, then after every round; never rising.
    ///
    /// Followed from step to step in `f32`; [`objective`](super::objective())
    /// computes that of the residual anew.
    pub trace: Vec<f64>,
}

/// Quantizes `residual` `[rows, n]` in a metric and leaves `W - Ŵ` in it.
///
/// `feedback` is of the same metric; linears that share their inputs share both.
///
/// # Errors
/// Column groups; what [`quantize`](crate::numeric::quant::quantize) refuses.
///
/// # Cost
/// GPTQ: `rows * n² / 2` multiply-adds; a round: four times that. Holds
/// 11 bytes per weight.
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
    let mut state = State::new(rows, n, scheme, group)?;
    let weights: Vec<f32> = metric.diagonal().iter().map(|d| *d as f32).collect();
    choose_scales(&mut state, residual, &weights, scheme, options.scales)?;
    let grid = PanelGrid::new(scheme);
    let mut total = state.round_with_feedback(residual, feedback, &grid);
    let mut trace = vec![total];
    // Nothing to do for an empty matrix.
    let rounds = if residual.is_empty() {
        0
    } else {
        options.rounds
    };
    for _ in 0..rounds {
        let fall = state.fit_scales(metric) + state.descend(metric, &grid);
        total = (total - fall).max(0.0);
        trace.push(total);
        if fall <= options.tolerance * total {
            break;
        }
    }
    let matrix = state.into_matrix(scheme, group)?;
    let weight = norm2(residual);
    matrix.subtract_rows(0..rows, residual);
    let sums = SumsOfSquares {
        weight,
        residual: norm2(residual),
    };
    Ok(Gptq {
        matrix,
        sums,
        trace,
    })
}

/// Scales and zero points of all groups, from the weights.
fn choose_scales(
    state: &mut State,
    w: &[f32],
    weights: &[f32],
    scheme: Scheme,
    method: ScaleMethod,
) -> Result<(), HessianError> {
    let (n, width) = (state.n, state.group_width);
    // Weights of unit mean: squares of them stay inside the range of f32.
    let mean = weights.iter().sum::<f32>() / n.max(1) as f32;
    let weights: Vec<f32> = weights.iter().map(|x| x / mean).collect();
    for (r, row) in w.chunks(n.max(1)).enumerate().take(state.rows) {
        for (g, w) in row.chunks(width).enumerate() {
            let at = (r, g * width, g);
            let of_group = &weights[g * width..][..w.len()];
            let params = weighted_params(w, of_group, scheme, method, at)?;
            state.set_params(r, g, params.scale, f32::from(params.zero));
        }
    }
    Ok(())
}
