//! From `-p` and `-t` to a pipeline that is known to make sense, before any model is opened.

use super::args::OptArgs;
use super::{Exit, Failure, errors, signal};
use crate::pass::manager::{self, Schedule};
use crate::pass::pipeline::error::did_you_mean;
use crate::pass::pipeline::{
    Item, Override, PassCall, Pipeline, SyntaxError, check_options, options, preset,
};
use crate::pass::plugin;
use crate::pass::registry::{find, passes};

/// A pipeline and its overrides, presets expanded, every pass and option known.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// The pipeline.
    pub pipeline: Pipeline,
    /// The overrides, in the order given.
    pub overrides: Vec<Override>,
    /// `train`, where the pipeline ended in it; it is no part of `pipeline` then.
    pub training: Option<PassCall>,
}

impl Prepared {
    /// Every pass named, overrides included.
    pub fn calls(&self) -> Vec<&PassCall> {
        let bodies = self.overrides.iter().map(|one| &one.body);
        std::iter::once(&self.pipeline)
            .chain(bodies)
            .flat_map(|pipeline| pipeline.calls())
            .collect()
    }

    /// The canonical form as manifests record it, `residual=` as it will be, one override to a line;
    /// without `train`.
    ///
    /// # Errors
    /// A [`Failure`] where the pipeline can't be run.
    pub fn canonical(&self) -> Result<String, Failure> {
        let canonical = |pipeline: &Pipeline| {
            manager::canonical(pipeline).map_err(|error| errors::schedule(&error))
        };
        let mut out = canonical(&self.pipeline)?.to_string();
        for one in &self.overrides {
            let full = Override {
                body: canonical(&one.body)?,
                ..one.clone()
            };
            out.push_str(&format!("\n-t {full}"));
        }
        Ok(out)
    }

    /// The canonical form with every default spelled out, one override to a line.
    pub fn spelled_out(&self) -> String {
        let canonical =
            |pipeline: &Pipeline| manager::canonical(pipeline).unwrap_or_else(|_| pipeline.clone());
        let mut whole = self.pipeline.clone();
        whole.items.extend(self.training.clone().map(Item::Pass));
        let mut out = format!("{}\n", with_defaults(&canonical(&whole)));
        for one in &self.overrides {
            let full = Override {
                body: with_defaults(&canonical(&one.body)),
                ..one.clone()
            };
            out.push_str(&format!("-t {full}\n"));
        }
        out
    }
}

/// Parses and checks the pipeline and overrides of a command line.
///
/// # Errors
/// A [`Failure`], exit code 2, that shows the place.
pub fn prepare(args: &OptArgs) -> Result<Prepared, Failure> {
    // Passes of plugins are built with it.
    plugin::set_seed(args.seed);
    let pipeline = preset::expand(&Pipeline::parse(&args.pipeline)?)?;
    let pipeline = manager::schedule::with_lists(&pipeline);
    let parse = |text: &String| Override::parse(text).and_then(|one| preset::expand_override(&one));
    let overrides = args
        .overrides
        .iter()
        .map(parse)
        .collect::<Result<Vec<_>, _>>();
    let overrides = overrides.map_err(|error| in_option("-t", &error))?;
    let mut prepared = Prepared {
        pipeline,
        overrides,
        training: None,
    };
    for call in prepared.calls() {
        check(call).map_err(|error| in_option("-p", &error))?;
    }
    if let Some(pass) = &args.stop_after {
        stop_is_named(&prepared, pass)?;
    }
    if let Some(filter) = &args.debug.remarks_filter {
        regex::Regex::new(filter).map_err(|error| {
            Failure::new(
                Exit::Usage,
                format!("--remarks-filter `{filter}` is no regular expression: {error}"),
            )
            .help("escape brackets that are meant literally")
        })?;
    }
    let named = prepared.calls().iter().any(|call| is_training(call));
    if named {
        // Says what is wrong with its place.
        Schedule::new(&prepared.pipeline, &prepared.overrides, None)
            .map_err(|error| errors::schedule(&error))?;
        if let Some(Item::Pass(call)) = prepared.pipeline.items.pop() {
            let stops = args.stop_after.as_ref();
            prepared.training = stops.is_none_or(|stop| *stop == call.name).then_some(call);
        }
    }
    Ok(prepared)
}

fn is_training(call: &PassCall) -> bool {
    call.name == crate::passes::train::ENTRY.name
}

fn in_option(option: &str, error: &SyntaxError) -> Failure {
    match signal::interrupted() {
        // A plugin's pass was being made.
        true => Failure::new(Exit::Interrupted, format!("interrupted: {error}")),
        false => Failure::new(Exit::Usage, format!("in {option}: {error}")),
    }
}

/// Checks that a call names a pass and gives it options that it takes.
///
/// # Errors
/// A [`SyntaxError`] at the name or the option.
pub fn check(call: &PassCall) -> Result<(), SyntaxError> {
    let Some(entry) = find(&call.name) else {
        let all = passes();
        let names: Vec<&str> = all.iter().map(|entry| entry.name).collect();
        return Err(call.span.error(
            format!("there is no pass `{}`", call.name),
            did_you_mean(&call.name, "passes", &names),
        ));
    };
    check_options(call, &(entry.schema)())?;
    // What a schema can't say (a rank and an energy at once, …) the pass itself refuses.
    match (entry.build)(call.options_json()) {
        Ok(_) => Ok(()),
        Err(error) => Err(call.span.error(
            error.to_string(),
            format!("`hlrc-opt passes {}` describes its options", call.name),
        )),
    }
}

fn stop_is_named(prepared: &Prepared, pass: &str) -> Result<(), Failure> {
    let calls = prepared.pipeline.calls();
    let names: Vec<&str> = calls.iter().map(|call| call.name.as_str()).collect();
    if names.contains(&pass) {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Usage,
        format!("--stop-after: the pipeline has no pass `{pass}`"),
    )
    .help(did_you_mean(pass, "its passes", &names)))
}

fn with_defaults(pipeline: &Pipeline) -> Pipeline {
    let full = |item: &Item| match item {
        Item::Pass(call) => Item::Pass(match find(&call.name) {
            Some(entry) => options::with_defaults(call, &(entry.schema)()),
            None => call.clone(),
        }),
        Item::Scope { scope, body, span } => Item::Scope {
            scope: scope.clone(),
            body: with_defaults(body),
            span: span.clone(),
        },
        Item::Preset { .. } => item.clone(),
    };
    Pipeline {
        items: pipeline.items.iter().map(full).collect(),
    }
}
