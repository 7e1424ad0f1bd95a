//! In which metric `lowrank`, `outlier` and `refine` choose.

use super::gptq::RAISED;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pass::{Calibration, Moments, PassError, Peel, Remark, RemarkKind};

/// In which metric terms are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MetricOption {
    /// Least squared error of the outputs on the inputs that were seen; needs `--calib`.
    Inputs,
    /// Least squared error of the weights.
    Weights,
}

/// Damping where nothing is said.
pub const DAMP: f64 = 0.01;

/// What a pass with this option does with statistics.
pub fn calibration(option: Option<MetricOption>) -> Calibration {
    match option {
        None => Calibration::Used,
        Some(MetricOption::Inputs) => Calibration::Needed,
        Some(MetricOption::Weights) => Calibration::Unused,
    }
}

/// Checks a damping.
///
/// # Errors
/// It is no fraction.
pub fn check_damp(damp: f64) -> Result<(), PassError> {
    match (0.0..=1.0).contains(&damp) {
        true => Ok(()),
        false => Err(PassError::new(format!("damp={damp}: use 0 to 1"))),
    }
}

/// The metric that the option asks for, `[cols, cols]`, in the matrix's own coordinates: second moments
/// of the inputs, or their diagonal where that is all that is known. `None`: that of the weights.
///
/// # Errors
/// It is asked for, but there are no statistics.
pub fn moment_of(
    peel: &Peel<'_>,
    option: Option<MetricOption>,
) -> Result<Option<Vec<f32>>, PassError> {
    let moments = peel
        .moments
        .filter(|_| option != Some(MetricOption::Weights));
    let Some(moments) = moments else {
        return match option {
            Some(MetricOption::Inputs) => Err(PassError::new(
                "metric=inputs needs second moments of the inputs: --calib with text, or with a file of \
                 `hlrc-opt calibrate`",
            )),
            _ => Ok(None),
        };
    };
    Ok(Some(whole(moments)))
}

/// Second moments `[in, in]`; of what is known by its diagonal alone, inputs that have nothing to do with
/// each other.
fn whole(moments: &Moments) -> Vec<f32> {
    if let Some(h) = &moments.hessian {
        return h.clone();
    }
    let n = moments.diagonal.len();
    let mut h = vec![0f32; n * n];
    for (at, d) in moments.diagonal.iter().enumerate() {
        h[at * (n + 1)] = *d;
    }
    h
}

/// Second moments `[cols, cols]` in the residual's coordinates, where anything is known of the inputs.
///
/// What is no sum of x·xᵀ, by rounding or because it is damaged, may have negative entries on the rotated
/// diagonal: such inputs are taken as never seen, and a remark says how many. Of what is left, damping
/// makes a metric.
pub fn moment_in_place(peel: &mut Peel<'_>) -> Option<Vec<f32>> {
    let mut h = whole(peel.moments?);
    let n = peel.cols;
    if let Some(rotation) = *peel.rotation {
        rotation.moments(&mut h, n);
        let diagonal = h.iter_mut().step_by(n + 1);
        let negative = diagonal.filter(|x| **x < 0.0).map(|x| *x = 0.0).count();
        if negative > 0 {
            let text = format!(
                "{negative} of {n} inputs have a negative second moment when they are rotated: no sum of \
                 x·xᵀ has. They are taken as never seen ({RAISED} where that is not enough)"
            );
            let remark = Remark::new(RemarkKind::Analysis, peel.site, text);
            peel.remarks.push(remark);
        }
    }
    Some(h)
}

/// A remark where only the diagonal of the second moments is known.
pub fn say_diagonal(peel: &mut Peel<'_>) {
    if peel.moments.is_some_and(|m| m.hessian.is_none()) {
        let text = "the statistics have only the diagonal of its second moments: its inputs are taken to have nothing to do with each other";
        let remark = Remark::new(RemarkKind::Analysis, peel.site, text.to_string());
        peel.remarks.push(remark);
    }
}

/// Memory for the moments, their factor and its scratch.
pub fn metric_bytes(option: Option<MetricOption>, cols: u64) -> u64 {
    match option {
        Some(MetricOption::Weights) => 0,
        _ => cols.saturating_mul(cols).saturating_mul(4 * 6),
    }
}
