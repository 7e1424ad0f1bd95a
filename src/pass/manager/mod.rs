//! The manager: runs a pipeline over a module.
//!
//! Consecutive matrix passes are one stage: matrix by matrix (in row tiles where every pass allows
//! it) through all of them, finished terms streamed to a [`Sink`] in the order of the sites. Module
//! passes are stages of their own. Instrumentation is here, not in passes: verification behind each
//! pass, printed IR, remarks, timing, statistics, stop-after, bisection.

mod choose;
mod judge;
mod memory;
mod origin;
mod plan;
mod raise;
pub mod schedule;
mod snapshot;
mod stage;
mod trial;
mod unit;
mod units;
mod workers;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ir::Module;
use crate::ir::patch::PatchError;
use crate::ir::site::{Site, sites};
use crate::ir::verify::{Violations, verify};
use crate::pass::pipeline::SyntaxError;
use crate::pass::{MomentSource, Pass, Remark, RemarkKind, Rewrite};
use crate::report::SiteReport;
use crate::store::{Reader, Sink, SinkError, StoreError};
use crate::weights::FileCache;

pub use memory::{Destination, Estimate};
pub use plan::{Plan, Planned, plan};
pub use raise::raise;
pub use schedule::{Schedule, ScheduleError, Stage, canonical};
pub use trial::{Trial, trial, trial_workers};

/// How a pipeline is run.
#[derive(Clone, Debug)]
pub struct RunOptions<'a> {
    /// Seed of all randomness.
    pub seed: u64,
    /// Worker threads.
    pub threads: usize,
    /// Memory to stay within, bytes.
    pub mem_limit: Option<u64>,
    /// Verify behind each pass.
    pub verify_each: bool,
    /// Apply passes to sites only this many times.
    pub bisect_limit: Option<u64>,
    /// Which IR to print.
    pub print: PrintIr,
    /// Statistics of activations, where there are any.
    pub moments: Option<&'a dyn MomentSource>,
    /// Set when the run shall end at the next unit.
    pub interrupt: &'a AtomicBool,
}

impl<'a> RunOptions<'a> {
    /// Seed 0, verification behind each pass, and nothing else.
    pub fn new(threads: usize, interrupt: &'a AtomicBool) -> Self {
        Self {
            seed: 0,
            threads,
            mem_limit: None,
            verify_each: true,
            bisect_limit: None,
            print: PrintIr::default(),
            moments: None,
            interrupt,
        }
    }
}

/// Which IR to print while passes run; `*` names every pass.
#[derive(Clone, Debug, Default)]
pub struct PrintIr {
    /// Before these passes.
    pub before: Vec<String>,
    /// After these passes.
    pub after: Vec<String>,
    /// After passes that changed something.
    pub after_change: bool,
}

/// Who watches a run.
pub trait Observer {
    /// A stage begins: so many sites, so many bytes of source.
    fn stage(&self, _sites: usize, _bytes: u64) {}
    /// A site is finished.
    fn site(&self, _report: &SiteReport) {}
    /// IR that was asked for.
    fn ir(&self, _title: &str, _text: &str) {}
    /// A line about bisection.
    fn bisect(&self, _line: &str) {}
}

/// An observer that looks away.
pub struct Silent;

impl Observer for Silent {}

/// Time and counts of one step.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct StepTotals {
    /// The pass.
    pub pass: String,
    /// Time of all threads, nanoseconds.
    pub nanos: u64,
    /// Sites that it ran on.
    pub sites: u64,
    /// Sites where it made a term.
    pub terms: u64,
    /// Bytes of its terms.
    pub term_bytes: u64,
    /// Ops that it replaced (module passes).
    pub edits: u64,
}

/// What a run has done.
#[derive(Debug, Default)]
pub struct Outcome {
    /// One per site that a pass ran on, in order.
    pub sites: Vec<SiteReport>,
    /// All remarks, in order.
    pub remarks: Vec<Remark>,
    /// One per step of the pipeline.
    pub totals: Vec<StepTotals>,
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The pipeline does not fit the module.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// A pass failed on a tensor.
    #[error("pass {pass} on {site}: {message}")]
    Pass {
        /// The pass.
        pass: String,
        /// The tensor.
        site: String,
        /// Why.
        message: String,
    },
    /// A weight cannot be worked on.
    #[error("{site}: {message}")]
    Weight {
        /// The tensor.
        site: String,
        /// Why.
        message: String,
    },
    /// Statistics of activations are damaged, or of another model.
    #[error("{site}: {message}")]
    Statistics {
        /// The tensor.
        site: String,
        /// Why.
        message: String,
    },
    /// A pass panicked.
    #[error("pass {pass} panicked on {site}: {message}")]
    Panic {
        /// The pass, or passes.
        pass: String,
        /// The tensor.
        site: String,
        /// The panic's message.
        message: String,
    },
    /// The module breaks invariants behind a pass.
    #[error("after pass {pass}: {violations}")]
    Invalid {
        /// The pass.
        pass: String,
        /// What it broke.
        violations: Violations,
    },
    /// A module pass made a patch that cannot be applied.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// Reading a weight failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Writing failed.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The memory limit cannot be kept.
    #[error(
        "--mem-limit: {site} alone takes {need} bytes with one thread, the limit is {limit} bytes; \
         raise it, or leave the tensor out with -t '{site}=none'"
    )]
    Memory {
        /// The largest site.
        site: String,
        /// Peak memory with one thread, bytes.
        need: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// No pass found anything to work on.
    #[error(
        "the pipeline has passes for matrices, and the model has none that they could work on: \
         `hlrc-opt inspect` lists them, scopes such as embeddings(…) reach what is left alone by default"
    )]
    NothingToDo,
    /// Every matrix that a pass would work on has been rewritten before.
    #[error(
        "no dense term is left in any matrix that the pipeline selects ({0} in all): an earlier run rewrote \
         them and kept no residual; start from the source, or keep what is left with `residual=keep` there"
    )]
    NothingLeft(usize),
    /// The run was interrupted.
    #[error("interrupted after {done} of {total} tensors")]
    Interrupted {
        /// Finished sites.
        done: usize,
        /// All sites of the stage.
        total: usize,
    },
}

/// Runs a pipeline. Terms of the last stage of matrix passes go to `sink`; the module then refers to
/// them by name, with no storage yet: whoever finishes the sink says where they are.
///
/// # Errors
/// The first failure, in the order of the work. The module may then be changed in part.
pub fn run(
    module: &mut Module,
    schedule: &Schedule,
    reader: &Reader<'_>,
    sink: &mut Sink,
    options: &RunOptions<'_>,
    observer: &dyn Observer,
) -> Result<Outcome, RunError> {
    let mut run = Run {
        schedule,
        reader,
        options,
        observer,
        outcome: Outcome::default(),
        bisect: options.bisect_limit.map(|limit| (0, limit)),
        sources: HashMap::new(),
        spent: Vec::new(),
        stages: 0,
        reached: false,
        in_memory: 0,
        rewritten: 0,
    };
    run.outcome.totals = schedule
        .steps
        .iter()
        .map(|s| StepTotals {
            pass: s.name.to_string(),
            ..StepTotals::default()
        })
        .collect();
    schedule.check_scopes(&sites(module))?;
    for (number, stage) in schedule.stages.iter().enumerate() {
        match stage {
            Stage::Module(step) => run.module_pass(module, *step)?,
            Stage::Matrices(steps) => run.matrices(module, sink, number, steps)?,
        }
    }
    if run.stages > 0 && !run.reached {
        return Err(match run.rewritten {
            0 => RunError::NothingToDo,
            count => RunError::NothingLeft(count),
        });
    }
    Ok(run.outcome)
}

/// Runs a pipeline of which the module and what it tells are kept; terms are hashed and thrown away.
///
/// # Errors
/// As [`run`].
pub fn run_hashed(
    module: &mut Module,
    schedule: &Schedule,
    options: &RunOptions<'_>,
) -> Result<Outcome, RunError> {
    let cache = FileCache::default();
    let mut sink = Sink::hashes();
    sink.reserve_names(module);
    let reader = Reader::new(&cache);
    run(module, schedule, &reader, &mut sink, options, &Silent)
}

/// A site in one of the stages that work on it.
struct StoredSite<'a> {
    stage: usize,
    site: &'a Site,
}

struct Run<'a> {
    schedule: &'a Schedule,
    reader: &'a Reader<'a>,
    options: &'a RunOptions<'a>,
    observer: &'a dyn Observer,
    outcome: Outcome,
    /// Applications so far, and the limit.
    bisect: Option<(u64, u64)>,
    /// Matrices as they were before any pass, by site, for the judgement at the end.
    sources: HashMap<String, origin::Origin>,
    /// Weights that matrices had and no longer have, by name: they go behind the last stage, so that
    /// until then a matrix can be put back.
    spent: Vec<String>,
    /// Stages of matrix passes begun.
    stages: usize,
    /// Whether one of them had a matrix to work on.
    reached: bool,
    /// Bytes of residuals in memory, where the sink has no files.
    in_memory: u64,
    /// Matrices without a dense term that a pass was to work on, in the first of them.
    rewritten: usize,
}

impl Run<'_> {
    /// Counts an application of a pass; false where the bisection limit forbids it.
    fn allowed(&mut self, step: usize, site: &str) -> bool {
        let Some((count, limit)) = &mut self.bisect else {
            return true;
        };
        *count += 1;
        let runs = *count <= *limit;
        let word = if runs { "running" } else { "NOT running" };
        let name = self.schedule.steps[step].name;
        let line = format!("BISECT: {word} pass ({count}) {name} on {site}");
        self.observer.bisect(&line);
        runs
    }

    /// An error of a pass, unless the user asked it to stop.
    fn unless_interrupted(&self, error: RunError) -> RunError {
        match self.options.interrupt.load(Ordering::Relaxed) {
            true => RunError::Interrupted { done: 0, total: 0 },
            false => error,
        }
    }

    fn module_pass(&mut self, module: &mut Module, step: usize) -> Result<(), RunError> {
        let name = self.schedule.steps[step].name;
        let Pass::Module(pass) = &self.schedule.steps[step].pass else {
            return Ok(());
        };
        if !self.allowed(step, &module.name) {
            return Ok(());
        }
        self.print_before(module, name);
        let began = std::time::Instant::now();
        let mut remarks = Vec::new();
        let mut rewrite = Rewrite {
            module,
            seed: self.options.seed,
            statistics: self.options.moments,
            remarks: &mut remarks,
        };
        let patch = pass.run(&mut rewrite).map_err(|e| {
            self.unless_interrupted(RunError::Pass {
                pass: name.to_string(),
                site: module.name.clone(),
                message: e.to_string(),
            })
        })?;
        for mut remark in remarks {
            remark.pass = name.to_string();
            self.outcome.remarks.push(remark);
        }
        let changed = !patch.is_empty();
        let totals = &mut self.outcome.totals[step];
        totals.edits += patch.edits() as u64;
        if changed {
            patch.apply(module)?;
        }
        let totals = &mut self.outcome.totals[step];
        totals.nanos += began.elapsed().as_nanos() as u64;
        self.print_after(module, name, changed);
        Ok(())
    }

    /// Whether the module is verified behind a pass: where that is asked for, and always behind a plugin's.
    fn verifies(&self, pass: &str) -> bool {
        self.options.verify_each || crate::pass::plugin::of(pass).is_some()
    }

    fn verify(&self, module: &Module, pass: &str) -> Result<(), RunError> {
        if !self.verifies(pass) {
            return Ok(());
        }
        verify(module).map_err(|violations| RunError::Invalid {
            pass: match crate::pass::plugin::of(pass) {
                Some(plugin) => format!("{pass} (plugin {} {})", plugin.name, plugin.version),
                None => pass.to_string(),
            },
            violations,
        })
    }

    fn remark(&mut self, kind: RemarkKind, pass: &str, site: &str, message: String) {
        let mut remark = Remark::new(kind, site, message);
        remark.pass = pass.to_string();
        self.outcome.remarks.push(remark);
    }
}

/// Seed of a site: the run's seed mixed with the site's name (FNV-1a, 64 bits).
fn seed_of(seed: u64, site: &Site) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325u64 ^ seed;
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    site.name.bytes().fold(start, mix)
}
