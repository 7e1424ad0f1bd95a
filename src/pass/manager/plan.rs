//! What a run would take, from headers alone.

use std::borrow::Cow;

use super::choose::{Chosen, choose, estimate, passed_on};
use super::memory::{self, Destination, Estimate};
use super::schedule::{Schedule, Stage};
use super::{RunError, RunOptions};
use crate::ir::Module;
use crate::ir::site::{Site, sites};
use crate::pass::{Pass, Rewrite};

/// What a run would take, and do to which matrix.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Memory, bytes of terms, workers.
    pub estimate: Estimate,
    /// Every matrix that the first matrix pass finds, module passes in front of it being done.
    pub sites: Vec<Planned>,
}

/// A matrix in a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Steps of the pipeline that would run on it; none where it is left as it is.
    pub steps: Vec<usize>,
    /// Weights.
    pub parameters: u64,
    /// Bytes of all its terms now.
    pub bytes: u64,
    /// Bytes of all its terms behind the run, at most.
    pub after: u64,
    /// Time on one core, nanoseconds, roughly.
    pub nanos: f64,
}

/// Plans a run.
///
/// Memory is an upper bound: for every stage, as if its module passes did all that they could do to
/// untouched matrices, and as if they did nothing.
///
/// # Errors
/// Scopes that select nothing; a memory limit that cannot be kept.
pub fn plan(
    module: &Module,
    schedule: &Schedule,
    options: &RunOptions<'_>,
    destination: Destination,
) -> Result<Plan, RunError> {
    let all = sites(module);
    schedule.check_scopes(&all)?;
    let mut plan = Plan::default();
    plan.estimate.workers = options.threads.max(1);
    let mut changed: Cow<'_, Module> = Cow::Borrowed(module);
    let mut first = true;
    let mut in_memory = 0u64;
    for stage in &schedule.stages {
        let steps = match stage {
            Stage::Module(step) => {
                changed = foretold(schedule, *step, changed);
                continue;
            }
            Stage::Matrices(steps) => steps,
        };
        if first {
            plan.begin(&changed, schedule)?;
        }
        let mut worlds: Vec<&Module> = vec![&changed];
        if !first {
            worlds.push(module);
        }
        let mut left = 0u64;
        for world in worlds {
            let mut chosen = choose(world, schedule, steps, &sites(world))?;
            if !first {
                let in_files = destination != Destination::Shown;
                chosen.iter_mut().for_each(|c| c.as_residual(in_files));
            }
            if destination == Destination::Shown {
                left = left.max(passed_on(&chosen));
            }
            let beside = in_memory.saturating_add(left);
            plan.add(estimate(world, &chosen, options, beside)?);
        }
        in_memory = in_memory.saturating_add(left);
        first = false;
    }
    if destination == Destination::Onnx {
        plan.export(&changed, schedule, options)?;
        plan.export(module, schedule, options)?;
    }
    if first {
        plan.begin(&changed, schedule)?;
    }
    Ok(plan)
}

/// What a module pass makes of matrices that no pass has touched. What it fails at, the run will say.
fn foretold<'a>(schedule: &Schedule, step: usize, module: Cow<'a, Module>) -> Cow<'a, Module> {
    let Some(Pass::Module(pass)) = schedule.steps.get(step).map(|s| &s.pass) else {
        return module;
    };
    match pass.run(&mut Rewrite::new(&module, &mut Vec::new())) {
        Ok(patch) if !patch.is_empty() => {
            let mut next = module.clone().into_owned();
            match patch.apply(&mut next) {
                Ok(()) => Cow::Owned(next),
                Err(_) => module,
            }
        }
        _ => module,
    }
}

fn matrix_steps(schedule: &Schedule) -> Vec<usize> {
    let of = |stage: &Stage| match stage {
        Stage::Matrices(steps) => steps.clone(),
        Stage::Module(_) => Vec::new(),
    };
    schedule.stages.iter().flat_map(of).collect()
}

impl Plan {
    /// Lists the matrices as the first matrix pass finds them.
    fn begin(&mut self, module: &Module, schedule: &Schedule) -> Result<(), RunError> {
        let all = sites(module);
        let chosen = choose(module, schedule, &matrix_steps(schedule), &all)?;
        let terms = chosen.iter().map(|c| c.shape.term_bytes);
        self.estimate.term_bytes = terms.fold(0, u64::saturating_add);
        let mut chosen = chosen.into_iter().peekable();
        for site in &all {
            let own = chosen.next_if(|c| c.site.name == site.name);
            self.sites.push(planned(module, schedule, site, own)?);
        }
        Ok(())
    }

    fn add(&mut self, stage: Estimate) {
        let all = &mut self.estimate;
        all.peak_memory_bytes = all.peak_memory_bytes.max(stage.peak_memory_bytes);
        all.workers = all.workers.min(stage.workers);
    }

    /// What writing an ONNX file takes, behind the last stage.
    fn export(
        &mut self,
        module: &Module,
        schedule: &Schedule,
        options: &RunOptions<'_>,
    ) -> Result<(), RunError> {
        let all = sites(module);
        let chosen = choose(module, schedule, &matrix_steps(schedule), &all)?;
        let mut largest: Option<(u64, &Chosen)> = None;
        for c in &chosen {
            let bytes = memory::export_bytes(schedule, &c.steps, &c.site)?;
            if largest.is_none_or(|(most, _)| bytes >= most) {
                largest = Some((bytes, c));
            }
        }
        // The module, what it becomes, its messages.
        let base = memory::base_bytes(module).saturating_mul(2);
        let peak = base.saturating_add(largest.as_ref().map_or(0, |(bytes, _)| *bytes));
        self.estimate.peak_memory_bytes = self.estimate.peak_memory_bytes.max(peak);
        match (options.mem_limit, largest) {
            (Some(limit), Some((_, largest))) if peak > limit => Err(RunError::Memory {
                site: largest.site.name.clone(),
                need: peak,
                limit,
            }),
            _ => Ok(()),
        }
    }
}

fn planned(
    module: &Module,
    schedule: &Schedule,
    site: &Site,
    own: Option<Chosen>,
) -> Result<Planned, RunError> {
    let bytes = site.matrix(module).map_or(0, |m| m.bytes(&module.weights));
    let after = own.as_ref().map_or(bytes, |c| c.shape.term_bytes);
    let steps = own.map_or_else(Vec::new, |c| c.steps);
    let mut nanos = 0.0;
    for &step in &steps {
        if let Pass::Matrix(pass) = &schedule.steps[step].pass {
            let cost = pass.cost(site.rows, site.cols);
            nanos += cost.map_err(|e| schedule.failed(step, site, &e))?.nanos;
        }
    }
    Ok(Planned {
        nanos,
        parameters: site.rows.saturating_mul(site.cols),
        bytes,
        after,
        steps,
    })
}
