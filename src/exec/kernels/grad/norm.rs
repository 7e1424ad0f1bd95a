//! Gradients of root-mean-square and layer norms.

use super::{chunks, sum_rows};
use crate::exec::pool::Pool;

/// Values per part.
const PART: usize = 8 << 10;

/// `1 / sqrt(mean(x²) + eps)`
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let square: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    (1.0 / (square / x.len() as f64 + f64::from(eps)).sqrt()) as f32
}

/// Mean and `1 / sqrt(variance + eps)`.
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = x
        .iter()
        .map(|&x| (f64::from(x) - mean).powi(2))
        .sum::<f64>()
        / n;
    (
        mean as f32,
        (1.0 / (variance + f64::from(eps)).sqrt()) as f32,
    )
}

/// dx of `x · r · (gain + offset)`, r the inverse root mean square of rows as wide as `gain`.
///
/// # Panics
/// Lengths differ, or rows are not whole.
pub fn rms_norm_input(
    pool: &Pool,
    (dy, x): (&[f32], &[f32]),
    gain: &[f32],
    eps: f32,
    offset: f32,
    dx: &mut [f32],
) {
    let width = gain.len();
    assert!(width > 0 && dy.len() == x.len() && dx.len() == x.len());
    let rows = (PART / width).max(1);
    chunks(pool, dx, rows * width, |i, chunk| {
        let at = i * rows * width;
        let rows = chunk.chunks_mut(width);
        let given = x[at..].chunks(width).zip(dy[at..].chunks(width));
        for (dx, (x, dy)) in rows.zip(given) {
            let r = inverse_rms(x, eps);
            let dot: f64 = x
                .iter()
                .zip(dy)
                .zip(gain)
                .map(|((x, dy), g)| f64::from(x * dy) * f64::from(g + offset))
                .sum();
            let pull = (dot / width as f64) as f32 * r * r;
            for ((dx, (x, dy)), g) in dx.iter_mut().zip(x.iter().zip(dy)).zip(gain) {
                *dx = r * ((g + offset) * dy - x * pull);
            }
        }
    });
}

/// The gradient by the gain, `[width]`.
pub fn rms_norm_gain(pool: &Pool, dy: &[f32], x: &[f32], width: usize, eps: f32) -> Vec<f32> {
    let rows = x.len() / width.max(1);
    sum_rows(pool, rows, width, |range, sums| {
        for row in range {
            let at = row * width..(row + 1) * width;
            let (x, dy) = (&x[at.clone()], &dy[at]);
            let r = inverse_rms(x, eps);
            for (s, (x, dy)) in sums.iter_mut().zip(x.iter().zip(dy)) {
                *s += x * r * dy;
            }
        }
    })
}

/// dx of `(x − mean) · r · gain + bias`.
///
/// # Panics
/// Lengths differ, or rows are not whole.
pub fn layer_norm_input(
    pool: &Pool,
    (dy, x): (&[f32], &[f32]),
    gain: &[f32],
    eps: f32,
    dx: &mut [f32],
) {
    let width = gain.len();
    assert!(width > 0 && dy.len() == x.len() && dx.len() == x.len());
    let rows = (PART / width).max(1);
    chunks(pool, dx, rows * width, |i, chunk| {
        let at = i * rows * width;
        let rows = chunk.chunks_mut(width);
        let given = x[at..].chunks(width).zip(dy[at..].chunks(width));
        for (dx, (x, dy)) in rows.zip(given) {
            let (mean, r) = moments(x, eps);
            let (mut plain, mut along) = (0f64, 0f64);
            for ((x, dy), g) in x.iter().zip(dy).zip(gain) {
                let pushed = f64::from(dy * g);
                plain += pushed;
                along += pushed * f64::from((x - mean) * r);
            }
            let n = width as f64;
            let (plain, along) = ((plain / n) as f32, (along / n) as f32);
            for ((dx, (x, dy)), g) in dx.iter_mut().zip(x.iter().zip(dy)).zip(gain) {
                *dx = r * (dy * g - plain - (x - mean) * r * along);
            }
        }
    });
}

/// The gradients by gain and bias, `[width]` each.
pub fn layer_norm_gain(
    pool: &Pool,
    dy: &[f32],
    x: &[f32],
    width: usize,
    eps: f32,
) -> (Vec<f32>, Vec<f32>) {
    let rows = x.len() / width.max(1);
    let gain = sum_rows(pool, rows, width, |range, sums| {
        for row in range {
            let at = row * width..(row + 1) * width;
            let (x, dy) = (&x[at.clone()], &dy[at]);
            let (mean, r) = moments(x, eps);
            for (s, (x, dy)) in sums.iter_mut().zip(x.iter().zip(dy)) {
                *s += (x - mean) * r * dy;
            }
        }
    });
    (gain, super::elementwise::sum_of_rows(pool, dy, width))
}
