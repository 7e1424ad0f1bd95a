//! Softmax attention in tiles of queries and keys.
//!
//! A part is a sequence, a key-value head with all query heads that share it, and a tile of
//! queries. It walks over the keys in tiles and keeps a running maximum and sum per query
//! (arXiv 1805.02867, 2205.14135), so memory does not grow with the context. Both products are
//! [`super::gemm`] tiles.

use super::elementwise::softcap_at;
use super::gemm::{self, Left, PANEL, Right};
use super::math::exp;
use super::scratch;
use super::vector::{Isa, LANES, Vector, dispatch};
use crate::exec::pool::{Pool, Tile};
use std::ops::Range;

mod keys;
mod split;

pub use keys::{KeyCache, Keys};

/// Keys of a tile.
const KEYS: usize = 4 * PANEL;
/// Queries of a tile, times the query heads of a key head.
const QUERY_ROWS: usize = 64;
/// Products of numbers up to which one thread is done before another is awake.
const ALONE: usize = 64 << 10;

/// What kind of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads: a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
    /// Whether a query sees only keys at its position and before.
    pub causal: bool,
    /// A query sees only so many latest keys, that at its own position included.
    pub window: Option<usize>,
    /// Scores pass through c·tanh(s/c).
    pub softcap: Option<f32>,
}

/// One sequence: `S` queries over `T` keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// `[S, heads · head_dim]`
    pub queries: &'a [f32],
    /// `[T, kv_heads · head_dim]`
    pub keys: Keys<'a>,
    /// `[T, kv_heads · head_dim]`
    pub values: &'a [f32],
    /// Position of the first query among the keys.
    pub past: usize,
    /// `[T]`: 0 where no query may attend.
    pub mask: Option<&'a [f32]>,
}

/// Attention of each sequence; `out` is `[Σ S, heads · head_dim]`, one after the other.
///
/// A query that may attend to nothing gets zeros. Memory: some 100 KiB per thread.
///
/// # Panics
/// A slice does not fit the shape.
pub fn attention(pool: &Pool, shape: &AttentionShape, sequences: &[Sequence<'_>], out: &mut [f32]) {
    let width = shape.heads * shape.head_dim;
    if width == 0 || sequences.is_empty() {
        return;
    }
    assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads));
    sequences.iter().for_each(|sequence| sequence.check(shape));
    let lengths = || sequences.iter().map(|s| s.queries.len() / width);
    assert_eq!(lengths().sum::<usize>() * width, out.len());
    let products = sequences.iter().map(|s| {
        let keys = s.keys.count(shape.kv_heads * shape.head_dim);
        s.queries.len().saturating_mul(2 * keys)
    });
    let alone = products.fold(0, usize::saturating_add) <= ALONE;
    pool.alone(alone, || attend_all(pool, shape, sequences, out));
}

fn attend_all(pool: &Pool, shape: &AttentionShape, sequences: &[Sequence<'_>], out: &mut [f32]) {
    let width = shape.heads * shape.head_dim;
    let lengths = || sequences.iter().map(|s| s.queries.len() / width);
    let group = shape.heads / shape.kv_heads;
    let columns = group * shape.head_dim;
    let tile_queries = QUERY_ROWS.div_ceil(group).next_multiple_of(8);
    let longest = lengths().max().unwrap_or(0);
    if split::pays(shape, sequences, longest) {
        split::attend(pool, shape, sequences, out);
        return;
    }
    if longest <= tile_queries && lengths().all(|length| length == longest) {
        // Short sequences of one length: a tile of rows is a sequence.
        pool.split(out, width, (longest, columns), |mut tile| {
            let Some(sequence) = sequences.get(tile.rows().start / longest.max(1)) else {
                return;
            };
            attend(shape, sequence, 0..longest, &mut tile);
        });
        return;
    }
    let mut rest = out;
    for (sequence, length) in sequences.iter().zip(lengths()) {
        let (now, later) = rest.split_at_mut(length * width);
        rest = later;
        pool.split(now, width, (tile_queries, columns), |mut tile| {
            let queries = tile.rows();
            attend(shape, sequence, queries, &mut tile);
        });
    }
}

impl Sequence<'_> {
    fn check(&self, shape: &AttentionShape) {
        let (width, kv_width) = (
            shape.heads * shape.head_dim,
            shape.kv_heads * shape.head_dim,
        );
        assert_eq!(self.queries.len() % width, 0);
        let count = self.keys.count(kv_width);
        match self.keys {
            Keys::Rows(rows) => assert_eq!(rows.len(), count * kv_width),
            Keys::Cache(cache) => assert!(cache.fits(shape.kv_heads, shape.head_dim)),
        }
        assert_eq!(count * kv_width, self.values.len());
        assert!(self.mask.is_none_or(|mask| mask.len() == count));
    }

    /// The keys that some queries see together, from the start of a panel on.
    fn seen(&self, shape: &AttentionShape, queries: Range<usize>) -> Range<usize> {
        let count = self.keys.count(shape.kv_heads * shape.head_dim);
        let last = queries.end.saturating_sub(1);
        let start = shape.visible(self.past + queries.start, count).start;
        start / PANEL * PANEL..shape.visible(self.past + last, count).end
    }
}

impl AttentionShape {
    /// The keys that a query at `position` sees of `keys`, masks aside.
    pub(crate) fn visible(&self, position: usize, keys: usize) -> Range<usize> {
        let end = if self.causal {
            keys.min(position + 1)
        } else {
            keys
        };
        let start = match self.window {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        };
        start.min(end)..end
    }
}

/// What a part keeps while it walks over the keys.
struct State<'a> {
    /// Queries times the scale, `[rows, head_dim]`.
    queries: &'a mut [f32],
    /// Scores, then probabilities, `[rows, KEYS]`.
    scores: &'a mut [f32],
    /// A tile of keys, packed.
    keys: &'a mut [f32],
    /// A tile of values, where heads are no whole vectors.
    values: &'a mut [f32],
    /// Weighted sums of values, `[rows, head_dim]` padded to whole vectors.
    sums: &'a mut [f32],
    /// Running maximum and sum of each row.
    running: &'a mut [f32],
}

/// One tile: some queries of one sequence and all query heads of one key head.
fn attend(
    shape: &AttentionShape,
    sequence: &Sequence<'_>,
    queries: Range<usize>,
    tile: &mut Tile<'_, f32>,
) {
    let group = shape.heads / shape.kv_heads;
    let kv_head = tile.cols().start / (group * shape.head_dim);
    with_state(shape, queries.len() * group, |state| {
        load_queries(shape, sequence, &queries, kv_head, state);
        let keys = sequence.seen(shape, queries.clone());
        over(shape, sequence, kv_head, &queries, keys, state);
        finish(queries.clone(), shape.head_dim, state, tile);
    });
}

/// Calls `work` with what a part of so many rows needs.
fn with_state(shape: &AttentionShape, rows: usize, work: impl FnOnce(&mut State<'_>)) {
    let dim = shape.head_dim;
    let padded = dim.next_multiple_of(LANES);
    let copied = if padded == dim { 0 } else { KEYS * padded };
    let lengths = [
        rows * dim,
        rows * KEYS,
        PANEL * dim,
        copied,
        rows * padded,
        2 * rows,
    ];
    let total = lengths.iter().map(|n| n.next_multiple_of(LANES)).sum();
    scratch::with(total, |mut rest| {
        let mut parts = lengths.map(|length| {
            let (part, later) =
                std::mem::take(&mut rest).split_at_mut(length.next_multiple_of(LANES));
            rest = later;
            Some(&mut part[..length])
        });
        let mut part = |i: usize| parts[i].take().unwrap_or_default();
        work(&mut State {
            queries: part(0),
            scores: part(1),
            keys: part(2),
            values: part(3),
            sums: part(4),
            running: part(5),
        });
    });
}

/// Scales the queries of a key head and clears the sums.
fn load_queries(
    shape: &AttentionShape,
    sequence: &Sequence<'_>,
    queries: &Range<usize>,
    kv_head: usize,
    state: &mut State<'_>,
) {
    let dim = shape.head_dim;
    let group = shape.heads / shape.kv_heads;
    for (i, row) in state.queries.chunks_mut(group * dim).enumerate() {
        let from = ((queries.start + i) * shape.heads + kv_head * group) * dim;
        for (to, x) in row.iter_mut().zip(&sequence.queries[from..]) {
            *to = x * shape.scale;
        }
    }
    state.sums.fill(0.0);
    let (maxima, totals) = state.running.split_at_mut(queries.len() * group);
    maxima.fill(f32::NEG_INFINITY);
    totals.fill(0.0);
}

/// Walks over keys, whose start is a panel's.
fn over(
    shape: &AttentionShape,
    sequence: &Sequence<'_>,
    kv_head: usize,
    queries: &Range<usize>,
    keys: Range<usize>,
    state: &mut State<'_>,
) {
    let isa = Isa::detect();
    for start in keys.clone().step_by(KEYS) {
        let keys = start..(start + KEYS).min(keys.end);
        score(isa, shape, sequence, kv_head, keys.clone(), state);
        mask(shape, sequence, queries, &keys, state.scores);
        soften(isa, shape, sequence, queries, &keys, state);
        weigh(isa, shape, sequence, kv_head, keys, state);
    }
}

/// Scores of all rows with a tile of keys.
fn score(
    isa: Isa,
    shape: &AttentionShape,
    sequence: &Sequence<'_>,
    kv_head: usize,
    keys: Range<usize>,
    state: &mut State<'_>,
) {
    let dim = shape.head_dim;
    let stride = shape.kv_heads * dim;
    let rows = state.queries.len() / dim;
    for first in keys.clone().step_by(PANEL) {
        let lanes = PANEL.min(keys.end - first);
        let right = match sequence.keys {
            Keys::Cache(cache) => Right {
                data: cache.panel(first, kv_head),
                stride: PANEL,
                lanes,
            },
            Keys::Rows(rows) => {
                let from = &rows[first * stride + kv_head * dim..];
                gemm::pack_panel(isa, from, stride, lanes, dim, state.keys);
                Right {
                    data: state.keys,
                    stride: lanes.next_multiple_of(LANES),
                    lanes,
                }
            }
        };
        let out = &mut state.scores[first - keys.start..];
        let left = Left::new(state.queries, dim, rows);
        gemm::product_into(isa, dim, left, right, out, KEYS, false);
    }
}

/// Takes out the keys that the sequence's mask takes out.
fn mask(
    shape: &AttentionShape,
    sequence: &Sequence<'_>,
    queries: &Range<usize>,
    keys: &Range<usize>,
    scores: &mut [f32],
) {
    let Some(mask) = sequence.mask else { return };
    let mask = &mask[keys.clone()];
    let rows = queries.len() * (shape.heads / shape.kv_heads);
    if mask.iter().all(|&m| m != 0.0) {
        return;
    }
    for row in scores.chunks_mut(KEYS).take(rows) {
        for (score, &m) in row.iter_mut().zip(mask) {
            if m == 0.0 {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// Scores become weights relative to the running maximum; sums so far are brought to it.
fn soften(
    isa: Isa,
    shape: &AttentionShape,
    sequence: &Sequence<'_>,
    queries: &Range<usize>,
    keys: &Range<usize>,
    state: &mut State<'_>,
) {
    let group = shape.heads / shape.kv_heads;
    let rows = queries.len() * group;
    let count = sequence.keys.count(shape.kv_heads * shape.head_dim);
    let padded = shape.head_dim.next_multiple_of(LANES);
    let (maxima, totals) = state.running.split_at_mut(rows);
    for row in 0..rows {
        let position = sequence.past + queries.start + row / group;
        let visible = shape.visible(position, count);
        let clip = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
        let seen = clip(visible.start)..clip(visible.end);
        let scores = &mut state.scores[row * KEYS..][..keys.len()];
        if let Some(cap) = shape.softcap {
            cap_scores(isa, cap, &mut scores[seen.clone()]);
        }
        let factor = soften_row(isa, scores, seen, &mut maxima[row], &mut totals[row]);
        if factor != 1.0 {
            for sum in &mut state.sums[row * padded..(row + 1) * padded] {
                *sum *= factor;
            }
        }
    }
}

/// Caps scores and leaves those that are masked out.
fn cap_scores(isa: Isa, cap: f32, scores: &mut [f32]) {
    if scores.contains(&f32::NEG_INFINITY) {
        for score in scores.iter_mut().filter(|s| **s != f32::NEG_INFINITY) {
            softcap_at(isa, cap, std::slice::from_mut(score));
        }
    } else {
        softcap_at(isa, cap, scores);
    }
}

dispatch! {
    /// Turns the scores of `seen` into weights and the rest into zeros; returns what earlier sums
    /// are to be multiplied by.
    fn soften_row(
        scores: &mut [f32],
        seen: Range<usize>,
        maximum: &mut f32,
        total: &mut f32,
    ) -> f32 = soften_row_body;
}

#[inline(always)]
fn soften_row_body<S: Vector>(
    s: S,
    scores: &mut [f32],
    seen: Range<usize>,
    maximum: &mut f32,
    total: &mut f32,
) -> f32 {
    scores[..seen.start].fill(0.0);
    scores[seen.end..].fill(0.0);
    let scores = &mut scores[seen];
    let (full, rest) = scores.as_chunks_mut::<LANES>();
    let mut most = s.splat(f32::NEG_INFINITY);
    for part in full.iter() {
        most = s.max(s.load_array(part), most);
    }
    let mut new = s.largest(most).max(*maximum);
    for &score in rest.iter() {
        new = new.max(score);
    }
    if new == f32::NEG_INFINITY {
        // Maxima pass over what is no number.
        if scores.iter().any(|score| score.is_nan()) {
            *total = f32::NAN;
        }
        scores.fill(0.0);
        return 1.0;
    }
    let shift = s.splat(new);
    let mut sums = s.splat(0.0);
    for part in full {
        let weight = exp(s, s.sub(s.load_array(part), shift));
        sums = s.add(sums, weight);
        *part = s.to_array(weight);
    }
    let weight = exp(s, s.sub(s.load_part(rest), shift));
    s.store_part(weight, rest);
    let mut sum = s.sum(sums);
    for weight in rest {
        sum += *weight;
    }
    let factor = s.to_array(exp(s, s.splat(*maximum - new)))[0];
    *maximum = new;
    *total = *total * factor + sum;
    factor
}

/// Adds the values of a tile of keys, weighted.
fn weigh(
    isa: Isa,
    shape: &AttentionShape,
    sequence: &Sequence<'_>,
    kv_head: usize,
    keys: Range<usize>,
    state: &mut State<'_>,
) {
    let dim = shape.head_dim;
    let padded = dim.next_multiple_of(LANES);
    let stride = shape.kv_heads * dim;
    let rows = state.queries.len() / dim;
    let from = &sequence.values[keys.start * stride + kv_head * dim..];
    let right = if padded == dim {
        Right {
            data: from,
            stride,
            lanes: dim,
        }
    } else {
        for (row, from) in state.values.chunks_mut(padded).zip(from.chunks(stride)) {
            row[..dim].copy_from_slice(&from[..dim]);
        }
        Right {
            data: state.values,
            stride: padded,
            lanes: dim,
        }
    };
    let left = Left::new(state.scores, KEYS, rows);
    gemm::product_into(isa, keys.len(), left, right, state.sums, padded, true);
}

/// Divides by the sums of weights and writes the tile.
fn finish(queries: Range<usize>, dim: usize, state: &State<'_>, tile: &mut Tile<'_, f32>) {
    let padded = dim.next_multiple_of(LANES);
    let group = tile.cols().len() / dim;
    let totals = &state.running[queries.len() * group..];
    let first = tile.rows().start;
    for query in 0..queries.len() {
        let out = tile.row_mut(first + query);
        for (g, out) in out.chunks_mut(dim).enumerate() {
            let row = query * group + g;
            let total = totals[row];
            let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
            for (o, sum) in out.iter_mut().zip(&state.sums[row * padded..]) {
                *o = sum * factor;
            }
        }
    }
}

#[cfg(test)]
mod tests;
