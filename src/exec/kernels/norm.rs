//! Root-mean-square and layer norms of rows.

use super::vector::{Isa, LANES, Vector, dispatch};
use crate::exec::pool::Pool;

/// Values per part: long enough to be worth a thread's while.
const PART: usize = 8 << 10;

/// `out = x / sqrt(mean(x²) + eps) · gain` of rows as wide as `gain` (arXiv 1910.07467).
///
/// Rows narrower than the activations are norms of slices: of each head, say. With
/// `unit_offset` the factor is `1 + gain`.
///
/// # Panics
/// The rows are not whole, or `out` has another length.
pub fn rms_norm(
    pool: &Pool,
    x: &[f32],
    gain: &[f32],
    eps: f32,
    unit_offset: bool,
    out: &mut [f32],
) {
    let offset = if unit_offset { 1.0 } else { 0.0 };
    each_row(pool, x, gain.len(), out, |isa, x, out| {
        rms_row(isa, x, gain, eps, offset, out);
    });
}

/// `out = (x − mean) / sqrt(var + eps) · gain + bias` of rows as wide as `gain`
/// (arXiv 1607.06450).
///
/// # Panics
/// The rows are not whole, or `out` or `bias` has another length.
pub fn layer_norm(
    pool: &Pool,
    x: &[f32],
    gain: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    assert!(bias.is_none_or(|bias| bias.len() == gain.len()));
    each_row(pool, x, gain.len(), out, |isa, x, out| {
        layer_row(isa, x, gain, bias, eps, out);
    });
}

fn each_row(
    pool: &Pool,
    x: &[f32],
    width: usize,
    out: &mut [f32],
    row: impl Fn(Isa, &[f32], &mut [f32]) + Sync,
) {
    assert_eq!(x.len(), out.len());
    if width == 0 {
        return;
    }
    assert_eq!(x.len() % width, 0, "rows {width} wide");
    let isa = Isa::detect();
    let rows = (PART / width).max(1);
    pool.split(out, width, (rows, width), |mut tile| {
        for r in tile.rows() {
            row(isa, &x[r * width..][..width], tile.row_mut(r));
        }
    });
}

dispatch! {
    fn rms_row(x: &[f32], gain: &[f32], eps: f32, offset: f32, out: &mut [f32]) = rms_row_body;
}

dispatch! {
    fn layer_row(x: &[f32], gain: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) = layer_row_body;
}

#[inline(always)]
fn rms_row_body<S: Vector>(s: S, x: &[f32], gain: &[f32], eps: f32, offset: f32, out: &mut [f32]) {
    let mean = sum_of_squares(s, x, 0.0) / x.len() as f32;
    let factor = 1.0 / (mean + eps).sqrt();
    for ((o, x), gain) in out.iter_mut().zip(x).zip(gain) {
        *o = x * factor * (gain + offset);
    }
}

#[inline(always)]
fn layer_row_body<S: Vector>(
    s: S,
    x: &[f32],
    gain: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    let mean = sum(s, x) / x.len() as f32;
    let variance = sum_of_squares(s, x, mean) / x.len() as f32;
    let factor = 1.0 / (variance + eps).sqrt();
    for ((o, x), gain) in out.iter_mut().zip(x).zip(gain) {
        *o = (x - mean) * factor * gain;
    }
    for (o, bias) in out.iter_mut().zip(bias.unwrap_or_default()) {
        *o += bias;
    }
}

/// Σ x
#[inline(always)]
fn sum<S: Vector>(s: S, x: &[f32]) -> f32 {
    let mut sums = [s.splat(0.0); 4];
    let (quads, rest) = x.as_chunks::<{ 4 * LANES }>();
    for quad in quads {
        for (sum, part) in sums.iter_mut().zip(quad.as_chunks::<LANES>().0) {
            *sum = s.add(*sum, s.load_array(part));
        }
    }
    for (sum, part) in sums.iter_mut().zip(rest.chunks(LANES)) {
        *sum = s.add(*sum, s.load_part(part));
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

/// Σ (x − mean)²
#[inline(always)]
fn sum_of_squares<S: Vector>(s: S, x: &[f32], mean: f32) -> f32 {
    let center = s.splat(mean);
    let mut sums = [s.splat(0.0); 4];
    let (quads, rest) = x.as_chunks::<{ 4 * LANES }>();
    for quad in quads {
        for (sum, part) in sums.iter_mut().zip(quad.as_chunks::<LANES>().0) {
            let x = s.sub(s.load_array(part), center);
            *sum = s.fma(x, x, *sum);
        }
    }
    let (parts, rest) = rest.as_chunks::<LANES>();
    for (sum, part) in sums.iter_mut().zip(parts) {
        let x = s.sub(s.load_array(part), center);
        *sum = s.fma(x, x, *sum);
    }
    let mut all = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
    for x in rest {
        all = (x - mean).mul_add(x - mean, all);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::float::tests::noise;
    use super::*;

    fn check(got: &[f32], want: &[f64]) {
        for (got, want) in got.iter().zip(want) {
            assert!((f64::from(*got) - want).abs() <= 1e-6 * want.abs().max(1.0));
        }
    }

    #[test]
    fn norms_match_f64() {
        for (tokens, width) in [(1, 1), (3, 17), (2, 64), (50, 576), (4, 95), (1, 384)] {
            let x: Vec<f32> = noise(1, tokens * width)
                .iter()
                .map(|x| x * 3.0 + 1.0)
                .collect();
            let (gain, bias) = (noise(2, width), noise(3, width));
            let eps = 1e-5f64;
            let mut rms = Vec::new();
            let mut layer = Vec::new();
            for row in x.chunks(width) {
                let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
                let n = width as f64;
                let square = row.iter().map(|x| x * x).sum::<f64>() / n;
                let mean = row.iter().sum::<f64>() / n;
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                for (i, x) in row.iter().enumerate() {
                    let (gain, bias) = (f64::from(gain[i]), f64::from(bias[i]));
                    rms.push(x / (square + eps).sqrt() * (1.0 + gain));
                    layer.push((x - mean) / (variance + eps).sqrt() * gain + bias);
                }
            }
            let mut first = None;
            for threads in 1..=3 {
                let pool = Pool::new(threads);
                let mut out = [vec![0.0; x.len()], vec![0.0; x.len()]];
                rms_norm(&pool, &x, &gain, eps as f32, true, &mut out[0]);
                layer_norm(&pool, &x, &gain, Some(&bias), eps as f32, &mut out[1]);
                if width > 1 {
                    check(&out[0], &rms);
                    check(&out[1], &layer);
                }
                assert_eq!(&out, first.get_or_insert_with(|| out.clone()));
            }
        }
    }
}
