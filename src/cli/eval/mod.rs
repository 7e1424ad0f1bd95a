//! `eval`: how good models are, and how close to the one that they were made from.

pub mod after;
pub mod args;
pub mod models;
mod table;
pub mod text;
pub mod watch;

use super::{Exit, Failure, load, opt, print, signal};
use crate::eval::inputs::{Inputs, LARGEST, read_npz, token_inputs};
use crate::eval::report::OutputsScore;
use crate::eval::report::{Against, OutputsReport};
use crate::eval::{EvalError, Evaluation, outputs};
use crate::exec::{Engine, Precision, Without};
use crate::report::progress::Progress;
use crate::runtime::Place;
use args::EvalArgs;
use models::{Model, Opened, as_failure as failure, folder};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Instant;
use watch::Watch;

pub use table::render;

/// Tokens of a line that an encoder is given at most, where --ctx says nothing.
const LINE: usize = 128;
/// Lines that are compared, where --windows says nothing.
const LINES: usize = 64;

/// Judges models.
pub fn run(args: &EvalArgs) -> Result<Exit, Failure> {
    let progress = opt::progress(&args.talk);
    let evaluation = evaluate(args, &progress)?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&evaluation).unwrap_or_default() + "\n",
        false => render(&evaluation),
    };
    print(text.as_bytes())?;
    gates(args, &evaluation)
}

/// What was found of the models.
pub fn evaluate(args: &EvalArgs, progress: &Progress) -> Result<Evaluation, Failure> {
    args.device.check()?;
    if !args.inputs.is_empty() {
        no_effect(args)?;
    }
    let mut room = LARGEST;
    let arrays = args
        .inputs
        .iter()
        .map(|path| read_npz(path, &mut room, signal::flag()).map_err(failure));
    let arrays = arrays.collect::<Result<Vec<Inputs>, Failure>>()?;
    let open = |path: &std::path::Path| {
        let opened = Opened::new(path, &arrays)?;
        opened.tell(progress);
        Ok::<_, Failure>(opened)
    };
    let reference = args.reference.as_deref().map(open).transpose()?;
    let whole = |opened: &Opened| opened.model(args, Precision::Exact, Without::default());
    let original = reference.as_ref().map(whole).transpose()?;
    let mut models = Vec::new();
    let mut notes = Vec::new();
    for path in &args.models {
        let variants = open(path)?.variants(args)?;
        if args.ablate && variants.len() == 1 {
            let what = "has no low-rank and no sparse terms to leave out";
            notes.push(format!("--ablate: {} {what}", path.display()));
        }
        models.extend(variants);
    }
    if args.ablate && models.len() == args.models.len() {
        let what = "--ablate has no effect: no model has low-rank or sparse terms";
        return Err(Failure::new(Exit::Usage, what).help("leave it out"));
    }
    for note in &notes {
        progress.warn(note);
    }
    if args.inputs.is_empty() {
        let tokens = || -> Result<usize, Failure> { Ok(text::tokenizer(args)?.size()) };
        for model in original.iter().chain(&models) {
            model.judge(&tokens)?;
        }
    }
    let is_text = match (args.inputs.is_empty(), models.first()) {
        (true, Some(first)) => first.predictor()?.is_some(),
        _ => false,
    };
    if !is_text && let Some((model, why)) = models.iter().find_map(|m| Some((m, m.why_not()?))) {
        let what = "is no causal language model, so that outputs are compared";
        notes.push(format!("{} {what}: {why}", model.name));
        progress.warn(notes.last().map_or("", String::as_str));
    }
    if is_text {
        let original = reference.as_ref().zip(original.as_ref());
        let mut report = text::evaluate(args, progress, original, &models)?;
        report.notes = notes;
        return Ok(Evaluation::Text(report));
    }
    if args.device.device != Place::Cpu {
        let what =
            "--device judges language models on text; other models and arrays run on the processor";
        return Err(Failure::new(Exit::Usage, what).help("leave it out"));
    }
    let Some(original) = &original else {
        let what = "the model is no language model, and its outputs say nothing by themselves";
        return Err(Failure::new(Exit::Usage, what).help("name the original with --ref"));
    };
    if args.max_kl.is_some() || args.max_ppl_ratio.is_some() {
        let what = "--max-kl and --max-ppl-ratio are for language models on text";
        return Err(
            Failure::new(Exit::Usage, what).help("leave them out, or name text with --data")
        );
    }
    no_effect(args)?;
    let mut report = compare_outputs(args, progress, original, (&models, &arrays))?;
    report.notes = notes;
    Ok(Evaluation::Outputs(report))
}

/// Refuses what only language models on text take, and for arrays what is of text.
fn no_effect(args: &EvalArgs) -> Result<(), Failure> {
    let arrays = !args.inputs.is_empty();
    let given = [
        ("--stride", args.stride.is_some(), true),
        ("--skip", args.skip > 0, true),
        ("--bos", args.bos != args::Bos::Auto, true),
        ("--split", args.split.is_some(), true),
        ("--cache", args.cache.is_some(), true),
        ("--ctx", args.ctx.is_some(), arrays),
        ("--windows", args.windows.is_some(), arrays),
        ("--tokenizer", args.tokenizer.is_some(), arrays),
    ];
    let idle = given.iter().find(|(_, given, idle)| *given && *idle);
    let Some((flag, ..)) = idle else {
        return Ok(());
    };
    let what = match arrays {
        true => format!("{flag} has no effect on arrays of --inputs"),
        false => format!("{flag} has no effect: the model takes each line of text as one input"),
    };
    Err(Failure::new(Exit::Usage, what).help("leave it out"))
}

/// Compares outputs on arrays, or on lines of text.
fn compare_outputs(
    args: &EvalArgs,
    progress: &Progress,
    original: &Model,
    (models, arrays): (&[Model], &[Inputs]),
) -> Result<OutputsReport, Failure> {
    let begun = Instant::now();
    let (named, lines) = match args.inputs.is_empty() {
        false => (&args.inputs, Vec::new()),
        true => {
            let all = std::iter::once(original).chain(models);
            let positions = all.filter_map(Model::positions).min();
            (&args.data, token_lines(args, positions)?)
        }
    };
    let runs = arrays.len().max(lines.len());
    if runs == 0 {
        let first = args
            .data
            .first()
            .map_or(Path::new("--data"), PathBuf::as_path);
        return Err(text::no_text(first));
    }
    let inputs = |engine: &Engine, index: usize| match (arrays.get(index), lines.get(index)) {
        (Some(arrays), _) => Ok(Cow::Borrowed(arrays)),
        (None, line) => {
            let line = line.map_or(&[][..], Vec::as_slice);
            token_inputs(engine, &original.name, line).map(Cow::Owned)
        }
    };
    let mut scores = Vec::new();
    let mut watch = Watch::new(progress, &args.talk, runs * models.len(), "runs");
    for (at, model) in models.iter().enumerate() {
        let (a, b) = (
            (&original.engine, &*original.name),
            (&model.engine, &*model.name),
        );
        let found = outputs::compare(a, b, runs, &inputs, arrays.is_empty(), &mut |done| {
            watch.at(at * runs + done)
        });
        scores.push(OutputsScore {
            name: model.name.clone(),
            without: model.without.clone(),
            outputs: found.map_err(failure)?,
        });
    }
    Ok(OutputsReport {
        inputs: named
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        reference: original.name.clone(),
        models: scores,
        notes: Vec::new(),
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// Lines of the texts as tokens, with what the model expects around them.
fn token_lines(args: &EvalArgs, positions: Option<usize>) -> Result<Vec<Vec<u32>>, Failure> {
    let tokenizer = text::tokenizer(args)?;
    // ONNX models do not say it themselves.
    let positions = positions.or(tokenizer.special().context);
    let most = text::context(args, LINE, positions)?;
    let mut out = Vec::new();
    for path in &args.data {
        let content = text::read(path)?;
        let before = out.len();
        for line in content.lines().filter(|line| !line.trim().is_empty()) {
            if out.len() == args.windows.unwrap_or(LINES) {
                return Ok(out);
            }
            let ids = tokenizer.encode_with_special(line);
            let mut ids = ids.map_err(|error| text::failure(&error))?;
            ids.truncate(most);
            if !ids.is_empty() {
                out.push(ids);
            }
        }
        if out.len() == before {
            return Err(text::no_text(path));
        }
    }
    Ok(out)
}

/// Fails where a model is worse than it may be.
fn gates(args: &EvalArgs, evaluation: &Evaluation) -> Result<Exit, Failure> {
    let Evaluation::Text(report) = evaluation else {
        return Ok(Exit::Ok);
    };
    let mut missed = Vec::new();
    for model in report
        .models
        .iter()
        .filter(|model| model.without.is_empty())
    {
        let Some(against) = &model.against else {
            continue;
        };
        for (what, flag, value, limit) in measured(args, against) {
            // What is no number passes no gate.
            if value.is_nan() || value > limit {
                missed.push(format!(
                    "{}: {what} {value:.6} is above {flag} {limit}",
                    model.name
                ));
            }
        }
    }
    match missed.is_empty() {
        true => Ok(Exit::Ok),
        false => Err(Failure::new(Exit::Gate, missed.join("\n  "))),
    }
}

type Gate = (&'static str, &'static str, f64, f64);

fn measured(args: &EvalArgs, against: &Against) -> Vec<Gate> {
    let kl = args
        .max_kl
        .map(|limit| ("the mean KL divergence", "--max-kl", against.kl.mean, limit));
    let ratio = |limit| {
        (
            "the perplexity ratio",
            "--max-ppl-ratio",
            against.perplexity_ratio,
            limit,
        )
    };
    kl.into_iter()
        .chain(args.max_ppl_ratio.map(ratio))
        .collect()
}
