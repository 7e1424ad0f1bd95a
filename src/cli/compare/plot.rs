//! A comparison as a plot: what is lost against bytes.

use super::{Comparison, Quality};
use crate::cli::{Exit, Failure};
use crate::report::html::axis::Axis;
use crate::report::html::plot::{self, Size};

/// Room and place of the plot.
const SIZE: Size = Size {
    width: 720,
    height: 440,
    left: 84,
    right: 150,
};

/// The drawing, a file of its own; none where there is nothing to draw.
///
/// # Errors
/// It can't be drawn.
pub fn svg(found: &Comparison) -> Option<Result<String, Failure>> {
    let mut lines: Vec<(&str, Vec<(f64, f64)>)> = Vec::new();
    for row in &found.rows {
        let cost = row.quality.as_ref().map(Quality::cost);
        let Some(cost) = cost.filter(|cost| *cost > 0.0 && cost.is_finite()) else {
            continue;
        };
        let place = (row.counted() as f64 / 1e6, cost.log10());
        match lines.iter_mut().find(|(way, _)| *way == row.way) {
            Some((_, places)) => places.push(place),
            None => lines.push((&row.way, vec![place])),
        }
    }
    let all = || lines.iter().flat_map(|(_, places)| places);
    all().next()?;
    let range = |value: fn(&(f64, f64)) -> f64| {
        let values = || all().map(value);
        let low = values().fold(f64::INFINITY, f64::min);
        (low, values().fold(f64::NEG_INFINITY, f64::max))
    };
    let ((from, to), (low, high)) = (range(|p| p.0), range(|p| p.1));
    let pad = (0.08 * (to - from)).max(0.01 * to);
    let is_text = matches!(
        found.rows.iter().find_map(|row| row.quality.as_ref()),
        Some(Quality::Text { .. })
    );
    let label = match is_text {
        true => "KL divergence, nats per token, logarithmic",
        false => "relative error of the first output, logarithmic",
    };
    let counted = match found.rows.iter().any(|row| row.bytes_on_disk.is_some()) {
        true => "bytes of all files, MB",
        false => "bytes of all weights, MB",
    };
    let x = Axis::linear(counted, from - pad, to + pad);
    let y = Axis::log(label, 10f64.powf(low) / 1.15, 10f64.powf(high) * 1.15);
    let title = format!("{}: what is lost against bytes", found.model);
    let drawn = plot::draw(&title, SIZE, &x, &y, |chart| {
        for (series, (_, places)) in lines.iter().enumerate() {
            let mut places = places.clone();
            places.sort_by(by_bytes);
            plot::line(chart, places.iter().copied(), series)?;
            plot::mark(chart, places.iter().copied(), series)?;
        }
        let gap = (high - low + 0.12) / 22.0;
        let mut last: Vec<(&str, (f64, f64))> = lines
            .iter()
            .filter_map(|(way, places)| Some((*way, *places.iter().max_by(|a, b| by_bytes(a, b))?)))
            .collect();
        last.sort_by(|a, b| a.1.1.total_cmp(&b.1.1));
        let mut free = f64::NEG_INFINITY;
        for (way, (at, height)) in last {
            let height = height.max(free);
            plot::note(chart, (at, height), way, true)?;
            free = height + gap;
        }
        Ok(())
    });
    let drawn = drawn.map(|drawn| plot::standalone(&drawn));
    Some(drawn.map_err(|error| Failure::new(Exit::Failure, error.to_string())))
}

fn by_bytes(a: &(f64, f64), b: &(f64, f64)) -> std::cmp::Ordering {
    a.0.total_cmp(&b.0)
}
