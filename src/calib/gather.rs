//! Sums of what goes into linears, while they run.

use super::error::CalibError;
use super::plan::SegmentPlan;
use crate::exec::Pool;
use crate::exec::kernels::gram;
use crate::exec::segments::Tap;
use crate::ir::OpId;
use std::time::{Duration, Instant};

/// Sums over one input.
pub struct Sum {
    /// Σ x xᵀ, `[width, width]`, of which the upper triangle counts.
    pub hessian: Vec<f32>,
    /// Width of the input.
    pub width: usize,
    /// Rows that were added.
    pub tokens: u64,
}

/// Sums of one segment.
pub struct Gather<'p> {
    plan: &'p SegmentPlan,
    pool: &'p Pool,
    /// As in the plan.
    pub sums: Vec<Sum>,
    /// Tokens of each expert of each mixture.
    pub counts: Vec<Vec<u64>>,
    /// Time that adding up took.
    pub time: Duration,
    window: usize,
    length: usize,
    fault: Option<CalibError>,
}

impl<'p> Gather<'p> {
    /// Sums of nothing.
    pub fn new(plan: &'p SegmentPlan, pool: &'p Pool) -> Self {
        let sum = |width: usize| Sum {
            hessian: vec![0.0; width * width],
            width,
            tokens: 0,
        };
        Self {
            plan,
            pool,
            sums: plan.sums.iter().map(|s| sum(s.width)).collect(),
            counts: plan.mixtures.iter().map(|m| vec![0; m.experts]).collect(),
            time: Duration::ZERO,
            window: 0,
            length: 1,
            fault: None,
        }
    }

    /// Says which windows come next: the first one's number, and the length of each.
    pub fn at(&mut self, window: usize, length: usize) {
        (self.window, self.length) = (window, length.max(1));
    }

    /// What went wrong, if something did.
    pub fn check(&mut self) -> Result<(), CalibError> {
        self.fault.take().map_or(Ok(()), Err)
    }

    /// Finds the row that spoils a sum.
    fn blame(&self, key: &str, x: &[f32], width: usize) -> CalibError {
        let bad = x.iter().position(|v| !v.is_finite());
        let (at, what) = match bad.and_then(|at| Some((at, x.get(at)?))) {
            Some((at, value)) if value.is_nan() => (at, "NaN"),
            Some((at, _)) => (at, "infinite"),
            None => {
                let largest = x
                    .iter()
                    .enumerate()
                    .max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
                (largest.map_or(0, |(at, _)| at), "too large to be squared")
            }
        };
        let row = at / width.max(1);
        CalibError::NotFinite {
            site: key.to_string(),
            window: self.window + row / self.length,
            position: row % self.length,
            what,
        }
    }
}

impl Tap for Gather<'_> {
    fn see(&mut self, op: OpId, x: &[f32], width: usize) {
        let rows = x.len() / width.max(1);
        for (mixture, counts) in self.plan.mixtures.iter().zip(&mut self.counts) {
            let expert = mixture.counted_at.get(&op).and_then(|&e| counts.get_mut(e));
            expert.into_iter().for_each(|count| *count += rows as u64);
        }
        let Some(&index) = self.plan.at.get(&op) else {
            return;
        };
        let (Some(sum), Some(plan)) = (self.sums.get_mut(index), self.plan.sums.get(index)) else {
            return;
        };
        if sum.width != width || self.fault.is_some() {
            return;
        }
        let begun = Instant::now();
        gram::add_upper(self.pool, x, rows, width, &mut sum.hessian);
        sum.tokens += rows as u64;
        self.time += begun.elapsed();
        let mut diagonal = sum.hessian.iter().step_by(width + 1);
        if !diagonal.all(|v| v.is_finite()) {
            self.fault = Some(self.blame(&plan.key, x, width));
        }
    }
}
