//! What a pipeline would make of one matrix: its bytes and its error; nothing is stored.

use super::choose::{choose, estimate};
use super::schedule::{Schedule, Stage};
use super::unit::{self, UnitError};
use super::units::open;
use super::{RunError, RunOptions};
use crate::ir::Module;
use crate::ir::site::Site;
use crate::numeric::hessian::{Metric, objective};
use crate::numeric::matrix;
use crate::pass::Moments;
use crate::pass::terms::TermData;
use crate::store::Reader;

/// What a pipeline would make of one matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// Bytes of all its terms.
    pub bytes: u64,
    /// Squared error of the outputs over the squares of the outputs, on what the statistics have seen of
    /// the inputs; of the weights where there are no statistics.
    pub error: f64,
}

/// Runs the matrix passes of a pipeline on one dense matrix `[out, in]`; `None` where they would leave it
/// alone.
///
/// Memory: three copies of the matrix in f32, the moments, and what the passes need.
///
/// # Errors
/// As [`super::run`].
pub fn trial(
    module: &Module,
    site: &Site,
    schedule: &Schedule,
    reader: &Reader<'_>,
    options: &RunOptions<'_>,
) -> Result<Option<Trial>, RunError> {
    let steps = matrix_steps(schedule);
    let mut chosen = choose(module, schedule, &steps, std::slice::from_ref(site))?;
    let Some(mut chosen) = chosen.pop() else {
        return Ok(None);
    };
    chosen.keep = None;
    let failed = |message: String| RunError::Weight {
        site: site.name.clone(),
        message,
    };
    let unfit = |e: UnitError| match e.statistics {
        true => RunError::Statistics {
            site: site.name.clone(),
            message: e.message,
        },
        false => failed(e.message),
    };
    let job = open(module, schedule, reader, options, &chosen).map_err(unfit)?;
    let (rows, cols) = (job.view.rows(), job.view.cols());
    let mut weights = vec![0f32; rows * cols];
    let read = job.view.read_rows_f32(0..rows, &mut weights);
    read.map_err(|e| failed(e.to_string()))?;
    let done = unit::run(&job, 0..rows).map_err(|e| match e.step {
        None => failed(e.message),
        Some(step) => RunError::Pass {
            pass: schedule.steps[step].name.to_string(),
            site: site.name.clone(),
            message: e.message,
        },
    })?;
    job.view.release_rows(0..rows);
    let terms: Vec<TermData> = done.steps.into_iter().filter_map(|s| s.term).collect();
    let mut left = vec![0f32; rows * cols];
    for term in &terms {
        term.add_rows(0..rows, &mut left)
            .map_err(|e| failed(e.to_string()))?;
    }
    for (left, weight) in left.iter_mut().zip(&weights) {
        *left = weight - *left;
    }
    let moments = match (job.moments, options.moments) {
        (Some(moments), _) => Some(moments),
        (None, Some(source)) => source.moments(&site.name).map_err(failed)?,
        (None, None) => None,
    };
    let size = |x: &[f32]| outputs(x, (rows, cols), moments.as_ref()).map_err(failed);
    let (error, whole) = (size(&left)?, size(&weights)?);
    Ok(Some(Trial {
        bytes: terms.iter().map(TermData::bytes).sum(),
        error: if whole > 0.0 { error / whole } else { 0.0 },
    }))
}

fn matrix_steps(schedule: &Schedule) -> Vec<usize> {
    let of = |stage: &Stage| match stage {
        Stage::Matrices(steps) => steps.clone(),
        Stage::Module(_) => Vec::new(),
    };
    schedule.stages.iter().flat_map(of).collect()
}

/// How many trials of a pipeline on these matrices may run at once within the memory limit.
///
/// # Errors
/// [`RunError::Memory`] where one alone is too much.
pub fn trial_workers(
    module: &Module,
    sites: &[Site],
    schedule: &Schedule,
    options: &RunOptions<'_>,
) -> Result<usize, RunError> {
    let mut chosen = choose(module, schedule, &matrix_steps(schedule), sites)?;
    for one in &mut chosen {
        // What is left and the weights beside it, whole; the moments in f32, and a part of them in f64.
        let (rows, cols) = (one.site.rows, one.site.cols);
        let more = rows.saturating_mul(cols).saturating_mul(8);
        let moments = cols.saturating_mul(cols).saturating_mul(4);
        let shape = &mut one.shape;
        let scaled = shape
            .unit_bytes
            .saturating_mul(rows.div_ceil(shape.unit_rows.max(1)));
        shape.unit_bytes = scaled.saturating_add(more).saturating_add(moments);
    }
    Ok(estimate(module, &chosen, options, 0)?.workers.max(1))
}

/// Σ of squares of the outputs of a matrix, `tr(X H Xᵀ)`; of its entries where nothing is known of inputs.
fn outputs(
    x: &[f32],
    (rows, cols): (usize, usize),
    moments: Option<&Moments>,
) -> Result<f64, String> {
    let Some(moments) = moments else {
        return Ok(matrix::norm2(x));
    };
    if let Some(h) = &moments.hessian {
        let metric = Metric::unchecked(h, cols, 0.0).map_err(|e| e.to_string())?;
        return objective(&metric, x, rows).map_err(|e| e.to_string());
    }
    let weigh = |row: &[f32]| -> f64 {
        let terms = row.iter().zip(&moments.diagonal);
        terms
            .map(|(x, d)| f64::from(*x).powi(2) * f64::from(*d))
            .sum()
    };
    Ok(x.chunks(cols.max(1)).map(weigh).sum())
}
