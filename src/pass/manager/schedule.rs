//! From a pipeline to stages: which pass with which options, in which order, on which sites.

use serde_json::Value;

use super::RunError;
use crate::ir::site::Site;
use crate::pass::pipeline::{
    Item, Override, PassCall, Pipeline, Program, Site as Selected, SyntaxError, check_options,
    options, options_json,
};
use crate::pass::{Pass, PassEntry, PassError, Residual, registry};
use crate::passes::train;

/// A pass of the pipeline, built.
pub struct Scheduled {
    /// Its name.
    pub name: &'static str,
    /// The pass with its options.
    pub pass: Pass,
}

/// Consecutive passes that run together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Matrix passes, matrix by matrix; indices of steps.
    Matrices(Vec<usize>),
    /// One module pass; index of its step.
    Module(usize),
}

/// A pipeline, checked and built.
pub struct Schedule {
    program: Program,
    /// One per step of the program.
    pub steps: Vec<Scheduled>,
    /// The order of work.
    pub stages: Vec<Stage>,
}

/// Why a pipeline cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// Unknown passes or options, scopes that match nothing.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// A pass refuses its options.
    #[error("pass {pass}: {error}")]
    Options {
        /// The pass.
        pass: String,
        /// Why.
        error: PassError,
    },
    /// `--stop-after` names a pass that is not in the pipeline.
    #[error("--stop-after={0}: the pipeline has no such pass; it has {1}")]
    StopAfter(String, String),
    /// A module pass stands in a scope.
    #[error("pass {0} works on the whole module and cannot stand in a scope; move it out")]
    Scoped(String),
}

impl Schedule {
    /// Checks and builds a pipeline.
    ///
    /// # Errors
    /// Everything that can be said without a module: names, options, structure.
    pub fn new(
        pipeline: &Pipeline,
        overrides: &[Override],
        stop_after: Option<&str>,
    ) -> Result<Self, ScheduleError> {
        let program = Program::new(&with_lists(pipeline), overrides)?;
        train_is_last(&program)?;
        let mut steps = Vec::new();
        for step in program.steps() {
            let (entry, pass) = build(&step.call)?;
            if matches!(pass, Pass::Module(_)) && (step.is_scoped() || step.is_override()) {
                return Err(ScheduleError::Scoped(entry.name.to_string()));
            }
            steps.push(Scheduled {
                name: entry.name,
                pass,
            });
        }
        let main = program.steps().iter().filter(|s| !s.is_override()).count();
        let mut end = main;
        if let Some(stop) = stop_after {
            let found = steps[..main].iter().position(|s| s.name == stop);
            let names = || steps.iter().map(|s| s.name).collect::<Vec<_>>().join(", ");
            end = found.ok_or_else(|| ScheduleError::StopAfter(stop.to_string(), names()))? + 1;
        }
        let stages = stages(&steps, end, main);
        Ok(Self {
            program,
            steps,
            stages,
        })
    }

    /// Plugins whose passes are in the pipeline, with their versions.
    pub fn plugins(&self) -> Vec<String> {
        let title = |s: &Scheduled| {
            let plugin = crate::pass::plugin::of(s.name)?;
            Some(format!("{} {}", plugin.name, plugin.version))
        };
        let mut all: Vec<String> = self.steps.iter().filter_map(title).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Whether any matrix pass runs.
    pub fn has_matrix_passes(&self) -> bool {
        let matrices = |s: &Stage| matches!(s, Stage::Matrices(_));
        self.stages.iter().any(matrices)
    }

    /// Checks that every scope selects something.
    ///
    /// # Errors
    /// The first scope or override that selects nothing.
    pub fn check_scopes(&self, sites: &[Site]) -> Result<(), SyntaxError> {
        let selected: Vec<_> = sites.iter().map(select).collect();
        self.program.check_matches(&selected)
    }

    /// The name of a step's pass, and its options as they were written.
    pub fn call(&self, step: usize) -> Option<(&'static str, serde_json::Map<String, Value>)> {
        let name = self.steps.get(step)?.name;
        let step = self.program.steps().get(step)?;
        Some((name, step.call.options_json()))
    }

    /// What a step's pass says is wrong with a site.
    pub(super) fn failed(&self, step: usize, site: &Site, error: &PassError) -> RunError {
        RunError::Pass {
            pass: self.steps[step].name.to_string(),
            site: site.name.clone(),
            message: error.to_string(),
        }
    }

    /// Whether a step stands in no scope and comes from no override.
    pub fn stands_free(&self, step: usize) -> bool {
        let step = self.program.steps().get(step);
        step.is_some_and(|step| !step.is_scoped() && !step.is_override())
    }

    /// Steps that run on a site, over all stages, in order.
    pub fn steps_for(&self, site: &Site) -> Vec<usize> {
        let mut scheduled = vec![false; self.steps.len()];
        for stage in &self.stages {
            if let Stage::Matrices(steps) = stage {
                steps.iter().for_each(|&s| scheduled[s] = true);
            }
        }
        let mut steps = self.program.steps_for(&select(site));
        steps.retain(|&s| scheduled[s]);
        steps
    }

    /// Whether the site's last matrix step leaves a dense residual.
    pub fn keeps_residual(&self, last: usize) -> bool {
        matches!(&self.steps[last].pass, Pass::Matrix(p) if p.residual() == Residual::Keep)
    }
}

/// The pipeline with every list of options' values put together; see [`options::with_lists`].
pub fn with_lists(pipeline: &Pipeline) -> Pipeline {
    let whole = |item: &Item| match item {
        Item::Pass(call) => Item::Pass(match registry::find(&call.name) {
            Some(entry) => options::with_lists(call, &(entry.schema)()),
            None => call.clone(),
        }),
        Item::Scope { scope, body, span } => Item::Scope {
            scope: scope.clone(),
            body: with_lists(body),
            span: span.clone(),
        },
        Item::Preset { .. } => item.clone(),
    };
    Pipeline {
        items: pipeline.items.iter().map(whole).collect(),
    }
}

/// `train` needs the weights of all passes before it, and passes need what they were made from.
fn train_is_last(program: &Program) -> Result<(), SyntaxError> {
    let mut main = program.steps().iter().filter(|s| !s.is_override());
    let Some(step) = main.find(|s| s.call.name == train::ENTRY.name && !s.is_scoped()) else {
        return Ok(());
    };
    match main.next() {
        None => Ok(()),
        Some(_) => Err(step.call.span.error(
            "`train` works on the finished model, and another pass stands behind it",
            "move it to the end; `mode=both` trains layer by layer, then the whole",
        )),
    }
}

fn select(site: &Site) -> Selected<'_> {
    Selected {
        name: &site.name,
        layer: site.layer,
        kinds: &site.roles,
    }
}

fn build(call: &PassCall) -> Result<(PassEntry, Pass), ScheduleError> {
    let entry = registry::find(&call.name).ok_or_else(|| unknown(call))?;
    let schema: Value = (entry.schema)();
    check_options(call, &schema)?;
    let pass =
        (entry.build)(options_json(&call.options)).map_err(|error| ScheduleError::Options {
            pass: entry.name.to_string(),
            error,
        })?;
    Ok((entry, pass))
}

fn unknown(call: &PassCall) -> SyntaxError {
    let names = registry::passes();
    let near = names
        .iter()
        .map(|e| (strsim::damerau_levenshtein(e.name, &call.name), e.name))
        .min()
        .filter(|(distance, _)| *distance <= 3);
    let help = match near {
        Some((_, name)) => format!("did you mean `{name}`? `hlrc-opt passes` lists all"),
        None => "`hlrc-opt passes` lists all passes".to_string(),
    };
    call.span
        .error(format!("no pass is called `{}`", call.name), &help)
}

fn stages(steps: &[Scheduled], end: usize, main: usize) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        if index >= end && index < main {
            continue;
        }
        match (&step.pass, stages.last_mut()) {
            (Pass::Module(_), _) => stages.push(Stage::Module(index)),
            (Pass::Matrix(_), Some(Stage::Matrices(together))) => together.push(index),
            (Pass::Matrix(_), _) => stages.push(Stage::Matrices(vec![index])),
        }
    }
    stages
}

/// The canonical form of a pipeline: presets replaced, and `residual=` as it will be.
///
/// # Errors
/// As [`Schedule::new`].
pub fn canonical(pipeline: &Pipeline) -> Result<Pipeline, ScheduleError> {
    let mut expanded = with_lists(&crate::pass::pipeline::preset::expand(pipeline)?);
    Schedule::new(&expanded, &[], None)?;
    show_residuals(&mut expanded, TakenUp::Nowhere);
    Ok(expanded)
}

/// Whether a later pass takes up what is left, on the sites that a pass runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TakenUp {
    Nowhere,
    /// Only on sites that a later scope selects.
    Somewhere,
    Everywhere,
}

/// Writes out `residual=` where a pass has the option and the text leaves it to the pipeline.
///
/// What differs between sites is left to the pipeline.
fn show_residuals(pipeline: &mut Pipeline, mut taken_up: TakenUp) {
    use crate::pass::pipeline::PassOption;
    for item in pipeline.items.iter_mut().rev() {
        match item {
            Item::Scope { body, .. } => {
                show_residuals(body, taken_up);
                if taken_up == TakenUp::Nowhere && body.calls().into_iter().any(is_matrix) {
                    taken_up = TakenUp::Somewhere;
                }
            }
            Item::Preset { .. } => {}
            Item::Pass(call) if is_matrix(call) => {
                let schema = build(call).map(|(entry, _)| (entry.schema)());
                let has = schema.is_ok_and(|s| s.pointer("/properties/residual").is_some());
                let given = call.options.iter().any(|o| o.key == "residual");
                let word = match taken_up {
                    TakenUp::Nowhere => Some("drop"),
                    TakenUp::Somewhere => None,
                    TakenUp::Everywhere => Some("keep"),
                };
                if let Some(word) = word.filter(|_| has && !given) {
                    call.options.push(PassOption {
                        key: "residual".to_string(),
                        value: Some(word.to_string()),
                        span: call.span.clone(),
                    });
                }
                taken_up = TakenUp::Everywhere;
            }
            Item::Pass(_) => {}
        }
    }
}

fn is_matrix(call: &PassCall) -> bool {
    matches!(build(call), Ok((_, Pass::Matrix(_))))
}
