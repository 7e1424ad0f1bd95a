//! Metrics and matrices to try things on.

mod blocks;
mod gptq;
mod levels;
mod low_rank;
mod metric;
mod outliers;

use super::*;

/// A small generator of repeatable, nearly normal numbers.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(super) fn normal(&mut self) -> f32 {
        let sum: u64 = (0..3)
            .map(|_| self.bits())
            .map(|b| (b & 0xffff) + (b >> 16 & 0xffff) + (b >> 32 & 0xffff) + (b >> 48))
            .sum();
        (sum as f64 / 65535.0 - 6.0) as f32
    }

    pub(super) fn matrix(&mut self, rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|_| self.normal()).collect()
    }
}

/// `Σ x xᵀ` of `tokens` inputs: a few shared directions, channels of very
/// different size, `dead` channels that are zero.
pub(super) fn second_moment(n: usize, tokens: usize, dead: &[usize], seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let shared = 4.min(n);
    let mix = random.matrix(shared, n);
    let sizes: Vec<f32> = (0..n).map(|_| (random.normal() * 0.8).exp()).collect();
    let mut h = vec![0f64; n * n];
    for _ in 0..tokens {
        let z = random.matrix(1, shared);
        let mut x = random.matrix(1, n);
        for (j, x) in x.iter_mut().enumerate() {
            *x += (0..shared)
                .map(|k| 2.0 * z[k] * mix[k * n + j])
                .sum::<f32>();
            *x *= if dead.contains(&j) { 0.0 } else { sizes[j] };
        }
        for i in 0..n {
            for j in 0..n {
                h[i * n + j] += f64::from(x[i]) * f64::from(x[j]);
            }
        }
    }
    h.into_iter().map(|x| x as f32).collect()
}

/// `tr(E H Eᵀ)` by the definition.
pub(super) fn plain_objective(h: &[f32], e: &[f32], rows: usize, n: usize) -> f64 {
    let mut sum = 0.0;
    for r in 0..rows {
        for i in 0..n {
            for j in 0..n {
                let (a, b) = (f64::from(e[r * n + i]), f64::from(e[r * n + j]));
                sum += a * f64::from(h[i * n + j]) * b;
            }
        }
    }
    sum
}

/// `h` with `shift` added to its diagonal, and to dead channels a mean diagonal.
pub(super) fn damped(h: &[f32], n: usize, metric: &Metric) -> Vec<f32> {
    let mut out = h.to_vec();
    for (i, d) in metric.diagonal().into_iter().enumerate() {
        out[i * n + i] = d as f32;
    }
    out
}
