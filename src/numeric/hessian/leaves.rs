//! Low rank over the leaves of a bisection, each in the metric of its own inputs.

use super::factors::whitened_term;
use super::whitened::{whiten, whitened_svd_of};
use super::{Conditioning, HessianError, Metric, Order, damped_objective};
use crate::numeric::lowrank::hierarchy::leaves;
use crate::numeric::lowrank::{Decomposition, FactorFormat, LowRank, Options, Rank};
use crate::numeric::matrix::check_shape;

/// Decomposes `e` `[rows, n]` as [`hierarchy::decompose`] does, in the metric `h` `[n, n]`.
///
/// Depth 0 is [`whitened_low_rank`](super::whitened_low_rank): the best term of its rank. A leaf
/// is the best in the metric of its own inputs; what inputs of different leaves have in common is
/// left out of account. Energies are damped objectives of the whole.
///
/// [`hierarchy::decompose`]: crate::numeric::lowrank::hierarchy::decompose
///
/// # Errors
/// As [`whitened_low_rank`](super::whitened_low_rank) and [`Metric::new`].
///
/// # Cost
/// A factorization of the metric and of that of each leaf, `rows * n²` multiply-adds for whitening,
/// a decomposition of each leaf.
#[allow(clippy::too_many_arguments)]
pub fn whitened_leaves(
    e: &[f32],
    (rows, n): (usize, usize),
    h: &[f32],
    damp: f64,
    depth: usize,
    rank: Rank,
    options: &Options,
    format: FactorFormat,
) -> Result<(Decomposition, Conditioning), HessianError> {
    check_shape(rows, n, e.len())?;
    let (metric, feedback, conditioning) = Metric::with_feedback(h, n, damp, Order::Activation)?;
    let mut blocks = leaves(rows, n, depth, rank.max());
    if blocks.len() == 1 {
        let done = whitened_term(e, rows, (&metric, &feedback), rank, format, options)?;
        return Ok((done, conditioning));
    }
    drop(feedback);
    let (mut u, mut v, mut reached) = (Vec::new(), Vec::new(), true);
    for (index, block) in blocks.iter_mut().enumerate() {
        let inputs = block.col0..block.col0 + block.cols;
        let own: Vec<f32> = inputs
            .clone()
            .flat_map(|i| h[i * n..][inputs.clone()].iter().copied())
            .collect();
        let of_block = e[block.row0 * n..].chunks(n).take(block.rows);
        let part: Vec<f32> = of_block
            .flat_map(|row| row[inputs.clone()].iter().copied())
            .collect();
        let (_, feedback, _) = Metric::with_feedback(&own, block.cols, damp, Order::Activation)?;
        let options = Options {
            seed: options.seed.wrapping_add(index as u64),
            ..*options
        };
        let white = whiten(&part, block.rows, &feedback);
        let found = whitened_svd_of(white.view(), &feedback, rank, &options)?;
        block.rank = found.rank;
        reached &= found.reached;
        u.extend(found.u);
        v.extend(found.v);
    }
    let low_rank = LowRank::encode(rows, n, blocks, u, v, format)?;
    let total = damped_objective(&metric, e, rows)?;
    let mut left = e.to_vec();
    low_rank.subtract_from(&mut left);
    let kept = total - damped_objective(&metric, &left, rows)?;
    let done = Decomposition {
        low_rank,
        total,
        kept,
        reached,
    };
    Ok((done, conditioning))
}
