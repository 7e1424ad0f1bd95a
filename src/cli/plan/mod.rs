//! `--emit plan`: a model as kernel launches over packed weights.

pub mod args;
mod output;

use super::args::OptArgs;
use super::fit::args::Kv;
use super::prepare::Prepared;
use super::target::Target as Output;
use super::{Exit, Failure, errors, fit, load, opt, print, signal};
use crate::ir::Module;
use crate::pass::manager::Schedule;
use crate::plan::folder;
use crate::plan::lower::{KvFormat, Lowered, Options, lower};
use crate::plan::{Place, Plan, PlanError, Target, Variant, imagine, summary, text};
use crate::report::human;
use crate::report::progress::Progress;
use crate::runtime::Compiler;
use crate::store::Reader;
use crate::weights::FileCache;
use regex::Regex;
use std::path::{Path, PathBuf};

/// Refuses options of a device or a plan where nothing uses them.
///
/// # Errors
/// A usage error that names the option.
pub fn check(args: &OptArgs) -> Result<(), Failure> {
    let usage = |what: String, help: &str| Err(Failure::new(Exit::Usage, what).help(help));
    if args.plan.emit.is_none() {
        if let Some(option) = args.load.given().filter(|_| args.load.vram.is_none()) {
            let what =
                format!("{option} has no effect without --vram: it says what a device shall hold");
            return usage(what, "add --vram, or --emit plan for a plan of that size");
        }
        if args.dry_run && args.load.vram.is_some() {
            let what =
                "--dry-run does not go with --vram: what matrices become is measured".to_owned();
            return usage(what, "`hlrc-opt fit` says what fits, from headers alone");
        }
        return Ok(());
    }
    let strangers = [
        ("--onnx-cache", args.onnx_cache),
        ("--resume", args.resume),
        ("--html", args.html.is_some()),
        ("--eval", !args.eval.is_empty()),
        ("--target-bpw", args.target_bpw.is_some()),
        ("--target-size", args.target_size.is_some()),
        ("--sequential", args.sequential),
    ];
    if let Some((option, _)) = strangers.iter().find(|(_, given)| *given) {
        let what = format!("{option} has no effect on a plan");
        return usage(
            what,
            "write a .hlrc folder with it first, then make a plan of that",
        );
    }
    Ok(())
}

/// Makes a plan and writes it.
///
/// # Errors
/// A model that can't be planned; exit code 4 where it does not fit `--vram`.
pub fn run(args: &OptArgs, prepared: &Prepared) -> Result<Exit, Failure> {
    let Some(input) = &args.input else {
        return Err(
            Failure::new(Exit::Usage, "no input is named").help("hlrc-opt IN --emit plan -o OUT")
        );
    };
    let options = options(args)?;
    if prepared.training.is_some() {
        let what = "`train` has no effect on a plan";
        return Err(Failure::new(Exit::Usage, what)
            .help("write a .hlrc folder with it first, then make a plan of that"));
    }
    let progress = opt::progress(&args.talk);
    let place = output::Place::of(args, input)?;
    if args.plan.compile && !matches!(place, output::Place::Folder(_)) {
        let what = "--compile writes machine code beside a plan, and no plan is written";
        return Err(Failure::new(Exit::Usage, what).help("leave out -S or --dry-run"));
    }
    // Before hours are spent on weights.
    let asked = Asked {
        compiler: compiler(args)?,
        args,
        options,
        progress: &progress,
        place,
    };
    if let Some(config) = fit::configuration(input) {
        let mut module = fit::shapes(&config)?;
        if module.name.is_empty() {
            module.name = stem(input)?;
        }
        let module = imagined(args, prepared, module)?;
        return finish(&asked, &module, false);
    }
    if prepared.pipeline.items.is_empty() {
        let module = load::executable(input)?;
        module.tell(input, &progress);
        return finish(&asked, &module.module, true);
    }
    if args.dry_run {
        let module = imagined(args, prepared, load::executable(input)?.module)?;
        return finish(&asked, &module, false);
    }
    let scratch = asked.place.scratch();
    let mut inner = args.clone();
    inner.output = Some(scratch.clone());
    inner.force = true;
    inner.json = false;
    inner.talk.quiet = true;
    inner.load = Default::default();
    let loaded = load::source(&load::Source::of(input)?)?;
    let done = opt::execute(
        &inner,
        prepared,
        &Output::Folder(scratch.clone()),
        &progress,
        loaded,
    );
    let finished = done.and_then(|_| {
        let module = load::executable(&scratch)?;
        finish(&asked, &module.module, true)
    });
    // The plan has the weights now; a folder that stays has a name that says what it is.
    let _ = std::fs::remove_dir_all(&scratch);
    finished
}

/// The module with the terms that the pipeline would make, by shapes alone.
fn imagined(args: &OptArgs, prepared: &Prepared, module: Module) -> Result<Module, Failure> {
    let stop = args.stop_after.as_deref();
    let schedule = Schedule::new(&prepared.pipeline, &prepared.overrides, stop);
    let schedule = schedule.map_err(|error| errors::schedule(&error))?;
    imagine::imagine(&module, &schedule).map_err(|error| failure(&error))
}

fn options(args: &OptArgs) -> Result<Options, Failure> {
    let usage = |what: String, help: &str| Failure::new(Exit::Usage, what).help(help);
    let target = Target::named(&args.plan.target).map_err(|error| Failure {
        exit: Exit::Usage,
        ..failure(&error)
    })?;
    let mut options = Options::new(target);
    let small = |n: u64, option: &str| {
        u32::try_from(n)
            .map_err(|_| usage(format!("{option} {n} is too large for a plan"), "fewer"))
    };
    if let Some(batch) = args.load.batch {
        if batch > 8 {
            return Err(usage(
                format!("--batch {batch}: kernels decode at most 8 sequences together"),
                "--batch 8, or less",
            ));
        }
        options.batch = small(batch, "--batch")?;
    }
    options.context = args.load.ctx.map(|n| small(n, "--ctx")).transpose()?;
    if let Some(chunk) = args.load.chunk {
        options.chunk = small(chunk, "--chunk")?;
    }
    options.kv = match args.load.kv {
        None | Some(Kv::F16) => KvFormat::F16,
        Some(Kv::Q8) => KvFormat::Q8,
        Some(Kv::F32 | Kv::Q4) => {
            return Err(usage(
                "kernels keep keys and values in f16 or q8".to_string(),
                "--kv f16 or --kv q8",
            ));
        }
    };
    options.page = args.plan.page;
    options.exact = args.plan.exact_activations;
    for rule in &args.plan.placement {
        options.placement.push(placement(rule)?);
    }
    Ok(options)
}

/// `experts=host`, `re:REGEX=host`, `part of a name=device`.
fn placement(rule: &str) -> Result<(Regex, Place), Failure> {
    let usage = |what: String| {
        Failure::new(Exit::Usage, what)
            .help("as --placement experts=host or --placement 're:layers\\.[0-9]\\.=host'")
    };
    let (weights, place) = rule
        .rsplit_once('=')
        .ok_or_else(|| usage(format!("--placement {rule}: no place is named")))?;
    let place = match place {
        "host" => Place::Host,
        "device" => Place::Device,
        other => {
            return Err(usage(format!(
                "--placement {rule}: `{other}` is neither host nor device"
            )));
        }
    };
    let pattern = match weights.strip_prefix("re:") {
        Some(pattern) => pattern.to_string(),
        None if weights == "experts" => r"\.experts\.".to_string(),
        None => regex::escape(weights),
    };
    let pattern = Regex::new(&pattern).map_err(|e| usage(format!("--placement {rule}: {e}")))?;
    Ok((pattern, place))
}

/// What is asked for.
struct Asked<'a> {
    args: &'a OptArgs,
    options: Options,
    progress: &'a Progress,
    place: output::Place,
    compiler: Option<Compiler>,
}

fn finish(asked: &Asked<'_>, module: &Module, packed: bool) -> Result<Exit, Failure> {
    let Asked {
        args,
        options,
        progress,
        place,
        compiler,
    } = asked;
    progress.stage(
        "Planning",
        &format!("{} for {}", module.name, options.target.arch),
    );
    let lowered = lower(module, options).map_err(|error| failure(&error))?;
    unused_placements(args, &lowered, options)?;
    if let Some(vram) = args.load.vram {
        let reserve = args.load.reserve.unwrap_or(summary::RESERVE);
        crate::plan::fit::check(&lowered.plan, vram, reserve).map_err(|error| failure(&error))?;
    }
    let plan = match place {
        output::Place::Stdout => {
            crate::plan::verify::verify(&lowered.plan)
                .map_err(|faults| failure(&PlanError::Invalid(faults)))?;
            print(text::print(&lowered.plan).as_bytes())?;
            lowered.plan
        }
        output::Place::Nowhere => lowered.plan,
        output::Place::Folder(path) => {
            write(path, lowered, module, compiler.as_ref(), progress, packed)?
        }
    };
    let told = tell(args, &plan, place)?;
    if !told && !args.talk.quiet && !matches!(place, output::Place::Stdout) {
        progress.stage("Planned", &closing(&plan));
    }
    Ok(Exit::Ok)
}

/// A placement that no weight's name fits is a mistake.
fn unused_placements(args: &OptArgs, lowered: &Lowered, options: &Options) -> Result<(), Failure> {
    for (rule, (pattern, _)) in args.plan.placement.iter().zip(&options.placement) {
        if !lowered
            .plan
            .weights
            .iter()
            .any(|w| pattern.is_match(&w.name))
        {
            let what = format!("--placement {rule}: no weight of the plan has such a name");
            return Err(Failure::new(Exit::Usage, what).help("`--emit plan -S` lists them"));
        }
    }
    Ok(())
}

/// What `--compile` compiles with.
fn compiler(args: &OptArgs) -> Result<Option<Compiler>, Failure> {
    if !args.plan.compile {
        return Ok(None);
    }
    let found = Compiler::find().map_err(|error| {
        Failure::new(Exit::Failure, error.to_string())
            .help("leave out --compile: kernels are compiled where the plan first runs")
    })?;
    Ok(Some(found))
}

fn write(
    path: &Path,
    lowered: Lowered,
    module: &Module,
    compiler: Option<&Compiler>,
    progress: &Progress,
    packed: bool,
) -> Result<Plan, Failure> {
    let files = FileCache::new();
    let reader = Reader::new(&files);
    let source = packed.then_some((module, &reader));
    let mut each = |name: &str, bytes: u64| {
        progress.detail(&format!("packing {name}, {}", human::size(bytes)))
    };
    let arch = lowered.plan.target.arch.clone();
    let compile = compiler.map(|compiler| {
        move |variant: &Variant, sources: &Path, out: &Path| {
            let done = compiler.compile(variant, &arch, sources, out);
            done.map_err(|error| PlanError::Compile(error.to_string()))
        }
    });
    let compile = compile.as_ref().map(|c| c as &folder::Compile<'_>);
    let written = folder::write(path, lowered, source, compile, signal::flag(), &mut each);
    written.map_err(|error| failure(&error))
}

/// Prints what was asked for; whether anything was.
fn tell(args: &OptArgs, plan: &Plan, place: &output::Place) -> Result<bool, Failure> {
    if args.json {
        let json = serde_json::to_string_pretty(&summary::json(plan)).unwrap_or_default();
        print((json + "\n").as_bytes())?;
        return Ok(true);
    }
    if args.plan.summary || matches!(place, output::Place::Nowhere) {
        print(summary::render(plan).as_bytes())?;
        return Ok(true);
    }
    Ok(false)
}

fn closing(plan: &Plan) -> String {
    let launches = plan.program("decode").map_or(0, |p| p.steps.len());
    let sources = plan.kernels.len();
    format!(
        "{launches} launches per token, {}, {} on the device; --summary says more",
        human::plural(sources, "kernel variant"),
        human::size(plan.device_bytes())
    )
}

/// A failure to plan, with its exit code.
fn failure(error: &PlanError) -> Failure {
    let exit = match error {
        PlanError::Unsupported { .. }
        | PlanError::NotLanguageModel(_)
        | PlanError::Weight { .. }
        | PlanError::Format { .. } => Exit::Input,
        PlanError::Store(error) => errors::of_store(error),
        PlanError::Io { .. } | PlanError::Run { .. } | PlanError::Compile(_) => Exit::Failure,
        PlanError::Invalid(_) => Exit::Panic,
        PlanError::DoesNotFit(_) => Exit::Infeasible,
        PlanError::Interrupted => Exit::Interrupted,
    };
    Failure::new(exit, error.to_string())
}

/// What the model is called by its path.
fn stem(input: &Path) -> Result<String, Failure> {
    let Some(config) = fit::configuration(input) else {
        return Ok(load::Source::of(input)?.stem());
    };
    let folder = config.parent().and_then(Path::file_name);
    Ok(folder.map_or_else(|| "model".to_string(), |n| n.to_string_lossy().into_owned()))
}

/// Where the plan of an input goes if nothing is said.
fn default_output(input: &Path) -> Result<PathBuf, Failure> {
    Ok(PathBuf::from(format!("{}.plan", stem(input)?)))
}
