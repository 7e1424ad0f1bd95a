//! Selection by magnitude. Linear in the matrix; ties go to the lower index.

use super::SparseError;
use crate::numeric::matrix::{check_shape, norm2};

/// Entries that a density stands for: `round(density * n)`.
///
/// # Errors
/// If the density isn't between 0 and 1.
pub fn density_count(density: f64, n: usize) -> Result<usize, SparseError> {
    if !(0.0..=1.0).contains(&density) {
        let expected = "a density is a fraction between 0 and 1";
        return Err(SparseError::Parameter {
            what: "density",
            value: density,
            expected,
        });
    }
    Ok(((density * n as f64).round() as usize).min(n))
}

/// The `round(density * n)` entries of largest magnitude.
///
/// Flat indices, ascending.
///
/// # Cost
/// Three passes.
pub fn select_by_magnitude(w: &[f32], density: f64) -> Result<Vec<usize>, SparseError> {
    let count = density_count(density, w.len())?;
    Ok(largest(w.len(), count, |i| w[i].to_bits() & 0x7fff_ffff))
}

/// Entries whose magnitude is above `k` root mean squares of the matrix.
///
/// # Errors
/// If `k` is negative or not a number, or a weight isn't finite.
pub fn select_by_sigma(w: &[f32], k: f64) -> Result<Vec<usize>, SparseError> {
    if k.is_nan() || k < 0.0 {
        let expected = "a number of standard deviations isn't negative";
        return Err(SparseError::Parameter {
            what: "sigma",
            value: k,
            expected,
        });
    }
    let sigma = (norm2(w) / w.len().max(1) as f64).sqrt();
    Ok(select_above(w, k * sigma))
}

/// Entries whose magnitude is above `threshold`, as ascending flat indices.
pub fn select_above(w: &[f32], threshold: f64) -> Vec<usize> {
    (0..w.len())
        .filter(|&i| f64::from(w[i].abs()) > threshold)
        .collect()
}

/// Sum of squares of every column of `w` `[rows, cols]`.
pub fn column_energies(w: &[f32], rows: usize, cols: usize) -> Result<Vec<f64>, SparseError> {
    check_shape(rows, cols, w.len())?;
    let mut energies = vec![0.0; cols];
    if cols > 0 {
        for row in w.chunks_exact(cols) {
            for (energy, &x) in energies.iter_mut().zip(row) {
                *energy += f64::from(x) * f64::from(x);
            }
        }
    }
    Ok(energies)
}

/// The `count` columns of highest score, ascending.
///
/// Scores are those of [`column_energies`] or
/// [`column_savings`](super::column_savings); not a number counts as 0.
pub fn select_columns(scores: &[f64], count: usize) -> Vec<u32> {
    let key = |i: usize| (scores[i] as f32).max(0.0).to_bits();
    largest(scores.len(), count, key)
        .into_iter()
        .map(|c| c as u32)
        .collect()
}

/// Indices of the `count` largest keys, ascending; ties go to the lower index.
///
/// Keys are below `2^31`. Three passes: a histogram of their upper halves, the
/// keys of the bin in which the threshold lies, the selection.
pub(crate) fn largest(n: usize, count: usize, key: impl Fn(usize) -> u32) -> Vec<usize> {
    let count = count.min(n);
    if count == 0 {
        return Vec::new();
    }
    let bin = |key: u32| (key >> 16) as usize & (BINS - 1);
    let mut histogram = vec![0usize; BINS];
    for i in 0..n {
        histogram[bin(key(i))] += 1;
    }
    // The highest bin that, with those above it, holds enough.
    let mut missing = count;
    let mut at = BINS - 1;
    while at > 0 && histogram[at] < missing {
        missing -= histogram[at];
        at -= 1;
    }
    let mut keys: Vec<u32> = (0..n).map(&key).filter(|&key| bin(key) == at).collect();
    let last = missing.clamp(1, keys.len().max(1)) - 1;
    let (above, threshold, _) = keys.select_nth_unstable_by(last, |a, b| b.cmp(a));
    let threshold = *threshold;
    let mut ties = missing - above.iter().filter(|&&k| k > threshold).count();
    let mut out = Vec::with_capacity(count);
    for i in 0..n {
        let key = key(i);
        if key < threshold || key == threshold && ties == 0 {
            continue;
        }
        ties -= usize::from(key == threshold);
        out.push(i);
    }
    out
}

/// Bins of the histogram: the upper 15 bits of a key.
const BINS: usize = 1 << 15;
