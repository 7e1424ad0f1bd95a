//! `opt`: import, passes, output.

mod failed;

use super::args::{Cli, Color, Command, OnnxQuant, OptArgs, ReproducerArgs, TalkArgs};
use super::load::{self, Loaded, Source};
use super::prepare::{Prepared, prepare};
use super::target::{Target, report_beside};
use super::watch::Watch;
use super::{
    Exit, Failure, budget, calibrate, checks, dry_run, errors, eval, fit, outcome, plan, print,
    report, reproducer, sequential, signal, trained,
};
use crate::calib::Statistics;
use crate::eval::Evaluation;
use crate::ir::Module;
use crate::opt::{self, Job, OnnxOptions, Output, Summary};
use crate::pass::MomentSource;
use crate::pass::manager::{self, PrintIr, RunOptions, Schedule};
use crate::report::progress::{Progress, Style, Summary as Closing};
use crate::report::resources;
use crate::store::rebase;
use crate::weights::FileCache;
use clap::Parser;
use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Name of a model on its way to stdout.
const STREAMED: &str = "model.onnx";

/// Runs a pipeline on a model and writes the result.
pub fn run(args: &OptArgs) -> Result<Exit, Failure> {
    let mut prepared = prepare(args)?;
    plan::check(args)?;
    if args.plan.emit.is_some() && !args.print_pipeline {
        return plan::run(args, &prepared);
    }
    budget::check(args, &mut prepared)?;
    if args.print_pipeline {
        print(prepared.spelled_out().as_bytes())?;
        return Ok(Exit::Ok);
    }
    let Some(input) = &args.input else {
        return Err(Failure::new(Exit::Usage, "no input is named").help("hlrc-opt IN -p PIPELINE"));
    };
    let source = Source::of(input)?;
    let target = Target::of(args, &source)?;
    outcome::check_remarks_file(&args.debug)?;
    eval::after::check(args, &target)?;
    report::check(args, &target)?;
    let spreads = budget::is_target(args) || args.load.vram.is_some();
    if spreads {
        budget::check_families(args, &target)?;
        checks::form(&budget::without_placeholder(&prepared), &target)?;
    } else {
        checks::form(&prepared, &target)?;
    }
    calibrate::check_alone(&args.calib)?;
    if let Some(call) = &prepared.training {
        trained::check(args, call, &target)?;
    }
    let progress = progress(&args.talk);
    progress.stage("Importing", &load::describe(&source));
    let loaded = load::source(&source)?;
    let args = &within(args, input, &progress)?;
    let code = |args: &OptArgs, prepared: &Prepared, target: &Target| {
        let loaded = load::source(&source)?;
        let quiet = self::progress(&args.talk);
        execute(args, prepared, target, &quiet, loaded).map(|_| ())
    };
    let options = run_options(args);
    if spreads && budget::keeps_placeholder(&prepared, &loaded)? {
        checks::form(&prepared, &target)?;
    }
    let to_onnx = matches!(target, Target::Onnx(_) | Target::OnnxStdout(_));
    let how = (&code as &budget::Code<'_>, to_onnx);
    budget::apply(args, &mut prepared, &loaded, &options, &progress, how)?;
    if let Some(call) = &prepared.training {
        return trained::run(args, &prepared, call, &target, &progress, loaded);
    }
    let Target::OnnxStdout(scratch) = &target else {
        return execute(args, &prepared, &target, &progress, loaded);
    };
    std::fs::create_dir(scratch).map_err(|error| Failure::write(scratch, &error))?;
    let outcome = execute(args, &prepared, &target, &progress, loaded);
    let outcome = outcome.and_then(|exit| pour(scratch).map(|()| exit));
    // A scratch folder that can't be removed is not this command's failure.
    let _ = std::fs::remove_dir_all(scratch);
    outcome
}

/// The arguments with the bytes that a device leaves for weights as their target, where one is named.
fn within(args: &OptArgs, input: &Path, progress: &Progress) -> Result<OptArgs, Failure> {
    let mut args = args.clone();
    if args.load.vram.is_some() {
        let (bytes, line) = fit::target(&args.load, input)?;
        progress.stage("Fitting", &line);
        args.target_size = Some(bytes);
    }
    Ok(args)
}

/// Sends the model that was written to the scratch folder to stdout.
fn pour(scratch: &Path) -> Result<(), Failure> {
    let model = scratch.join(STREAMED);
    let data = std::fs::read_dir(scratch).map_err(|error| Failure::read(scratch, &error))?;
    if data.count() > 1 {
        let what = "the model is above 2 GB, and its weights need files of their own";
        return Err(Failure::new(Exit::Failure, what).help("name a .onnx file with -o"));
    }
    let mut file = std::fs::File::open(&model).map_err(|error| Failure::read(&model, &error))?;
    let mut stdout = std::io::stdout().lock();
    std::io::copy(&mut file, &mut stdout)
        .and_then(|_| stdout.flush())
        .map_err(|error| Failure::stdout(&error))
}

/// Runs what a reproducer recorded; what it writes goes to a folder that is removed again.
pub fn rerun(args: &ReproducerArgs) -> Result<Exit, Failure> {
    let recorded = reproducer::read(&args.file)?;
    let scratch = std::env::temp_dir().join(format!("hlrc-rerun-{}.hlrc", std::process::id()));
    let words = ["hlrc-opt", "opt"].into_iter().map(str::to_owned);
    // With a module in the file, the input is only a name.
    let input = match recorded.input.as_os_str().is_empty() {
        true => "-".to_owned(),
        false => recorded.input.to_string_lossy().into_owned(),
    };
    let words = words
        .chain(recorded.arguments)
        .chain(["--".to_owned(), input]);
    let cli = Cli::try_parse_from(words).map_err(|error| {
        let place = args.file.display();
        Failure::new(
            Exit::Input,
            format!("{place}: the recorded arguments don't fit: {error}"),
        )
    })?;
    super::plugin::load(&cli.plugins)?;
    let mut again = match cli.command {
        Some(Command::Opt(again)) => *again,
        _ => cli.opt,
    };
    again.talk = args.talk;
    again.output = Some(scratch.clone());
    again.html = None;
    let prepared = prepare(&again)?;
    let progress = progress(&again.talk);
    progress.stage("Reproducing", &recorded.failure);
    let loaded = match recorded.module {
        Some(module) => Loaded::bare(module),
        None => load::source(&Source::of(&recorded.input)?)?,
    };
    let outcome = execute(
        &again,
        &prepared,
        &Target::Folder(scratch.clone()),
        &progress,
        loaded,
    );
    // A scratch folder that can't be removed is not this command's failure.
    let _ = std::fs::remove_dir_all(&scratch);
    let exit = outcome?;
    progress.stage("Done", "it did not happen again");
    Ok(exit)
}

/// Runs a pipeline that is prepared.
///
/// # Errors
/// A pass fails, or the output can't be written.
pub fn execute(
    args: &OptArgs,
    prepared: &Prepared,
    target: &Target,
    progress: &Progress,
    mut loaded: Loaded,
) -> Result<Exit, Failure> {
    if args.dry_run {
        let schedule = scheduled(args, prepared)?;
        let options = run_options(args);
        loaded.notes.iter().for_each(|note| progress.warn(note));
        manager::raise(&mut loaded.module, &schedule).map_err(|error| errors::run(&error))?;
        if let Some(given) = calibrate::given(input(args), args, progress)? {
            let found = (&given, input(args));
            check_statistics(found, &loaded.module, &schedule, progress)?;
        }
        let destination = output(args, target).destination();
        let plan = manager::plan(&loaded.module, &schedule, &options, destination)
            .map_err(|error| errors::run(&error))?;
        let pipeline = prepared.canonical()?;
        return dry_run::run(args, &pipeline, &loaded.module, &schedule, &plan);
    }
    let began = Instant::now();
    let summary = perform(args, prepared, target, progress, loaded)?;
    conclude(args, target, progress, &summary, began)
}

fn scheduled(args: &OptArgs, prepared: &Prepared) -> Result<Schedule, Failure> {
    let stop = args.stop_after.as_deref();
    let schedule = Schedule::new(&prepared.pipeline, &prepared.overrides, stop);
    let schedule = schedule.map_err(|error| errors::schedule(&error))?;
    checks::calibration(args, prepared, &schedule)?;
    Ok(schedule)
}

/// Runs a pipeline that is prepared, and says nothing of the result yet.
///
/// # Errors
/// As [`execute`].
pub fn perform(
    args: &OptArgs,
    prepared: &Prepared,
    target: &Target,
    progress: &Progress,
    mut loaded: Loaded,
) -> Result<Summary, Failure> {
    loaded.notes.iter().for_each(|note| progress.warn(note));
    let schedule = scheduled(args, prepared)?;
    let pipeline = prepared.canonical()?;
    let mut options = run_options(args);
    let (first, second) = match args.sequential {
        true => (
            None,
            Some(sequential::statistics(args, prepared, progress)?),
        ),
        false if args.calib.is_empty() => (None, None),
        false => {
            let found = calibrate::statistics(input(args), args, progress)?;
            (Some(found), None)
        }
    };
    let statistics = second.as_ref().map(|s| &s.statistics).or(first.as_ref());
    let users = match statistics {
        None => HashSet::new(),
        Some(found) => {
            let mut seen = loaded.module.clone();
            manager::raise(&mut seen, &schedule).map_err(|error| errors::run(&error))?;
            check_statistics((found, input(args)), &seen, &schedule, progress)?;
            calibrate::users(&schedule, &seen, false)
        }
    };
    options.moments = match (&second, &first) {
        (Some(second), _) => Some(second as &dyn MomentSource),
        (None, first) => first.as_ref().map(|s| s as &dyn MomentSource),
    };
    if matches!(target, Target::Stdout | Target::Device(_)) {
        // Text says where weights are as seen from the place that it goes to.
        rebase(&mut loaded.module, Path::new("."));
    }
    if !pipeline.is_empty() {
        progress.stage(
            "Running",
            pipeline.lines().collect::<Vec<_>>().join(" ").as_str(),
        );
    }
    let job = Job {
        schedule: &schedule,
        pipeline,
        output: output(args, target),
        shard_size: args.shard_size,
        resume: args.resume,
        run: options,
    };
    let source = opt::Input {
        module: loaded.module,
        files: &loaded.files,
        sidecars: &loaded.sidecars,
        pipelines: loaded.pipelines,
    };
    let watch = Watch { progress };
    let done = opt::run(&job, source, &FileCache::new(), &watch);
    let summary = done.map_err(|error| {
        progress.abandon();
        failed::after(args, &job.output, &error)
    })?;
    if let Some(found) = statistics
        && let Some(line) = calibrate::helped(found, &users, &summary.outcome.remarks)?
    {
        progress.warn(&line);
    }
    Ok(summary)
}

/// The model as it was named.
fn input(args: &OptArgs) -> &Path {
    args.input.as_deref().unwrap_or(Path::new("-"))
}

/// Refuses statistics of another model before anything is coded, and says of what they know nothing.
fn check_statistics(
    (statistics, model): (&Statistics, &Path),
    module: &Module,
    schedule: &Schedule,
    progress: &Progress,
) -> Result<(), Failure> {
    if let Some(warning) = calibrate::check_pipeline(statistics, model, module, schedule)? {
        progress.warn(&warning);
    }
    Ok(())
}

/// How passes run, as the flags say.
pub fn run_options(args: &OptArgs) -> RunOptions<'static> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let from_environment = std::env::var("RAYON_NUM_THREADS")
        .ok()
        .and_then(|text| text.parse().ok());
    let threads = match (args.mlir_disable_threading, args.threads) {
        (true, _) => 1,
        (false, Some(threads)) => usize::from(threads),
        (false, None) => from_environment
            .filter(|&threads| threads > 0)
            .unwrap_or(cores),
    };
    let every = |all: bool, named: &[String]| match all {
        true => vec!["*".to_owned()],
        false => named.to_vec(),
    };
    let debug = &args.debug;
    RunOptions {
        seed: args.seed,
        threads,
        mem_limit: args.mem_limit,
        verify_each: !debug.no_verify_each && debug.verify_each != Some(false),
        bisect_limit: args.bisect_limit,
        print: PrintIr {
            before: every(debug.print_ir_before_all, &debug.print_ir_before),
            after: every(debug.print_ir_after_all, &debug.print_ir_after),
            after_change: debug.print_ir_after_change,
        },
        moments: None,
        interrupt: signal::flag(),
    }
}

fn output(args: &OptArgs, target: &Target) -> Output {
    let onnx = |path: PathBuf| {
        let qdq = args.onnx_quant == OnnxQuant::Qdq;
        Output::Onnx(
            path,
            OnnxOptions {
                qdq,
                cache: args.onnx_cache,
                replace: args.force || args.resume,
            },
        )
    };
    match target {
        Target::Stdout | Target::Device(_) => Output::Shown,
        Target::OnnxStdout(scratch) => onnx(scratch.join(STREAMED)),
        Target::Text(path) => Output::Text(path.clone()),
        Target::Folder(path) => Output::Folder(path.clone()),
        Target::Onnx(path) => onnx(path.clone()),
    }
}

/// Writes what the job gave as text, and tells what was done.
///
/// # Errors
/// The text can't be written, the result can't be judged or misses a gate.
pub fn conclude(
    args: &OptArgs,
    target: &Target,
    progress: &Progress,
    summary: &Summary,
    began: Instant,
) -> Result<Exit, Failure> {
    outcome::notes(&summary.notes, progress);
    outcome::remarks(&args.debug, &summary.outcome.remarks, progress)?;
    let text = summary.text.as_deref().unwrap_or_default();
    match target {
        Target::Stdout if args.json => {}
        Target::Stdout => print(text.as_bytes())?,
        Target::Text(path) | Target::Device(path) => write_text(path, text)?,
        Target::Onnx(path) => write_text(&report_beside(path), &summary.report.to_json())?,
        Target::Folder(_) | Target::OnnxStdout(_) => {}
    }
    outcome::measurements(
        &args.debug,
        &summary.outcome.totals,
        began.elapsed(),
        progress,
    );
    let judged = eval::after::judge(args, target, progress, &summary.report);
    let found = judged.as_ref().ok().and_then(Option::as_ref);
    report::after_opt(args, progress, &summary.report, found)?;
    let judged = judged?;
    let tensors = summary.report.model_totals.bytes_after;
    let on_disk = budget::told_on_disk(args, target, tensors)?;
    let on_stdout = matches!(target, Target::Stdout | Target::OnnxStdout(_));
    if args.json && !matches!(target, Target::OnnxStdout(_)) {
        let bytes = on_disk.as_ref().map(|(_, bytes, _)| *bytes);
        let more = (judged.as_ref(), bytes);
        print(&as_json(target, progress, summary, more, began))?;
    } else if !on_stdout && !args.talk.quiet && !summary.report.sites.is_empty() {
        print(outcome::table(&summary.report).as_bytes())?;
    }
    if let Some(judged) = judged.filter(|_| !args.json && !on_stdout && !args.talk.quiet) {
        print(format!("\n{}", eval::render(&judged)).as_bytes())?;
    }
    let place = match target {
        Target::Folder(path) => Some(path.join("report.json")),
        Target::Onnx(path) => Some(report_beside(path)),
        _ => None,
    };
    let place = place.map(|path| path.display().to_string());
    if let Some((line, ..)) = &on_disk {
        progress.stage("On disk", line);
    }
    progress.finish(&Closing {
        tensors: summary.report.sites.len(),
        fallbacks: usize::try_from(summary.report.reverted).unwrap_or(usize::MAX),
        warnings: progress.warnings(),
        report: place.as_deref(),
    });
    on_disk
        .and_then(|(.., failure)| failure)
        .map_or(Ok(Exit::Ok), Err)
}

fn as_json(
    target: &Target,
    progress: &Progress,
    summary: &Summary,
    (judged, on_disk): (Option<&Evaluation>, Option<u64>),
    began: Instant,
) -> Vec<u8> {
    let mut json = eval::after::report(&summary.report, judged);
    if let Some(object) = json.as_object_mut() {
        let output = target.path().map(|path| path.display().to_string());
        object.insert(
            "run".into(),
            serde_json::json!({
                "output": output,
                "bytes_on_disk": on_disk,
                "seconds": began.elapsed().as_secs_f64(),
                "peak_rss_bytes": resources::peak_rss(),
                "fallbacks": summary.report.reverted,
                "warnings": progress.warnings(),
            }),
        );
    }
    (serde_json::to_string_pretty(&json).unwrap_or_default() + "\n").into_bytes()
}

/// Progress as the flags want it.
pub fn progress(talk: &TalkArgs) -> Progress {
    let color = match talk.color {
        Color::Auto => None,
        Color::Always => Some(true),
        Color::Never => Some(false),
    };
    Progress::new(Style::stderr(talk.quiet, talk.verbose, color))
}

/// Whether a text file could be written there, before the work that it is to tell of.
///
/// # Errors
/// A [`Failure`] with the path.
pub fn check_writable(path: &Path) -> Result<(), Failure> {
    if path.exists() && !path.is_file() && !path.is_dir() {
        return Ok(());
    }
    let failed = |error: std::io::Error| Failure::write(path, &error);
    if path.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let probe = parent.join(format!(".hlrc-{}.tmp", std::process::id()));
    std::fs::write(&probe, [])
        .and_then(|()| std::fs::remove_file(&probe))
        .map_err(failed)
}

/// Writes a text file whole or not at all: under a temporary name, then renamed.
///
/// # Errors
/// A [`Failure`] with the path.
pub fn write_text(path: &Path, content: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::write(path, &error);
    // A device (/dev/full, /dev/stdout) is written to; there is nothing to rename onto.
    if path.exists() && !path.is_file() {
        return std::fs::write(path, content).map_err(failed);
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written =
        std::fs::write(&temporary, content).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        // Nothing half-written is left; that this fails too changes nothing.
        let _ = std::fs::remove_file(&temporary);
        failed(error)
    })
}
