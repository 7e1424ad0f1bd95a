//! Cholesky factors of a damped metric in a given order of the inputs.

use super::{HessianError, Metric};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::traits::ComplexField;
use faer::{Mat, Par};

/// Up to this size, factors are computed in `f64`, above in `f32`.
const DOUBLE_UP_TO: usize = 4096;
/// Damping is raised to at most this multiple of the mean diagonal.
const MOST: f64 = 10.0;
/// The first damping tried where none was asked for and none doesn't do.
const LEAST: f64 = 1e-6;

/// A lower Cholesky factor, in the precision it was computed in.
pub(super) enum Lower {
    /// `f64`.
    Double(Mat<f64>),
    /// `f32`.
    Single(Mat<f32>),
}

impl Lower {
    /// Entry `[i, j]`, `j <= i`.
    pub(super) fn at(&self, i: usize, j: usize) -> f64 {
        match self {
            Lower::Double(l) => l[(i, j)],
            Lower::Single(l) => f64::from(l[(i, j)]),
        }
    }
}

/// Factors the metric with its inputs in `order`, raising its damping on failure.
///
/// Returns the factor and the number of tries.
pub(super) fn factor_damped(
    metric: &mut Metric,
    order: &[usize],
) -> Result<(Lower, usize), HessianError> {
    let mut tries = 0;
    loop {
        tries += 1;
        if let Some(lower) = factor(metric, order) {
            return Ok((lower, tries));
        }
        if metric.damp >= MOST {
            return Err(HessianError::NotPositive { damp: metric.damp });
        }
        metric.damp = (metric.damp * 10.0).clamp(LEAST, MOST);
    }
}

/// The lower Cholesky factor, if there is one.
fn factor(metric: &Metric, order: &[usize]) -> Option<Lower> {
    let n = order.len();
    if n <= DOUBLE_UP_TO {
        let entry = |i, j| {
            if j <= i {
                metric.entry(order[i], order[j])
            } else {
                0.0
            }
        };
        let lower = cholesky(Mat::from_fn(n, n, entry))?;
        let fine = (0..n).all(|i| lower[(i, i)].is_finite() && lower[(i, i)] > 0.0);
        fine.then_some(Lower::Double(lower))
    } else {
        // Scaled to a mean diagonal of 1 inside the range of f32 anyway: H is f32.
        let entry = |i, j| {
            if j <= i {
                metric.entry(order[i], order[j]) as f32
            } else {
                0.0
            }
        };
        let lower = cholesky(Mat::from_fn(n, n, entry))?;
        let fine = (0..n).all(|i| lower[(i, i)].is_finite() && lower[(i, i)] > 0.0);
        fine.then_some(Lower::Single(lower))
    }
}

/// In place, on one thread.
fn cholesky<T: ComplexField>(mut a: Mat<T>) -> Option<Mat<T>> {
    let n = a.nrows();
    let scratch = cholesky_in_place_scratch::<T>(n, Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let regularization = Default::default();
    let done = cholesky_in_place(
        a.as_mut(),
        regularization,
        Par::Seq,
        stack,
        Default::default(),
    );
    done.ok().map(|_| a)
}
