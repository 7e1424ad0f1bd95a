//! `passes`: what the registry knows, for people and for programs.

use super::args::PassesArgs;
use super::table::{Table, wrap};
use super::{Exit, Failure, print};
use crate::pass::pipeline::error::did_you_mean;
use crate::pass::pipeline::{option_docs, preset};
use crate::pass::{PassEntry, find, passes};
use serde_json::{Value, json};

/// Columns that descriptions are broken at.
const WIDTH: usize = 100;

/// Lists passes and presets, or describes one.
pub fn run(args: &PassesArgs) -> Result<Exit, Failure> {
    let text = match (&args.name, args.json) {
        (None, false) => list(),
        (None, true) => pretty(&json!({
            "passes": passes().iter().map(describe_json).collect::<Vec<_>>(),
            "presets": preset::PRESETS.iter().map(preset_json).collect::<Vec<_>>(),
        })),
        (Some(name), json) => one(name, json)?,
    };
    print(text.as_bytes())?;
    Ok(Exit::Ok)
}

fn pretty(value: &Value) -> String {
    // A value made of strings and maps always prints.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn list() -> String {
    let mut table = Table::new(&["pass", "what it does"]);
    for pass in passes() {
        table.row([pass.name.to_owned(), pass.summary.to_owned()]);
    }
    let mut presets = Table::new(&["preset", "pipeline", "what for"]);
    for preset in preset::PRESETS {
        presets.row([
            format!("@{}", preset.name),
            preset.pipeline.to_owned(),
            preset.summary.to_owned(),
        ]);
    }
    format!(
        "{}\n{}\n`hlrc-opt passes NAME` describes a pass with its options.\n",
        table.render(),
        presets.render()
    )
}

fn one(name: &str, json: bool) -> Result<String, Failure> {
    if let Some(preset) = preset::PRESETS
        .iter()
        .find(|preset| Some(preset.name) == name.strip_prefix('@'))
    {
        return Ok(match json {
            true => pretty(&preset_json(preset)),
            false => format!(
                "@{} — {}\n\n  {}\n{}",
                preset.name,
                preset.summary,
                preset.pipeline,
                preset.measured.map_or_else(String::new, |m| format!(
                    "\nSmolLM2-135M: {:.1} MB, KL {} calibrated, {} without\n",
                    m.bytes as f64 / 1e6,
                    m.divergence,
                    m.uncalibrated
                ))
            ),
        });
    }
    let Some(pass) = find(name) else {
        let all = passes();
        let mut known: Vec<String> = all.iter().map(|pass| pass.name.to_owned()).collect();
        known.extend(
            preset::PRESETS
                .iter()
                .map(|preset| format!("@{}", preset.name)),
        );
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        return Err(
            Failure::new(Exit::Usage, format!("there is no pass `{name}`"))
                .help(did_you_mean(name, "passes", &known)),
        );
    };
    Ok(if json {
        pretty(&describe_json(&pass))
    } else {
        describe(&pass)
    })
}

pub(super) fn describe(pass: &PassEntry) -> String {
    let mut text = format!("{}\n\n{}\n", pass.name, pass.doc.trim_end());
    let docs = option_docs(&(pass.schema)());
    if docs.is_empty() {
        text.push_str("\nIt takes no options.\n");
        return text;
    }
    text.push_str("\nOptions:\n");
    for option in docs {
        let default = option
            .default
            .as_ref()
            .map(|value| format!(" [default: {}]", plain(value)));
        text.push_str(&format!(
            "  {}=<{}>{}\n",
            option.name,
            option.accepts,
            default.unwrap_or_default()
        ));
        text.push_str(&wrap(&option.doc, WIDTH, 6));
    }
    text
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

pub(super) fn describe_json(pass: &PassEntry) -> Value {
    let schema = (pass.schema)();
    let options: Vec<Value> = option_docs(&schema)
        .into_iter()
        .map(|option| {
            json!({"name": option.name, "accepts": option.accepts, "default": option.default, "doc": option.doc})
        })
        .collect();
    json!({"name": pass.name, "summary": pass.summary, "doc": pass.doc, "options": options, "schema": schema})
}

fn preset_json(preset: &preset::Preset) -> Value {
    json!({"name": format!("@{}", preset.name), "summary": preset.summary, "pipeline": preset.pipeline})
}
