//! Losses over tokens, and their gradients by logits. Sums over tokens are in `f64`, in order.

use super::super::vector::Isa;
use super::{chunks, softmax};
use crate::exec::pool::Pool;

/// What logits are held against.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// `[tokens]`: the token that comes; other values than tokens have weight 0.
    Labels(&'a [i64]),
    /// `[tokens, vocabulary]`: a teacher's logits.
    Logits(&'a [f32]),
    /// A teacher's likeliest tokens `[tokens, k]` and their log-probabilities.
    Top {
        /// `[tokens, k]`
        ids: &'a [i64],
        /// `[tokens, k]`
        log_probabilities: &'a [f32],
        /// How many of each token.
        k: usize,
    },
    /// `[tokens, width]`: values to be met in the mean square.
    Values(&'a [f32]),
}

/// `Σ_t w_t · loss_t`; weights are one per token.
pub fn loss(pool: &Pool, x: &[f32], width: usize, target: Target<'_>, weights: &[f32]) -> f64 {
    let mut each = vec![0f64; weights.len()];
    let isa = Isa::detect();
    chunks(pool, &mut each, 4, |i, chunk| {
        let mut scratch = vec![0f32; width];
        for (at, out) in chunk.iter_mut().enumerate() {
            let t = 4 * i + at;
            if weights[t] != 0.0 {
                scratch.copy_from_slice(&x[t * width..(t + 1) * width]);
                *out = f64::from(weights[t]) * of_token(isa, &mut scratch, t, target);
            }
        }
    });
    each.iter().sum()
}

/// The gradient of [`loss`] by `x`.
pub fn gradient(
    pool: &Pool,
    x: &[f32],
    width: usize,
    target: Target<'_>,
    weights: &[f32],
    dx: &mut [f32],
) {
    let isa = Isa::detect();
    chunks(pool, dx, 4 * width, |i, chunk| {
        for (at, row) in chunk.chunks_mut(width.max(1)).enumerate() {
            let t = 4 * i + at;
            row.fill(0.0);
            if weights[t] != 0.0 {
                row.copy_from_slice(&x[t * width..(t + 1) * width]);
                slope(isa, row, t, target);
                row.iter_mut().for_each(|d| *d *= weights[t]);
            }
        }
    });
}

fn of_token(isa: Isa, x: &mut [f32], t: usize, target: Target<'_>) -> f64 {
    let width = x.len();
    match target {
        Target::Labels(labels) => {
            let label = usize::try_from(labels[t])
                .ok()
                .and_then(|label| x.get(label));
            let Some(score) = label.copied() else {
                return 0.0;
            };
            f64::from(softmax(isa, x)) - f64::from(score)
        }
        Target::Logits(teacher) => {
            let mut p = teacher[t * width..(t + 1) * width].to_vec();
            let scores = p.clone();
            let (log_p, own) = (softmax(isa, &mut p), x.to_vec());
            let log_q = softmax(isa, x);
            let terms = p.iter().zip(scores.iter().zip(&own)).map(|(&p, (s, o))| {
                let gap = (f64::from(*s) - f64::from(log_p)) - (f64::from(*o) - f64::from(log_q));
                if p == 0.0 { 0.0 } else { f64::from(p) * gap }
            });
            terms.sum()
        }
        Target::Top {
            ids,
            log_probabilities,
            k,
        } => {
            let own = x.to_vec();
            let log_q = f64::from(softmax(isa, x));
            let (mut sum, mut kept) = (0f64, 0f64);
            let rest = tail(x, top(ids, t, k));
            for (&id, &log_p) in top(ids, t, k)
                .iter()
                .zip(&log_probabilities[t * k..(t + 1) * k])
            {
                let score = usize::try_from(id).ok().and_then(|id| own.get(id));
                let p = f64::from(log_p).exp();
                kept += p;
                sum += p * (f64::from(log_p) - (f64::from(score.copied().unwrap_or(0.0)) - log_q));
            }
            let left = 1.0 - kept;
            if left > 1e-9 {
                sum += left * (left.ln() - rest.max(1e-30).ln());
            }
            sum
        }
        Target::Values(values) => {
            let wanted = &values[t * width..(t + 1) * width];
            let gaps = x
                .iter()
                .zip(wanted)
                .map(|(x, v)| (f64::from(*x) - f64::from(*v)).powi(2));
            gaps.sum::<f64>() / width as f64
        }
    }
}

fn slope(isa: Isa, x: &mut [f32], t: usize, target: Target<'_>) {
    let width = x.len();
    match target {
        Target::Labels(labels) => {
            let label = usize::try_from(labels[t])
                .ok()
                .filter(|&label| label < width);
            let Some(label) = label else {
                return x.fill(0.0);
            };
            softmax(isa, x);
            x[label] -= 1.0;
        }
        Target::Logits(teacher) => {
            let mut p = teacher[t * width..(t + 1) * width].to_vec();
            softmax(isa, &mut p);
            softmax(isa, x);
            x.iter_mut().zip(&p).for_each(|(q, p)| *q -= p);
        }
        Target::Top {
            ids,
            log_probabilities,
            k,
        } => {
            let of = top(ids, t, k);
            softmax(isa, x);
            let rest = tail(x, of);
            let log_p = &log_probabilities[t * k..(t + 1) * k];
            let kept: f64 = log_p.iter().map(|&l| f64::from(l).exp()).sum();
            let left = (1.0 - kept).max(0.0);
            let factor = if left > 1e-9 {
                (1.0 - left / rest.max(1e-30)) as f32
            } else {
                1.0
            };
            let own: Vec<(usize, f32)> = of
                .iter()
                .zip(log_p)
                .filter_map(|(&id, &l)| {
                    let id = usize::try_from(id).ok()?;
                    Some((id, x.get(id)? - l.exp()))
                })
                .collect();
            x.iter_mut().for_each(|q| *q *= factor);
            for (id, d) in own {
                x[id] = d;
            }
        }
        Target::Values(values) => {
            let wanted = &values[t * width..(t + 1) * width];
            let factor = 2.0 / width as f32;
            x.iter_mut()
                .zip(wanted)
                .for_each(|(x, v)| *x = factor * (*x - v));
        }
    }
}

/// A token's likeliest ids.
fn top(ids: &[i64], t: usize, k: usize) -> &[i64] {
    &ids[t * k..(t + 1) * k]
}

/// The probability of all other tokens, without a cancellation.
fn tail(probabilities: &[f32], ids: &[i64]) -> f64 {
    let mut others = probabilities.to_vec();
    for &id in ids {
        if let Some(p) = usize::try_from(id).ok().and_then(|id| others.get_mut(id)) {
            *p = 0.0;
        }
    }
    others.iter().map(|&p| f64::from(p)).sum()
}
