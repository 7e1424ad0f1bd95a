//! `--target-bpw`, `--target-size` and `--vram`: bits for every group, by what it costs the model.

use super::args::{OptArgs, TalkArgs};
use super::calibrate::Opened;
use super::calibrate::text::{self, Settings};
use super::load::{self, Loaded};
use super::prepare::{Prepared, prepare};
use super::table::Table;
use super::target::Target;
use super::{Exit, Failure, errors, print, signal};
use crate::budget::{self, BudgetError, Choice, Family, Group, Tried, candidates};
use crate::exec::Options;
use crate::ir::Module;
use crate::pass::manager::schedule::ScheduleError;
use crate::pass::manager::{self, Destination, RunOptions, Schedule};
use crate::pass::pipeline::{Item, Override, PassCall, Pipeline, Scope};
use crate::report::human;
use crate::report::progress::Progress;
use crate::store::{Reader, rebase};
use crate::weights::FileCache;
use std::path::Path;

/// Windows on which groups are measured; they lie behind those of the calibration.
const PROBES: usize = 6;

/// Lines on which groups of a model that takes lines are measured.
const LINES: usize = 64;

/// Windows that a calibration takes by default.
const CALIBRATION: usize = 64;

/// What groups are measured with: few states, since only ratios count.
const PROBE: &str = "trellis{bits=3 states=10}";

/// Checks what can be checked before a model is opened.
///
/// # Errors
/// A target that the pipeline can't meet.
pub fn check(args: &OptArgs, prepared: &mut Prepared) -> Result<(), Failure> {
    let usage = |what: &str| Failure::new(Exit::Usage, what);
    if args.target_bpw.is_none() && args.target_size.is_none() && args.load.vram.is_none() {
        return match args.candidates.is_empty() {
            true => Ok(()),
            false => Err(
                usage("--candidates would have no effect: there is no target")
                    .help("give one with --target-bpw, --target-size or --vram"),
            ),
        };
    }
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

/// What matrices may become.
pub fn families(args: &OptArgs) -> &[Family] {
    match args.candidates.as_slice() {
        [] => &[Family::Trellis],
        families => families,
    }
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

/// What is known of a model before its bits are spread.
pub struct Measured {
    /// The groups.
    pub groups: Vec<Group>,
    /// KL divergence of each alone, coded by the probe.
    pub divergences: Vec<f64>,
    /// Candidates, and their errors on each group.
    pub tried: Tried,
}

/// A choice for every group.
pub struct Spread {
    /// Indices of candidates.
    pub chosen: Vec<usize>,
    /// Bytes of all groups.
    pub bytes: u64,
    /// KL divergence expected, nats per token: the sum of the groups'.
    pub expected: f64,
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
    code: &Code<'_>,
) -> Result<(), Failure> {
    if args.target_bpw.is_none() && args.target_size.is_none() {
        return Ok(());
    }
    let groups = budget::groups(&loaded.module);
    let total = bytes_to_spend(args, prepared, &loaded.module, &groups, options)?;
    let measured = measure(args, prepared, loaded, options, progress, code)?;
    let spread = measured.spread(families(args), total)?;
    measured.add_to(prepared, &spread)?;
    tell(args, &measured, &spread, progress)
}

/// Codes a model as another command line says.
pub type Code<'a> = dyn Fn(&OptArgs, &Prepared, &Target) -> Result<(), Failure> + 'a;

/// Measures groups and tries candidates.
///
/// # Errors
/// The model can't be run or coded.
pub fn measure(
    args: &OptArgs,
    prepared: &Prepared,
    loaded: &Loaded,
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
    let groups = budget::groups(&loaded.module);
    let divergences = divergences(args, model, &groups, progress, code)?;
    let trellis = |bits: f64| with_bits(base, bits);
    let list = candidates::candidates(families(args), true, &trellis);
    progress.stage("Trying", &human::plural(list.len(), "candidate"));
    let talk = TalkArgs {
        quiet: true,
        ..args.talk
    };
    let statistics =
        super::calibrate::statistics(model, &args.calib, args.threads, None, &talk, progress)?;
    let options = RunOptions {
        moments: Some(&statistics),
        ..options.clone()
    };
    let files = FileCache::new();
    let reader = Reader::new(&files);
    let tried = candidates::try_all(
        &loaded.module,
        &groups,
        list,
        (PROBE, &trellis),
        (&reader, &options),
        &|_| {},
    );
    Ok(Measured {
        tried: tried.map_err(|error| errors::run(&error))?,
        groups,
        divergences,
    })
}

impl Measured {
    /// The candidates of some families for every group, so that all take no more than `total` bytes.
    ///
    /// # Errors
    /// Even the smallest are too many bytes.
    pub fn spread(&self, families: &[Family], total: f64) -> Result<Spread, Failure> {
        let wanted: Vec<usize> = (0..self.tried.candidates.len())
            .filter(|&i| families.contains(&self.tried.candidates[i].family))
            .collect();
        let mut groups = Vec::with_capacity(self.groups.len());
        for (at, group) in self.groups.iter().enumerate() {
            let choice = |&i: &usize| -> Result<Choice, Failure> {
                let bytes = self.tried.candidates[i].bytes(group);
                Ok(Choice {
                    bytes: bytes.map_err(|error| errors::run(&error))?,
                    cost: self.divergences[at] * self.tried.ratios[at][i],
                })
            };
            groups.push(wanted.iter().map(choice).collect::<Result<Vec<_>, _>>()?);
        }
        let least: u64 = groups
            .iter()
            .map(|g| g.iter().map(|c| c.bytes).min().unwrap_or(0))
            .sum();
        let picked = (total >= 0.0)
            .then(|| budget::choose(&groups, total as u64))
            .flatten()
            .ok_or_else(|| too_small(&self.groups, total, least))?;
        let taken = || groups.iter().zip(&picked).map(|(g, &i)| g[i]);
        Ok(Spread {
            bytes: taken().map(|c| c.bytes).sum(),
            expected: taken().map(|c| c.cost).sum(),
            chosen: picked.iter().map(|&i| wanted[i]).collect(),
        })
    }

    /// Makes a pipeline's overrides of it.
    ///
    /// # Errors
    /// A candidate is no pipeline.
    pub fn add_to(&self, prepared: &mut Prepared, spread: &Spread) -> Result<(), Failure> {
        for (group, &chosen) in self.groups.iter().zip(&spread.chosen) {
            let scope = Scope::Regex(group.regex());
            let text = format!("{scope}={}", self.tried.candidates[chosen].pipeline);
            let made =
                Override::parse(&text).map_err(|e| errors::schedule(&ScheduleError::Syntax(e)))?;
            // What the user says of a tensor counts.
            prepared.overrides.insert(0, made);
        }
        Ok(())
    }
}

fn too_small(groups: &[Group], total: f64, least: u64) -> Failure {
    let entries = groups.iter().map(|g| g.entries).sum::<u64>().max(1) as f64;
    let (least, have) = (8.0 * least as f64 / entries, 8.0 * total / entries);
    let what = format!(
        "the target leaves {have:.2} bits per weight for the matrices, {least:.2} is the least that is given"
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
pub fn bytes_to_spend(
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
fn divergences(
    args: &OptArgs,
    model: &Path,
    groups: &[Group],
    progress: &Progress,
    code: &Code<'_>,
) -> Result<Vec<f64>, Failure> {
    progress.stage("Measuring", &human::plural(groups.len(), "group"));
    let scratch = std::env::temp_dir().join(format!("hlrc-budget-{}.hlrc", std::process::id()));
    let mut probe = args.clone();
    (probe.target_bpw, probe.target_size) = (None, None);
    probe.pipeline = PROBE.to_string();
    probe.overrides.clear();
    probe.output = Some(scratch.clone());
    (probe.force, probe.resume, probe.json) = (true, false, false);
    probe.sequential = false;
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
    let probes = if text.protocol.lines { LINES } else { PROBES };
    let skip = text.windows.list.len().saturating_sub(probes);
    let windows = text.windows.list.get(skip..).unwrap_or_default();
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
    measured: &Measured,
    spread: &Spread,
    progress: &Progress,
) -> Result<(), Failure> {
    let mut table = Table::new(&[
        "group",
        "weights>",
        "cost alone at 3 bits>",
        "becomes",
        "bits>",
        "cost expected>",
    ]);
    let (groups, tried) = (&measured.groups, &measured.tried);
    for (at, (group, &chosen)) in groups.iter().zip(&spread.chosen).enumerate() {
        let candidate = &tried.candidates[chosen];
        let bytes = candidate
            .bytes(group)
            .map_err(|error| errors::run(&error))?;
        table.row([
            group.label(),
            human::count(group.entries),
            format!("{:.4}", measured.divergences[at]),
            candidate.pipeline.clone(),
            format!("{:.2}", 8.0 * bytes as f64 / group.entries.max(1) as f64),
            format!("{:.4}", measured.divergences[at] * tried.ratios[at][chosen]),
        ]);
    }
    let entries: u64 = groups.iter().map(|g| g.entries).sum();
    let told = format!(
        "{:.3} bits per weight; cost expected {:.4}, the groups' added up",
        8.0 * spread.bytes as f64 / entries.max(1) as f64,
        spread.expected
    );
    progress.stage("Budget", &told);
    for line in unused(measured, spread, families(args)) {
        progress.stage("Budget", &line);
    }
    match args.talk.quiet || args.json {
        true => Ok(()),
        false => print(format!("{}\n", table.render().trim_end()).as_bytes()),
    }
}

/// Families that won their bytes nowhere, where several were asked for.
fn unused(measured: &Measured, spread: &Spread, families: &[Family]) -> Vec<String> {
    let of = |&i: &usize| measured.tried.candidates[i].family;
    let won = |family: &Family| spread.chosen.iter().filter(|i| of(i) == *family).count();
    let losers = families.iter().filter(|f| won(f) == 0);
    let names: Vec<&str> = losers.map(|f| f.name()).collect();
    match names.is_empty() || families.len() < 2 {
        true => Vec::new(),
        false => vec![format!("no bytes were won by {}", names.join(", "))],
    }
}
