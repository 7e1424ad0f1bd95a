//! `calibrate`: what goes into each linear, measured on text.

pub mod again;
pub mod args;
mod fit;
mod source;
mod table;
pub mod text;

use super::eval::watch::Watch;
use super::{Exit, Failure, errors, load, opt, print, signal};
use crate::calib::{self, CalibError, Job, ModelId, Statistics, Summary, calibrate, fingerprint};
use crate::cli::args::{OptArgs, TalkArgs};
use crate::exec::{Engine, Options};
use crate::export::hlrc::FolderError;
use crate::ir::Module;
use crate::opt::OptError;
use crate::report::human;
use crate::report::progress::Progress;
use crate::weights::FileCache;
use args::CalibrateArgs;
use std::path::{Path, PathBuf};
use std::time::Instant;
use text::{Settings, Text};

pub use fit::{check_fit, check_pipeline, helped, users};

/// Calibrates, merges or shows.
pub fn run(args: &CalibrateArgs) -> Result<Exit, Failure> {
    let progress = opt::progress(&args.talk);
    let path = match (&args.show, &args.model) {
        (Some(path), _) => path.clone(),
        (None, Some(model)) => one(args, model, &progress)?,
        (None, None) if !args.merge.is_empty() => merge(args, &progress)?,
        (None, None) => return Err(Failure::new(Exit::Usage, "no model is named")),
    };
    let statistics = Statistics::open(&path).map_err(failure)?;
    let mut summary = Summary::new(&statistics).map_err(failure)?;
    if let (Some(_), Some(model)) = (&args.show, &args.model) {
        let module = load::model(model)?;
        let sites = crate::ir::site::sites(&module);
        let without = statistics.check(&model.display().to_string(), &sites);
        summary.without = without.map_err(failure)?;
        if let Some(warning) = other_model(&statistics, model)? {
            progress.warn(&warning);
        }
    }
    for line in table::warnings(&summary) {
        progress.warn(&line);
    }
    let text = match args.json {
        true => serde_json::to_string_pretty(&summary).unwrap_or_default() + "\n",
        false => table::render(&path, &summary),
    };
    print(text.as_bytes())?;
    Ok(Exit::Ok)
}

/// Refuses an output that is a folder or a device: a file never takes its place.
fn replaceable(output: &Path) -> Result<(), Failure> {
    if output.metadata().is_ok_and(|meta| !meta.is_file()) {
        let what = format!("{}: is no file, and is not replaced", output.display());
        return Err(Failure::new(Exit::Failure, what).help("choose another place with -o"));
    }
    Ok(())
}

/// Adds files up; gives the sum.
fn merge(args: &CalibrateArgs, progress: &Progress) -> Result<PathBuf, Failure> {
    let Some(output) = &args.output else {
        return Err(Failure::new(Exit::Usage, "--merge writes to -o"));
    };
    replaceable(output)?;
    if output.exists() && !args.force {
        let what = format!("{}: is there already", output.display());
        return Err(Failure::new(Exit::Failure, what).help("-f replaces it"));
    }
    let files = args
        .merge
        .iter()
        .map(|path| Statistics::open(path).map_err(failure));
    let files = files.collect::<Result<Vec<_>, Failure>>()?;
    refuse_twice(&files)?;
    calib::merge(&files, output).map_err(failure)?;
    progress.stage("Merged", &human::plural(files.len(), "file"));
    Ok(output.clone())
}

/// Refuses to count a text twice.
fn refuse_twice(files: &[Statistics]) -> Result<(), Failure> {
    let mut seen: Vec<(&str, &Path)> = Vec::new();
    for file in files {
        for run in &file.metadata().runs {
            let other = seen.iter().find(|(hash, _)| *hash == run.token_hash);
            if let Some((_, other)) = other.filter(|(hash, _)| !hash.is_empty()) {
                let (a, b) = (other.display(), file.path().display());
                let what = format!("{a} and {b} are of the same windows, which would count twice");
                return Err(Failure::new(Exit::Usage, what).help("leave one of them out"));
            }
            seen.push((&run.token_hash, file.path()));
        }
    }
    Ok(())
}

/// SHA-256 of a text, as statistics name it.
///
/// # Errors
/// It can't be read, or is not UTF-8.
pub fn text_digest(path: &Path) -> Result<String, Failure> {
    let content = crate::cli::eval::text::read(path)?;
    Ok(crate::weights::Digest::of(content.as_bytes()).to_hex())
}

/// The file of statistics that `--calib` names, if it names one, and whether it is of this model; told once.
///
/// # Errors
/// It is damaged.
pub fn given(
    model: &Path,
    args: &OptArgs,
    progress: &Progress,
) -> Result<Option<Statistics>, Failure> {
    check_alone(&args.calib)?;
    let [path] = args.calib.as_slice() else {
        return Ok(None);
    };
    if !calib::is_statistics(path) {
        return Ok(None);
    }
    let found = Statistics::open(path).map_err(failure)?;
    // Standard input can be read but once.
    if model != Path::new("-")
        && let Some(warning) = other_model(&found, model)?
    {
        progress.warn(&warning);
    }
    Ok(Some(found))
}

/// A warning where statistics are of another model, by its fingerprint.
fn other_model(statistics: &Statistics, model: &Path) -> Result<Option<String>, Failure> {
    let of = &statistics.metadata().model;
    if of.fingerprint.is_empty() {
        return Ok(None);
    }
    let module = load::executable(model)?.module;
    let files = load::source(&load::Source::of(model)?)?.files;
    Ok((fingerprint(&module, &files) != of.fingerprint).then(|| {
        format!(
            "{} is of {}, whose weights are not those of {}: right for inputs behind what is compressed already, else calibrate again",
            statistics.path().display(),
            of.name,
            model.display()
        )
    }))
}

/// Refuses a file of statistics beside anything else.
///
/// # Errors
/// Which it is.
pub fn check_alone(calib: &[PathBuf]) -> Result<(), Failure> {
    match calib.iter().find(|path| calib::is_statistics(path)) {
        Some(path) if calib.len() > 1 => {
            let what = format!(
                "--calib: {} is a file of statistics, and stands alone",
                path.display()
            );
            Err(Failure::new(Exit::Usage, what)
                .help("`hlrc-opt calibrate --merge` adds statistics up; texts go together"))
        }
        _ => Ok(()),
    }
}

/// Calibrates a model; gives the file.
fn one(args: &CalibrateArgs, model: &Path, progress: &Progress) -> Result<PathBuf, Failure> {
    let output = match &args.output {
        Some(path) => path.clone(),
        None => PathBuf::from(load::Source::of(model)?.stem() + ".calibration"),
    };
    replaceable(&output)?;
    let settings = Settings {
        data: args.data.clone(),
        context: args.ctx,
        windows: args.windows,
        bos: args.bos,
        seed: args.seed,
        tokenizer: args.tokenizer.clone(),
    };
    let opened = Opened::new(model, args.threads)?;
    let text = text::prepare(model, &opened.engine, &settings, &args.talk, progress)?;
    let job = opened.job(&text, args.mem_limit);
    if output.exists() && !args.force {
        let same = Statistics::open(&output)
            .is_ok_and(|found| found.metadata().identity() == job.metadata().identity());
        if same {
            let what = format!("{} is of this model, text and protocol", output.display());
            progress.stage("Up to date", &what);
            return Ok(output);
        }
        let what = format!("{}: is there already", output.display());
        return Err(Failure::new(Exit::Failure, what).help("-f replaces it"));
    }
    measure(&job, &output, args.resume, &args.talk, progress)?;
    Ok(output)
}

/// Runs a job with a progress bar.
///
/// # Errors
/// The model fails, or the file can't be written.
pub fn measure(
    job: &Job<'_>,
    output: &Path,
    resume: bool,
    talk: &TalkArgs,
    progress: &Progress,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let tokens: usize = job.windows.iter().map(Vec::len).sum();
    let plan = format!(
        "{} ({tokens} tokens)",
        human::plural(job.windows.len(), "window")
    );
    progress.stage("Calibrating", &plan);
    let mut watch: Option<Watch<'_>> = None;
    let done = calibrate(job, output, resume, &mut |at| {
        let total = usize::try_from(at.total).unwrap_or(usize::MAX);
        let new = || Watch::new(progress, talk, total, "tokens × segments").called("Calibrating");
        let done = usize::try_from(at.done).unwrap_or(usize::MAX);
        watch.get_or_insert_with(new).at(done);
    });
    drop(watch);
    let done = done.map_err(failure)?;
    let spilled = match done.spilled {
        0 => String::new(),
        bytes => format!(", {} spilled", human::size(bytes)),
    };
    let told = format!(
        "{} in {} ({} running the model, {} adding up{spilled})",
        human::plural(done.segments, "segment"),
        human::duration(begun.elapsed()),
        human::duration(done.forward),
        human::duration(done.sums),
    );
    progress.stage("Calibrated", &told);
    Ok(())
}

/// A model, ready to run.
pub struct Opened {
    path: PathBuf,
    module: Module,
    files: Vec<PathBuf>,
    /// It.
    pub engine: Engine,
}

impl Opened {
    /// Imports a model.
    ///
    /// # Errors
    /// It can't be imported or run.
    pub fn new(path: &Path, threads: Option<u16>) -> Result<Self, Failure> {
        let loaded = load::executable(path)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let options = Options {
            threads: threads.map_or(cores, usize::from),
            ..Options::default()
        };
        let engine = Engine::new(&loaded.module, &FileCache::new(), &options);
        let mut engine = engine.map_err(|error| loaded.refused(path, &error))?;
        engine.set_interrupt(signal::flag());
        Ok(Self {
            path: path.to_path_buf(),
            files: load::source(&load::Source::of(path)?)?.files,
            module: loaded.module,
            engine,
        })
    }

    /// The job of running it on a text.
    pub fn job<'a>(&'a self, text: &'a Text, mem_limit: Option<u64>) -> Job<'a> {
        Job {
            module: &self.module,
            engine: &self.engine,
            model: ModelId {
                name: self.path.display().to_string(),
                fingerprint: fingerprint(&self.module, &self.files),
            },
            data: text.data.clone(),
            protocol: text.protocol,
            tokenizer: text.tokenizer.clone(),
            windows: &text.windows.list,
            mem_limit,
        }
    }
}

/// Statistics for `opt --calib`: a file of them, or text, which is run and kept in the user's cache.
///
/// # Errors
/// A file can't be read, the model can't be run.
pub fn statistics(
    model: &Path,
    args: &OptArgs,
    progress: &Progress,
) -> Result<Statistics, Failure> {
    if let Some(found) = given(model, args, progress)? {
        return Ok(found);
    }
    let opened = Opened::new(model, args.threads)?;
    let settings = Settings::new(&args.calib);
    let text = text::prepare(model, &opened.engine, &settings, &args.talk, progress)?;
    let job = opened.job(&text, args.mem_limit);
    let folder = crate::eval::cache::default_dir().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&folder).map_err(|error| Failure::write(&folder, &error))?;
    let who = job.metadata().identity() + &calib::stamp(&opened.files);
    let name = crate::weights::Digest::of(who.as_bytes()).to_hex();
    let path = folder.join(format!("{name}.calibration"));
    if let Ok(found) = Statistics::open(&path) {
        progress.stage("Cached", &format!("statistics in {}", path.display()));
        return Ok(found);
    }
    // What an interrupted run left is gone on from.
    let left = crate::export::hlrc::partial_path(&path).join(crate::store::JOURNAL);
    measure(&job, &path, left.is_file(), &args.talk, progress).map_err(
        |failure| match failure.exit {
            Exit::Interrupted => failure.help("the same command goes on with the calibration"),
            _ => failure,
        },
    )?;
    Statistics::open(&path).map_err(failure)
}

/// Errors of a calibration as failures of the command.
pub fn failure(error: CalibError) -> Failure {
    let (text, help) = (error.to_string(), error.help());
    if error.is_interrupt() {
        return Failure::new(Exit::Interrupted, "interrupted")
            .help("the same command with --resume goes on from there");
    }
    match error {
        CalibError::Protocol(_) => Failure::new(Exit::Usage, text),
        CalibError::Memory { .. } => Failure::new(Exit::Infeasible, text).help(help),
        CalibError::NotFinite { .. } | CalibError::Other { .. } => {
            Failure::new(Exit::Failure, text).help(help)
        }
        CalibError::Weights(error) => errors::job(&OptError::Weights(error)),
        CalibError::Folder(FolderError::NothingToResume(_)) => {
            Failure::new(Exit::Usage, text).help(help)
        }
        CalibError::Folder(error) => errors::job(&OptError::Folder(error)),
        CalibError::Io { path, source } => Failure::write(&path, &source),
        CalibError::Exec { source, .. } => Failure::new(errors::of_exec(&source), text).help(help),
        CalibError::Format { .. } | CalibError::Unlike { .. } => {
            Failure::new(Exit::Input, text).help(help)
        }
    }
}
