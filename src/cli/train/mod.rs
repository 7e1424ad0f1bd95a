//! `train`: a rewritten model learns what the original does, or a task.

pub mod args;
mod data;
mod output;
mod ranks;
mod settings;
mod watch;

use super::{Exit, Failure, errors, load, opt, print, signal};
use crate::exec::{Engine, Options};
use crate::export::hlrc::partial_path;
use crate::ir::Module;
use crate::opt::OptError;
use crate::report::human;
use crate::report::progress::Progress;
use crate::store::Reader;
use crate::train::checkpoint::Store;
use crate::train::end_to_end::{self, Teacher};
use crate::train::parameters::{Trainable, apply, choose};
use crate::train::ranks::{Alone, Ranks};
use crate::train::{History, Judged, Settings, TrainError, blocks};
use crate::weights::FileCache;
use args::{Mode, TrainArgs};
use data::{Data, Model};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Trains a model.
pub fn run(args: &TrainArgs) -> Result<Exit, Failure> {
    ranks::run(args.mpi, |ranks| {
        let progress = match ranks.is_first() {
            true => opt::progress(&args.talk),
            false => Progress::silent(),
        };
        let history = shared(args, &progress, None, ranks)?;
        if args.json && ranks.is_first() {
            let text = serde_json::to_string_pretty(&history).unwrap_or_default() + "\n";
            print(text.as_bytes())?;
        }
        Ok(Exit::Ok)
    })
}

/// What the manifest tells of a run that is the end of a pipeline.
pub struct Generation {
    /// The whole pipeline, canonical.
    pub pipeline: String,
    /// Whether the model that is trained was made by its first part.
    pub joins: bool,
}

/// Trains a model and writes it; gives what was seen.
///
/// # Errors
/// A file can't be read or written, the settings don't fit, training ends early.
pub fn train(
    args: &TrainArgs,
    progress: &Progress,
    generation: Option<Generation>,
) -> Result<History, Failure> {
    shared(args, progress, generation, &Alone)
}

/// [`train`] with other processes; the first one writes.
fn shared(
    args: &TrainArgs,
    progress: &Progress,
    generation: Option<Generation>,
    ranks: &dyn Ranks,
) -> Result<History, Failure> {
    if args.mode != Mode::EndToEnd && args.teacher.is_none() {
        let what = "layers learn from the original's: name it with --teacher";
        return Err(Failure::new(Exit::Usage, what));
    }
    if args.output.exists() && !args.force && !args.resume {
        let what = format!("{}: is there already", args.output.display());
        return Err(
            Failure::new(Exit::Failure, what).help("-f replaces it, -o chooses another place")
        );
    }
    progress.stage("Loading", &args.model.display().to_string());
    let loaded = load::source(&load::Source::of(&args.model)?)?;
    let files = FileCache::new();
    let module = load::executable(&args.model)?.module;
    let engine = engine(&args.model, &module, args, &files)?;
    end_to_end::check(&engine).map_err(failure)?;
    let known = engine
        .language_model()
        .map_err(|error| Failure::new(Exit::Input, format!("{}: {error}", args.model.display())))?;
    let known = Model {
        vocabulary: known.vocabulary,
        positions: known.max_positions,
    };
    drop(engine);
    let data = data::read(args, known, progress)?;
    let settings = settings::settings(args, &data, known.vocabulary, ranks.size())?;
    let chosen = choose(&module, &Reader::new(&files), &settings.choice).map_err(failure)?;
    let mut history = History {
        settings: settings::words(args, &settings),
        ranks: ranks.size(),
        trained: counted(&module, &chosen),
        ..History::default()
    };
    told(progress, &history, &data);
    let print_ = settings::fingerprint(args, (&settings, ranks.size()), &module, &data)?;
    let original = match &args.teacher {
        Some(path) => Some(Original::new(path, args, known.vocabulary)?),
        None => None,
    };
    // Only now: nothing is left where the teacher can't be run.
    let partial = match ranks.is_first() {
        true => Some(output::open(args, &print_)?),
        false => None,
    };
    ranks.wait();
    let store = match &partial {
        Some(partial) => Store::new(&partial.path, print_.clone()),
        None => Store::following(&partial_path(&args.output), print_.clone()),
    };
    let run = Run {
        args,
        progress,
        files: &files,
        chosen: &chosen,
        settings: &settings,
        data: &data,
        store: &store,
        ranks,
    };
    let (original, teacher) = original.map(|o| (o.module, o.engine)).unzip();
    let teacher = teacher.map(|engine| Teacher::new(engine, settings.top));
    let (mut trained, mut failed) = (module, None);
    if let (Some(original), Some(teacher), true) =
        (&original, &teacher, args.mode != Mode::EndToEnd)
    {
        failed = run.blocks(&mut trained, original, teacher, &mut history)?;
    }
    if args.mode != Mode::Blocks && failed.is_none() {
        let done = run.end_to_end(&trained, teacher.as_ref(), &history)?;
        apply(&mut trained, &done.bytes);
        (history.end_to_end, history.kept) = (done.records, done.kept);
        failed = done.failed;
    }
    drop(teacher);
    // What others held in the folder is gone.
    ranks.wait();
    if let Some(partial) = partial {
        let written = output::Output {
            args,
            partial,
            print: &print_,
            history: &history,
            generation,
        };
        written.write(trained, &loaded, &files)?;
        progress.stage("Wrote", &args.output.display().to_string());
    }
    // No rank ends, and no failure is told, before the folder is there.
    ranks.wait();
    match failed {
        None => Ok(history),
        Some(error) => {
            let place = args.output.display();
            Err(failure(error).help(format!(
                "{place} has the best state before that; a lower --lr, or a lower --clip, goes on longer"
            )))
        }
    }
}

/// The original, ready to run.
struct Original {
    module: Module,
    engine: Engine,
}

impl Original {
    fn new(path: &Path, args: &TrainArgs, vocabulary: usize) -> Result<Self, Failure> {
        let module = load::executable(path)?.module;
        let engine = engine(path, &module, args, &FileCache::new())?;
        end_to_end::check(&engine).map_err(failure)?;
        let known = engine.language_model();
        let known = known
            .map_err(|error| Failure::new(Exit::Input, format!("{}: {error}", path.display())))?;
        if known.vocabulary != vocabulary {
            let what = format!(
                "{} has a vocabulary of {}, the model one of {vocabulary}",
                path.display(),
                known.vocabulary
            );
            return Err(Failure::new(Exit::Input, what)
                .help("--teacher names the model that it was made from"));
        }
        Ok(Self { module, engine })
    }
}

fn options(args: &TrainArgs) -> Options {
    let usual = Options::default();
    Options {
        threads: args.threads.map_or(usual.threads, usize::from),
        ..usual
    }
}

fn engine(
    path: &Path,
    module: &Module,
    args: &TrainArgs,
    files: &FileCache,
) -> Result<Engine, Failure> {
    let engine = Engine::new(module, files, &options(args));
    let mut engine = engine.map_err(|error| {
        Failure::new(
            errors::of_exec(&error),
            format!("{}: {error}", path.display()),
        )
    })?;
    engine.set_interrupt(signal::flag());
    Ok(engine)
}

/// What both ways of training need.
struct Run<'a> {
    args: &'a TrainArgs,
    progress: &'a Progress,
    files: &'a FileCache,
    chosen: &'a [Trainable],
    settings: &'a Settings,
    data: &'a Data,
    store: &'a Store,
    ranks: &'a dyn Ranks,
}

impl Run<'_> {
    /// Trains layer by layer, and puts the model back where that made it worse as a whole; gives why it
    /// ended early, if it did.
    fn blocks(
        &self,
        module: &mut Module,
        original: &Module,
        teacher: &Teacher,
        history: &mut History,
    ) -> Result<Option<TrainError>, Failure> {
        let begun = Instant::now();
        let options = options(self.args);
        let before = self.judge(module, teacher)?;
        let job = blocks::Job {
            module,
            files: self.files,
            trainables: self.chosen,
            teacher: teacher.engine(),
            original,
            examples: &self.data.train,
            validation: &self.data.validation,
            settings: self.settings,
            options: &options,
            store: self.store,
            ranks: self.ranks,
            held: self.args.hold,
        };
        let done = blocks::train(&job, &mut watch::Lines::new(self.progress)).map_err(failure)?;
        let spilled = match done.spilled {
            0 => String::new(),
            bytes => format!(", {} spilled", human::size(bytes)),
        };
        let count = human::plural(done.blocks.len(), "block");
        let text = format!("{count} in {}{spilled}", human::duration(begun.elapsed()));
        self.progress.stage("Trained", &text);
        let mut together = module.clone();
        apply(&mut together, &done.bytes);
        let after = self.judge(&together, teacher)?;
        let text = format!(
            "as a whole:{}; untrained:{}",
            watch::said(&after),
            watch::said(&before)
        );
        self.progress.stage("Judged", &text);
        (history.untrained, history.behind_blocks) = (Some(before), Some(after));
        history.blocks = done.blocks;
        match self.settings.measure(&after) > self.settings.measure(&before) {
            true => self
                .progress
                .warn("layer by layer the model got worse as a whole: the untrained state is kept"),
            false => *module = together,
        }
        Ok(done.failed)
    }

    /// What the held-out examples say of a model.
    fn judge(&self, module: &Module, teacher: &Teacher) -> Result<Judged, Failure> {
        let options = options(self.args);
        let job = self.whole(module, Some(teacher), &options);
        end_to_end::judge(&job, &watch::Lines::new(self.progress)).map_err(failure)
    }

    fn whole<'b>(
        &'b self,
        module: &'b Module,
        teacher: Option<&'b Teacher>,
        options: &'b Options,
    ) -> end_to_end::Job<'b> {
        end_to_end::Job {
            module,
            files: self.files,
            trainables: self.chosen,
            teacher,
            examples: &self.data.train,
            validation: &self.data.validation,
            settings: self.settings,
            options,
            store: self.store,
            ranks: self.ranks,
        }
    }

    fn end_to_end(
        &self,
        module: &Module,
        teacher: Option<&Teacher>,
        history: &History,
    ) -> Result<end_to_end::Trained, Failure> {
        let begun = Instant::now();
        let options = options(self.args);
        let job = self.whole(module, teacher, &options);
        let done =
            end_to_end::train(&job, &mut watch::Lines::new(self.progress)).map_err(failure)?;
        let judged = |step: u64| {
            let mut records = done.records.iter();
            records.find(|r| r.step == step).and_then(|r| r.judged)
        };
        let (first, kept) = (
            history.untrained.or(judged(0)).unwrap_or_default(),
            judged(done.kept).unwrap_or_default(),
        );
        let text = format!(
            "end to end in {}: kept step {}{}; untrained{}",
            human::duration(begun.elapsed()),
            done.kept,
            watch::said(&kept),
            watch::said(&first)
        );
        self.progress.stage("Trained", &text);
        Ok(done)
    }
}

/// Tensors and values of each kind.
fn counted(module: &Module, chosen: &[Trainable]) -> Vec<(String, u64, u64)> {
    let mut kinds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for trainable in chosen {
        let weight = module.weight(trainable.parameter.weight);
        let values = weight.and_then(|w| w.elements()).unwrap_or(0);
        let entry = kinds.entry(trainable.kind.name()).or_default();
        (entry.0, entry.1) = (entry.0 + 1, entry.1 + values);
    }
    let kinds = kinds.into_iter();
    kinds
        .map(|(kind, (tensors, values))| (kind.to_string(), tensors, values))
        .collect()
}

fn told(progress: &Progress, history: &History, data: &Data) {
    let kinds = history.trained.iter();
    let kinds: Vec<String> = kinds
        .map(|(kind, tensors, _)| format!("{tensors} of {kind}"))
        .collect();
    progress.stage("Moving", &format!("tensors: {}", kinds.join(", ")));
    let text = format!(
        "{} to train on, {} held out",
        human::plural(data.train.len(), "example"),
        data.validation.len()
    );
    progress.stage("Data", &text);
}

/// Errors of training as failures of the command.
pub fn failure(error: TrainError) -> Failure {
    if error.is_interrupt() {
        return Failure::new(Exit::Interrupted, "interrupted")
            .help("the same command with --resume goes on from there");
    }
    let text = error.to_string();
    match error {
        TrainError::Settings(_) => Failure::new(Exit::Usage, text),
        TrainError::Io { path, source } => Failure::write(&path, &source),
        TrainError::Weights(error) => errors::job(&OptError::Weights(error)),
        TrainError::NotFinite { .. } | TrainError::Overflow { .. } => {
            Failure::new(Exit::Failure, text)
                .help("a lower --lr, or a lower --clip, keeps the values smaller")
        }
        TrainError::Checkpoint { .. } => Failure::new(Exit::Usage, text),
        TrainError::Exec(error) => Failure::new(errors::of_exec(&error), text),
        TrainError::Store(error) => Failure::new(errors::of_store(&error), text),
        _ => Failure::new(Exit::Input, text),
    }
}
