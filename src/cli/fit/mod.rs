//! `fit`: what of a model fits into a device's memory, from headers alone.

pub mod args;
mod room;
mod weights;

use super::describe::bits_per_weight;
use super::table::Table;
use super::{Exit, Failure, load, print};
use crate::budget;
use crate::import::safetensors::{config::Config, implied};
use crate::ir::{Attr, Module};
use crate::pass::pipeline::preset;
use crate::report::human;
use args::{FitArgs, LoadArgs};
use room::Room;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use weights::{Sizes, Weights};

/// Presets that are weighed, the largest first.
const PRESETS: [&str; 6] = ["q8", "q6", "q5", "q4", "q3", "q2"];

/// Bits of the matrices in those that are trellises; embeddings and head have one more.
const TRELLIS: [f64; 5] = [6.0, 5.0, 4.0, 3.0, 2.0];

/// Says what fits.
///
/// # Errors
/// A model that can't be read or says too little; exit code 4 where nothing fits.
pub fn run(args: &FitArgs) -> Result<Exit, Failure> {
    let module = shapes(&args.input)?;
    let room = Room::of(&args.load, &module)?;
    let weights = Weights::of(&module);
    let rows = rows(&weights, &room)?;
    let text = match args.json {
        true => pretty(&as_json(&module, &weights, &room, &rows)),
        false => as_text(args, &module, &weights, &room, &rows),
    };
    print(text.as_bytes())?;
    if rows.iter().any(|row| fits(&room, row)) {
        return Ok(Exit::Ok);
    }
    let least = rows.iter().map(|row| row.sizes.all).min().unwrap_or(0);
    let left = room.for_weights().ok_or_else(|| room.too_small())?;
    let what = format!(
        "nothing fits: the smallest takes {} of weights, and {} are left for them",
        human::size(least),
        human::size(left)
    );
    Err(Failure::new(Exit::Infeasible, what)
        .help("more --vram, or a shorter --ctx, a smaller --batch or --kv where they take much"))
}

/// Bytes that a device leaves for the weights of a model, and the line that says how.
///
/// # Errors
/// As [`run`].
pub fn target(args: &LoadArgs, input: &Path) -> Result<(u64, String), Failure> {
    let room = Room::of(args, &load::executable(input)?.module)?;
    let left = room.for_weights().ok_or_else(|| room.too_small())?;
    Ok((left, room.line()))
}

/// One way to keep the weights.
struct Row {
    /// Preset or what it is.
    name: String,
    /// The pipeline; empty for the weights as they are.
    pipeline: String,
    sizes: Sizes,
}

fn fits(room: &Room, row: &Row) -> bool {
    room.for_weights().is_some_and(|left| row.sizes.all <= left)
}

fn rows(weights: &Weights<'_>, room: &Room) -> Result<Vec<Row>, Failure> {
    let mut rows = vec![Row {
        name: "as they are".to_owned(),
        pipeline: String::new(),
        sizes: weights.before,
    }];
    if !weights.are_dense() {
        return Ok(rows);
    }
    for name in PRESETS {
        let found = preset::PRESETS.iter().find(|preset| preset.name == name);
        let preset = found.ok_or_else(|| {
            Failure::new(
                Exit::Panic,
                format!("there is no preset @{name} to be weighed"),
            )
        })?;
        rows.push(Row {
            name: format!("@{name}"),
            pipeline: preset.pipeline.to_owned(),
            sizes: weights.behind(preset.pipeline)?,
        });
    }
    let trellises = rows.len() - TRELLIS.len();
    let room = room.for_weights().unwrap_or(0);
    rows.extend(spread(weights, &rows[trellises..], room));
    Ok(rows)
}

/// The most bits that there is room for, embeddings and head as in the preset below; the fewest bits of
/// all where there is not even room for those.
fn spread(weights: &Weights<'_>, presets: &[Row], room: u64) -> Option<Row> {
    let row = |(bits, sizes): (f64, Sizes), vocabulary: f64| Row {
        name: format!("spread, {bits:.2} bits"),
        pipeline: format!("trellis{{bits={bits}}},vocabulary(trellis{{bits={vocabulary}}})"),
        sizes,
    };
    let mut least = None;
    for (bits, preset) in TRELLIS.iter().zip(presets) {
        let sizes = weights.trellis(preset.sizes, *bits);
        match sizes.most(room) {
            Some(most) if most.0 >= *bits => return Some(row(most, bits + 1.0)),
            Some(most) => least = Some(row(most, bits + 1.0)),
            None => least = Some(row(sizes.at(budget::RANGE.0), bits + 1.0)),
        }
    }
    least
}

/// A model without its weights: of a configuration, or of headers.
pub(super) fn shapes(path: &Path) -> Result<Module, Failure> {
    if let Some(config) = configuration(path) {
        return Ok(implied(&Config::read(&config)?)?);
    }
    let module = load::executable(path)?.module;
    let is = |name: &str| module.meta.get(name).and_then(Attr::as_str);
    if is("format") == Some("safetensors") && is("architecture").is_none() {
        // The configuration says why its graph isn't known.
        let folder = match path.is_dir() {
            true => path,
            false => path.parent().unwrap_or(Path::new(".")),
        };
        let config = folder.join("config.json");
        if config.is_file() {
            implied(&Config::read(&config)?)?;
        }
    }
    Ok(module)
}

/// The `config.json` that a path means, where there are no weights beside it.
pub(super) fn configuration(path: &Path) -> Option<PathBuf> {
    let name = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    if path.is_file() {
        let name = name(path);
        let is = name.ends_with(".json") && !name.ends_with(".index.json");
        return is.then(|| path.to_path_buf());
    }
    let config = path.join("config.json");
    let model = |name: String| {
        name.contains(".safetensors") || name.ends_with(".hlir") || name == "manifest.json"
    };
    let mut others = path.read_dir().ok()?.flatten();
    let bare = config.is_file() && !others.any(|entry| model(name(&entry.path())));
    bare.then_some(config)
}

fn parameters(module: &Module) -> u64 {
    super::inspect::parameters(module)
}

fn longest(room: &Room, row: &Row) -> String {
    match room.longest_context(row.sizes.all) {
        Some(most) if most == room.most_context() => match room.running.max_positions {
            Some(most) => format!("{most} (all)"),
            None => format!("over {most}"),
        },
        Some(most) => most.to_string(),
        None => "-".to_owned(),
    }
}

fn bits(bytes: u64, entries: u64) -> String {
    match entries {
        0 => "-".to_owned(),
        _ => format!("{:.2}", bits_per_weight(bytes, entries)),
    }
}

fn as_text(
    args: &FitArgs,
    module: &Module,
    weights: &Weights<'_>,
    room: &Room,
    rows: &[Row],
) -> String {
    let mut table = Table::new(&[
        "weights",
        "matrices, bits>",
        "embeddings and head, bits>",
        "size>",
        "with all>",
        "fits",
        "left>",
        "longest context>",
    ]);
    for row in rows {
        let total = row.sizes.all.saturating_add(room.taken());
        table.row([
            row.name.clone(),
            bits(row.sizes.body, weights.body_entries),
            bits(row.sizes.vocabulary, weights.vocabulary_entries),
            human::size(row.sizes.all),
            human::size(total),
            if fits(room, row) { "yes" } else { "no" }.to_owned(),
            room.device
                .checked_sub(total)
                .map_or_else(|| "-".to_owned(), human::size),
            longest(room, row),
        ]);
    }
    let mut out = format!(
        "{}\n{}\n\n{}",
        head(module, room),
        room.line(),
        table.render()
    );
    let last = rows.iter().find(|row| row.name.starts_with("spread"));
    if let Some(row) = last.filter(|row| fits(room, row)) {
        let vocabulary = row.pipeline.split_once("},").map_or("", |(_, rest)| rest);
        out.push_str(&format!(
            "\nThe last row is what this gives: hlrc-opt {} {} -p 'trellis,{vocabulary}' --calib TEXT\n",
            args.input.display(),
            said(&args.load),
        ));
    }
    out
}

/// The model in a line.
fn head(module: &Module, room: &Room) -> String {
    let count = parameters(module);
    let mut out = format!("{} parameters ({count})", human::count(count));
    for (kind, layers) in &room.running.caches {
        let seen = match kind.window {
            Some(window) => format!("the latest {window} tokens"),
            None => "all tokens".to_owned(),
        };
        let each = room.load.kv.bytes(kind.head_dim).saturating_mul(kind.heads);
        let each = each.saturating_mul(2).saturating_mul(*layers);
        out.push_str(&format!(
            "; {layers} layers keep {} keys and values of {} for {seen}: {} per token",
            kind.heads,
            kind.head_dim,
            human::size(each)
        ));
    }
    out
}

/// The options as they were given, for a command line.
fn said(load: &LoadArgs) -> String {
    let exact = |bytes: u64| match bytes % (1 << 30) {
        0 => format!("{}GiB", bytes >> 30),
        _ => bytes.to_string(),
    };
    let mut out = format!("--vram {}", load.vram.map_or_else(String::new, exact));
    for (option, value) in [
        ("ctx", load.ctx.map(|n| n.to_string())),
        ("kv", load.kv.map(|kv| kv.format().name().to_owned())),
        ("batch", load.batch.map(|n| n.to_string())),
        ("chunk", load.chunk.map(|n| n.to_string())),
        ("reserve", load.reserve.map(exact)),
    ] {
        if let Some(value) = value {
            out.push_str(&format!(" --{option} {value}"));
        }
    }
    out
}

fn as_json(module: &Module, weights: &Weights<'_>, room: &Room, rows: &[Row]) -> Value {
    let (load, running) = (&room.load, &room.running);
    let caches = running.caches.iter().map(|(kind, layers)| {
        json!({
            "layers": layers,
            "heads": kind.heads,
            "head_dim": kind.head_dim,
            "window": kind.window,
            "bytes": kind.bytes(load).saturating_mul(*layers),
        })
    });
    let rows = rows.iter().map(|row| {
        json!({
            "weights": row.name,
            "pipeline": row.pipeline,
            "bytes": row.sizes.all,
            "matrix_bytes": row.sizes.body,
            "embedding_and_head_bytes": row.sizes.vocabulary,
            "matrix_bits_per_weight": bits_per_weight(row.sizes.body, weights.body_entries),
            "bytes_with_all": row.sizes.all.saturating_add(room.taken()),
            "fits": fits(room, row),
            "longest_context": room.longest_context(row.sizes.all),
        })
    });
    json!({
        "parameters": parameters(module),
        "matrix_parameters": weights.body_entries,
        "embedding_and_head_parameters": weights.vocabulary_entries,
        "device_bytes": room.device,
        "reserve_bytes": room.reserve,
        "context": load.context,
        "most_context": running.max_positions,
        "sequences": load.sequences,
        "tokens_at_once": running.tokens_at_once(load),
        "kv": load.kv.name(),
        "caches": caches.collect::<Vec<_>>(),
        "cache_bytes": running.cache_bytes(load),
        "workspace_bytes": running.workspace_bytes(load),
        "bytes_for_weights": room.for_weights(),
        "rows": rows.collect::<Vec<_>>(),
    })
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn size(text: &str) -> Result<u64, String> {
    human::parse_size(text)
}

/// A size, or 0.
fn size_or_none(text: &str) -> Result<u64, String> {
    match text.trim() {
        "0" => Ok(0),
        text => human::parse_size(text),
    }
}
