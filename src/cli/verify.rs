//! `verify`: whether a model is what it says, to the last weight.

use super::args::VerifyArgs;
use super::diff::held_by_matrices;
use super::load::{self, Source};
use super::{Exit, Failure, opt, print, signal};
use crate::export::hlrc::{MANIFEST_FILE, Manifest};
use crate::ir::site::sites;
use crate::ir::{Module, Storage, Term, Weight, text, verify};
use crate::pass::kind;
use crate::report::human;
use crate::store::Reader;
use crate::weights::{FileCache, MatrixView, hash};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// Entries decoded at a time: 1 MiB of f32.
const TILE: usize = 256 << 10;

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Findings {
    /// Files whose hash the manifest states, and that have it.
    files: usize,
    /// Weights that were read.
    weights: usize,
    /// Their bytes.
    bytes: u64,
    /// What is wrong: place and cause.
    faults: Vec<String>,
    /// Kinds of terms that no loaded plugin defines, so that nobody knows whether they make sense.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    unknown_kinds: BTreeSet<String>,
}

/// Checks a model.
pub fn run(args: &VerifyArgs) -> Result<Exit, Failure> {
    let progress = opt::progress(&args.talk);
    let source = Source::of(&args.input)?;
    let mut found = Findings::default();
    if let Source::Output(dir) = &source {
        progress.stage("Hashing", &dir.display().to_string());
        manifest(dir, &mut found)?;
    }
    progress.stage("Reading", &load::describe(&source));
    let module = load::source(&source)?.module;
    round_trip(&module, &mut found);
    let cache = FileCache::new();
    let reader = Reader::new(&cache);
    let in_matrix = held_by_matrices(&module);
    let weights = module.weights.par_iter().zip(&in_matrix);
    let checked = weights.map(|(weight, &held)| fault(&reader, &module, weight, held));
    let checked: Vec<Option<String>> = checked.collect();
    if signal::interrupted() {
        return Err(Failure::new(Exit::Interrupted, "interrupted"));
    }
    found.weights = module.weights.len();
    found.bytes = module
        .weights
        .iter()
        .map(Weight::bytes)
        .fold(0, u64::saturating_add);
    found.faults.extend(checked.into_iter().flatten());
    custom_terms(&reader, &module, &mut found);
    if args.json {
        print((serde_json::to_string_pretty(&found).unwrap_or_default() + "\n").as_bytes())?;
    }
    conclude(&found, args.json)
}

fn conclude(found: &Findings, json: bool) -> Result<Exit, Failure> {
    let read = format!(
        "{} in {}",
        human::size(found.bytes),
        human::plural(found.weights, "weight")
    );
    if found.faults.is_empty() {
        if !json {
            let files = match found.files {
                0 => String::new(),
                count => format!(", {} as the manifest says", human::plural(count, "file")),
            };
            let unknown = found.unknown_kinds.iter().map(|kind| {
                let plugin = kind.split('.').next().unwrap_or(kind);
                format!("not checked: terms of the kind {kind}, whose plugin {plugin} is not loaded (--load-pass-plugin)\n")
            });
            let unknown: String = unknown.collect();
            print(format!("sound: {read}{files}\n{unknown}").as_bytes())?;
        }
        return Ok(Exit::Ok);
    }
    let shown: Vec<&str> = found.faults.iter().take(20).map(String::as_str).collect();
    let more = found.faults.len().saturating_sub(shown.len());
    let more = if more > 0 {
        format!("\n  … and {more} more")
    } else {
        String::new()
    };
    let count = human::plural(found.faults.len(), "fault");
    Err(Failure::new(
        Exit::Failure,
        format!("{count} in {read}:\n  {}{more}", shown.join("\n  ")),
    ))
}

/// Compares every file that the manifest names with its size and hash.
fn manifest(dir: &Path, found: &mut Findings) -> Result<(), Failure> {
    let path = dir.join(MANIFEST_FILE);
    let content = std::fs::read(&path).map_err(|error| Failure::read(&path, &error))?;
    let bad = |what: String| Failure::new(Exit::Input, format!("{}: {what}", path.display()));
    let parsed: Manifest = serde_json::from_slice(&content)
        .map_err(|error| bad(format!("is no manifest of an output folder: {error}")))?;
    let mut named: Vec<(PathBuf, String)> = Vec::with_capacity(parsed.outputs.len());
    for one in parsed.outputs {
        let inside = |part: Component<'_>| matches!(part, Component::Normal(_));
        if !Path::new(&one.file).components().all(inside) {
            return Err(bad(format!(
                "the output `{}` is not inside the folder",
                one.file
            )));
        }
        named.push((dir.join(&one.file), one.sha256));
    }
    found.files = named.len();
    let faults: Vec<Option<String>> = named
        .par_iter()
        .map(|(path, expected)| match hash::sha256_file(path, |_, _| ()) {
            Err(error) => Some(error.to_string()),
            Ok(digest) if digest.to_hex() == *expected => None,
            Ok(digest) => Some(format!(
                "{}: its sha256 is {}, the manifest says {expected}; the file was changed or damaged",
                path.display(),
                digest.to_hex()
            )),
        })
        .collect();
    found.faults.extend(faults.into_iter().flatten());
    Ok(())
}

/// Asks plugins whether terms of their kinds make sense.
fn custom_terms(reader: &Reader<'_>, module: &Module, found: &mut Findings) {
    for site in sites(module) {
        let Some(matrix) = site.matrix(module) else {
            continue;
        };
        for term in &matrix.terms {
            let Term::Custom(custom) = term else { continue };
            if kind::find(&custom.kind).is_none() {
                found.unknown_kinds.insert(custom.kind.clone());
            } else if let Err(error) = reader.term(module, matrix, term) {
                found.faults.push(format!("{}: {error}", site.name));
            }
        }
    }
}

/// Checks that the module survives being printed and read again.
fn round_trip(module: &Module, found: &mut Findings) {
    match text::parse(&text::print(module)) {
        Err(error) => found
            .faults
            .push(format!("the module's text can't be read again: {error}")),
        Ok(again) if again != *module => found
            .faults
            .push("the module's text reads as another module".into()),
        Ok(again) => {
            if let Err(error) = verify::verify(&again) {
                found.faults.push(format!("the module read again: {error}"));
            }
        }
    }
}

/// What is wrong with a weight: bytes that are not there, NaN, infinities.
///
/// Constants such as masks hold infinities on purpose; a matrix never does.
fn fault(reader: &Reader<'_>, module: &Module, weight: &Weight, in_matrix: bool) -> Option<String> {
    if signal::interrupted() || matches!(weight.storage, Storage::Synthetic(_)) {
        return None;
    }
    let located = match reader.locate(module, weight) {
        Ok(located) => located,
        Err(error) => return Some(error.to_string()),
    };
    let elements = weight
        .elements()
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(0);
    if !weight.dtype.is_float() || elements == 0 {
        return located
            .bytes()
            .err()
            .map(|error| format!("weight @{}: {error}", weight.name));
    }
    // The last dimension as columns, so that rows can be given back one tile after the other.
    let cols = weight
        .dims
        .last()
        .and_then(|&n| usize::try_from(n).ok())
        .unwrap_or(1)
        .max(1);
    let view = match MatrixView::new(
        located.source,
        located.offset,
        weight.dtype,
        elements / cols,
        cols,
        false,
    ) {
        Ok(view) => view,
        Err(error) => return Some(format!("weight @{}: {error}", weight.name)),
    };
    let step = (TILE / cols).max(1);
    let mut values = Vec::new();
    for start in (0..view.rows()).step_by(step) {
        let rows = start..(start + step).min(view.rows());
        values.resize(rows.len() * cols, 0.0f32);
        if let Err(error) = view.read_rows_f32(rows.clone(), &mut values) {
            return Some(format!("weight @{}: {error}", weight.name));
        }
        let wrong = |value: &f32| value.is_nan() || (in_matrix && value.is_infinite());
        if let Some(at) = values.iter().position(wrong) {
            let value = values.get(at).copied().unwrap_or(f32::NAN);
            let (row, col) = (start + at / cols, at % cols);
            return Some(format!(
                "weight @{}: element [{row}, {col}] is {value}",
                weight.name
            ));
        }
        view.release_rows(rows);
    }
    None
}
