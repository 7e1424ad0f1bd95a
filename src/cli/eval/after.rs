//! The evaluation at the end of `opt --eval`.

use super::args::EvalArgs;
use super::{Exit, Failure};
use crate::cli::args::OptArgs;
use crate::cli::errors;
use crate::cli::opt::write_text;
use crate::cli::target::{Target, report_beside};
use crate::eval::Evaluation;
use crate::export::hlrc;
use crate::opt::OptError;
use crate::report::ModelReport;
use crate::report::progress::Progress;
use std::path::Path;

/// Checks, before the work begins, that there will be something to judge.
pub fn check(args: &OptArgs, target: &Target) -> Result<(), Failure> {
    if args.eval.is_empty() {
        return Ok(());
    }
    for path in &args.eval {
        std::fs::File::open(path).map_err(|error| Failure::read(path, &error))?;
    }
    let is_file = matches!(
        target,
        Target::Folder(_) | Target::Onnx(_) | Target::Text(_)
    );
    if is_file && args.input.as_deref() != Some(Path::new("-")) {
        return Ok(());
    }
    let what = "--eval takes an input and an output that can be read again";
    Err(Failure::new(Exit::Usage, what).help("name files, or leave --eval out"))
}

/// Judges what was written against what it was made from, where that was asked for, and adds it to the report.
pub fn judge(
    args: &OptArgs,
    target: &Target,
    progress: &Progress,
    report: &ModelReport,
) -> Result<Option<Evaluation>, Failure> {
    let (Some(input), Some(output)) = (&args.input, target.path()) else {
        return Ok(None);
    };
    if args.eval.is_empty() {
        return Ok(None);
    }
    let settings = EvalArgs::after_opt(
        output.into(),
        input.clone(),
        &args.eval,
        args.threads,
        args.talk,
    );
    let judged = super::evaluate(&settings, progress).map_err(|mut failure| {
        failure.message = format!(
            "{} is written, but not judged: {}",
            output.display(),
            failure.message
        );
        failure
    })?;
    let json = self::report(report, Some(&judged));
    let text = serde_json::to_string_pretty(&json).unwrap_or_default() + "\n";
    match target {
        Target::Folder(path) => {
            hlrc::replace_report(path, &text)
                .map_err(|error| errors::job(&OptError::Folder(error)))?;
        }
        Target::Onnx(path) => write_text(&report_beside(path), &text)?,
        _ => {}
    }
    Ok(Some(judged))
}

/// The report as JSON, with the evaluation under `evaluation`.
pub fn report(report: &ModelReport, judged: Option<&Evaluation>) -> serde_json::Value {
    let mut json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap_or_default();
    if let (Some(object), Some(judged)) = (json.as_object_mut(), judged) {
        let judged = serde_json::to_value(judged).unwrap_or_default();
        object.insert("evaluation".into(), judged);
    }
    json
}
