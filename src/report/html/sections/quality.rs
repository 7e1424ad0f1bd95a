//! What the output still says: perplexity, KL divergence, outputs.

use crate::eval::Evaluation;
use crate::eval::report::{ModelScore, OutputsReport, PairReport, TextReport};
use crate::eval::stats::Paired;
use crate::report::html::axis::Axis;
use crate::report::html::markup::{Cell, Figure, Table, escape, key, section, tail};
use crate::report::html::plot::{self, SERIES, Size};
use crate::report::html::{HtmlError, Page, nothing};
use crate::report::human;

/// The section.
///
/// # Errors
/// A plot cannot be drawn.
pub fn render(page: &Page<'_>) -> Result<String, HtmlError> {
    let title = "What it still says";
    match page.evaluation {
        None => {
            let text = "The report holds no evaluation. `hlrc-opt eval OUT --ref MODEL --data text.txt --json` judges an \
                        output, and `hlrc-opt report OUT --eval FILE.json` shows that here.";
            Ok(section("quality", title, "", &nothing(text)))
        }
        Some(Evaluation::Text(text)) => on_text(title, text),
        Some(Evaluation::Outputs(outputs)) => Ok(on_outputs(title, outputs)),
    }
}

/// The model, and what was left out of it.
fn label(model: &ModelScore) -> String {
    let name = tail(&model.name, 40);
    match model.without.is_empty() {
        true => name,
        false => {
            let words: Vec<String> = model.without.iter().map(|w| w.replace('_', " ")).collect();
            format!("{name} without {}", words.join(" and "))
        }
    }
}

fn on_text(title: &str, report: &TextReport) -> Result<String, HtmlError> {
    let mut body = String::from("<div class=\"pair\">\n");
    body.push_str(&perplexities(report)?);
    body.push_str(&divergences(report)?);
    body.push_str("</div>\n");
    body.push_str(&scores(report));
    body.push_str(&quantiles(report));
    body.push_str(&differences(report));
    let intro = format!(
        "Text: {}. Protocol: {}.",
        report.data.join(", "),
        report.described
    );
    Ok(section("quality", title, &intro, &body))
}

fn perplexities(report: &TextReport) -> Result<String, HtmlError> {
    let all: Vec<(String, &ModelScore)> = report
        .reference
        .iter()
        .map(|r| ("original".to_string(), r))
        .chain(report.models.iter().map(|m| (short_label(m, report), m)))
        .filter(|(_, m)| m.perplexity.is_finite())
        .collect();
    let spread = |m: &ModelScore| match m.perplexity_standard_error.is_finite() {
        true => 1.96 * m.perplexity_standard_error,
        false => 0.0,
    };
    let low = all
        .iter()
        .map(|(_, m)| m.perplexity - spread(m))
        .fold(f64::INFINITY, f64::min);
    let high = all
        .iter()
        .map(|(_, m)| m.perplexity + spread(m))
        .fold(0.0, f64::max);
    if all.is_empty() || low <= 0.0 && high <= 0.0 {
        return Ok(nothing("No perplexity is a finite number."));
    }
    let log = high > 6.0 * low;
    let low = if low > 0.0 { low } else { 0.5 * high };
    let pad = 0.05 * (high - low);
    let x = match log {
        true => Axis::log("perplexity, logarithmic", low, high),
        false => Axis::linear("perplexity", low - pad, high + pad),
    };
    let place = |value: f64| if log { value.max(1e-9).log10() } else { value };
    let names: Vec<String> = all.iter().map(|(name, _)| tail(name, 30)).collect();
    let longest = names.iter().map(|n| n.chars().count()).max().unwrap_or(0) as u32;
    let size = Size {
        height: (60 + 44 * all.len() as u32).max(150),
        left: 16 + 15 * longest / 2,
        right: 70,
        ..Size::HALF
    };
    let y = Axis::names("", &names, 100).reversed();
    let svg = plot::draw("perplexity", size, &x, &y, |chart| {
        for (row, (_, model)) in all.iter().enumerate() {
            let at = row as f64 + 0.5;
            let (from, to) = (
                model.perplexity - spread(model),
                model.perplexity + spread(model),
            );
            plot::line(chart, [(place(from), at), (place(to), at)], row)?;
            plot::mark(chart, [(place(model.perplexity), at)], row)?;
            let text = human::figure(model.perplexity, 2);
            plot::note(chart, (x.to, at), &text, true)?;
        }
        Ok(())
    })?;
    Ok(Figure {
        title: "Perplexity",
        svg,
        key: String::new(),
        caption: "Left is better. The line through a mark is the 95 % interval over tokens. Intervals of two models that \
                  overlap may still differ for certain: both predict the same tokens (see the paired differences).",
        wide: false,
    }
    .render())
}

/// A label that is short where there is one model only.
fn short_label(model: &ModelScore, report: &TextReport) -> String {
    let whole = report
        .models
        .iter()
        .filter(|m| m.without.is_empty())
        .count();
    match (whole, model.without.is_empty()) {
        (1, true) => "compressed".into(),
        (1, false) => {
            let words: Vec<String> = model.without.iter().map(|w| w.replace('_', " ")).collect();
            format!("without {}", words.join(" and "))
        }
        _ => label(model),
    }
}

fn divergences(report: &TextReport) -> Result<String, HtmlError> {
    let names = ["mean", "median", "90 %", "95 %", "99 %", "99.9 %", "max"].map(String::from);
    let lines: Vec<(String, [f64; 7])> = report
        .models
        .iter()
        .take(SERIES)
        .filter_map(|model| {
            let kl = &model.against.as_ref()?.kl;
            let values = [kl.mean, kl.median, kl.p90, kl.p95, kl.p99, kl.p999, kl.max];
            Some((short_label(model, report), values))
        })
        .collect();
    let good = lines
        .iter()
        .flat_map(|(_, v)| v)
        .copied()
        .filter(|v| v.is_finite() && *v > 0.0);
    let low = good.clone().fold(f64::INFINITY, f64::min);
    let high = good.fold(0.0, f64::max);
    if high <= 0.0 {
        let text = match report.reference.is_some() {
            true => "KL divergence: 0 everywhere, the predictions are the original's.",
            false => "Without an original there is no KL divergence.",
        };
        return Ok(nothing(text));
    }
    let x = Axis::names("share of tokens that are closer", &names, 20);
    let y = Axis::log("KL divergence, nats", low, high);
    let svg = plot::draw(
        "distribution of KL divergence",
        Size::HALF,
        &x,
        &y,
        |chart| {
            for (series, (_, values)) in lines.iter().enumerate() {
                let points: Vec<(f64, f64)> = values
                    .iter()
                    .enumerate()
                    .filter(|(_, v)| v.is_finite() && **v > 0.0)
                    .map(|(i, v)| (i as f64 + 0.5, v.log10()))
                    .collect();
                plot::line(
                    chart,
                    points.iter().copied().filter(|(x, _)| *x > 1.0),
                    series + 1,
                )?;
                plot::mark(chart, points, series + 1)?;
            }
            Ok(())
        },
    )?;
    let keys = lines.iter().enumerate();
    Ok(Figure {
        title: "KL divergence from the original",
        svg,
        key: keys.map(|(i, (name, _))| key(&plot::swatch(i + 1), name)).collect(),
        caption: "How far predictions are from the original's, from the typical token (median) to the worst one. Lower is \
                  closer; a steep line is a model that is right mostly and far off at times.",
        wide: false,
    }
    .render())
}

fn scores(report: &TextReport) -> String {
    let mut table = Table::new(&[
        "model",
        "perplexity>",
        "±>",
        "over the original's>",
        "±>",
        "likeliest token right>",
        "same as the original's>",
    ]);
    let original = report
        .reference
        .iter()
        .map(|r| (format!("original: {}", label(r)), r));
    let others = report.models.iter().map(|m| (label(m), m));
    for (name, model) in original.chain(others) {
        let percent = |share: f64| Cell::number(&format!("{:.2} %", 100.0 * share), share);
        let digits = |value: f64, digits: usize| match value.is_nan() {
            true => Cell::text("–"),
            false => Cell::number(&human::figure(value, digits), value),
        };
        let against = model.against.as_ref();
        let dash = || Cell::text("–");
        table.row([
            Cell::name(&name),
            digits(model.perplexity, 4),
            digits(model.perplexity_standard_error, 4),
            against.map_or_else(dash, |a| digits(a.perplexity_ratio, 5)),
            against.map_or_else(dash, |a| digits(a.perplexity_ratio_standard_error, 5)),
            percent(model.top1_accuracy),
            against.map_or_else(dash, |a| percent(a.top1_agreement)),
        ]);
    }
    let ablated = report.models.iter().any(|model| !model.without.is_empty());
    let heading = match ablated {
        true => {
            "<h3>Scores, and what the terms are worth</h3>\n<p>A model without a kind of its terms is what the rest \
                 stores alone; the difference to the whole one is what they are worth.</p>\n"
        }
        false => "<h3>Scores</h3>\n",
    };
    format!("{heading}{}", table.render())
}

fn quantiles(report: &TextReport) -> String {
    let mut table = Table::new(&[
        "KL divergence, nats",
        "mean>",
        "±>",
        "median>",
        "90 %>",
        "95 %>",
        "99 %>",
        "99.9 %>",
        "max>",
        "RMS Δp>",
    ]);
    let mut any = false;
    for model in &report.models {
        let Some(against) = &model.against else {
            continue;
        };
        any = true;
        let kl = &against.kl;
        let values = [
            kl.mean,
            kl.standard_error,
            kl.median,
            kl.p90,
            kl.p95,
            kl.p99,
            kl.p999,
            kl.max,
        ];
        let numbers = values.map(|v| Cell::number(&human::error(v), v));
        let rms = 100.0 * against.rms_delta_p;
        let row = std::iter::once(Cell::name(&label(model))).chain(numbers);
        table.row(row.chain([Cell::number(&format!("{rms:.3} %"), rms)]));
    }
    match any {
        true => table.render(),
        false => String::new(),
    }
}

/// Differences by window, in words.
fn differences(report: &TextReport) -> String {
    let mut lines = Vec::new();
    for model in &report.models {
        let windows = model
            .against
            .as_ref()
            .and_then(|a| a.nll_by_window.as_ref());
        if let Some(paired) = windows {
            let text = interval(paired);
            lines.push(format!("{} − original: nll {text}", label(model)));
        }
    }
    lines.extend(report.paired.iter().flat_map(pair));
    if lines.is_empty() {
        return String::new();
    }
    let items: String = lines
        .iter()
        .map(|line| format!("<li>{}</li>\n", escape(line)))
        .collect();
    format!(
        "<h3>Paired differences, window by window</h3>\n<p>Both models predict the same windows, so that the windows' \
         own difficulty cancels. An interval that holds 0 tells no difference.</p>\n<ul>\n{items}</ul>\n"
    )
}

fn interval(paired: &Paired) -> String {
    let [low, high] = paired.confidence;
    format!(
        "{:+.5} nats per token (95 %: {low:+.5} to {high:+.5}; {} windows, lower in {}, higher in {})",
        paired.difference, paired.windows, paired.first_lower, paired.second_lower
    )
}

fn pair(pair: &PairReport) -> Vec<String> {
    let named = [("nll", &pair.nll), ("KL", &pair.kl)];
    let lines = named.into_iter().filter_map(|(what, paired)| {
        let text = interval(paired.as_ref()?);
        Some(format!("{} − {}: {what} {text}", pair.first, pair.second))
    });
    lines.collect()
}

fn on_outputs(title: &str, report: &OutputsReport) -> String {
    let mut table = Table::new(&[
        "model",
        "output",
        "vectors>",
        "cosine>",
        "worst>",
        "relative error>",
        "worst>",
        "largest difference>",
        "unequal>",
    ]);
    for model in &report.models {
        let name = match model.without.is_empty() {
            true => model.name.clone(),
            false => format!("{} without {}", model.name, model.without.join(", ")),
        };
        for output in &model.outputs {
            let error = |v: f64| Cell::number(&human::error(v), v);
            let cosine = |v: f64| Cell::number(&format!("{v:.7}"), v);
            table.row([
                Cell::name(&name),
                Cell::text(&output.name),
                Cell::number(&output.vectors.to_string(), output.vectors as f64),
                cosine(output.cosine_mean),
                cosine(output.cosine_worst),
                error(output.relative_error_mean),
                error(output.relative_error_worst),
                error(output.largest_difference),
                Cell::number(&output.unequal.to_string(), output.unequal as f64),
            ]);
        }
    }
    let intro = format!(
        "Outputs against those of {} on the same inputs ({}). A cosine of 1 is the same direction.",
        report.reference,
        report.inputs.join(", ")
    );
    section("quality", title, &intro, &table.render())
}
