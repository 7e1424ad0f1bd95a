//! `train` at the end of a pipeline: the passes before it write a model, which is trained then with the
//! pipeline's input as its teacher.
//!
//! The model between the two is a folder beside the output, `OUT.untrained`, so that an interrupted run
//! goes on from wherever it was. It goes when the output has its name.

use super::args::{Cli, Command, OptArgs};
use super::load::{self, Loaded, Source};
use super::prepare::Prepared;
use super::target::Target;
use super::train::args::TrainArgs;
use super::{Exit, Failure, opt, train};
use crate::export::hlrc::{MANIFEST_FILE, MODULE_FILE, REPORT_FILE, partial_path};
use crate::ir::Term;
use crate::ir::site::sites;
use crate::opt::Summary;
use crate::pass::kind;
use crate::pass::manager::{Outcome, StepTotals};
use crate::pass::pipeline::{PassCall, Pipeline};
use crate::pass::{Remark, RemarkKind};
use crate::report::progress::Progress;
use crate::report::read;
use crate::store::JOURNAL;
use crate::train::History;
use crate::weights::Digest;
use clap::Parser;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Instant, UNIX_EPOCH};

/// File of the untrained model's folder that says which command made it.
const MADE_BY: &str = "made-by";

/// A pipeline's last pass.
struct Last<'a> {
    args: &'a OptArgs,
    call: &'a PassCall,
    /// What the pipeline was given.
    input: &'a Path,
    /// The folder that is trained into.
    output: PathBuf,
}

/// Checks what can be checked before hours are spent on the passes in front.
///
/// # Errors
/// Options that don't fit, text that isn't there, an output that can't be trained into, a teacher whose
/// plugin is missing.
pub fn check(args: &OptArgs, call: &PassCall, target: &Target) -> Result<(), Failure> {
    let last = Last::new(args, call, target)?;
    let parsed = last.arguments(last.input, false)?;
    for path in parsed.data.iter().filter(|p| p.as_os_str() != "random") {
        std::fs::File::open(path).map_err(|error| Failure::read(path, &error))?;
    }
    match &parsed.teacher {
        Some(teacher) => kinds_are_known(teacher),
        None => Ok(()),
    }
}

/// Whether loaded plugins define the kinds of terms of a model that others learn from.
fn kinds_are_known(path: &Path) -> Result<(), Failure> {
    let module = load::source(&Source::of(path)?)?.module;
    for site in sites(&module) {
        let matrix = site.matrix(&module);
        for term in matrix.iter().flat_map(|m| &m.terms) {
            if let Term::Custom(custom) = term {
                kind::needed(&custom.kind).map_err(|error| {
                    let what = format!("{}: {}: {error}", path.display(), site.name);
                    Failure::new(Exit::Plugin, what)
                })?;
            }
        }
    }
    Ok(())
}

/// Runs the passes before `train`, trains what they made, and writes the result.
///
/// # Errors
/// As `opt` and as `train`.
pub fn run(
    args: &OptArgs,
    prepared: &Prepared,
    call: &PassCall,
    target: &Target,
    progress: &Progress,
    loaded: Loaded,
) -> Result<Exit, Failure> {
    // It names this pass, or there would be no training.
    let args = &OptArgs {
        stop_after: None,
        ..args.clone()
    };
    if args.dry_run {
        progress.warn("what follows is without `train`: it adds no bytes, and its time depends on the machine");
        return opt::execute(args, prepared, target, progress, loaded);
    }
    let began = Instant::now();
    let last = Last::new(args, call, target)?;
    let pipeline = prepared.canonical()?;
    let untrained = beside(&last.output, "untrained");
    let (model, mut outcome) = match pipeline.is_empty() {
        true => (last.input.to_path_buf(), Outcome::default()),
        false => {
            let made = last.untrained(prepared, &untrained, progress, loaded)?;
            (untrained.clone(), made)
        }
    };
    let resumes = args.resume && partial_path(&last.output).join(JOURNAL).is_file();
    let whole = match pipeline.is_empty() {
        true => call.to_string(),
        false => format!("{pipeline},{call}"),
    };
    let begun = Instant::now();
    let training = last.arguments(&model, resumes)?;
    let generation = train::Generation {
        pipeline: whole,
        joins: model == untrained,
    };
    let history = train::train(&training, progress, Some(generation))?;
    outcome.totals.push(StepTotals {
        pass: call.name.clone(),
        nanos: begun.elapsed().as_nanos() as u64,
        sites: history.trained.iter().map(|(_, tensors, _)| tensors).sum(),
        ..StepTotals::default()
    });
    outcome.remarks.push(remark(call, &history));
    if let Target::Onnx(_) = target {
        last.export(target, progress)?;
    }
    let report = last.output.join(REPORT_FILE);
    let report = read::report(&report)
        .map_err(|error| Failure::new(Exit::Failure, error.to_string()))?
        .report;
    remove(&untrained);
    if matches!(target, Target::Onnx(_)) {
        remove(&last.output);
    }
    let summary = Summary {
        report,
        outcome,
        text: None,
        notes: Vec::new(),
    };
    opt::conclude(args, target, progress, &summary, began)
}

/// Removes a folder that was made on the way; one that stays has a name that says what it is.
fn remove(folder: &Path) {
    let _ = std::fs::remove_dir_all(folder);
}

/// `OUT.hlrc` to `OUT.hlrc.what`.
fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(what);
    path.with_file_name(name)
}

fn remark(call: &PassCall, history: &History) -> Remark {
    let judged = |step: u64| {
        let mut records = history.end_to_end.iter();
        let record = records.find(|r| r.step == step && r.judged.is_some());
        let judged = record.and_then(|r| r.judged)?;
        judged.kl.or(judged.cross_entropy)
    };
    let text = match (judged(0), judged(history.kept)) {
        (Some(before), Some(after)) => format!(
            "step {} is kept: the held-out examples' measure went from {before:.4} to {after:.4}",
            history.kept
        ),
        _ => format!("{} parts were trained one by one", history.blocks.len()),
    };
    let mut remark = Remark::new(RemarkKind::Passed, "model", text);
    remark.pass = call.name.clone();
    remark
}

impl<'a> Last<'a> {
    fn new(args: &'a OptArgs, call: &'a PassCall, target: &Target) -> Result<Self, Failure> {
        let usage = |what: &str, help: &str| Err(Failure::new(Exit::Usage, what).help(help));
        let output = match target {
            Target::Folder(path) => path.clone(),
            Target::Onnx(path) => path.with_extension("trained.hlrc"),
            _ => {
                return usage(
                    "`train` makes weights, and text alone has no place for them",
                    "name a folder or a .onnx file with -o",
                );
            }
        };
        match &args.input {
            Some(input) if input != Path::new("-") => Ok(Self {
                args,
                call,
                input,
                output,
            }),
            _ => usage(
                "`train` reads the original again, and stdin can be read once",
                "name the model's file",
            ),
        }
    }

    /// The command line of `train` that this is.
    fn arguments(&self, model: &Path, resume: bool) -> Result<TrainArgs, Failure> {
        let mut words: Vec<OsString> = vec!["hlrc-opt".into(), "train".into()];
        let mut option = |key: &str, value: Option<&OsStr>| {
            let mut word = OsString::from(format!("--{}", key.replace('_', "-")));
            if let Some(value) = value {
                word.push("=");
                word.push(value);
            }
            words.push(word);
        };
        let (mut data, mut teacher) = (false, false);
        for (key, value) in self.call.options_json() {
            let text = match &value {
                Value::Bool(true) => {
                    option(&key, None);
                    continue;
                }
                Value::Bool(false) => continue,
                Value::String(text) => text.clone(),
                Value::Number(number) if key == "val" => held_out(number.as_f64()),
                other => other.to_string(),
            };
            data |= key == "data";
            teacher |= key == "teacher";
            option(&key, Some(text.as_ref()));
        }
        if !data {
            for path in &self.args.calib {
                option("data", Some(path.as_os_str()));
            }
        }
        if !teacher {
            option("teacher", Some(self.input.as_os_str()));
        }
        if !data && self.args.calib.is_empty() {
            let what = "`train` needs text to learn from";
            return Err(Failure::new(Exit::Usage, what)
                .help("train{data=FILE …}, or --calib FILE, which serves other passes as well"));
        }
        option("output", Some(self.output.as_os_str()));
        words.extend(["--".into(), model.into()]);
        let parsed = Cli::try_parse_from(words).map_err(|error| refused(&error))?;
        let Some(Command::Train(mut parsed)) = parsed.command else {
            return Err(Failure::new(Exit::Usage, "`train` has no arguments"));
        };
        parsed.seed = self.args.seed;
        parsed.threads = match self.args.mlir_disable_threading {
            true => Some(1),
            false => self.args.threads,
        };
        (parsed.force, parsed.resume) = (self.args.force, resume);
        parsed.talk = self.args.talk;
        Ok(*parsed)
    }

    /// Runs the passes in front of it, or finds what an interrupted run has made.
    fn untrained(
        &self,
        prepared: &Prepared,
        folder: &Path,
        progress: &Progress,
        loaded: Loaded,
    ) -> Result<Outcome, Failure> {
        let made_by = self.made_by(prepared, &loaded)?;
        let known = std::fs::read_to_string(folder.join(MADE_BY)).ok();
        if self.args.resume && folder.is_dir() {
            if known.as_deref() == Some(&made_by) {
                progress.stage(
                    "Found",
                    &format!("{}: the passes are done", folder.display()),
                );
                return Ok(Outcome::default());
            }
            let what = format!("{}: was made by another command", folder.display());
            return Err(Failure::new(Exit::Usage, what).help("start anew without --resume"));
        }
        let is_ours = || folder.join(MANIFEST_FILE).is_file() && folder.join(MODULE_FILE).is_file();
        if folder.exists() && !is_ours() {
            let what = format!("{}: is no output of hlrc-opt", folder.display());
            return Err(Failure::new(Exit::Failure, what).help(
                "the untrained model goes there; remove it yourself, or name another output",
            ));
        }
        let first = OptArgs {
            output: Some(folder.to_path_buf()),
            force: true,
            ..self.args.clone()
        };
        let target = Target::Folder(folder.to_path_buf());
        let summary = opt::perform(&first, prepared, &target, progress, loaded)?;
        let path = folder.join(MADE_BY);
        std::fs::write(&path, made_by).map_err(|error| Failure::write(&path, &error))?;
        Ok(summary.outcome)
    }

    /// Everything that the untrained model depends on, hashed.
    fn made_by(&self, prepared: &Prepared, loaded: &Loaded) -> Result<String, Failure> {
        let stamp = |path: &PathBuf| {
            let meta = std::fs::metadata(path).ok();
            let modified = meta.as_ref().and_then(|m| m.modified().ok());
            let since = modified.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            let bytes = meta.map_or(0, |m| m.len());
            (
                path.display().to_string(),
                bytes,
                since.map_or(0, |t| t.as_nanos()),
            )
        };
        let args = self.args;
        let whole = (
            env!("CARGO_PKG_VERSION"),
            prepared.canonical()?,
            (
                args.seed,
                args.shard_size,
                args.bisect_limit,
                args.sequential,
            ),
            loaded.files.iter().map(stamp).collect::<Vec<_>>(),
            args.calib.iter().map(stamp).collect::<Vec<_>>(),
        );
        let json = serde_json::to_vec(&whole).unwrap_or_default();
        Ok(Digest::of(&json).to_hex())
    }

    /// Writes the trained folder as what was asked for.
    fn export(&self, target: &Target, progress: &Progress) -> Result<(), Failure> {
        let args = OptArgs {
            input: Some(self.output.clone()),
            pipeline: String::new(),
            overrides: Vec::new(),
            calib: Vec::new(),
            sequential: false,
            bisect_limit: None,
            resume: false,
            ..self.args.clone()
        };
        let nothing = Prepared {
            pipeline: Pipeline::default(),
            overrides: Vec::new(),
            training: None,
        };
        let loaded = load::source(&Source::of(&self.output)?)?;
        opt::perform(&args, &nothing, target, progress, loaded).map(|_| ())
    }
}

/// A number of examples, or a share as `train` spells it.
fn held_out(value: Option<f64>) -> String {
    match value {
        Some(share) if share > 0.0 && share < 1.0 => format!("{}%", share * 100.0),
        Some(count) => count.to_string(),
        None => String::new(),
    }
}

/// What clap says, in the words of a pipeline.
fn refused(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let end = ["\n\nUsage", "\n\nFor more"]
        .iter()
        .filter_map(|at| text.find(at));
    let text = &text[..end.min().unwrap_or(text.len())];
    let text = text.trim_start_matches("error: ").trim_end();
    Failure::new(Exit::Usage, format!("in -p: train: {text}"))
        .help("`hlrc-opt passes train` describes its options")
}
