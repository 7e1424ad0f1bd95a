//! Scales by least squares and codes by coordinate descent, in the full metric.

use super::super::Metric;
use super::state::{LANES, SPAN, State, product};
use crate::numeric::quant::{PanelGrid, PanelSpan, stored_scale};
use faer::MatRef;
use std::ops::Range;

impl State {
    /// Moves each scale to its best stored value, all else being fixed.
    ///
    /// Groups one after the other, each knowing what those before have changed
    /// (Gauss-Seidel). Returns the fall of the objective.
    pub(super) fn fit_scales(&mut self, metric: &Metric) -> f64 {
        let stride = self.stride;
        let mut fall = 0.0;
        let (mut slopes, mut steps, mut curved) = (Vec::new(), Vec::new(), Vec::new());
        for g in 0..self.groups {
            let first = g * self.group_width;
            let span = first..(first + self.group_width).min(self.n);
            self.slopes(metric, span.clone(), &mut slopes);
            self.codes_of_group(g, span.clone(), &mut steps);
            // H of the group times the codes.
            let second = metric_block(metric, span.clone());
            let width = span.len();
            curved.clear();
            curved.resize(width * stride, 0.0);
            let block = MatRef::from_row_major_slice(&second, width, width);
            product(&mut curved, block, &steps, width, stride);
            let slope = dots(&steps, &slopes, stride);
            let curve = dots(&steps, &curved, stride);
            let mut change = vec![0f32; stride];
            for r in 0..self.rows {
                let scale = &mut self.scales[r / LANES * self.groups + g][r % LANES];
                let wanted = f64::from(*scale) + slope[r] / curve[r];
                if !wanted.is_finite() || wanted <= 0.0 {
                    continue;
                }
                let stored = stored_scale(wanted as f32);
                let step = f64::from(stored - *scale);
                let down = step * (2.0 * slope[r] - step * curve[r]);
                if down > 0.0 {
                    fall += down;
                    *scale = stored;
                    change[r] = step as f32;
                }
            }
            let errors = self.errors[span.start * stride..span.end * stride].chunks_mut(stride);
            for (errors, steps) in errors.zip(steps.chunks(stride)) {
                for ((e, s), c) in errors.iter_mut().zip(steps).zip(&change) {
                    *e -= s * c;
                }
            }
        }
        fall
    }

    /// Moves each code to its best value, all else being fixed; returns the fall.
    pub(super) fn descend(&mut self, metric: &Metric, grid: &PanelGrid) -> f64 {
        let stride = self.stride;
        let mut falls = vec![[0f64; LANES]; stride / LANES];
        let mut slopes = Vec::new();
        let mut scratch = PanelSpan::default();
        for s0 in (0..self.n).step_by(SPAN).rev() {
            let span = s0..(s0 + SPAN).min(self.n);
            self.slopes(metric, span.clone(), &mut slopes);
            let second = metric_block(metric, span.clone());
            let groups: Vec<u32> = span
                .clone()
                .map(|j| (j / self.group_width) as u32)
                .collect();
            let flat = span.start * stride..span.end * stride;
            let (errors, codes) = (&mut self.errors[flat.clone()], &mut self.codes[flat]);
            for (panel, falls) in falls.iter_mut().enumerate() {
                scratch.gather(errors, codes, panel, stride);
                scratch.targets.iter_mut().for_each(|t| *t = [0.0; LANES]);
                scratch.add_to_targets(&slopes, panel, stride);
                let params = Self::params(&self.scales, &self.zeros, panel, self.groups, &groups);
                grid.descend(&mut scratch, params, &second, falls);
                scratch.scatter(errors, codes, panel, stride);
            }
        }
        self.sum_rows(&falls)
    }

    /// `(H E)` of a span of columns, `[span, stride]`.
    fn slopes(&self, metric: &Metric, span: Range<usize>, out: &mut Vec<f32>) {
        let (n, stride) = (self.n, self.stride);
        out.clear();
        out.resize(span.len() * stride, 0.0);
        let h = MatRef::from_row_major_slice(metric.second_moment(), n, n);
        let h = h.subrows(span.start, span.len());
        product(out, h, &self.errors, n, stride);
        // What damping adds to the diagonal.
        for (j, out) in span.zip(out.chunks_mut(stride)) {
            let raw = f64::from(metric.second_moment()[j * n + j]);
            let more = (metric.entry(j, j) - raw) as f32;
            let errors = &self.errors[j * stride..][..stride];
            out.iter_mut().zip(errors).for_each(|(o, e)| *o += more * e);
        }
    }

    /// Codes less zero points of group `g`, `[span, stride]`.
    fn codes_of_group(&self, g: usize, span: Range<usize>, out: &mut Vec<f32>) {
        out.clear();
        for j in span {
            let codes = &self.codes[j * self.stride..][..self.stride];
            for (panel, codes) in codes.chunks(LANES).enumerate() {
                let zeros = &self.zeros[panel * self.groups + g];
                out.extend(codes.iter().zip(zeros).map(|(&q, z)| f32::from(q) - z));
            }
        }
    }
}

/// The damped metric within a span, row-major.
fn metric_block(metric: &Metric, span: Range<usize>) -> Vec<f32> {
    let rows = span.clone();
    rows.flat_map(|i| span.clone().map(move |j| metric.entry(i, j) as f32))
        .collect()
}

/// Sums of products of two `[width, stride]` matrices over the width.
fn dots(a: &[f32], b: &[f32], stride: usize) -> Vec<f64> {
    let mut out = vec![0f64; stride];
    for (a, b) in a.chunks(stride).zip(b.chunks(stride)) {
        for ((o, a), b) in out.iter_mut().zip(a).zip(b) {
            *o += f64::from(*a) * f64::from(*b);
        }
    }
    out
}
