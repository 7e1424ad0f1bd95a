//! `report`: a run's report as one HTML page; also what `opt --html` writes.

pub mod args;

use super::args::OptArgs;
use super::opt::{progress, write_text};
use super::target::{Target, report_beside};
use super::{Exit, Failure, errors, load, print, signal};
use crate::eval::Evaluation;
use crate::export::hlrc::REPORT_FILE;
use crate::report::html::{Page, render};
use crate::report::progress::Progress;
use crate::report::read::{self, ReadError};
use crate::report::spectra::{self, Spectra, SpectraError};
use crate::report::{ModelReport, human};
use args::ReportArgs;
use std::path::{Path, PathBuf};

/// What the page and stderr say where the original is not known.
const NO_ORIGINAL: &str =
    "Spectra need the original: `hlrc-opt report OUT --ref MODEL` computes them.";

/// Writes a page.
pub fn run(args: &ReportArgs) -> Result<Exit, Failure> {
    let progress = progress(&args.talk);
    let file = report_file(&args.input)?;
    let output = match &args.output {
        Some(path) => path.clone(),
        None => PathBuf::from(format!("{}.html", stem(&args.input))),
    };
    let stdout = output == Path::new("-");
    if !stdout {
        check_place(&output, args.force)?;
        let read = [Some(&file), args.eval.as_ref()];
        if read
            .into_iter()
            .flatten()
            .any(|path| is_same(path, &output))
        {
            let what = format!("{}: is what the page is made from", output.display());
            return Err(Failure::new(Exit::Failure, what).help("name another file with -o"));
        }
    }
    let stored = read::report(&file).map_err(|error| failure(&error))?;
    let evaluation = match &args.eval {
        Some(path) => Some(read::evaluation(path).map_err(|error| failure(&error))?),
        None => stored.evaluation,
    };
    let spectra = match (&args.reference, args.spectra) {
        (_, 0) => Spectra::Absent("No spectra were asked for (--spectra none).".into()),
        (None, _) => {
            progress
                .warn("no spectra in the page: --ref names the original that they are computed of");
            Spectra::Absent(NO_ORIGINAL.into())
        }
        (Some(original), most) => decompose(&stored.report, original, most, &progress)?,
    };
    let page = page(&stored.report, evaluation.as_ref(), &spectra)?;
    if stdout {
        print(page.as_bytes())?;
        return Ok(Exit::Ok);
    }
    write_text(&output, &page)?;
    tell(&progress, &output, &page);
    Ok(Exit::Ok)
}

/// Checks, before the work begins, that `--html` names a place that may be written.
pub fn check(args: &OptArgs, target: &Target) -> Result<(), Failure> {
    let Some(path) = &args.html else {
        return Ok(());
    };
    let others = [args.input.as_deref(), target.path()];
    let taken = |other: &Path| other == path || is_same(other, path);
    let report = match target {
        Target::Onnx(path) => Some(report_beside(path)),
        _ => None,
    };
    if others.into_iter().flatten().any(taken) || report.as_deref().is_some_and(taken) {
        let what = format!(
            "--html {}: is the input or an output itself",
            path.display()
        );
        return Err(Failure::new(Exit::Usage, what).help("name another file"));
    }
    if let Target::Folder(folder) = target
        && path.starts_with(folder)
    {
        let what = format!("--html {}: lies inside of the output", path.display());
        return Err(Failure::new(Exit::Usage, what).help("name a file beside the folder"));
    }
    check_place(path, args.force || args.resume)
}

/// Writes the page of `opt --html`, where it was asked for.
pub fn after_opt(
    args: &OptArgs,
    progress: &Progress,
    report: &ModelReport,
    judged: Option<&Evaluation>,
) -> Result<(), Failure> {
    let Some(path) = &args.html else {
        return Ok(());
    };
    let original = args
        .input
        .as_deref()
        .filter(|input| *input != Path::new("-"));
    let spectra = match (original, args.spectra) {
        (_, 0) => Spectra::Absent("No spectra were asked for (--spectra none).".into()),
        (None, _) => {
            progress.warn("no spectra in the page: the input was read from stdin");
            Spectra::Absent(NO_ORIGINAL.into())
        }
        (Some(original), most) => match decompose(report, original, most, progress) {
            Ok(found) => found,
            Err(failure) if failure.exit == Exit::Interrupted => return Err(failure),
            // The page is worth having without them.
            Err(failure) => {
                progress.warn(&format!("no spectra in the page: {}", failure.message));
                Spectra::Absent(format!(
                    "Spectra could not be computed: {}",
                    failure.message
                ))
            }
        },
    };
    let page = page(report, judged, &spectra)?;
    write_text(path, &page)?;
    tell(progress, path, &page);
    Ok(())
}

fn tell(progress: &Progress, path: &Path, page: &str) {
    let size = human::size(page.len() as u64);
    progress.stage("Page", &format!("{} ({size})", path.display()));
}

fn page(
    report: &ModelReport,
    evaluation: Option<&Evaluation>,
    spectra: &Spectra,
) -> Result<String, Failure> {
    let page = Page {
        report,
        evaluation,
        spectra,
    };
    render(&page)
        .map_err(|error| Failure::new(Exit::Failure, format!("the page can't be made: {error}")))
}

fn decompose(
    report: &ModelReport,
    original: &Path,
    most: usize,
    progress: &Progress,
) -> Result<Spectra, Failure> {
    progress.stage("Spectra", &original.display().to_string());
    let module = load::model(original)?;
    let found = spectra::compute(report, &module, most, signal::flag());
    let found = found.map_err(|error| match &error {
        SpectraError::Interrupted => Failure::new(Exit::Interrupted, "interrupted"),
        SpectraError::Other { .. } => Failure::new(
            Exit::Input,
            format!("--ref {}: {error}", original.display()),
        )
        .help("name the model that the output was made from"),
        SpectraError::Store { source, .. } => Failure::new(
            errors::of_store(source),
            format!("{}: {error}", original.display()),
        ),
    })?;
    if let Spectra::Found { left_out, .. } = &found {
        for (name, why) in left_out {
            progress.warn(&format!("no spectrum of {name}: it {why}"));
        }
    }
    Ok(found)
}

fn failure(error: &ReadError) -> Failure {
    Failure::new(Exit::Input, error.to_string()).help(error.help())
}

/// The report of what the user named.
fn report_file(input: &Path) -> Result<PathBuf, Failure> {
    let meta = std::fs::metadata(input).map_err(|error| Failure::read(input, &error))?;
    let shown = input.display();
    if meta.is_dir() {
        let file = input.join(REPORT_FILE);
        return match file.is_file() {
            true => Ok(file),
            false => Err(
                Failure::new(Exit::Input, format!("{shown}: holds no {REPORT_FILE}"))
                    .help("name an output of hlrc-opt; -p with a pipeline makes one"),
            ),
        };
    }
    if input
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("onnx"))
    {
        let file = report_beside(input);
        return match file.is_file() {
            true => Ok(file),
            false => Err(Failure::new(
                Exit::Input,
                format!("{shown}: there is no {} beside it", file.display()),
            )
            .help("name an ONNX file that hlrc-opt wrote, or its report")),
        };
    }
    Ok(input.to_path_buf())
}

/// What the page is called by: the output's name.
fn stem(input: &Path) -> String {
    let full = input.canonicalize().unwrap_or_else(|_| input.to_path_buf());
    let inside = full.file_name().is_some_and(|name| name == REPORT_FILE);
    let named = match (inside, full.parent()) {
        (true, Some(folder)) if folder.extension().is_some_and(|e| e == "hlrc") => folder,
        _ => full.as_path(),
    };
    let stem = named
        .file_stem()
        .map_or_else(|| "report".into(), |s| s.to_string_lossy().into_owned());
    stem.strip_suffix(".report").unwrap_or(&stem).to_string()
}

fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Checks that a page may be written there.
fn check_place(path: &Path, replace: bool) -> Result<(), Failure> {
    let shown = path.display();
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
        let what = format!("{shown}: the folder {} does not exist", parent.display());
        return Err(Failure::new(Exit::Failure, what).help("create it first, or name another file"));
    }
    if path.is_dir() {
        let what = format!("{shown}: is a folder, and the page is a file");
        return Err(Failure::new(Exit::Failure, what).help("name a file"));
    }
    if path.is_file() && !replace {
        let what = format!("{shown}: is there already");
        return Err(Failure::new(Exit::Failure, what).help("--force replaces it"));
    }
    Ok(())
}
