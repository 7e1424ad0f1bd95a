//! The gradient of softmax attention.
//!
//! A part is a sequence and a key-value head with all query heads that share it. Scores are made
//! again, a tile of queries at a time: memory per thread is a tile of scores, twice.

use super::super::attention::AttentionShape;
use super::super::vector::Isa;
use super::{chunks, columns, softmax};
use crate::exec::pool::Pool;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Queries of a tile.
const QUERIES: usize = 64;

/// Sequences of one length: `[sequences, S, heads · head_dim]` queries over as many keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// `[sequences, S, heads · head_dim]`
    pub queries: &'a [f32],
    /// `[sequences, T, kv_heads · head_dim]`
    pub keys: &'a [f32],
    /// `[sequences, T, kv_heads · head_dim]`
    pub values: &'a [f32],
    /// `[sequences, T]`: 0 where no query may attend.
    pub mask: Option<&'a [f32]>,
    /// How many there are.
    pub sequences: usize,
}

/// Gradients by queries, keys and values, in their shapes.
///
/// # Panics
/// A slice does not fit the shape.
pub fn attention(
    pool: &Pool,
    shape: &AttentionShape,
    x: &Forward<'_>,
    dy: &[f32],
) -> [Vec<f32>; 3] {
    let mut out = [
        vec![0f32; x.queries.len()],
        vec![0f32; x.keys.len()],
        vec![0f32; x.values.len()],
    ];
    let (width, kv_width) = (
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
    );
    if x.sequences == 0 || width == 0 || kv_width == 0 {
        return out;
    }
    let (len, keys) = (
        x.queries.len() / width / x.sequences,
        x.keys.len() / kv_width / x.sequences,
    );
    assert_eq!(dy.len(), x.queries.len());
    let group = shape.heads / shape.kv_heads;
    // A part's results side by side: dq of its heads, dk, dv.
    let (of_queries, of_keys) = (len * group * shape.head_dim, keys * shape.head_dim);
    let each = of_queries + 2 * of_keys;
    let mut parts = vec![0f32; each * x.sequences * shape.kv_heads];
    chunks(pool, &mut parts, each, |i, part| {
        let (dq, rest) = part.split_at_mut(of_queries);
        let (dk, dv) = rest.split_at_mut(of_keys);
        let (sequence, head) = (i / shape.kv_heads, i % shape.kv_heads);
        Part {
            shape,
            queries: &x.queries[sequence * len * width..][..len * width],
            keys: columns(
                &x.keys[sequence * keys * kv_width..][..keys * kv_width],
                kv_width,
                head * shape.head_dim..(head + 1) * shape.head_dim,
            ),
            values: columns(
                &x.values[sequence * keys * kv_width..][..keys * kv_width],
                kv_width,
                head * shape.head_dim..(head + 1) * shape.head_dim,
            ),
            mask: x.mask.map(|mask| &mask[sequence * keys..][..keys]),
            dy: &dy[sequence * len * width..][..len * width],
            first: head * group,
        }
        .backward(dq, dk, dv);
    });
    let [dq, dk, dv] = &mut out;
    for (i, part) in parts.chunks(each).enumerate() {
        let (sequence, head) = (i / shape.kv_heads, i % shape.kv_heads);
        let wide = group * shape.head_dim;
        let put = |out: &mut [f32], from: &[f32], rows: usize, stride: usize, part: usize| {
            for (row, values) in from.chunks(part.max(1)).enumerate().take(rows) {
                let at = (sequence * rows + row) * stride + head * part;
                out[at..at + part].copy_from_slice(values);
            }
        };
        put(dq, &part[..of_queries], len, width, wide);
        put(
            dk,
            &part[of_queries..of_queries + of_keys],
            keys,
            kv_width,
            shape.head_dim,
        );
        put(
            dv,
            &part[of_queries + of_keys..],
            keys,
            kv_width,
            shape.head_dim,
        );
    }
    out
}

struct Part<'a> {
    shape: &'a AttentionShape,
    queries: &'a [f32],
    keys: MatRef<'a, f32>,
    values: MatRef<'a, f32>,
    mask: Option<&'a [f32]>,
    dy: &'a [f32],
    /// The first of its query heads.
    first: usize,
}

impl Part<'_> {
    fn backward(&self, dq: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
        let shape = self.shape;
        let (width, dim) = (shape.heads * shape.head_dim, shape.head_dim);
        let (group, count) = (shape.heads / shape.kv_heads, self.keys.nrows());
        let len = self.queries.len() / width;
        let isa = Isa::detect();
        let mut scores = vec![0f32; QUERIES.min(len) * count];
        let mut slopes = scores.clone();
        for (member, start) in
            (0..group).flat_map(|m| (0..len).step_by(QUERIES).map(move |s| (m, s)))
        {
            let rows = QUERIES.min(len - start);
            let head = (self.first + member) * dim..(self.first + member + 1) * dim;
            let q = columns(self.queries, width, head.clone()).subrows(start, rows);
            let dy = columns(self.dy, width, head).subrows(start, rows);
            let (p, s) = (&mut scores[..rows * count], &mut slopes[..rows * count]);
            let target = MatMut::from_row_major_slice_mut(p, rows, count);
            matmul(
                target,
                Accum::Replace,
                q,
                self.keys.transpose(),
                shape.scale,
                Par::Seq,
            );
            // Slopes of the soft cap, before scores become probabilities.
            for (row, (p, s)) in p.chunks_mut(count).zip(s.chunks_mut(count)).enumerate() {
                self.probabilities(isa, start + row, p, s);
            }
            let weights = MatRef::from_row_major_slice(p, rows, count);
            let target = MatMut::from_row_major_slice_mut(&mut *dv, count, dim);
            matmul(target, Accum::Add, weights.transpose(), dy, 1.0, Par::Seq);
            let mut dp = vec![0f32; rows * count];
            let target = MatMut::from_row_major_slice_mut(&mut dp, rows, count);
            matmul(
                target,
                Accum::Replace,
                dy,
                self.values.transpose(),
                1.0,
                Par::Seq,
            );
            for ((p, s), dp) in p
                .chunks(count)
                .zip(s.chunks(count))
                .zip(dp.chunks_mut(count))
            {
                let mean: f64 = p.iter().zip(dp.iter()).map(|(p, d)| f64::from(p * d)).sum();
                for ((d, p), s) in dp.iter_mut().zip(p).zip(s) {
                    *d = p * (*d - mean as f32) * s;
                }
            }
            let ds = MatRef::from_row_major_slice(&dp, rows, count);
            let target = MatMut::from_row_major_slice_mut(&mut *dk, count, dim);
            matmul(target, Accum::Add, ds.transpose(), q, shape.scale, Par::Seq);
            let target = MatMut::from_row_major_slice_mut(dq, len, group * dim);
            let target = target
                .subrows_mut(start, rows)
                .subcols_mut(member * dim, dim);
            matmul(target, Accum::Replace, ds, self.keys, shape.scale, Par::Seq);
        }
    }

    /// Scores of one query to probabilities, and the soft cap's slope at each.
    fn probabilities(&self, isa: Isa, position: usize, scores: &mut [f32], slopes: &mut [f32]) {
        slopes.fill(1.0);
        if let Some(cap) = self.shape.softcap {
            for (score, slope) in scores.iter_mut().zip(slopes) {
                let t = (*score / cap).tanh();
                (*score, *slope) = (cap * t, 1.0 - t * t);
            }
        }
        let seen = self.shape.visible(position, scores.len());
        for (key, score) in scores.iter_mut().enumerate() {
            let hidden = self.mask.is_some_and(|mask| mask.get(key) == Some(&0.0));
            if hidden || !seen.contains(&key) {
                *score = f32::NEG_INFINITY;
            }
        }
        softmax(isa, scores);
    }
}
