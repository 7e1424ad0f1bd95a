//! Which matrices a target spreads bits over, and how many bytes it leaves for them.

use super::{bytes_on_disk, is_target};
use crate::budget::{self, Group};
use crate::cli::args::OptArgs;
use crate::cli::prepare::Prepared;
use crate::cli::{Exit, Failure, errors};
use crate::ir::Module;
use crate::ir::site::{Site, sites};
use crate::pass::manager::{self, Destination, Plan, RunOptions, Schedule};
use crate::report::human;
use std::collections::HashSet;

/// Matrices of the body that scopes and `-t` speak of: they are coded as those say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Apart {
    /// How many.
    pub matrices: usize,
    /// Their weights.
    pub entries: u64,
    /// Their bytes behind the run, at most.
    pub bytes: u64,
}

/// Who gets a share of a target.
#[derive(Debug)]
pub struct Shares {
    /// Matrices whose bits are spread: those that the pass outside of scopes has for itself.
    pub groups: Vec<Group>,
    /// The body's others.
    pub apart: Apart,
    /// Bytes of all tensors that are not the groups', behind the run, at most.
    others: u64,
}

/// Tells matrices whose bits are spread from those of which scopes and `-t` speak.
///
/// # Errors
/// The pipeline can't be run; nothing is left for the target.
pub fn shares(
    prepared: &Prepared,
    module: &Module,
    options: &RunOptions<'_>,
) -> Result<Shares, Failure> {
    let (schedule, plan) = planned(prepared, module, options)?;
    let all = sites(module);
    let alone = |site: &Site| match schedule.steps_for(site).as_slice() {
        [step] => schedule.stands_free(*step),
        _ => false,
    };
    let mut free: HashSet<&str> = HashSet::new();
    let mut apart = Apart::default();
    let mut spread = 0u64;
    for (site, planned) in all.iter().zip(&plan.sites) {
        if !site.is_body() || !budget::is_dense(module, site) {
            continue;
        }
        match (alone(site), planned.steps.is_empty()) {
            (true, false) => {
                free.insert(&site.name);
                spread = spread.saturating_add(planned.after);
            }
            // A weight that something else uses as well: no pass reaches it.
            (true, true) => {}
            (false, _) => {
                apart.matrices += 1;
                apart.entries += planned.parameters;
                apart.bytes = apart.bytes.saturating_add(planned.after);
            }
        }
    }
    let groups = budget::groups_of(module, &|site| free.contains(site.name.as_str()));
    if groups.is_empty() {
        let what = "a target has nothing to spread bits over: the model has no matrix of which no scope and no -t speaks";
        return Err(Failure::new(Exit::Usage, what).help("leave scopes and -t out, or the target"));
    }
    Ok(Shares {
        groups,
        apart,
        others: tensors(module, &plan).saturating_sub(spread),
    })
}

fn planned(
    prepared: &Prepared,
    module: &Module,
    options: &RunOptions<'_>,
) -> Result<(Schedule, Plan), Failure> {
    let schedule = Schedule::new(&prepared.pipeline, &prepared.overrides, None);
    let schedule = schedule.map_err(|error| errors::schedule(&error))?;
    let plan = manager::plan(module, &schedule, options, Destination::Folder);
    let plan = plan.map_err(|error| errors::run(&error))?;
    Ok((schedule, plan))
}

/// Bytes of all tensors behind a run, at most.
fn tensors(module: &Module, plan: &Plan) -> u64 {
    let all = module.weights.iter().map(|w| w.bytes());
    let all = all.fold(0, u64::saturating_add);
    let touched = plan.sites.iter().filter(|site| !site.steps.is_empty());
    let (before, after) = touched.fold((0u64, 0u64), |(before, after), site| {
        let after = after.saturating_add(site.after);
        (before.saturating_add(site.bytes), after)
    });
    all.saturating_sub(before).saturating_add(after)
}

impl Shares {
    /// Bytes that the groups may have together, `files` being what is no tensor; below zero where there is no
    /// room for the rest.
    pub fn bytes(&self, args: &OptArgs, files: u64) -> f64 {
        let entries: u64 = self.groups.iter().map(|g| g.entries).sum();
        match (args.target_bpw, args.target_size) {
            (_, Some(size)) => size as f64 - files as f64 - self.others as f64,
            (Some(mean), None) => {
                mean * (entries + self.apart.entries) as f64 / 8.0 - self.apart.bytes as f64
            }
            (None, None) => 0.0,
        }
    }

    /// Checks what was chosen against the target, before anything is coded.
    ///
    /// # Errors
    /// The plan is above the target: a bug.
    pub fn check_kept(
        &self,
        args: &OptArgs,
        prepared: &Prepared,
        module: &Module,
        options: &RunOptions<'_>,
        files: u64,
    ) -> Result<(), Failure> {
        if !is_target(args) {
            return Ok(());
        }
        let (_, plan) = planned(prepared, module, options)?;
        let above = |what: String| {
            let failure = Failure::new(Exit::Panic, format!("internal error: {what}"));
            Err(failure.help("this is a bug; please report it with the command line"))
        };
        if let Some(size) = args.target_size {
            let files = if bytes_on_disk(args).is_some() {
                files
            } else {
                0
            };
            let all = tensors(module, &plan).saturating_add(files);
            if all > size {
                let (all, size) = (human::size(all), human::size(size));
                return above(format!("the choice takes {all}, the target is {size}"));
            }
        }
        let Some(mean) = args.target_bpw else {
            return Ok(());
        };
        let entries: u64 = self.groups.iter().map(|g| g.entries).sum();
        let entries = entries + self.apart.entries;
        let counted = |site: &&(Site, u64)| site.0.is_body() && budget::is_dense(module, &site.0);
        let each = sites(module).into_iter().zip(&plan.sites);
        let each: Vec<(Site, u64)> = each
            .filter(|(_, planned)| !planned.steps.is_empty())
            .map(|(site, planned)| (site, planned.after))
            .collect();
        let coded: u64 = each.iter().filter(counted).map(|(_, after)| after).sum();
        let bits = 8.0 * coded as f64 / entries.max(1) as f64;
        match bits > mean + 1e-9 {
            true => above(format!("the choice has {bits} bits per weight, not {mean}")),
            false => Ok(()),
        }
    }
}
