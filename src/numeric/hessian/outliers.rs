//! Entries that a quantizer had better leave alone, by what that saves.
//!
//! The criterion of SpQR (Dettmers et al., 2023): an entry's rounding error `e`
//! costs `e² / [H⁻¹]_jj` once all other weights have made up for it, and taking
//! an entry out of its group also lets the others have a finer grid. A group is
//! quantized with and without an entry; the difference is its saving.

use super::HessianError;
use crate::numeric::matrix::check_shape;
use crate::numeric::quant::{Group, QuantError, ScaleMethod, Scheme, weighted_error};
use crate::numeric::sparse::{SparseError, density_count, largest};

/// Candidates of a group at each step: largest by magnitude, and by own error.
const CANDIDATES: usize = 2;

/// The `round(density * rows * n)` entries of `w` `[rows, n]` that save most.
///
/// `weights` `[n]` says what a squared error of each input costs:
/// [`Feedback::leave_one_out`](super::Feedback::leave_one_out). Flat indices,
/// ascending, as [`Sparse::take`](crate::numeric::Sparse::take) wants them; there
/// may be fewer, since entries that save nothing stay where they are.
///
/// # Errors
/// Column groups, a wrong length, a density outside of 0 to 1, weights that aren't
/// finite.
///
/// # Cost
/// About `2 + 4 * density * group` times five quantizations of the matrix.
pub fn outliers(
    w: &[f32],
    rows: usize,
    weights: &[f64],
    density: f64,
    scheme: Scheme,
    group: Group,
    method: ScaleMethod,
) -> Result<Vec<usize>, HessianError> {
    let n = weights.len();
    check_shape(rows, n, w.len())?;
    let count = density_count(density, w.len())?;
    if let Some(at) = w.iter().position(|x| !x.is_finite()) {
        let (row, col) = (at / n, at % n);
        return Err(SparseError::NotFinite { row, col }.into());
    }
    if !matches!(scheme.bits, 2 | 3 | 4 | 8) {
        return Err(QuantError::Bits { bits: scheme.bits }.into());
    }
    let width = group.width(n).ok_or(HessianError::ColumnGroups)?;
    if width == 0 {
        return Err(QuantError::EmptyGroup.into());
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    let mean = weights.iter().sum::<f64>() / n as f64;
    let weights: Vec<f32> = weights.iter().map(|x| (x / mean) as f32).collect();
    let mut offers: Vec<(f32, usize)> = Vec::new();
    let mut trial = Trial::default();
    for (r, row) in w.chunks(n).enumerate() {
        for (g, values) in row.chunks(width).enumerate() {
            let first = g * width;
            let most =
                ((values.len() as f64 * density * 4.0).ceil() as usize + 2).min(values.len());
            trial.run(
                values,
                &weights[first..first + values.len()],
                most,
                scheme,
                method,
            );
            let at = r * n + first;
            offers.extend(trial.steps.iter().map(|&(saving, i)| (saving, at + i)));
        }
    }
    let chosen = largest(offers.len(), count, |i| offers[i].0.max(0.0).to_bits());
    let chosen = chosen.into_iter().filter(|&i| offers[i].0 > 0.0);
    Ok(chosen.map(|i| offers[i].1).collect())
}

/// Takes entries out of a group, the best first.
#[derive(Default)]
struct Trial {
    values: Vec<f32>,
    weights: Vec<f32>,
    /// Savings of runs of steps, pooled so that they fall, and their entries.
    runs: Vec<(f32, usize)>,
    taken: Vec<usize>,
    /// Saving and entry, by entry.
    steps: Vec<(f32, usize)>,
}

impl Trial {
    fn run(
        &mut self,
        values: &[f32],
        weights: &[f32],
        most: usize,
        scheme: Scheme,
        method: ScaleMethod,
    ) {
        self.values.clear();
        self.values.extend_from_slice(values);
        self.weights.clear();
        self.weights.extend_from_slice(weights);
        self.runs.clear();
        self.taken.clear();
        let mut errors = vec![0f32; values.len()];
        let mut before = weighted_error(values, weights, scheme, method, &mut errors);
        while self.taken.len() < most {
            let Some((after, entry)) = self.best_entry(&errors, scheme, method) else {
                break;
            };
            // A group above the range of scales gains most by losing what is too large.
            let saving = if before.is_finite() {
                before - after
            } else {
                f32::MAX / values.len() as f32
            };
            self.take(entry);
            self.taken.push(entry);
            before = weighted_error(&self.values, &self.weights, scheme, method, &mut errors);
            self.runs.push((saving, 1));
            // Pool neighbours until savings per entry don't increase.
            while let [.., (s0, n0), (s1, n1)] = self.runs[..]
                && s1 * n0 as f32 > s0 * n1 as f32
            {
                self.runs.truncate(self.runs.len() - 2);
                self.runs.push((s0 + s1, n0 + n1));
            }
        }
        self.steps.clear();
        let mut taken = self.taken.iter();
        for &(saving, count) in &self.runs {
            let share = saving / count as f32;
            self.steps
                .extend(taken.by_ref().take(count).map(|&i| (share, i)));
        }
        self.steps.sort_unstable_by_key(|&(_, i)| i);
    }

    /// An entry that is out decodes to zero and costs nothing.
    fn take(&mut self, entry: usize) {
        self.values[entry] = 0.0;
        self.weights[entry] = 0.0;
    }

    /// The candidate that leaves the least error, and that error.
    fn best_entry(
        &mut self,
        errors: &[f32],
        scheme: Scheme,
        method: ScaleMethod,
    ) -> Option<(f32, usize)> {
        let mut candidates = top(&self.values, |i| self.values[i].abs());
        candidates.extend(top(&self.values, |i| {
            self.weights[i] * errors[i] * errors[i]
        }));
        let mut scratch = vec![0f32; self.values.len()];
        let mut best: Option<(f32, usize)> = None;
        for &entry in &candidates {
            let (value, weight) = (self.values[entry], self.weights[entry]);
            self.take(entry);
            let (values, weights) = (&self.values, &self.weights);
            let after = weighted_error(values, weights, scheme, method, &mut scratch);
            (self.values[entry], self.weights[entry]) = (value, weight);
            if best.is_none_or(|(least, _)| after < least) {
                best = Some((after, entry));
            }
        }
        best
    }
}

/// The entries of highest score that aren't zero; the lower index first on a tie.
fn top(values: &[f32], score: impl Fn(usize) -> f32) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(CANDIDATES + 1);
    for i in (0..values.len()).filter(|&i| values[i] != 0.0) {
        let at = best.partition_point(|&k| score(k) >= score(i));
        if at < CANDIDATES {
            best.insert(at, i);
            best.truncate(CANDIDATES);
        }
    }
    best
}
