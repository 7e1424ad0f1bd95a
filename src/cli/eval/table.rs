//! An evaluation as tables.

use crate::cli::table::Table;
use crate::eval::Evaluation;
use crate::eval::report::{ModelScore, OutputsReport, PairReport, TextReport};
use crate::eval::stats::Paired;
use crate::report::human;
use std::fmt::Write;
use std::time::Duration;

/// The evaluation for people.
pub fn render(evaluation: &Evaluation) -> String {
    match evaluation {
        Evaluation::Text(report) => text(report),
        Evaluation::Outputs(report) => outputs(report),
    }
}

fn text(report: &TextReport) -> String {
    let mut out = format!("{}\n", report.described);
    let mut table = Table::new(&[
        "model",
        "perplexity>",
        "±>",
        "ratio>",
        "±>",
        "accuracy>",
        "same top-1>",
    ]);
    for model in report.reference.iter().chain(&report.models) {
        table.row(quality(model));
    }
    out.push_str(&table.render());
    if report.models.iter().any(|model| model.against.is_some()) {
        let mut table = Table::new(&[
            "KL to the original, nats",
            "mean>",
            "±>",
            "median>",
            "p90>",
            "p95>",
            "p99>",
            "p99.9>",
            "max>",
            "RMS Δp>",
        ]);
        report
            .models
            .iter()
            .filter_map(divergence)
            .for_each(|row| table.row(row));
        out.push('\n');
        out.push_str(&table.render());
        for model in &report.models {
            let windows = model
                .against
                .as_ref()
                .and_then(|a| a.nll_by_window.as_ref());
            if let Some(paired) = windows {
                // Writing to a string can't fail.
                let _ = writeln!(
                    out,
                    "{}: nll above the original's by {}",
                    label(model),
                    interval(paired)
                );
            }
        }
    }
    for pair in &report.paired {
        out.push_str(&difference(pair));
    }
    let logits = match report.reference_logits.as_deref() {
        Some("cached") => ", the original's logits from the cache",
        _ => "",
    };
    let time = human::duration(Duration::from_secs_f64(report.seconds.clamp(0.0, 1e9)));
    for note in &report.notes {
        let _ = writeln!(out, "note: {note}");
    }
    let count = human::plural(report.predictions, "prediction");
    let _ = writeln!(out, "{count} in {time}{logits}");
    out
}

fn label(model: &ModelScore) -> String {
    with(&model.name, &model.without)
}

fn with(name: &str, without: &[String]) -> String {
    match without.is_empty() {
        true => name.to_string(),
        false => format!("{name} without {}", without.join(", ")),
    }
}

fn quality(model: &ModelScore) -> Vec<String> {
    let percent = |share: f64| format!("{:.2}%", 100.0 * share);
    let (ratio, error, same) = match &model.against {
        None => ("-".into(), "-".into(), "-".into()),
        Some(a) => (
            format!("{:.5}", a.perplexity_ratio),
            deviation(a.perplexity_ratio_standard_error, 5),
            percent(a.top1_agreement),
        ),
    };
    vec![
        label(model),
        format!("{:.4}", model.perplexity),
        deviation(model.perplexity_standard_error, 4),
        ratio,
        error,
        percent(model.top1_accuracy),
        same,
    ]
}

/// A standard error; `-` where there were too few numbers for one.
fn deviation(value: f64, decimals: usize) -> String {
    match value.is_nan() {
        true => "-".into(),
        false => format!("{value:.decimals$}"),
    }
}

fn divergence(model: &ModelScore) -> Option<Vec<String>> {
    let against = model.against.as_ref()?;
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
    let mut row = vec![label(model)];
    row.extend(values.map(|value| match value.is_nan() {
        true => "-".into(),
        false => human::error(value),
    }));
    row.push(format!("{:.3}%", 100.0 * against.rms_delta_p));
    Some(row)
}

fn interval(paired: &Paired) -> String {
    let [low, high] = paired.confidence;
    format!(
        "{:+.6} (95% {low:+.6} to {high:+.6}, {})",
        paired.difference,
        human::plural(paired.windows, "window")
    )
}

fn difference(pair: &PairReport) -> String {
    let mut out = String::new();
    for (what, paired) in [("nll", &pair.nll), ("KL", &pair.kl)] {
        let Some(paired) = paired else {
            continue;
        };
        let verdict = match paired.confidence {
            [_, high] if high < 0.0 => "the first is better",
            [low, _] if low > 0.0 => "the second is better",
            _ => "no difference can be told",
        };
        let _ = writeln!(
            out,
            "{} - {}: {what} {}; lower in {} against {}: {verdict}",
            pair.first,
            pair.second,
            interval(paired),
            paired.first_lower,
            paired.second_lower,
        );
    }
    out
}

fn outputs(report: &OutputsReport) -> String {
    let mut table = Table::new(&[
        "model",
        "output",
        "vectors>",
        "cosine>",
        "worst>",
        "rel. error>",
        "worst>",
        "largest diff.>",
        "unequal>",
    ]);
    for model in &report.models {
        for output in &model.outputs {
            // Integers and conditions have no angles.
            let of_floats = |text: String| match output.vectors {
                0 => "-".to_string(),
                _ => text,
            };
            table.row([
                with(&model.name, &model.without),
                output.name.clone(),
                output.vectors.to_string(),
                of_floats(format!("{:.7}", output.cosine_mean)),
                of_floats(format!("{:.7}", output.cosine_worst)),
                of_floats(human::error(output.relative_error_mean)),
                of_floats(human::error(output.relative_error_worst)),
                of_floats(human::error(output.largest_difference)),
                output.unequal.to_string(),
            ]);
        }
    }
    let runs = report
        .models
        .first()
        .and_then(|m| m.outputs.first())
        .map_or(0, |o| o.runs);
    let notes = report.notes.iter().map(|note| format!("note: {note}\n"));
    format!(
        "against {} on {}\n{}{}",
        report.reference,
        human::plural(runs, "run"),
        table.render(),
        notes.collect::<String>()
    )
}
