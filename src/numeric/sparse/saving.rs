//! Selection by what the following quantizer saves.
//!
//! Taking an entry out spares its own rounding error, and where it sets the
//! scale of its group, a part of everyone's. Within a group the entries are
//! tried in order of magnitude: with the `j` largest taken out, the group is
//! quantized again. The saving of each step is made monotone by averaging over
//! runs (a second outlier may only pay once the first is gone), and the best
//! steps of the whole matrix are taken.

use super::SparseError;
use super::select::{density_count, largest};
use crate::numeric::matrix::check_shape;
use crate::numeric::quant::{Group, ScaleMethod, Scheme, group_error, group_residual};

/// The `round(density * n)` entries that save most, as ascending flat indices.
///
/// Entries that save nothing are left where they are, so there may be fewer.
/// Column groups are judged by their columns.
///
/// # Errors
/// A density outside of 0 to 1, a wrong length, weights that aren't finite.
///
/// # Cost
/// A few quantizations of the matrix; those of [`ScaleMethod::Lsq`] with that
/// method.
pub fn select_by_saving(
    w: &[f32],
    rows: usize,
    cols: usize,
    density: f64,
    scheme: Scheme,
    group: Group,
    method: ScaleMethod,
) -> Result<Vec<usize>, SparseError> {
    check_shape(rows, cols, w.len())?;
    let count = density_count(density, w.len())?;
    if let Some(at) = w.iter().position(|x| !x.is_finite()) {
        return Err(SparseError::NotFinite {
            row: at / cols,
            col: at % cols,
        });
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    // Candidates (saving, index), ascending by index.
    let mut offers: Vec<(f32, usize)> = Vec::new();
    let mut trial = Trial::default();
    each_group(w, rows, cols, group, |values, index_of| {
        trial.run(
            values,
            most_per_group(values.len(), density),
            scheme,
            method,
        );
        let steps = trial.steps.iter();
        offers.extend(steps.map(|&(saving, i)| (saving, index_of(i as usize))));
    });
    if group == Group::Column {
        offers.sort_unstable_by_key(|&(_, index)| index);
    }
    let chosen = largest(offers.len(), count, |i| offers[i].0.max(0.0).to_bits());
    let chosen = chosen.into_iter().filter(|&i| offers[i].0 > 0.0);
    Ok(chosen.map(|i| offers[i].1).collect())
}

/// What taking out each column of `w` `[rows, cols]` saves.
///
/// Every column is judged alone. Scores for
/// [`select_columns`](super::select_columns).
///
/// # Errors and cost
/// As [`select_by_saving`].
pub fn column_savings(
    w: &[f32],
    rows: usize,
    cols: usize,
    scheme: Scheme,
    group: Group,
    method: ScaleMethod,
) -> Result<Vec<f64>, SparseError> {
    check_shape(rows, cols, w.len())?;
    if let Some(at) = w.iter().position(|x| !x.is_finite()) {
        return Err(SparseError::NotFinite {
            row: at / cols,
            col: at % cols,
        });
    }
    let mut savings = vec![0.0; cols];
    let (mut residual, mut scratch) = (Vec::new(), Vec::new());
    each_group(w, rows, cols, group, |values, index_of| {
        if group == Group::Column {
            let error = f64::from(group_error(values, scheme, method));
            savings[index_of(0) % cols] += error;
            return;
        }
        residual.clear();
        residual.extend_from_slice(values);
        let before = group_residual(&mut residual, scheme, method);
        scratch.clear();
        scratch.extend_from_slice(values);
        for i in extremes(values, scheme) {
            scratch[i] = 0.0;
            let after = group_error(&scratch, scheme, method);
            scratch[i] = values[i];
            if before.is_finite() && after.is_finite() {
                savings[index_of(i) % cols] += f64::from(before) - f64::from(after);
                residual[i] = 0.0;
            }
        }
        // The others don't move the scale: each spares its own error.
        for (i, e) in residual.iter().enumerate() {
            savings[index_of(i) % cols] += f64::from(*e) * f64::from(*e);
        }
    });
    Ok(savings)
}

/// Calls `f` with the weights of each group and the flat index of each of them.
fn each_group(
    w: &[f32],
    rows: usize,
    cols: usize,
    group: Group,
    mut f: impl FnMut(&[f32], &dyn Fn(usize) -> usize),
) {
    if w.is_empty() {
        return;
    }
    if let Some(width) = group.width(cols) {
        for (r, row) in w.chunks(cols).enumerate() {
            for (g, values) in row.chunks(width.max(1)).enumerate() {
                let first = r * cols + g * width;
                f(values, &|i| first + i);
            }
        }
    } else {
        let mut column = vec![0.0; rows];
        for c in 0..cols {
            for (r, x) in column.iter_mut().enumerate() {
                *x = w[r * cols + c];
            }
            f(&column, &|r| r * cols + c);
        }
    }
}

/// Entries of a group that are tried: several times the fair share.
fn most_per_group(len: usize, density: f64) -> usize {
    ((len as f64 * density * 4.0).ceil() as usize + 2).min(len)
}

/// Largest groups in which every step is tried; beyond, steps double.
const DENSE_STEPS: usize = 8;

/// Taking out the largest entries of a group, one after the other.
#[derive(Default)]
struct Trial {
    /// Magnitude and complemented index of the largest entries, descending.
    order: Vec<u64>,
    /// The group, less what has been taken out.
    values: Vec<f32>,
    /// Total saving of a run of steps, and its entries.
    runs: Vec<(f32, usize)>,
    /// Saving and index within the group of each entry tried, by index.
    steps: Vec<(f32, u32)>,
}

impl Trial {
    fn run(&mut self, values: &[f32], most: usize, scheme: Scheme, method: ScaleMethod) {
        self.rank(values, most);
        self.values.clear();
        self.values.extend_from_slice(values);
        self.runs.clear();
        let mut before = group_error(values, scheme, method);
        let mut done = 0;
        while done < self.order.len() {
            let step = if done < DENSE_STEPS { 1 } else { done / 2 }.min(self.order.len() - done);
            for &key in &self.order[done..done + step] {
                self.values[index_of(key) as usize] = 0.0;
            }
            done += step;
            let after = group_error(&self.values, scheme, method);
            // A group above the scale range gains most by losing what is too large.
            let saving = if before.is_finite() {
                before - after
            } else {
                f32::MAX / values.len() as f32
            };
            before = after;
            self.runs.push((saving, step));
            // Pool neighbours until savings per entry don't increase.
            while let [.., (s0, n0), (s1, n1)] = self.runs[..]
                && s1 * n0 as f32 > s0 * n1 as f32
            {
                self.runs.truncate(self.runs.len() - 2);
                self.runs.push((s0 + s1, n0 + n1));
            }
        }
        self.steps.clear();
        let mut entries = self.order.iter();
        for &(saving, count) in &self.runs {
            let share = saving / count as f32;
            self.steps.extend(
                entries
                    .by_ref()
                    .take(count)
                    .map(|&key| (share, index_of(key))),
            );
        }
        self.steps.sort_unstable_by_key(|&(_, index)| index);
    }

    /// Finds the `most` entries of largest magnitude; ties go to the lower index.
    fn rank(&mut self, values: &[f32], most: usize) {
        let key = |(i, x): (usize, &f32)| {
            u64::from(x.to_bits() & 0x7fff_ffff) << 32 | u64::from(!(i as u32))
        };
        self.order.clear();
        if most > FEW {
            self.order.extend(values.iter().enumerate().map(key));
            if most < self.order.len() {
                self.order.select_nth_unstable_by(most, |a, b| b.cmp(a));
                self.order.truncate(most);
            }
            self.order.sort_unstable_by(|a, b| b.cmp(a));
            return;
        }
        // Few entries: keep them sorted, most weights fail the first comparison.
        for key in values.iter().enumerate().map(key) {
            if self.order.len() == most && self.order.last().is_none_or(|&last| key < last) {
                continue;
            }
            let at = self.order.partition_point(|&k| k > key);
            self.order.insert(at, key);
            self.order.truncate(most);
        }
    }
}

/// The index in a key of [`Trial::order`].
fn index_of(key: u64) -> u32 {
    !(key as u32)
}

/// How many entries are found by insertion.
const FEW: usize = 8;

/// The entries that set the scale of a group.
fn extremes(values: &[f32], scheme: Scheme) -> Vec<usize> {
    let indices = 0..values.len();
    if scheme.symmetric {
        let largest = |&a: &usize, &b: &usize| values[a].abs().total_cmp(&values[b].abs());
        return indices.max_by(largest).into_iter().collect();
    }
    let order = |&a: &usize, &b: &usize| values[a].total_cmp(&values[b]);
    let mut both: Vec<usize> = indices
        .clone()
        .min_by(order)
        .into_iter()
        .chain(indices.max_by(order))
        .collect();
    both.dedup();
    both
}
