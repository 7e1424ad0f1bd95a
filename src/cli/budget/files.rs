//! What stands in an output beside its tensors: a target of bytes counts all files.

use super::{Measured, Shares, bytes_on_disk, families};
use crate::budget::{Candidate, Family};
use crate::cli::args::OptArgs;
use crate::cli::load::Loaded;
use crate::cli::prepare::Prepared;
use crate::cli::target::{Target, report_beside};
use crate::cli::{Exit, Failure, errors};
use crate::export::hlrc::REPORT_FILE;
use crate::ir::Module;
use crate::ir::site::sites;
use crate::ir::text::print;
use crate::pass::manager::schedule::ScheduleError;
use crate::pass::pipeline::{Override, Scope};
use crate::report::human;
use std::path::Path;

/// What a term more than the probe's takes beside its bytes: headers, references, lines of the report.
const TERM: u64 = 2048;
/// What reports say of one matrix more or less, by how numbers and remarks turn out.
const SITE: u64 = 256;
/// The report of `--eval`, or of a training.
const EVALUATION: u64 = 64 << 10;

/// Refuses a target that the files and the least candidates exceed, before anything is measured.
///
/// # Errors
/// Exit code 4, with what they take.
pub(super) fn check_least(
    args: &OptArgs,
    loaded: &Loaded,
    shares: &Shares,
    list: &[Candidate],
) -> Result<(), Failure> {
    let files = match bytes_on_disk(args) {
        Some(_) => least(loaded),
        None => 0,
    };
    if let Some(size) = bytes_on_disk(args).filter(|size| *size <= files) {
        let what = format!(
            "--target-size {}: tokenizer, configuration and the text of the module alone take {}",
            human::size(size),
            human::size(files)
        );
        return Err(Failure::new(Exit::Infeasible, what).help("all files of the output count"));
    }
    let wanted = families(args);
    let mut fewest = 0u64;
    for group in &shares.groups {
        let mut of_group = u64::MAX;
        for candidate in list.iter().filter(|c| wanted.contains(&c.family)) {
            let bytes = candidate.bytes(group).map_err(|e| errors::run(&e))?;
            of_group = of_group.min(bytes);
        }
        fewest = fewest.saturating_add(of_group);
    }
    let total = shares.bytes(args, files);
    match total < fewest as f64 {
        true => Err(super::too_small(&shares.groups, (total, files), fewest)),
        false => Ok(()),
    }
}

/// Bytes of files that every output has, at least: what is copied, and the module as text.
fn least(loaded: &Loaded) -> u64 {
    let size = |path: &std::path::PathBuf| path.metadata().map_or(0, |meta| meta.len());
    let copied: u64 = loaded.sidecars.iter().map(size).sum();
    copied.saturating_add(print(&loaded.module).len() as u64)
}

/// Bytes of the files around the tensors, at most: the probe's, and what a choice among some families may
/// add to them. 0 where a target does not count them.
///
/// # Errors
/// A candidate is no pipeline.
pub fn around_tensors(
    args: &OptArgs,
    prepared: &Prepared,
    module: &Module,
    measured: &Measured,
    families: &[Family],
) -> Result<u64, Failure> {
    if bytes_on_disk(args).is_none() {
        return Ok(0);
    }
    let all = measured.tried.candidates.iter();
    let candidates: Vec<&Candidate> = all.filter(|c| families.contains(&c.family)).collect();
    // Report and manifest both have the pipeline in them, as JSON.
    let longest = candidates.iter().max_by_key(|c| c.pipeline.len());
    let mut named = prepared.clone();
    for group in &measured.groups {
        let pipeline = longest.map_or("none", |c| c.pipeline.as_str());
        let text = format!("{}={pipeline}", Scope::Regex(group.regex()));
        let made =
            Override::parse(&text).map_err(|e| errors::schedule(&ScheduleError::Syntax(e)))?;
        named.overrides.push(made);
    }
    let pipeline = serde_json::to_string(&named.canonical()?).unwrap_or_default();
    let spread: usize = measured.groups.iter().map(|g| g.sites.len()).sum();
    let all = sites(module);
    let names: usize = all.iter().map(|site| site.name.len()).sum();
    let terms = |text: &str| text.split("},").count() as u64;
    let most = candidates.iter().map(|c| terms(&c.pipeline)).max();
    let more = most.unwrap_or(1).saturating_sub(1);
    // Matrices that the probe left alone, or that scopes and -t give more than one term.
    let calls = named.calls().len() as u64;
    let others = (all.len() as u64).saturating_sub(spread as u64);
    let others = others.saturating_mul(calls.min(4)).saturating_mul(TERM);
    let judged = !args.eval.is_empty() || prepared.training.is_some();
    let evaluation = if judged { EVALUATION } else { 0 };
    Ok(measured
        .around
        .saturating_add(2 * pipeline.len() as u64)
        .saturating_add(more * (spread as u64 * TERM + 6 * names as u64))
        .saturating_add(others)
        .saturating_add(SITE * all.len() as u64)
        .saturating_add(evaluation)
        .saturating_add(1 << 12))
}

/// Bytes of a folder's files that are no tensors.
///
/// # Errors
/// It can't be read.
pub(super) fn around(folder: &Path) -> Result<u64, Failure> {
    let report = folder.join(REPORT_FILE);
    let text = std::fs::read(&report).map_err(|error| Failure::read(&report, &error))?;
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let tensors = json["model_totals"]["bytes_after"].as_u64().unwrap_or(0);
    Ok(bytes_in(folder)?.saturating_sub(tensors))
}

/// Bytes of a folder's files.
fn bytes_in(folder: &Path) -> Result<u64, Failure> {
    let failed = |error: std::io::Error| Failure::read(folder, &error);
    let mut sum = 0u64;
    for entry in folder.read_dir().map_err(failed)? {
        let meta = entry.and_then(|entry| entry.metadata()).map_err(failed)?;
        sum = sum.saturating_add(if meta.is_file() { meta.len() } else { 0 });
    }
    Ok(sum)
}

/// Bytes of an output's files; none where it has none of its own.
fn on_disk(target: &Target) -> Result<Option<u64>, Failure> {
    let size = |path: &Path| path.metadata().map_or(0, |meta| meta.len());
    match target {
        Target::Folder(path) => bytes_in(path).map(Some),
        Target::Text(path) => {
            let weights = path.with_extension("weights");
            let inside = if weights.is_dir() {
                bytes_in(&weights)?
            } else {
                0
            };
            Ok(Some(size(path).saturating_add(inside)))
        }
        Target::Onnx(path) => {
            // The model, and external data that is called after it.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            let entries = folder
                .read_dir()
                .map_err(|error| Failure::read(folder, &error))?;
            let own = entries.flatten().filter(|entry| {
                let file = entry.file_name();
                let file = file.to_string_lossy();
                file == name || file.starts_with(&format!("{name}."))
            });
            let bytes: u64 = own.map(|entry| size(&entry.path())).sum();
            Ok(Some(bytes.saturating_add(size(&report_beside(path)))))
        }
        Target::Stdout | Target::Device(_) | Target::OnnxStdout(_) => Ok(None),
    }
}

/// What a target of bytes on disk has become: a line to print, the bytes, and the failure where the files
/// are more than was allowed.
pub type OnDisk = (String, u64, Option<Failure>);

/// Weighs the files that were written against a target of bytes on disk, where there is one.
///
/// # Errors
/// They can't be read.
pub fn told_on_disk(
    args: &OptArgs,
    target: &Target,
    tensors: u64,
) -> Result<Option<OnDisk>, Failure> {
    let (Some(allowed), Some(bytes)) = (bytes_on_disk(args), on_disk(target)?) else {
        return Ok(None);
    };
    let line = format!(
        "{bytes} bytes of {allowed} allowed: {tensors} of tensors, {} around them",
        bytes.saturating_sub(tensors)
    );
    let failure = (bytes > allowed).then(|| {
        let place = target.path().unwrap_or(Path::new("the output"));
        let what = format!(
            "{} is written and takes {bytes} bytes, {} more than the target",
            place.display(),
            bytes - allowed
        );
        let help = match target {
            Target::Onnx(_) => {
                "ONNX spells some codes and scales in more bytes than they have here: lower the target by as much"
            }
            _ => "this is a bug; please report it. Lower the target by as much meanwhile",
        };
        Failure::new(Exit::Infeasible, what).help(help)
    });
    Ok(Some((line, bytes, failure)))
}
