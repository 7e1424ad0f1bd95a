//! `compare`: ways to spend the same bytes on a model, side by side.
//!
//! Every way gets its candidates into the same knapsack with the same measured costs ([`crate::budget`]),
//! is coded, and judged by the same evaluator on the same text.

pub mod args;
mod plot;
mod table;

use super::args::{Cli, Command, OptArgs};
use super::budget::{self, Measured, Shares};
use super::eval::args::EvalArgs;
use super::load::{self, Source};
use super::opt::{self, write_text};
use super::prepare::{Prepared, prepare};
use super::target::Target;
use super::{Exit, Failure, calibrate, eval, print};
use crate::budget::Family;
use crate::calib::{self, Statistics};
use crate::eval::Evaluation;
use crate::eval::stats::{self, Paired};
use crate::ir::Module;
use crate::report::human;
use crate::report::progress::Progress;
use args::{CompareArgs, Way};
use clap::Parser;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What came of one way at one target.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// The way.
    pub way: String,
    /// The target, as it was given.
    pub target: String,
    /// Bits per weight of the matrices that passes rewrote, all that is stored counted.
    pub bits_per_weight: f64,
    /// Bytes of all weights, embeddings and head included.
    pub bytes: u64,
    /// Bytes of all files, where the target is one of bytes.
    pub bytes_on_disk: Option<u64>,
    /// The cost that was expected: the groups' added up.
    pub expected: f64,
    /// Matrices by what they became.
    pub becomes: Vec<(String, usize)>,
    /// Quality; none where the target could not be met.
    pub quality: Option<Quality>,
    /// Why the target could not be met.
    pub refused: Option<String>,
}

/// How good one result is.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Quality {
    /// A language model.
    Text {
        /// e^(mean nll).
        perplexity: f64,
        /// Mean KL divergence to the original, nats per token.
        kl: f64,
        /// Its standard error over windows.
        kl_standard_error: f64,
        /// Share of predictions with the original's likeliest token.
        top1: f64,
        /// Mean KL less that of the target's first way, by window.
        against_first: Option<Paired>,
    },
    /// Any other model: its first output.
    Output {
        /// Mean cosine with the original's.
        cosine: f64,
        /// Mean relative error.
        relative_error: f64,
        /// Its standard error over runs.
        relative_error_standard_error: f64,
        /// Mean relative error less that of the target's first way, run by run.
        against_first: Option<Paired>,
    },
}

impl Row {
    /// What the target counts.
    pub fn counted(&self) -> u64 {
        self.bytes_on_disk.unwrap_or(self.bytes)
    }
}

impl Quality {
    /// What is smaller for a better result.
    pub fn cost(&self) -> f64 {
        match self {
            Quality::Text { kl, .. } => *kl,
            Quality::Output { relative_error, .. } => *relative_error,
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The model.
    pub model: String,
    /// How the results were judged.
    pub protocol: String,
    /// Text of the calibration.
    pub calib: Vec<String>,
    /// Text of the judgement.
    pub data: Vec<String>,
    /// Target by target, way by way.
    pub rows: Vec<Row>,
}

/// Compares ways to spend the same bytes.
pub fn run(args: &CompareArgs) -> Result<Exit, Failure> {
    refuse_seen(args)?;
    // Hours later is too late.
    for path in args.markdown.iter().chain(&args.plot) {
        opt::check_writable(path)?;
    }
    let progress = opt::progress(&args.talk);
    let scratch = match &args.keep {
        Some(folder) => folder.clone(),
        None => std::env::temp_dir().join(format!("hlrc-compare-{}", std::process::id())),
    };
    std::fs::create_dir_all(&scratch).map_err(|error| Failure::write(&scratch, &error))?;
    let found = compare(args, &scratch, &progress);
    if args.keep.is_none() {
        // A scratch folder that can't be removed is not this command's failure.
        let _ = std::fs::remove_dir_all(&scratch);
    }
    let found = found?;
    let markdown = table::markdown(&found);
    if let Some(path) = &args.markdown {
        write_text(path, &markdown)?;
    }
    if let Some(path) = &args.plot {
        match plot::svg(&found) {
            Some(drawn) => write_text(path, &drawn?)?,
            None => progress.warn("--plot: nothing was measured, nothing is drawn"),
        }
    }
    let text = match args.json {
        true => serde_json::to_string_pretty(&found).unwrap_or_default() + "\n",
        false => table::text(&found),
    };
    print(text.as_bytes())?;
    match found.rows.iter().all(|row| row.refused.is_some()) {
        true => Err(Failure::new(
            Exit::Infeasible,
            "no way can be made so small: nothing was compared",
        )
        .help("raise the target, or make what is left alone smaller with -p")),
        false => Ok(Exit::Ok),
    }
}

/// Refuses to judge on text of the calibration, by its path or by what is in it.
fn refuse_seen(args: &CompareArgs) -> Result<(), Failure> {
    calibrate::check_alone(&args.calib)?;
    let (mut names, mut digests) = (args.calib.clone(), Vec::new());
    for path in &args.calib {
        if calib::is_statistics(path) {
            let found = Statistics::open(path).map_err(calibrate::failure)?;
            let data = found.metadata().runs.iter().flat_map(|run| &run.data);
            for file in data {
                names.push(PathBuf::from(&file.name));
                digests.push(file.sha256.clone());
            }
        } else if path.is_file() {
            digests.push(calibrate::text_digest(path)?);
        }
    }
    let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    let names: Vec<PathBuf> = names.iter().map(real).collect();
    for path in &args.data {
        let seen = names.contains(&real(path))
            || (path.is_file() && digests.contains(&calibrate::text_digest(path)?));
        if seen {
            let what = format!("{} is both --calib and --data", path.display());
            return Err(
                Failure::new(Exit::Usage, what).help("judge on text that no choice was made on")
            );
        }
    }
    Ok(())
}

fn compare(args: &CompareArgs, scratch: &Path, progress: &Progress) -> Result<Comparison, Failure> {
    let ways = match args.ways.as_slice() {
        [] => &Way::DEFAULT,
        ways => ways,
    };
    let families = families(ways);
    let targets: Vec<Wanted> = (args.bpw.iter().copied().map(Wanted::Bits))
        .chain(args.size.iter().copied().map(Wanted::Bytes))
        .collect();
    let first = targets
        .first()
        .ok_or_else(|| Failure::new(Exit::Usage, "no target"))?;
    let base = command(args, first, &families)?;
    let mut prepared = prepare(&base)?;
    if prepared.training.is_some() {
        let what = "`train` can't be compared here: every way would be trained";
        return Err(Failure::new(Exit::Usage, what).help(
            "keep the folders with --keep, train them, and judge them with `hlrc-opt eval`",
        ));
    }
    budget::check(&base, &mut prepared)?;
    progress.stage("Importing", &args.input.display().to_string());
    let source = Source::of(&args.input)?;
    let loaded = load::source(&source)?;
    let code = |args: &OptArgs, prepared: &Prepared, target: &Target| {
        let loaded = load::source(&source)?;
        opt::execute(args, prepared, target, &opt::progress(&args.talk), loaded).map(|_| ())
    };
    let options = opt::run_options(&base);
    let module = budget::raised(&prepared, &loaded)?;
    let shares = budget::shares(&prepared, &module, &options)?;
    let model = (&module, &shares);
    let measured = budget::measure(&base, &prepared, model, &options, progress, &code)?;
    for line in measured.failures() {
        progress.warn(&line);
    }
    let mut found = Comparison {
        model: args.input.display().to_string(),
        protocol: String::new(),
        calib: names(&args.calib),
        data: names(&args.data),
        rows: Vec::new(),
    };
    for target in &targets {
        let base = command(args, target, &families)?;
        let mut coded: Vec<PathBuf> = Vec::new();
        let start = found.rows.len();
        for &way in ways {
            let label = format!("{} at {target}", way.name());
            progress.stage("Coding", &label);
            let path = scratch.join(format!("{}-{}.hlrc", way.name(), target.file()));
            let row = one(
                (&base, &prepared),
                (&module, &shares, &measured),
                (way, &families),
                &path,
                &code,
            )?;
            coded.extend(row.refused.is_none().then_some(path));
            found.rows.push(Row {
                target: target.to_string(),
                ..row
            });
        }
        if !coded.is_empty() {
            judge(
                args,
                &coded,
                found.rows.get_mut(start..).unwrap_or_default(),
                &mut found.protocol,
                progress,
            )?;
        }
        if args.keep.is_none() {
            for path in &coded {
                // What stays goes with the scratch folder.
                let _ = std::fs::remove_dir_all(path);
            }
        }
    }
    Ok(found)
}

fn names(paths: &[PathBuf]) -> Vec<String> {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect()
}

/// What a result may take.
enum Wanted {
    Bits(f64),
    Bytes(u64),
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wanted::Bits(bits) => write!(f, "{bits} bits"),
            Wanted::Bytes(bytes) => write!(f, "{}", human::size(*bytes)),
        }
    }
}

impl Wanted {
    /// Part of a file's name.
    fn file(&self) -> String {
        match self {
            Wanted::Bits(bits) => format!("{bits}bpw"),
            Wanted::Bytes(bytes) => format!("{bytes}"),
        }
    }
}

/// Every family that a way needs.
fn families(ways: &[Way]) -> Vec<Family> {
    let named: Vec<Family> = Family::ALL
        .into_iter()
        .filter(|f| ways.contains(&Way::One(*f)))
        .collect();
    match named.is_empty() {
        true => Family::ALL.to_vec(),
        false => named,
    }
}

/// The command line of `opt` that this is.
fn command(args: &CompareArgs, target: &Wanted, families: &[Family]) -> Result<OptArgs, Failure> {
    let mut words: Vec<std::ffi::OsString> = vec!["hlrc-opt".into(), "opt".into(), "-q".into()];
    words.extend(["-p".into(), args.pipeline.clone().into()]);
    for path in &args.calib {
        words.extend(["--calib".into(), path.into()]);
    }
    words.push(match target {
        Wanted::Bits(bits) => format!("--target-bpw={bits}").into(),
        Wanted::Bytes(bytes) => format!("--target-size={bytes}").into(),
    });
    let named: Vec<&str> = families.iter().map(|f| f.name()).collect();
    words.push(format!("--candidates={}", named.join(",")).into());
    if let Some(threads) = args.threads {
        words.push(format!("--threads={threads}").into());
    }
    words.extend(["--".into(), args.input.clone().into()]);
    let parsed = Cli::try_parse_from(words);
    let cli = parsed.map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    Ok(match cli.command {
        Some(Command::Opt(opt)) => *opt,
        _ => cli.opt,
    })
}

/// Codes the model in one way.
fn one(
    (base, prepared): (&OptArgs, &Prepared),
    (module, shares, measured): (&Module, &Shares, &Measured),
    (way, all): (Way, &[Family]),
    path: &Path,
    code: &budget::Code<'_>,
) -> Result<Row, Failure> {
    let single;
    let families = match way {
        Way::One(family) => {
            single = [family];
            single.as_slice()
        }
        Way::Mixed => all,
    };
    let mut row = Row {
        way: way.name().to_string(),
        target: String::new(),
        bits_per_weight: f64::NAN,
        bytes: 0,
        bytes_on_disk: None,
        expected: f64::NAN,
        becomes: Vec::new(),
        quality: None,
        refused: None,
    };
    let around = budget::around_tensors(base, prepared, module, measured, families)?;
    let total = shares.bytes(base, around);
    let spread = match measured.spread(families, (total, around)) {
        Ok(spread) => spread,
        Err(failure) if failure.exit == Exit::Infeasible => {
            row.refused = Some(failure.message);
            return Ok(row);
        }
        Err(failure) => return Err(failure),
    };
    let mut prepared = prepared.clone();
    measured.add_to(&mut prepared, &spread)?;
    let mut args = base.clone();
    (args.target_bpw, args.target_size) = (None, None);
    args.candidates.clear();
    args.output = Some(path.to_path_buf());
    args.force = true;
    let target = Target::Folder(path.to_path_buf());
    code(&args, &prepared, &target)?;
    let report = path.join("report.json");
    let text = std::fs::read_to_string(&report).map_err(|error| Failure::read(&report, &error))?;
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    row.bytes = json["model_totals"]["bytes_after"].as_u64().unwrap_or(0);
    if let Some((_, bytes, failure)) = budget::told_on_disk(base, &target, row.bytes)? {
        if let Some(failure) = failure {
            return Err(failure);
        }
        row.bytes_on_disk = Some(bytes);
    }
    let bits = json["rewritten_totals"]["bits_per_weight"].as_f64();
    row.bits_per_weight = bits.unwrap_or(f64::NAN);
    row.expected = spread.expected;
    for (group, &chosen) in measured.groups.iter().zip(&spread.chosen) {
        let pipeline = &measured.tried.candidates[chosen].pipeline;
        match row.becomes.iter_mut().find(|(name, _)| name == pipeline) {
            Some((_, count)) => *count += group.sites.len(),
            None => row.becomes.push((pipeline.clone(), group.sites.len())),
        }
    }
    Ok(row)
}

/// Judges the results of one target, side by side.
fn judge(
    args: &CompareArgs,
    coded: &[PathBuf],
    rows: &mut [Row],
    protocol: &mut String,
    progress: &Progress,
) -> Result<(), Failure> {
    progress.stage("Judging", &human::plural(coded.len(), "model"));
    let first = coded.first().cloned().unwrap_or_default();
    let mut settings = EvalArgs::after_opt(
        first,
        args.input.clone(),
        &args.data,
        args.threads,
        args.talk,
    );
    settings.models = coded.to_vec();
    settings.ctx = args.ctx;
    settings.windows = args.windows.or(settings.windows);
    settings.talk.quiet = true;
    let evaluation = eval::evaluate(&settings, progress)?;
    let done = rows.iter_mut().filter(|row| row.refused.is_none());
    match evaluation {
        Evaluation::Text(report) => {
            protocol.clone_from(&report.described);
            for (at, (row, model)) in done.zip(&report.models).enumerate() {
                row.quality = model.against.as_ref().map(|against| Quality::Text {
                    perplexity: model.perplexity,
                    kl: against.kl.mean,
                    kl_standard_error: against.kl_by_window.standard_error,
                    top1: against.top1_agreement,
                    against_first: at
                        .checked_sub(1)
                        .and_then(|at| report.paired.get(at))
                        .and_then(|pair| pair.kl.map(Paired::reversed)),
                });
            }
        }
        Evaluation::Outputs(report) => {
            let mut first: Option<&[f64]> = None;
            for (row, model) in done.zip(&report.models) {
                let output = model.outputs.first();
                let lines = output.map_or(0, |o| o.runs);
                *protocol = format!("first output, {}", human::plural(lines, "line"));
                row.quality = output.map(|o| Quality::Output {
                    cosine: o.cosine_mean,
                    relative_error: o.relative_error_mean,
                    relative_error_standard_error: stats::mean(&o.relative_errors).standard_error,
                    against_first: first.and_then(|first| stats::paired(&o.relative_errors, first)),
                });
                first = first.or(output.map(|o| o.relative_errors.as_slice()));
            }
        }
    }
    Ok(())
}
