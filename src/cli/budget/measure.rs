//! What errors of each group cost the model, and how well candidates do.

use super::{Code, Measured, Shares, call, families, files, with_bits};
use crate::budget::{self, BudgetError, Candidate, Group, candidates};
use crate::cli::args::{DebugArgs, OptArgs, TalkArgs};
use crate::cli::calibrate::{self, Opened, again};
use crate::cli::prepare::{Prepared, prepare};
use crate::cli::target::Target;
use crate::cli::{Exit, Failure, errors, load, opt, signal};
use crate::exec::Options;
use crate::export::hlrc::partial_path;
use crate::ir::Module;
use crate::pass::manager::RunOptions;
use crate::report::human;
use crate::report::progress::Progress;
use crate::store::{Reader, rebase};
use crate::weights::FileCache;
use std::path::Path;

/// Windows on which groups are measured; they lie behind those of the calibration.
const PROBES: usize = 6;

/// Lines on which groups of a model that takes lines are measured.
const LINES: usize = 64;

/// Bytes that KV caches may take while groups are measured; half of `--mem-limit` where that is less.
const CACHES: u64 = 1 << 30;

/// What groups are measured with: few states, since only ratios count.
const PROBE: &str = "trellis{bits=3 states=10}";

/// What matrices may become, by the command line.
///
/// # Errors
/// The pipeline has no pass whose bits are spread.
pub(super) fn list(args: &OptArgs, prepared: &Prepared) -> Result<Vec<Candidate>, Failure> {
    let base = call(&prepared.pipeline);
    let base = base.ok_or_else(|| Failure::new(Exit::Panic, "a target without a trellis"))?;
    let trellis = |bits: f64| with_bits(base, bits);
    Ok(candidates::candidates(families(args), true, &trellis))
}

/// Measures groups and tries candidates.
///
/// # Errors
/// The model can't be run or coded.
pub fn measure(
    args: &OptArgs,
    prepared: &Prepared,
    (module, shares): (&Module, &Shares),
    options: &RunOptions<'_>,
    progress: &Progress,
    code: &Code<'_>,
) -> Result<Measured, Failure> {
    let (Some(model), Some(base)) = (&args.input, call(&prepared.pipeline)) else {
        return Err(Failure::new(
            Exit::Panic,
            "a target without a model or a trellis",
        ));
    };
    let groups = shares.groups.clone();
    // What does not fit is refused before hours are spent; the run itself says what it has to say of them.
    let silent = TalkArgs {
        quiet: true,
        ..args.talk
    };
    let given = calibrate::given(model, args, &opt::progress(&silent))?;
    if let Some(given) = &given {
        let names = groups.iter().flat_map(|g| &g.sites);
        let names = names.map(String::as_str).collect();
        calibrate::check_fit(given, model, module, &names)?;
    }
    let (divergences, around) = divergences(args, model, &groups, progress, code)?;
    let trellis = |bits: f64| with_bits(base, bits);
    let list = list(args, prepared)?;
    progress.stage("Trying", &human::plural(list.len(), "candidate"));
    let statistics = match given {
        Some(given) => given,
        None => calibrate::statistics(model, args, progress)?,
    };
    let options = RunOptions {
        moments: Some(&statistics),
        ..options.clone()
    };
    let files = FileCache::new();
    let reader = Reader::new(&files);
    let tried = candidates::try_all(
        module,
        &groups,
        list,
        (PROBE, &trellis),
        (&reader, &options),
        &|_| {},
    );
    Ok(Measured {
        tried: tried.map_err(|error| beginning_anew(errors::run(&error)))?,
        groups,
        divergences,
        around,
    })
}

/// A target's failure: nothing of it can be gone on from.
pub(super) fn beginning_anew(failure: Failure) -> Failure {
    match failure.exit {
        Exit::Interrupted => failure.help("the same command begins anew: a target has no --resume"),
        _ => failure,
    }
}

/// KL divergence of each group alone at the probe's bits, and bytes of the probe's files beside its tensors.
fn divergences(
    args: &OptArgs,
    model: &Path,
    groups: &[Group],
    progress: &Progress,
    code: &Code<'_>,
) -> Result<(Vec<f64>, u64), Failure> {
    progress.stage("Measuring", &human::plural(groups.len(), "group"));
    let scratch = std::env::temp_dir().join(format!("hlrc-budget-{}.hlrc", std::process::id()));
    let probe = probe(args, &scratch);
    let prepared = prepare(&probe)?;
    let done = code(&probe, &prepared, &Target::Folder(scratch.clone())).and_then(|()| {
        let costs = sensitivities(args, model, &scratch, groups, progress)?;
        Ok((costs, files::around(&scratch)?))
    });
    // A scratch folder that can't be removed is not this command's failure; nor is one that isn't there.
    let _ = std::fs::remove_dir_all(&scratch);
    let _ = std::fs::remove_dir_all(partial_path(&scratch));
    done.map_err(beginning_anew)
}

/// The command line that codes the whole model once: of what was asked for, only what decides how.
fn probe(args: &OptArgs, scratch: &Path) -> OptArgs {
    let mut probe = args.clone();
    (probe.target_bpw, probe.target_size) = (None, None);
    probe.load = Default::default();
    probe.candidates.clear();
    probe.pipeline = PROBE.to_string();
    probe.overrides.clear();
    probe.output = Some(scratch.to_path_buf());
    (probe.force, probe.resume, probe.json) = (true, false, false);
    (probe.text, probe.onnx_cache) = (false, false);
    probe.sequential = false;
    (probe.stop_after, probe.bisect_limit) = (None, None);
    probe.eval.clear();
    probe.html = None;
    probe.debug = DebugArgs::default();
    probe.talk.quiet = true;
    probe
}

fn sensitivities(
    args: &OptArgs,
    model: &Path,
    coded: &Path,
    groups: &[Group],
    progress: &Progress,
) -> Result<Vec<f64>, Failure> {
    let opened = Opened::new(model, args.threads)?;
    let wanted = (PROBES, LINES);
    let run = (model, &opened.engine);
    let behind = again::behind(run, &args.calib, wanted, &args.talk, progress)?;
    if let Some(warning) = &behind.warning {
        progress.warn(warning);
    }
    drop(opened.engine);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options {
        threads: args.threads.map_or(cores, usize::from),
        ..Options::default()
    };
    let (mut original, mut coded) = (
        load::executable(model)?.module,
        load::executable(coded)?.module,
    );
    // Weights of both stand in one module: their paths have to start at one place.
    rebase(&mut original, Path::new("."));
    rebase(&mut coded, Path::new("."));
    let windows = &behind.windows;
    let memory = args.mem_limit.map_or(CACHES, |limit| CACHES.min(limit / 2));
    let done = budget::sensitivities(
        &original,
        &coded,
        groups,
        windows,
        &options,
        memory,
        &mut |_| {},
    );
    done.map_err(|error| match error {
        _ if signal::flag().load(std::sync::atomic::Ordering::Relaxed) => {
            Failure::new(Exit::Interrupted, "interrupted")
        }
        error @ BudgetError::Missing(_) => Failure::new(Exit::Panic, error.to_string()),
        BudgetError::Exec(error) => Failure::new(errors::of_exec(&error), error.to_string()),
        error => Failure::new(Exit::Failure, error.to_string()),
    })
}
