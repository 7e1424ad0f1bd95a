//! Low rank over the leaves of a bisection, in the metric of the inputs.

use super::factors::whitened_term;
use super::outputs::Outputs;
use super::{Conditioning, HessianError, Metric, Order};
use crate::numeric::lowrank::hierarchy::{Hierarchy, fit, leaves};
use crate::numeric::lowrank::{Decomposition, Options};
use crate::numeric::matrix::check_shape;

/// Decomposes `e` `[rows, n]` as [`hierarchy::decompose`] does, in the metric `h` `[n, n]`.
///
/// Depth 0 is [`whitened_low_rank`](super::whitened_low_rank): the best term of its rank. Leaves
/// begin with what is best in the metric of their own inputs, by which ranks are given, and are then
/// fitted again to what the others leave of the outputs. Energies are damped objectives of the whole.
///
/// [`hierarchy::decompose`]: crate::numeric::lowrank::hierarchy::decompose
///
/// # Errors
/// As [`whitened_low_rank`](super::whitened_low_rank) and [`Metric::new`].
///
/// # Cost
/// A factorization of the metric and of that of each leaf, `rows * n²` multiply-adds for each of the
/// metric's products and whitening, three decompositions of each leaf.
pub fn whitened_leaves(
    e: &[f32],
    (rows, n): (usize, usize),
    h: &[f32],
    damp: f64,
    hierarchy: &Hierarchy,
    options: &Options,
) -> Result<(Decomposition, Conditioning), HessianError> {
    check_shape(rows, n, e.len())?;
    let (metric, feedback, conditioning) = Metric::with_feedback(h, n, damp, Order::Activation)?;
    let (rank, format) = (hierarchy.rank, hierarchy.format);
    let blocks = leaves(rows, n, hierarchy.depth, rank.max());
    if blocks.len() == 1 {
        let done = whitened_term(e, rows, (&metric, &feedback), rank, format, options)?;
        return Ok((done, conditioning));
    }
    let mut left = Outputs::new(e, rows, &metric, feedback, blocks.iter().copied())?;
    let (low_rank, reached) = fit(&mut left, (rows, n), blocks, hierarchy, options)?;
    drop(left);
    let done = Decomposition::in_metric(&metric, e, rows, low_rank, reached)?;
    Ok((done, conditioning))
}
