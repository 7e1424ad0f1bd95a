//! Axes: where they start and end, and which numbers are written at them.

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// An axis: where it starts and ends, and what is written at which places.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it shows, with the unit.
    pub label: String,
    /// Start.
    pub from: f64,
    /// End.
    pub to: f64,
    /// Places with text.
    pub ticks: Vec<(f64, String)>,
    /// Whether lines go through the places.
    pub grid: bool,
}

impl Axis {
    /// A linear axis over values, from zero where that is near.
    pub fn linear(label: &str, low: f64, high: f64) -> Self {
        let (low, high) = widen(low, high);
        let low = if low > 0.0 && low < 0.5 * high {
            0.0
        } else {
            low
        };
        let step = nice((high - low) / 5.0);
        let first = (low / step).floor();
        let count = ((high / step).ceil() - first).clamp(1.0, 12.0) as usize;
        let digits = (-step.log10().floor()).clamp(0.0, 9.0) as usize;
        let at = |i: usize| (first + i as f64) * step;
        Self {
            label: label.into(),
            from: at(0),
            to: at(count),
            ticks: (0..=count)
                .map(|i| (at(i), format!("{:.digits$}", at(i))))
                .collect(),
            grid: true,
        }
    }

    /// A logarithmic axis: places are decimal logarithms.
    pub fn log(label: &str, low: f64, high: f64) -> Self {
        let low = if low.is_finite() && low > 0.0 {
            low
        } else {
            1e-6
        };
        let high = if high.is_finite() && high > low {
            high
        } else {
            low * 10.0
        };
        let (from, to) = (low.log10(), high.log10());
        let middle = 0.5 * (from + to);
        // Half a decade at least, so that noise does not look like structure.
        let half = (0.5 * (to - from)).max(0.25) * 1.06;
        let (from, to) = (middle - half, middle + half);
        let steps: &[f64] = match to - from {
            span if span < 1.3 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
            span if span < 2.6 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let every = ((to - from) / 7.0).ceil().max(1.0) as i32;
        let mut ticks = Vec::new();
        for decade in from.floor() as i32..=to.ceil() as i32 {
            for step in steps {
                let place = f64::from(decade) + step.log10();
                if (from..=to).contains(&place) && decade.rem_euclid(every) == 0 {
                    let text = match steps.len() {
                        1 => decades(decade),
                        _ => power(*step, decade),
                    };
                    ticks.push((place, text));
                }
            }
        }
        Self {
            label: label.into(),
            from,
            to,
            ticks,
            grid: true,
        }
    }

    /// An axis of `names`, the i-th at i + 0.5; as many are written as there is room for.
    pub fn names(label: &str, names: &[String], room: usize) -> Self {
        let every = names.len().div_ceil(room.max(1)).max(1);
        let shown = names.iter().enumerate().step_by(every);
        Self {
            label: label.into(),
            from: 0.0,
            to: names.len().max(1) as f64,
            ticks: shown
                .map(|(i, name)| (i as f64 + 0.5, name.clone()))
                .collect(),
            grid: false,
        }
    }

    /// The same with the first at the top, or at the right.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        std::mem::swap(&mut self.from, &mut self.to);
        self
    }

    /// What is written at a place.
    pub fn text(&self, place: f64) -> String {
        let near = |(at, _): &&(f64, String)| (at - place).abs() < 1e-9;
        self.ticks
            .iter()
            .find(near)
            .map_or_else(String::new, |(_, text)| text.clone())
    }
}

fn widen(low: f64, high: f64) -> (f64, f64) {
    match (low.is_finite() && high.is_finite(), high > low) {
        (false, _) => (0.0, 1.0),
        (true, true) => (low, high),
        (true, false) if low == 0.0 => (0.0, 1.0),
        (true, false) => (low - 0.5 * low.abs(), low + 0.5 * low.abs()),
    }
}

/// The next of 1, 2, 5 × 10ⁿ.
fn nice(step: f64) -> f64 {
    let size = 10f64.powf(step.log10().floor());
    let lead = step / size;
    let nice = [1.0, 2.0, 5.0].into_iter().find(|n| lead <= *n + 1e-9);
    nice.unwrap_or(10.0) * size
}

/// `10⁻⁴`, `0.1`, `1`, `10`, `10³`.
fn decades(decade: i32) -> String {
    if (-1..=2).contains(&decade) {
        return power(1.0, decade);
    }
    let text = decade.to_string();
    let raised = text.chars().map(|c| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '0' | '4'..='9' => char::from_u32(u32::from(c) - 48 + 0x2070).unwrap_or(c),
        c => c,
    });
    format!("10{}", raised.collect::<String>())
}

/// `0.02`, `3e-7`, `200`.
fn power(step: f64, decade: i32) -> String {
    match decade {
        -3..=3 => {
            let value = step * 10f64.powi(decade);
            let digits =
                (-decade).max(0) as usize + usize::from(step.fract() != 0.0 && decade <= 0);
            format!("{value:.digits$}")
        }
        _ => format!("{step}e{decade}"),
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.from) / (self.to - self.from);
        let length = f64::from(limit.1 - limit.0);
        limit.0 + (share * length).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.iter().map(|(at, _)| *at).collect(),
        }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(place: &f64) -> String {
        place.to_string()
    }
}

/// At most `most` of the places of `0..count`, ends included, close together at the start.
pub fn thinned(count: usize, most: usize) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    let last = (count - 1) as f64;
    let place = |i: usize| {
        let share = i as f64 / (most - 1).max(1) as f64;
        (last * share * share.sqrt()).round() as usize
    };
    let mut places: Vec<usize> = (0..most).map(place).collect();
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes() {
        let texts = |axis: Axis| axis.ticks.into_iter().map(|t| t.1).collect::<Vec<_>>();
        assert_eq!(
            texts(Axis::linear("", 0.3, 4.7)),
            ["0", "1", "2", "3", "4", "5"]
        );
        assert_eq!(
            texts(Axis::linear("", 7.8, 8.2))
                .first()
                .map(String::as_str),
            Some("7.8")
        );
        assert_eq!(
            texts(Axis::log("", 1e-3, 1.0)),
            ["10⁻³", "10⁻²", "0.1", "1"]
        );
        assert_eq!(
            texts(Axis::log("", 0.012, 0.034)),
            ["0.015", "0.02", "0.03"]
        );
        for axis in [
            Axis::linear("", f64::NAN, 1.0),
            Axis::linear("", 0.0, 0.0),
            Axis::linear("", -3.0, -3.0),
            Axis::log("", 0.0, f64::INFINITY),
            Axis::names("", &[], 5),
        ] {
            assert!(axis.from < axis.to && axis.ticks.len() < 20, "{axis:?}");
        }
    }

    #[test]
    fn thinning_keeps_the_ends() {
        assert_eq!(thinned(3, 5), [0, 1, 2]);
        let few = thinned(1000, 50);
        assert_eq!((few.first(), few.last()), (Some(&0), Some(&999)));
        assert!(few.len() <= 50);
    }
}
