//! AdamW (arXiv 1711.05101), clipping by norm, and the course of the learning rate.

use serde::{Deserialize, Serialize};

/// How the learning rate goes, and the rest of AdamW's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Learning rate at its height.
    pub rate: f64,
    /// Whether the rate is per root mean square of each tensor, so that one rate fits scales, factors
    /// and norms; else plain AdamW.
    pub relative: bool,
    /// Share of the steps over which the rate rises from zero.
    pub warm_up: f64,
    /// Share of the rate that is left at the end of the cosine.
    pub floor: f64,
    /// Weight decay.
    pub decay: f64,
    /// Memory of the gradient's mean.
    pub beta1: f64,
    /// Memory of its square.
    pub beta2: f64,
    /// Added to the root of the square.
    pub epsilon: f64,
    /// Largest norm of the gradient of all tensors; larger ones are scaled down to it.
    pub clip: Option<f64>,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            rate: 2e-3,
            relative: true,
            warm_up: 0.05,
            floor: 0.05,
            decay: 0.0,
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-10,
            clip: Some(1.0),
        }
    }
}

impl Schedule {
    /// The rate of step `step` (from 1) of `steps`.
    pub fn rate_at(&self, step: u64, steps: u64) -> f64 {
        let (step, steps) = (step as f64, steps.max(1) as f64);
        let rise = (self.warm_up * steps).max(1.0);
        if step <= rise {
            return self.rate * step / rise;
        }
        let through = ((step - rise) / (steps - rise).max(1.0)).clamp(0.0, 1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * through).cos());
        self.rate * (self.floor + (1.0 - self.floor) * cosine)
    }
}

/// Values that are trained, with what AdamW remembers of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Moving {
    /// The values, in single precision whatever their stored format.
    pub master: Vec<f32>,
    /// Mean of the gradient.
    pub mean: Vec<f32>,
    /// Mean of its square.
    pub square: Vec<f32>,
    /// What the rate is multiplied with.
    pub unit: f64,
}

impl Moving {
    /// Values that have not moved yet.
    pub fn new(master: Vec<f32>, relative: bool) -> Self {
        let squares: f64 = master.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let unit = match relative && squares > 0.0 {
            true => (squares / master.len().max(1) as f64).sqrt(),
            // Of zeros there is nothing to go by: biases that begin there.
            false => 1.0,
        };
        Self {
            mean: vec![0.0; master.len()],
            square: vec![0.0; master.len()],
            unit,
            master,
        }
    }

    /// One step against a gradient, times `factor` (of clipping).
    pub fn step(&mut self, gradient: &[f32], factor: f64, step: u64, rate: f64, s: &Schedule) {
        let all = usize::MAX;
        for piece in self.pieces(gradient, all, s.decay) {
            piece.step(factor, step, rate, s);
        }
    }

    /// The values in pieces of at most `most`, with their gradients: each moves by itself.
    pub(super) fn pieces<'a>(
        &'a mut self,
        gradient: &'a [f32],
        most: usize,
        decay: f64,
    ) -> impl Iterator<Item = Piece<'a>> {
        let unit = self.unit;
        let most = most.min(self.master.len()).max(1);
        let values = self.master.chunks_mut(most).zip(gradient.chunks(most));
        let memories = self.mean.chunks_mut(most).zip(self.square.chunks_mut(most));
        let together = values.zip(memories);
        together.map(move |((master, gradient), (mean, square))| Piece {
            master,
            mean,
            square,
            gradient,
            unit,
            decay,
        })
    }
}

/// Some of the values of a tensor.
pub(super) struct Piece<'a> {
    master: &'a mut [f32],
    mean: &'a mut [f32],
    square: &'a mut [f32],
    gradient: &'a [f32],
    unit: f64,
    decay: f64,
}

impl Piece<'_> {
    /// [`Moving::step`] of these values.
    pub(super) fn step(self, factor: f64, step: u64, rate: f64, s: &Schedule) {
        let (b1, b2) = (s.beta1 as f32, s.beta2 as f32);
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        let first = 1.0 - s.beta1.powi(power);
        let second = 1.0 - s.beta2.powi(power);
        let (pace, keep) = (rate * self.unit, 1.0 - rate * self.decay);
        let values = self.master.iter_mut().zip(self.mean).zip(self.square);
        for (((x, mean), square), g) in values.zip(self.gradient) {
            let g = (f64::from(*g) * factor) as f32;
            *mean = b1 * *mean + (1.0 - b1) * g;
            *square = b2 * *square + (1.0 - b2) * g * g;
            let root = (f64::from(*square) / second).sqrt() + s.epsilon;
            let moved = pace * (f64::from(*mean) / first) / root;
            *x = (f64::from(*x) * keep - moved) as f32;
        }
    }
}

/// The norm of several gradients together.
pub fn norm(gradients: &[Vec<f32>]) -> f64 {
    let square = |g: &Vec<f32>| g.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    gradients.iter().map(square).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_and_falls_along_a_cosine() {
        let s = Schedule {
            rate: 1.0,
            warm_up: 0.1,
            floor: 0.0,
            ..Schedule::default()
        };
        assert_eq!(s.rate_at(5, 100), 0.5);
        assert_eq!(s.rate_at(10, 100), 1.0);
        assert!((s.rate_at(55, 100) - 0.5).abs() < 1e-12);
        assert!(s.rate_at(100, 100) < 1e-12);
    }

    #[test]
    fn adamw_takes_the_steps_that_its_definition_says() {
        // Two steps by hand: mean and square with their corrections, decay apart from them.
        let s = Schedule {
            relative: false,
            decay: 0.1,
            beta2: 0.99,
            epsilon: 1e-8,
            ..Schedule::default()
        };
        let mut x = Moving::new(vec![1.0], false);
        x.step(&[0.5], 1.0, 1, 0.01, &s);
        let first = 1.0 * (1.0 - 0.01 * 0.1) - 0.01;
        assert!((f64::from(x.master[0]) - first).abs() < 1e-6);
        x.step(&[-0.25], 1.0, 2, 0.01, &s);
        let mean = (0.9 * 0.05 + 0.1 * -0.25) / (1.0 - 0.81);
        let square: f64 = (0.99 * 0.0025 + 0.01 * 0.0625) / (1.0 - 0.9801);
        let second = first * (1.0 - 0.001) - 0.01 * mean / square.sqrt();
        assert!((f64::from(x.master[0]) - second).abs() < 1e-6);
    }
}
