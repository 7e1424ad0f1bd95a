//! What training has seen: losses of steps, and what the held-out examples said.

use crate::report::html::axis::{Axis, thinned};
use crate::report::html::markup::{Cell, Figure, Table, escape, key, section};
use crate::report::html::plot::{self, Size};
use crate::report::html::{HtmlError, Page, nothing};
use crate::train::{History, Record};

/// Points of a line.
const MOST_POINTS: usize = 200;

/// The section; nothing for an output that was not trained.
///
/// # Errors
/// A plot cannot be drawn.
pub fn render(page: &Page<'_>) -> Result<String, HtmlError> {
    let Some(history) = &page.report.training else {
        return Ok(String::new());
    };
    let mut body = format!("<p><code>{}</code></p>\n", escape(&history.settings));
    body.push_str(&moved(history));
    if history.end_to_end.iter().any(|r| r.loss.is_some()) {
        body.push_str("<div class=\"pair\">\n");
        body.push_str(&steps(&history.end_to_end)?);
        body.push_str(&held_out(&history.end_to_end)?);
        body.push_str("</div>\n");
    }
    if !history.blocks.is_empty() {
        body.push_str(&blocks(history));
    }
    if history.end_to_end.is_empty() && history.blocks.is_empty() {
        body.push_str(&nothing("Nothing was trained."));
    }
    let intro = "Errors of matrices elsewhere on this page are those before training.";
    Ok(section("training", "Training", intro, &body))
}

fn moved(history: &History) -> String {
    let mut table = Table::new(&["kind", "tensors", "values"]);
    for (kind, tensors, values) in &history.trained {
        table.row([
            Cell::text(kind),
            Cell::number(&tensors.to_string(), *tensors as f64),
            Cell::number(&values.to_string(), *values as f64),
        ]);
    }
    table.render()
}

/// A line of each series, over steps.
fn lines(
    title: &'static str,
    label: &str,
    caption: &'static str,
    series: &[(&str, Vec<(f64, f64)>)],
) -> Result<String, HtmlError> {
    let all = || series.iter().flat_map(|(_, points)| points);
    let last = all().map(|p| p.0).fold(1.0, f64::max);
    let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    if !low.is_finite() || !high.is_finite() {
        return Ok(String::new());
    }
    let room = ((high - low) * 0.05).max(1e-6);
    let x = Axis::linear("step", 0.0, last);
    let y = Axis::linear(label, low - room, high + room);
    let svg = plot::draw(title, Size::HALF, &x, &y, |chart| {
        for (i, (_, points)) in series.iter().enumerate() {
            let places = thinned(points.len(), MOST_POINTS);
            let some: Vec<(f64, f64)> = places
                .into_iter()
                .filter_map(|at| points.get(at).copied())
                .collect();
            plot::line(chart, some, i)?;
        }
        Ok(())
    })?;
    let keys = series.iter().enumerate();
    let keys: String = keys
        .map(|(i, (name, _))| key(&plot::swatch(i), name))
        .collect();
    Ok(Figure {
        title,
        svg,
        key: keys,
        caption,
        wide: false,
    }
    .render())
}

fn steps(records: &[Record]) -> Result<String, HtmlError> {
    let losses = records
        .iter()
        .filter_map(|r| Some((r.step as f64, r.loss?)));
    let losses: Vec<(f64, f64)> = losses.collect();
    // A running mean over a twentieth of the steps, since examples differ more than steps do.
    let span = (losses.len() / 20).max(1);
    let mean = |at: usize| {
        let window = &losses[at.saturating_sub(span)..=at];
        window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64
    };
    let smooth = (0..losses.len())
        .map(|at| (losses[at].0, mean(at)))
        .collect();
    let series = [("each step", losses.clone()), ("running mean", smooth)];
    let caption = "The objective over the examples of each step, nats.";
    lines("Loss of the steps", "loss", caption, &series)
}

fn held_out(records: &[Record]) -> Result<String, HtmlError> {
    let of = |f: &dyn Fn(&Record) -> Option<f64>| -> Vec<(f64, f64)> {
        records
            .iter()
            .filter_map(|r| Some((r.step as f64, f(r)?)))
            .collect()
    };
    let kl = of(&|r| r.judged.as_ref()?.kl);
    let caption =
        "Means over the held-out examples, nats per token; step 0 is the untrained model.";
    match kl.is_empty() {
        true => {
            let loss = of(&|r| r.judged.as_ref()?.cross_entropy);
            lines(
                "Held-out loss",
                "cross entropy",
                caption,
                &[("cross entropy", loss)],
            )
        }
        false => lines("Held-out KL divergence", "KL", caption, &[("KL", kl)]),
    }
}

fn blocks(history: &History) -> String {
    let mut table = Table::new(&["block", "steps", "error before", "error after"]);
    for (name, records) in &history.blocks {
        let errors = records.iter().filter_map(|r| r.judged.as_ref()?.error);
        let errors: Vec<f64> = errors.collect();
        let first = errors.first().copied().unwrap_or(f64::NAN);
        let best = errors.iter().copied().fold(f64::INFINITY, f64::min);
        let steps = records.last().map_or(0, |r| r.step);
        table.row([
            Cell::text(name),
            Cell::number(&steps.to_string(), steps as f64),
            Cell::number(&format!("{first:.5}"), first),
            Cell::number(&format!("{best:.5}"), best),
        ]);
    }
    table.render()
}
