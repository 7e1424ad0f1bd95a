//! `--target-bpw`, `--target-size` and `--vram`: bits for every group, by what it costs the model.

mod files;
mod measure;
mod spend;

use super::args::OptArgs;
use super::load::Loaded;
use super::prepare::Prepared;
use super::table::Table;
use super::target::Target;
use super::{Exit, Failure, errors, print};
use crate::budget::{self, Choice, Family, Group, Tried};
use crate::ir::Module;
use crate::pass::manager::schedule::ScheduleError;
use crate::pass::manager::{self, RunOptions, Schedule};
use crate::pass::pipeline::{Item, Override, PassCall, Pipeline, Scope};
use crate::report::human;
use crate::report::progress::Progress;

pub use files::{around_tensors, told_on_disk};
pub use measure::measure;
pub use spend::{Shares, shares};

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

/// Whether a run spreads bits so that a target is met.
pub fn is_target(args: &OptArgs) -> bool {
    args.target_bpw.is_some() || args.target_size.is_some()
}

/// Bytes that the files of an output may take together; a device holds tensors alone.
pub fn bytes_on_disk(args: &OptArgs) -> Option<u64> {
    args.target_size.filter(|_| args.load.vram.is_none())
}

/// Refuses families whose codes the output's format can't say.
///
/// # Errors
/// Which they are.
pub fn check_families(args: &OptArgs, target: &Target) -> Result<(), Failure> {
    if !matches!(target, Target::Onnx(_) | Target::OnnxStdout(_)) {
        return Ok(());
    }
    let coded = |family: &&Family| family.name().contains("trellis");
    match families(args).iter().find(coded) {
        None => Ok(()),
        Some(family) => Err(Failure::new(
            Exit::Usage,
            format!(
                "trellis codes have no ONNX form, and the target's candidates are of {}",
                family.name()
            ),
        )
        .help("write a .hlrc folder, or choose others: --candidates int,lowrank-int")),
    }
}

/// The same without the pass that stands for what matrices become.
pub fn without_placeholder(prepared: &Prepared) -> Prepared {
    let mut rest = prepared.clone();
    let items = &mut rest.pipeline.items;
    items.retain(|item| !matches!(item, Item::Pass(_)));
    rest
}

/// Whether the placeholder codes matrices all the same: those that a scope speaks of as well.
///
/// # Errors
/// The pipeline can't be run.
pub fn keeps_placeholder(prepared: &Prepared, loaded: &Loaded) -> Result<bool, Failure> {
    let module = raised(prepared, loaded)?;
    let schedule = Schedule::new(&prepared.pipeline, &prepared.overrides, None);
    let schedule = schedule.map_err(|error| errors::schedule(&error))?;
    Ok(crate::ir::site::sites(&module).iter().any(|site| {
        let steps = schedule.steps_for(site);
        steps.len() > 1 && steps.iter().any(|&step| schedule.stands_free(step))
    }))
}

/// What is known of a model before its bits are spread.
pub struct Measured {
    /// The groups.
    pub groups: Vec<Group>,
    /// KL divergence of each alone, coded by the probe.
    pub divergences: Vec<f64>,
    /// Candidates, and their errors on each group.
    pub tried: Tried,
    /// Bytes of the probe's files that are no tensors.
    pub around: u64,
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
    (code, to_onnx): (&Code<'_>, bool),
) -> Result<(), Failure> {
    if !is_target(args) {
        return Ok(());
    }
    let module = raised(prepared, loaded)?;
    let shares = shares(prepared, &module, options)?;
    files::check_least(args, loaded, &shares, &measure::list(args, prepared)?)?;
    let measured = measure(args, prepared, (&module, &shares), options, progress, code)?;
    let measured = match to_onnx {
        // There they take the bytes of four bits.
        true => measured.without(&|pipeline| pipeline.contains("int3")),
        false => measured,
    };
    let around = around_tensors(args, prepared, &module, &measured, families(args))?;
    let total = shares.bytes(args, around);
    let spread = measured.spread(families(args), (total, around))?;
    measured.add_to(prepared, &spread)?;
    shares.check_kept(args, prepared, &module, options, around)?;
    for line in measured.failures() {
        progress.warn(&line);
    }
    tell(args, &measured, (&spread, &shares), progress)
}

/// The module as passes find it, linears seen.
///
/// # Errors
/// A pass that raises it fails.
pub fn raised(prepared: &Prepared, loaded: &Loaded) -> Result<Module, Failure> {
    let mut module = loaded.module.clone();
    let schedule = Schedule::new(&prepared.pipeline, &prepared.overrides, None);
    let schedule = schedule.map_err(|error| errors::schedule(&error))?;
    manager::raise(&mut module, &schedule).map_err(|error| errors::run(&error))?;
    Ok(module)
}

/// Codes a model as another command line says.
pub type Code<'a> = dyn Fn(&OptArgs, &Prepared, &Target) -> Result<(), Failure> + 'a;

impl Measured {
    /// The candidates of some families for every group, so that all take no more than `total` bytes.
    ///
    /// # Errors
    /// Even the smallest are too many bytes.
    pub fn spread(
        &self,
        families: &[Family],
        (total, files): (f64, u64),
    ) -> Result<Spread, Failure> {
        let wanted: Vec<usize> = (0..self.tried.candidates.len())
            .filter(|&i| families.contains(&self.tried.candidates[i].family))
            .collect();
        let mut groups = Vec::with_capacity(self.groups.len());
        let mut kept = Vec::with_capacity(self.groups.len());
        for (at, group) in self.groups.iter().enumerate() {
            // What can't be had is no choice at any price.
            let had = |i: &usize| self.tried.ratios[at][*i].is_finite();
            let list: Vec<usize> = wanted.iter().copied().filter(had).collect();
            if list.is_empty() {
                let what = format!("no candidate works on {}", group.label());
                let failure = Failure::new(Exit::Failure, what);
                let said = self.tried.failed.first().map(|(_, said)| said.clone());
                return Err(failure.help(said.unwrap_or_default()));
            }
            let choice = |&i: &usize| -> Result<Choice, Failure> {
                let bytes = self.tried.candidates[i].bytes(group);
                Ok(Choice {
                    bytes: bytes.map_err(|error| errors::run(&error))?,
                    cost: self.divergences[at] * self.tried.ratios[at][i],
                })
            };
            groups.push(list.iter().map(choice).collect::<Result<Vec<_>, _>>()?);
            kept.push(list);
        }
        let least: u64 = groups
            .iter()
            .map(|g| g.iter().map(|c| c.bytes).min().unwrap_or(0))
            .sum();
        let picked = (total >= 0.0)
            .then(|| budget::choose(&groups, total as u64))
            .flatten()
            .ok_or_else(|| too_small(&self.groups, (total, files), least))?;
        let taken = || groups.iter().zip(&picked).map(|(g, &i)| g[i]);
        Ok(Spread {
            bytes: taken().map(|c| c.bytes).sum(),
            expected: taken().map(|c| c.cost).sum(),
            chosen: kept.iter().zip(&picked).map(|(k, &i)| k[i]).collect(),
        })
    }

    /// The same without some candidates.
    fn without(mut self, dropped: &dyn Fn(&str) -> bool) -> Self {
        let tried = &mut self.tried;
        let kept = tried.candidates.iter().map(|c| !dropped(&c.pipeline));
        let kept: Vec<bool> = kept.collect();
        for row in &mut tried.ratios {
            let mut at = kept.iter();
            row.retain(|_| at.next().copied().unwrap_or(true));
        }
        let mut at = kept.iter();
        tried
            .candidates
            .retain(|_| at.next().copied().unwrap_or(true));
        self
    }

    /// What is to be said of candidates that could not be had.
    pub fn failures(&self) -> Vec<String> {
        let failed = &self.tried.failed;
        let Some((pipeline, said)) = failed.first() else {
            return Vec::new();
        };
        let count = failed.len() - 1;
        let more = match count {
            0 => String::new(),
            _ => format!(" (and {} more)", human::plural(count, "failure")),
        };
        vec![format!("{pipeline} is no candidate there: {said}{more}")]
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

/// `files`: what was taken off a target of bytes before, for files that hold no tensors.
fn too_small(groups: &[Group], (total, files): (f64, u64), least: u64) -> Failure {
    let entries = groups.iter().map(|g| g.entries).sum::<u64>().max(1) as f64;
    let (least, have) = (8.0 * least as f64 / entries, 8.0 * total / entries);
    let without = match files {
        0 => String::new(),
        files => format!(
            " (what lies around the weights may take {}, terms of all candidates counted)",
            human::size(files)
        ),
    };
    let left = match have > 0.0 {
        true => format!("{have:.2} bits per weight"),
        false => "nothing".to_string(),
    };
    let what = format!(
        "the target leaves {left} for the matrices{without}, {least:.2} bits per weight is the least that is given"
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

fn tell(
    args: &OptArgs,
    measured: &Measured,
    (spread, shares): (&Spread, &Shares),
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
    let apart = &shares.apart;
    let bits = |bytes: u64, entries: u64| 8.0 * bytes as f64 / entries.max(1) as f64;
    let all = bits(spread.bytes + apart.bytes, entries + apart.entries);
    let with = match apart.matrices {
        0 => String::new(),
        count => format!(
            ", {} of scopes and -t counted ({:.3} without)",
            human::plural(count, "matrix").replace("matrixs", "matrices"),
            bits(spread.bytes, entries)
        ),
    };
    let told = format!(
        "{all:.3} bits per weight{with}; cost expected {:.4}, the groups' added up",
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
