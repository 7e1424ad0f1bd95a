//! Angles of rotations: which positions they are of, at which frequencies.

use super::Raiser;
use super::activation::close;
use super::rope::Angles;
use super::sample::PROBES;
use super::tensor::Tensor;
use super::view::{ONE, Source, View, fixed};
use crate::ir::{Operand, RopeScaling};
use crate::weights::DType;

/// Difference of a cosine at which frequencies don't fit.
const TOLERANCE: f64 = 2e-4;

/// A cosine and a sine of frequency `index` at a position.
#[derive(Clone, Copy)]
struct Reading {
    position: f64,
    index: usize,
    cos: f64,
    sin: f64,
}

impl Raiser<'_> {
    /// The angles that a cosine and a sine are of, broadcast to a view: `count` frequencies.
    pub(super) fn angles(
        &mut self,
        cos: Operand,
        sin: Operand,
        layout: &View,
        (count, pairs): (usize, bool),
    ) -> Option<Angles> {
        if [cos, sin].iter().any(|o| self.facts.is_doubtful(*o)) {
            self.near("a rotation whose angles may change in longer sequences", "");
            return None;
        }
        let axis = |dim: usize| {
            let is = |atoms: &Vec<super::view::Atom>| matches!(atoms.as_slice(), [a] if a.dim == Some(dim) && a.stride == 1);
            layout.axes.iter().position(is)
        };
        let (batch, seq) = (axis(0), axis(1)?);
        let width = layout.axes.len().checked_sub(1)?;
        let shape = layout.shape()?;
        let total = fixed(*shape.last()?)?;
        let index = |d: usize| match total == count {
            true => d,
            false if pairs => d / 2,
            false => d % count.max(1),
        };
        let mut readings: [Vec<(usize, usize, Reading)>; PROBES] = Default::default();
        for (probe, list) in readings.iter_mut().enumerate() {
            let dims: Vec<usize> = shape.iter().map(|s| s[probe]).collect();
            let [c, s] = [cos, sin].map(|o| self.facts.get(o, probe)?.broadcast(&dims));
            let (c, s) = (c?, s?);
            let strides = super::tensor::strides(&dims);
            for (at, (&cos, &sin)) in c.values()?.iter().zip(s.values()?).enumerate() {
                let place = |axis: usize| {
                    let stride = strides.get(axis).map_or(1, |&s| s.max(1) as usize);
                    at / stride % dims.get(axis).copied().unwrap_or(1).max(1)
                };
                let reading = Reading {
                    position: 0.0,
                    index: index(place(width)),
                    cos,
                    sin,
                };
                list.push((batch.map_or(0, place), place(seq), reading));
            }
        }
        let found = self.positions_of(&readings, count);
        if found.is_none() {
            self.near(
                "a rotation whose angles are no known function of positions",
                "",
            );
        }
        found
    }

    /// The positions, among those that the graph has, whose angles these are.
    fn positions_of(
        &mut self,
        readings: &[Vec<(usize, usize, Reading)>; PROBES],
        count: usize,
    ) -> Option<Angles> {
        let past = [self.past(0) as f64, self.past(1) as f64];
        let default = |probe: usize, _: usize, s: usize| {
            Some(past.get(probe).copied().unwrap_or(0.0) + s as f64)
        };
        if let Some((theta, scaling)) = fit_at(readings, count, default) {
            let positions = self.positions()?;
            return Some(Angles {
                positions,
                theta,
                scaling,
            });
        }
        for id in self.candidates() {
            let Some(values) = self.facts.side(Operand::Value(id)) else {
                continue;
            };
            let at = |probe: usize, b: usize, s: usize| {
                let tensor: &Tensor = values.get(probe)?;
                let &[rows, cols] = tensor.shape.as_slice() else {
                    return None;
                };
                let row = if rows == 1 { 0 } else { b };
                tensor
                    .values()?
                    .get(row.checked_mul(cols)?.checked_add(s)?)
                    .copied()
            };
            if let Some((theta, scaling)) = fit_at(readings, count, at) {
                let positions = Source::Old(id);
                return Some(Angles {
                    positions,
                    theta,
                    scaling,
                });
            }
        }
        None
    }

    /// Integers `[B,S]` that may be positions: inputs first.
    fn candidates(&self) -> Vec<crate::ir::ValueId> {
        let mut found = self.graph.body.inputs.clone();
        let mut made: Vec<_> = self
            .makers
            .iter()
            .map(|(&value, &(at, _))| (at, value))
            .collect();
        made.sort_unstable();
        found.extend(made.into_iter().map(|(_, value)| value));
        let batch = |id: crate::ir::ValueId| {
            let sizes = self.facts.sizes(Operand::Value(id));
            let integral = self
                .facts
                .get(Operand::Value(id), 0)
                .is_some_and(|t| t.dtype == DType::I64);
            integral
                && sizes.is_some_and(|s| matches!(s.as_slice(), [b, s] if *b != ONE && *s != ONE))
        };
        found.retain(|&id| batch(id));
        found
    }

    /// The angles of tables, and how many frequencies they have.
    pub(super) fn table_angles(
        &mut self,
        (cos, sin): (Operand, Operand),
        ids: Option<Operand>,
    ) -> Option<(Angles, usize)> {
        let doubted = ids.is_some_and(|ids| self.facts.is_doubtful(ids));
        let (c, s) = (self.facts.constant(cos), self.facts.constant(sin));
        let (Some(c), Some(s)) = (c, s) else {
            self.near(
                "a rotation by tables that are too large or no constants",
                "",
            );
            return None;
        };
        let &[_, count] = c.shape.as_slice() else {
            return None;
        };
        let mut readings = Vec::new();
        for (at, (&cos, &sin)) in c.values()?.iter().zip(s.values()?).enumerate() {
            readings.push(Reading {
                position: (at / count.max(1)) as f64,
                index: at % count.max(1),
                cos,
                sin,
            });
        }
        let Some((theta, scaling)) = fit(&readings, count) else {
            self.near("a rotation by tables of unknown frequencies", "");
            return None;
        };
        let positions = match ids.filter(|o| *o != Operand::None) {
            None => self.positions()?,
            Some(_) if doubted => {
                self.near("positions that may change in longer sequences", "");
                return None;
            }
            Some(ids) => match self.facts.side(ids).and_then(|t| self.offset(&t)) {
                Some(0) => self.positions()?,
                _ => match ids {
                    Operand::Value(id) => Source::Old(id),
                    _ => return None,
                },
            },
        };
        let angles = Angles {
            positions,
            theta,
            scaling,
        };
        Some((angles, count))
    }
}

/// Frequencies that fit readings at these positions.
fn fit_at(
    readings: &[Vec<(usize, usize, Reading)>; PROBES],
    count: usize,
    position: impl Fn(usize, usize, usize) -> Option<f64>,
) -> Option<(f64, Option<RopeScaling>)> {
    let mut all = Vec::new();
    for (probe, list) in readings.iter().enumerate() {
        for &(b, s, reading) in list {
            let position = position(probe, b, s)?;
            all.push(Reading {
                position,
                ..reading
            });
        }
    }
    fit(&all, count)
}

/// Base of the frequencies and how they are stretched.
fn fit(readings: &[Reading], count: usize) -> Option<(f64, Option<RopeScaling>)> {
    let mut frequencies = Vec::with_capacity(count);
    for index in 0..count {
        let own = || readings.iter().filter(|r| r.index == index);
        let first = own().min_by(|a, b| a.position.total_cmp(&b.position))?;
        let next = own().find(|r| r.position == first.position + 1.0)?;
        let sine = next.sin * first.cos - next.cos * first.sin;
        let cosine = next.cos * first.cos + next.sin * first.sin;
        let mut frequency = sine.atan2(cosine);
        // Later positions measure it better, by as many whole turns as the earlier ones tell.
        let mut later: Vec<&Reading> = own().collect();
        later.sort_by(|a, b| a.position.total_cmp(&b.position));
        for reading in later {
            let gap = reading.position - first.position;
            if gap > 1.0 {
                let sine = reading.sin * first.cos - reading.cos * first.sin;
                let cosine = reading.cos * first.cos + reading.sin * first.sin;
                let (phase, turn) = (sine.atan2(cosine), std::f64::consts::TAU);
                let turns = ((gap * frequency - phase) / turn).round();
                frequency = (phase + turns * turn) / gap;
            }
        }
        frequencies.push(frequency);
    }
    let fits = |r: &Reading| {
        let angle = r.position * frequencies.get(r.index).copied().unwrap_or(f64::NAN);
        // Angles are rounded to f32 before their cosine is taken.
        let tolerance = TOLERANCE + 2e-7 * r.position.abs();
        (angle.cos() - r.cos).abs() < tolerance && (angle.sin() - r.sin).abs() < tolerance
    };
    if !readings.iter().all(fits) {
        return None;
    }
    base_of(&frequencies)
}

/// `theta` and the stretch of `frequencies[i] = theta^(−i/n)`.
fn base_of(frequencies: &[f64]) -> Option<(f64, Option<RopeScaling>)> {
    let n = frequencies.len() as f64;
    let first = *frequencies.first()?;
    if frequencies.iter().any(|f| f.is_nan() || *f <= 0.0) {
        return None;
    }
    let factor = 1.0 / first;
    let plain = |theta: f64, i: usize| theta.powf(-(i as f64) / n);
    let error = |theta: f64, i: usize, f: f64| (f * factor - plain(theta, i)).abs();
    if frequencies.len() == 1 {
        return Some((10000.0, linear(factor)));
    }
    let second = *frequencies.get(1)? * factor;
    let rough = second.powf(-n);
    // The frequency that determines the base best: errors are absolute, and the exponent magnifies.
    let best = (1..frequencies.len()).min_by(|&a, &b| {
        let blur = |i: usize| n / (i as f64 * plain(rough, i));
        blur(a).total_cmp(&blur(b))
    })?;
    let theta = (frequencies.get(best)? * factor).powf(-n / best as f64);
    let fits = |theta: f64| {
        let all = frequencies.iter().enumerate();
        all.clone()
            .all(|(i, &f)| error(theta, i, f) < 1e-5 * (1.0 + plain(theta, i)))
    };
    for theta in [round(theta), theta] {
        if fits(theta) {
            return Some((theta, linear(factor)));
        }
    }
    // Neighbours that are stretched alike give the base too: the highest pair, or the lowest.
    let lowest = frequencies.len().checked_sub(2)?;
    let low = frequencies.get(lowest)? / frequencies.get(lowest + 1)?;
    let rough = frequencies.get(1)?.powf(-n);
    [round(rough), round(low.powf(n))]
        .into_iter()
        .find_map(|theta| llama3(frequencies, theta))
}

fn linear(factor: f64) -> Option<RopeScaling> {
    (!close(factor, 1.0)).then(|| RopeScaling::Linear {
        factor: round(factor),
    })
}

/// The roundest number within the error of an estimate.
fn round(x: f64) -> f64 {
    for digits in 1..8 {
        let text = format!("{x:.*e}", digits - 1);
        let rounded: f64 = text.parse().unwrap_or(x);
        if (rounded - x).abs() < 2e-5 * x.abs() {
            return rounded;
        }
    }
    x
}

/// The ramp of Llama 3.1: its published bounds, any context and factor.
fn llama3(frequencies: &[f64], theta: f64) -> Option<(f64, Option<RopeScaling>)> {
    let n = frequencies.len() as f64;
    let (low, high) = (1.0, 4.0);
    let plain = |i: usize| theta.powf(-(i as f64) / n);
    let last = frequencies.len().checked_sub(1)?;
    let factor = round(plain(last) / frequencies.get(last)?);
    let stretched = |i: usize, context: f64| {
        let f = plain(i);
        let waves = context * f / std::f64::consts::TAU;
        if waves < low {
            f / factor
        } else if waves > high {
            f
        } else {
            let smooth = (waves - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        }
    };
    for exponent in 4..18 {
        let context = f64::from(1 << exponent);
        let all = frequencies.iter().enumerate();
        if all
            .clone()
            .all(|(i, &f)| (f - stretched(i, context)).abs() < 1e-3 * f + 1e-7)
        {
            let scaling = RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context: 1 << exponent,
            };
            return Some((theta, Some(scaling)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(theta: f64, n: usize) -> Vec<f64> {
        (0..n)
            .map(|i| f64::from(theta.powf(-(i as f64) / n as f64) as f32))
            .collect()
    }

    #[test]
    fn bases_are_found_from_frequencies() {
        for theta in [1e4, 5e5, 1e6, 123456.0] {
            let found = base_of(&frequencies(theta, 32));
            assert_eq!(found, Some((theta, None)));
        }
        let halved: Vec<f64> = frequencies(1e4, 16).iter().map(|f| f / 2.0).collect();
        let linear = RopeScaling::Linear { factor: 2.0 };
        assert_eq!(base_of(&halved), Some((1e4, Some(linear))));
    }
}
