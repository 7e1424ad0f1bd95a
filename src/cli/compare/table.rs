//! A comparison as a table.

use super::{Comparison, Quality, Row};
use crate::cli::table::Table;
use crate::eval::stats::Paired;
use std::fmt::Write;

const HEADS: [&str; 8] = [
    "target",
    "way",
    "bits/weight>",
    "bytes>",
    "expected>",
    "measured>",
    "quality>",
    "less the first way's (95 %)",
];

/// For a terminal.
pub fn text(found: &Comparison) -> String {
    let mut table = Table::new(&HEADS);
    for row in &found.rows {
        table.row(cells(row));
    }
    format!("{}{}{}", table.render(), refusals(found), legend(found))
}

/// As Markdown.
pub fn markdown(found: &Comparison) -> String {
    let heads = HEADS.map(|head| head.trim_end_matches('>'));
    let mut out = format!("| {} |\n|", heads.join(" | "));
    for head in HEADS {
        out.push_str(if head.ends_with('>') { "---:|" } else { "---|" });
    }
    out.push('\n');
    for row in &found.rows {
        // Writing to a string can't fail.
        let _ = writeln!(out, "| {} |", cells(row).join(" | "));
    }
    format!("{out}\n{}{}", refusals(found), legend(found))
}

fn cells(row: &Row) -> [String; 8] {
    let figure = |value: f64, decimals: usize| match value.is_finite() {
        true => format!("{value:.decimals$}"),
        false => "-".to_string(),
    };
    let (measured, quality, against) = match &row.quality {
        None => ("-".to_string(), "-".to_string(), "-".to_string()),
        Some(Quality::Text {
            perplexity,
            kl,
            kl_standard_error,
            top1,
            against_first,
        }) => (
            with_error("KL", *kl, *kl_standard_error),
            format!("perplexity {perplexity:.2}, top-1 {:.1} %", 100.0 * top1),
            against_first.as_ref().map_or("-".to_string(), interval),
        ),
        Some(Quality::Output {
            cosine,
            relative_error,
            relative_error_standard_error,
            against_first,
        }) => (
            with_error("error", *relative_error, *relative_error_standard_error),
            format!("cosine {cosine:.5}"),
            against_first.as_ref().map_or("-".to_string(), interval),
        ),
    };
    [
        row.target.clone(),
        row.way.clone(),
        figure(row.bits_per_weight, 3),
        match row.refused {
            None => row.counted().to_string(),
            Some(_) => "-".to_string(),
        },
        figure(row.expected, 4),
        measured,
        quality,
        against,
    ]
}

/// A mean with its standard error; that of one window is not known.
fn with_error(what: &str, mean: f64, standard_error: f64) -> String {
    match standard_error.is_nan() {
        true => format!("{what} {mean:.4}"),
        false => format!("{what} {mean:.4} ± {standard_error:.4}"),
    }
}

fn interval(paired: &Paired) -> String {
    let [low, high] = paired.confidence;
    format!("{:+.4} ({low:+.4} to {high:+.4})", paired.difference)
}

fn refusals(found: &Comparison) -> String {
    let mut out = String::new();
    for row in &found.rows {
        if let Some(why) = &row.refused {
            // Writing to a string can't fail.
            let _ = writeln!(out, "{} at {}: {why}", row.way, row.target);
        }
    }
    out
}

fn legend(found: &Comparison) -> String {
    let costs = match found.rows.iter().find_map(|row| row.quality.as_ref()) {
        Some(Quality::Output { .. }) => {
            "error: mean relative error of the first output, ± standard error over runs; expected: the groups' squared ones added up"
        }
        _ => {
            "KL: mean divergence to the original, nats per token, ± standard error over windows; expected: the groups' added up"
        }
    };
    let judged = match found.protocol.is_empty() {
        true => "nothing was judged".to_string(),
        false => format!("judged on {}: {}", found.data.join(", "), found.protocol),
    };
    let bytes = match found.rows.iter().any(|row| row.bytes_on_disk.is_some()) {
        true => "all files",
        false => "all weights, embeddings and head included",
    };
    format!(
        "{costs}. Bytes: {bytes}.\nChosen on {}; {judged}.\n",
        found.calib.join(", ")
    )
}
