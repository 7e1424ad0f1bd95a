//! `--target-bpw` and `--target-size`: bits for every group, by what it costs the model.

use super::args::OptArgs;
use super::calibrate::Opened;
use super::calibrate::text::{self, Settings};
use super::load::{self, Loaded};
use super::prepare::{Prepared, prepare};
use super::table::Table;
use super::target::Target;
use super::{Exit, Failure, errors, print, signal};
use crate::budget::{self, BudgetError, Choice, Cost, Group};
use crate::exec::Options;
use crate::ir::Module;
use crate::pass::manager::schedule::ScheduleError;
use crate::pass::manager::{self, Destination, RunOptions, Schedule};
use crate::pass::pipeline::{Item, Override, PassCall, Pipeline, Scope};
use crate::report::human;
use crate::report::progress::Progress;
use crate::store::rebase;
use std::path::Path;

/// Windows on which groups are measured; they lie behind those of the calibration.
const PROBES: usize = 6;

/// Windows that a calibration takes by default.
const CALIBRATION: usize = 64;

/// Bits and states at which groups are measured: few states, since only ratios count.
const PROBE: (f64, &str) = (3.0, "trellis{bits=3 states=10}");

/// Checks what can be checked before a model is opened.
///
/// # Errors
/// A target that the pipeline can't meet.
pub fn check(args: &OptArgs, prepared: &mut Prepared) -> Result<(), Failure> {
    if args.target_bpw.is_none() && args.target_size.is_none() {
        return Ok(());
    }
    let usage = |what: &str| Failure::new(Exit::Usage, what);
    if prepared.pipeline.items.is_empty() {
        prepared.pipeline =
            Pipeline::parse("trellis").map_err(|e| errors::schedule(&ScheduleError::Syntax(e)))?;
    }
    if call(&prepared.pipeline).is_none() {
        return Err(usage(
            "a target spreads the bits of `trellis`, and the pipeline has no such pass of its own",
        )
        .help("leave -p out, or give `trellis` outside of scopes: -p 'trellis,embeddings(int8)'"));
    }
    if args.calib.is_empty() {
        return Err(
            usage("a target needs text, on which the cost of errors is measured")
                .help("--calib TEXT, or --calib self for text that the model writes itself"),
        );
    }
    Ok(())
}

/// The pass whose bits are spread: the one `trellis` that stands outside of scopes, alone there.
fn call(pipeline: &Pipeline) -> Option<&PassCall> {
    let mut outside = pipeline.items.iter().filter_map(|item| match item {
        Item::Pass(call) => Some(call),
        _ => None,
    });
    let first = outside.next().filter(|call| call.name == "trellis")?;
    outside.next().is_none().then_some(first)
}

/// Adds an override for every group, so that the target is met; prints the table of groups.
///
/// # Errors
/// The model can't be run or coded, the target can't be met.
pub fn apply(
    args: &OptArgs,
    prepared: &mut Prepared,
    loaded: &Loaded,
    options: &RunOptions<'_>,
    progress: &Progress,
    code: &dyn Fn(&OptArgs, &Prepared, &Target) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (Some(model), true) = (
        &args.input,
        args.target_bpw.is_some() || args.target_size.is_some(),
    ) else {
        return Ok(());
    };
    let groups = budget::groups(&loaded.module);
    let total = bytes_to_spend(args, prepared, &loaded.module, &groups, options)?;
    let divergences = measured(args, model, &groups, progress, code)?;
    let costs = groups.iter().zip(&divergences);
    let costs: Vec<Cost> = costs
        .map(|(_, &divergence)| Cost {
            divergence,
            bits: PROBE.0,
        })
        .collect();
    let bits = allocate(&groups, &costs, total)?;
    let Some(base) = call(&prepared.pipeline).cloned() else {
        return Ok(());
    };
    for (group, bits) in groups.iter().zip(&bits) {
        let text = format!(
            "{}={}",
            Scope::Regex(group.regex()),
            with_bits(&base, *bits)
        );
        let made =
            Override::parse(&text).map_err(|e| errors::schedule(&ScheduleError::Syntax(e)))?;
        // What the user says of a tensor counts.
        prepared.overrides.insert(0, made);
    }
    tell(args, &groups, &costs, &bits, progress)
}

/// Bits of every group, so that all of them take no more than `total` bytes.
fn allocate(groups: &[Group], costs: &[Cost], total: f64) -> Result<Vec<f64>, Failure> {
    let choices = groups.iter().zip(costs).map(|(group, cost)| {
        let choice = |bits| Choice {
            bytes: group.trellis_bytes(bits),
            cost: cost.at(bits),
        };
        budget::steps().map(choice).collect()
    });
    let choices: Vec<Vec<Choice>> = choices.collect();
    let chosen = (total >= 0.0)
        .then(|| budget::choose(&choices, total as u64))
        .flatten()
        .ok_or_else(|| too_small(groups, total))?;
    let steps: Vec<f64> = budget::steps().collect();
    Ok(chosen.iter().map(|&i| steps[i]).collect())
}

fn too_small(groups: &[Group], total: f64) -> Failure {
    let entries: u64 = groups.iter().map(|g| g.entries).sum();
    let (least, have) = (budget::RANGE.0, 8.0 * total / entries.max(1) as f64);
    let what = format!(
        "the target leaves {have:.2} bits per weight for the matrices, {least} is the least that is given"
    );
    Failure::new(Exit::Infeasible, what)
        .help("raise it, or make what is left alone smaller, as with -p 'trellis,embeddings(int4)'")
}

/// The call with other bits.
fn with_bits(call: &PassCall, bits: f64) -> String {
    let others = call.options.iter().filter(|o| o.key != "bits");
    let others = others.map(|o| match &o.value {
        Some(value) => format!(" {}={value}", o.key),
        None => format!(" {}", o.key),
    });
    format!("trellis{{bits={bits}{}}}", others.collect::<String>())
}

/// Bytes that the groups may have in all.
fn bytes_to_spend(
    args: &OptArgs,
    prepared: &Prepared,
    module: &Module,
    groups: &[Group],
    options: &RunOptions<'_>,
) -> Result<f64, Failure> {
    let entries: u64 = groups.iter().map(|g| g.entries).sum();
    let mut even = prepared.clone();
    let flat = 4.0;
    for item in &mut even.pipeline.items {
        if let Item::Pass(call) = item {
            let parsed = Pipeline::parse(&with_bits(call, flat))
                .map_err(|e| errors::schedule(&ScheduleError::Syntax(e)))?;
            if let Some(Item::Pass(made)) = parsed.items.into_iter().next() {
                *call = made;
            }
        }
    }
    let schedule = Schedule::new(&even.pipeline, &even.overrides, None);
    let schedule = schedule.map_err(|error| errors::schedule(&error))?;
    let plan = manager::plan(module, &schedule, options, Destination::Folder);
    let plan = plan.map_err(|error| errors::run(&error))?;
    let touched = plan.sites.iter().filter(|site| !site.steps.is_empty());
    let before: u64 = touched.map(|site| site.bytes).sum();
    let all: u64 = module.weights.iter().map(|w| w.bytes()).sum();
    let output = all.saturating_sub(before) + plan.estimate.term_bytes;
    let spent: f64 = groups.iter().map(|g| g.trellis_bytes(flat) as f64).sum();
    Ok(match (args.target_bpw, args.target_size) {
        (_, Some(size)) => spent + size as f64 - output as f64,
        (Some(mean), None) => mean * entries as f64 / 8.0,
        (None, None) => spent,
    })
}

/// KL divergence of each group alone at the probe's bits.
fn measured(
    args: &OptArgs,
    model: &Path,
    groups: &[Group],
    progress: &Progress,
    code: &dyn Fn(&OptArgs, &Prepared, &Target) -> Result<(), Failure>,
) -> Result<Vec<f64>, Failure> {
    progress.stage("Measuring", &human::plural(groups.len(), "group"));
    let scratch = std::env::temp_dir().join(format!("hlrc-budget-{}.hlrc", std::process::id()));
    let mut probe = args.clone();
    (probe.target_bpw, probe.target_size) = (None, None);
    probe.pipeline = PROBE.1.to_string();
    probe.overrides.clear();
    probe.output = Some(scratch.clone());
    (probe.force, probe.resume, probe.json) = (true, false, false);
    probe.eval.clear();
    probe.talk.quiet = true;
    let prepared = prepare(&probe)?;
    let done = code(&probe, &prepared, &Target::Folder(scratch.clone()))
        .and_then(|()| sensitivities(args, model, &scratch, groups, progress));
    // A scratch folder that can't be removed is not this command's failure.
    let _ = std::fs::remove_dir_all(&scratch);
    done
}

fn sensitivities(
    args: &OptArgs,
    model: &Path,
    coded: &Path,
    groups: &[Group],
    progress: &Progress,
) -> Result<Vec<f64>, Failure> {
    let opened = Opened::new(model, args.threads)?;
    let settings = Settings {
        windows: CALIBRATION + PROBES,
        ..Settings::new(&super::calibrate::texts(&args.calib)?)
    };
    let text = text::prepare(model, &opened.engine, &settings, &args.talk, progress)?;
    let skip = text.windows.list.len().saturating_sub(PROBES);
    let windows = text.windows.list.get(skip..).unwrap_or_default();
    drop(opened.engine);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let options = Options {
        threads: args.threads.map_or(cores, usize::from),
        ..Options::default()
    };
    let (mut original, mut coded) = (load::executable(model)?, load::executable(coded)?);
    // Weights of both stand in one module: their paths have to start at one place.
    rebase(&mut original, Path::new("."));
    rebase(&mut coded, Path::new("."));
    let done = budget::sensitivities(&original, &coded, groups, windows, &options, &mut |_| {});
    done.map_err(|error| match error {
        _ if signal::flag().load(std::sync::atomic::Ordering::Relaxed) => {
            Failure::new(Exit::Interrupted, "interrupted")
        }
        error @ BudgetError::Missing(_) => Failure::new(Exit::Panic, error.to_string()),
        error => Failure::new(Exit::Failure, error.to_string()),
    })
}

fn tell(
    args: &OptArgs,
    groups: &[Group],
    costs: &[Cost],
    bits: &[f64],
    progress: &Progress,
) -> Result<(), Failure> {
    let mut table = Table::new(&[
        "group",
        "weights>",
        "KL alone at 3 bits>",
        "bits>",
        "KL expected>",
    ]);
    let mut sum = 0.0;
    for ((group, cost), &bits) in groups.iter().zip(costs).zip(bits) {
        sum += cost.at(bits);
        table.row([
            group.label(),
            human::count(group.entries),
            format!("{:.4}", cost.divergence),
            format!("{bits:.2}"),
            format!("{:.4}", cost.at(bits)),
        ]);
    }
    let entries: u64 = groups.iter().map(|g| g.entries).sum();
    let spent = groups.iter().zip(bits).map(|(g, &b)| g.trellis_bytes(b));
    let told = format!(
        "{:.3} bits per weight; KL expected {sum:.4}, the groups' divergences added up",
        8.0 * spent.sum::<u64>() as f64 / entries.max(1) as f64
    );
    progress.stage("Budget", &told);
    match args.talk.quiet || args.json {
        true => Ok(()),
        false => print(format!("{}\n", table.render().trim_end()).as_bytes()),
    }
}
