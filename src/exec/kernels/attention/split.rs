//! Few queries over many keys: the keys are cut into stretches that threads share.
//!
//! Each stretch leaves its weighted sums with the maximum and the sum of weights that they are
//! relative to; stretches are put together in order (arXiv 2311.01282).

use super::{AttentionShape, KEYS, Sequence, load_queries, over, with_state};
use crate::exec::kernels::scratch;
use crate::exec::kernels::vector::LANES;
use crate::exec::pool::Pool;
use std::ops::Range;

/// Keys of a stretch.
const STRETCH: usize = 2 * KEYS;
/// Query rows of a key head up to which a part is cheap against reading the keys.
const ROWS: usize = 16;

/// Whether sequences of up to `longest` queries are worth cutting.
pub(super) fn pays(shape: &AttentionShape, sequences: &[Sequence<'_>], longest: usize) -> bool {
    let width = shape.kv_heads * shape.head_dim;
    let group = shape.heads / shape.kv_heads;
    longest * group <= ROWS && sequences.iter().any(|s| s.keys.count(width) > STRETCH)
}

/// One part: the queries of a key head over a stretch of keys.
struct Part {
    sequence: usize,
    kv_head: usize,
    keys: Range<usize>,
    /// Where its results lie.
    at: usize,
}

/// Attention of sequences of few queries, one after the other in `out`.
pub(super) fn attend(
    pool: &Pool,
    shape: &AttentionShape,
    sequences: &[Sequence<'_>],
    out: &mut [f32],
) {
    let group = shape.heads / shape.kv_heads;
    let padded = shape.head_dim.next_multiple_of(LANES);
    let queries = |s: &Sequence<'_>| s.queries.len() / (shape.heads * shape.head_dim);
    let mut parts = Vec::new();
    let mut largest = 0;
    for (index, sequence) in sequences.iter().enumerate() {
        let all = sequence.seen(shape, 0..queries(sequence));
        let rows = queries(sequence) * group;
        largest = largest.max(rows * (padded + 2));
        for kv_head in 0..shape.kv_heads {
            for start in all.clone().step_by(STRETCH) {
                parts.push(Part {
                    sequence: index,
                    kv_head,
                    keys: start..(start + STRETCH).min(all.end),
                    at: 0,
                });
            }
        }
    }
    for (i, part) in parts.iter_mut().enumerate() {
        part.at = i * largest;
    }
    scratch::with(parts.len() * largest, |results| {
        pool.split(results, largest, (1, largest), |mut tile| {
            let index = tile.rows().start;
            let part = &parts[index];
            let sequence = &sequences[part.sequence];
            let range = 0..queries(sequence);
            with_state(shape, range.len() * group, |state| {
                load_queries(shape, sequence, &range, part.kv_head, state);
                over(
                    shape,
                    sequence,
                    part.kv_head,
                    &range,
                    part.keys.clone(),
                    state,
                );
                let (sums, running) = tile.row_mut(index).split_at_mut(state.sums.len());
                sums.copy_from_slice(state.sums);
                running[..state.running.len()].copy_from_slice(state.running);
            });
        });
        let mut rest = out;
        for (index, sequence) in sequences.iter().enumerate() {
            let count = queries(sequence);
            let (now, later) = rest.split_at_mut(count * shape.heads * shape.head_dim);
            rest = later;
            for kv_head in 0..shape.kv_heads {
                let mine = |p: &&Part| p.sequence == index && p.kv_head == kv_head;
                let mine: Vec<&[f32]> = parts
                    .iter()
                    .filter(mine)
                    .map(|p| &results[p.at..p.at + largest])
                    .collect();
                for row in 0..count * group {
                    let at = row / group * shape.heads + kv_head * group + row % group;
                    let out = &mut now[at * shape.head_dim..][..shape.head_dim];
                    merge(&mine, (row, count * group, padded), out);
                }
            }
        }
    });
}

/// Puts the stretches of one row together.
fn merge(stretches: &[&[f32]], (row, rows, padded): (usize, usize, usize), out: &mut [f32]) {
    let maximum = |s: &&[f32]| s[rows * padded + row];
    let total = |s: &&[f32]| s[rows * (padded + 1) + row];
    let most = stretches
        .iter()
        .map(maximum)
        .fold(f32::NEG_INFINITY, f32::max);
    out.fill(0.0);
    let mut all = 0.0;
    // A total that is no number is told: what it comes from must not be lost.
    for stretch in stretches.iter().filter(|s| total(s) != 0.0) {
        let factor = (maximum(stretch) - most).exp();
        all += total(stretch) * factor;
        for (o, sum) in out.iter_mut().zip(&stretch[row * padded..]) {
            *o += sum * factor;
        }
    }
    if all != 0.0 {
        out.iter_mut().for_each(|o| *o /= all);
    }
}
