//! Models of an evaluation, ready to run.

use super::args::EvalArgs;
use super::{Exit, Failure, failure, load, signal};
use crate::cli::device::{DeviceModel, Planning};
use crate::cli::errors;
use crate::cli::run::args::PrecisionArg;
use crate::eval::inputs::Inputs;
use crate::eval::{Causal, EvalError, Predictor, Whole, cache};
use crate::exec::{Engine, Options, Precision, Without};
use crate::ir::site::sites;
use crate::ir::{Term, text};
use crate::passes::raise;
use crate::report::progress::Progress;
use crate::runtime::Place;
use crate::weights::FileCache;
use std::cell::{OnceCell, RefCell};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A model with some terms left out, or none.
pub struct Model {
    /// The path, as the user named it.
    pub name: String,
    /// Kinds of terms that were left out.
    pub without: Vec<String>,
    /// It, ready to run.
    pub engine: Engine,
    /// It on a GPU, where that was asked for.
    planned: Option<RefCell<DeviceModel>>,
    /// Tokens that it knows if it predicts them in whole windows, else why it does not.
    whole: OnceCell<Result<usize, String>>,
}

/// An imported model, and who it is.
pub struct Opened {
    path: PathBuf,
    loaded: load::Executable,
    files: FileCache,
}

impl Opened {
    /// Imports a model: to be run on text, or on arrays, which it then takes as its source does.
    pub fn new(path: &Path, arrays: &[Inputs]) -> Result<Self, Failure> {
        let mut names = arrays.iter().flatten().map(|(name, _)| name);
        let loaded = match arrays.is_empty() {
            true => load::executable(path)?,
            false => load::executable_as_is(path, names.any(|name| raise::is_past(name)))?,
        };
        Ok(Self {
            path: path.to_path_buf(),
            loaded,
            files: FileCache::new(),
        })
    }

    /// Says what the import has to say.
    pub fn tell(&self, progress: &Progress) {
        self.loaded.tell(&self.path, progress);
    }

    /// The name that it is reported by.
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// What its logits depend on, for the cache.
    pub fn identity(&self) -> Result<String, Failure> {
        let files = load::source(&load::Source::of(&self.path)?)?.files;
        Ok(cache::identify(&text::print(&self.loaded.module), &files))
    }

    /// It, ready to run.
    pub fn model(
        &self,
        args: &EvalArgs,
        precision: Precision,
        without: Without,
    ) -> Result<Model, Failure> {
        let options = Options {
            threads: threads(args),
            precision,
            without,
        };
        let engine = Engine::new(&self.loaded.module, &self.files, &options);
        let mut engine = engine.map_err(|error| self.loaded.refused(&self.path, &error))?;
        engine.set_interrupt(signal::flag());
        let named = [(without.low_rank, "low_rank"), (without.sparse, "sparse")];
        Ok(Model {
            name: self.name(),
            without: named
                .iter()
                .filter(|(out, _)| *out)
                .map(|(_, name)| (*name).to_string())
                .collect(),
            engine,
            planned: None,
            whole: OnceCell::new(),
        })
    }

    /// It, and where that was asked for it without the kinds of terms that it has.
    pub fn variants(&self, args: &EvalArgs) -> Result<Vec<Model>, Failure> {
        let precision = match args.precision {
            PrecisionArg::Exact => Precision::Exact,
            PrecisionArg::Int8 => Precision::Int8,
        };
        if args.device.device != Place::Cpu {
            return Ok(vec![self.planned(args, precision)?]);
        }
        let mut wanted = vec![Without::default()];
        if args.ablate {
            let has = |kind: fn(&Term) -> bool| {
                let sites = sites(&self.loaded.module);
                let mut matrices = sites
                    .iter()
                    .filter_map(|site| site.matrix(&self.loaded.module));
                matrices.any(|matrix| matrix.terms.iter().any(kind))
            };
            let low_rank = has(|term| matches!(term, Term::LowRank(_)));
            let sparse = has(|term| matches!(term, Term::Sparse(_) | Term::Columns(_)));
            let all = [(true, false), (false, true), (true, true)];
            let fits = all
                .iter()
                .filter(|(l, s)| (!l || low_rank) && (!s || sparse));
            wanted.extend(fits.map(|&(low_rank, sparse)| Without { low_rank, sparse }));
        }
        wanted
            .into_iter()
            .map(|without| self.model(args, precision, without))
            .collect()
    }
}

impl Opened {
    /// It on the GPU that was asked for.
    fn planned(&self, args: &EvalArgs, precision: Precision) -> Result<Model, Failure> {
        if args.ablate {
            let what =
                "--ablate leaves terms out of a model on the processor, not of a kernel plan";
            return Err(Failure::new(Exit::Usage, what).help("leave out --device, or --ablate"));
        }
        let mut model = self.model(args, precision, Without::default())?;
        let planning = Planning {
            context: args.ctx.and_then(|n| u32::try_from(n).ok()),
            exact: precision == Precision::Exact,
        };
        let progress = crate::cli::opt::progress(&args.talk);
        model.planned = Some(RefCell::new(
            args.device.open(&self.path, planning, &progress)?,
        ));
        Ok(model)
    }
}

/// A model on a GPU, for as long as it predicts.
struct OnDevice<'m> {
    model: &'m RefCell<DeviceModel>,
    name: &'m str,
    vocabulary: usize,
}

impl Predictor for OnDevice<'_> {
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn name(&self) -> &str {
        self.name
    }

    fn begin(&mut self, tokens: &[u32]) -> Result<(), EvalError> {
        self.model.borrow_mut().begin(tokens)
    }

    fn rows(
        &mut self,
        range: Range<usize>,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EvalError> {
        self.model.borrow_mut().rows(range, each)
    }
}

impl Model {
    /// Finds out whether it is a language model of so many tokens, which are asked for where it takes that.
    pub fn judge(&self, tokens: &dyn Fn() -> Result<usize, Failure>) -> Result<(), Failure> {
        if self.planned.is_some()
            || self.whole.get().is_some()
            || self.engine.language_model().is_ok()
        {
            return Ok(());
        }
        let tokens = match Whole::fits(&self.engine) {
            true => tokens()?,
            false => 0,
        };
        let judged = Whole::judge(&self.engine, &self.name, tokens).map_err(failure)?;
        let _ = self.whole.set(judged);
        Ok(())
    }

    /// Why it is no language model, where it was taken for one by the name of its output.
    pub fn why_not(&self) -> Option<&str> {
        let why = self.whole.get()?.as_ref().err()?;
        Whole::fits(&self.engine).then_some(why.as_str())
    }

    /// It as a language model; `None` where it was not [judged](Self::judge) to be one.
    pub fn predictor(&self) -> Result<Option<Box<dyn Predictor + '_>>, Failure> {
        if let Some(model) = &self.planned {
            return Ok(Some(Box::new(OnDevice {
                model,
                name: &self.name,
                vocabulary: Predictor::vocabulary(&*model.borrow()),
            })));
        }
        if let Ok(causal) = Causal::new(&self.engine, &self.name) {
            return Ok(Some(Box::new(causal)));
        }
        let Some(Ok(vocabulary)) = self.whole.get() else {
            return Ok(None);
        };
        let whole = Whole::new(&self.engine, &self.name, *vocabulary);
        Ok(Some(Box::new(whole)))
    }

    /// Tokens that it was made for, where it says.
    pub fn positions(&self) -> Option<usize> {
        let planned = self.planned.as_ref().map(|model| model.borrow().context());
        planned.or(self.engine.max_positions())
    }
}

/// Threads that the user, or the machine, allows.
fn threads(args: &EvalArgs) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    args.threads.map_or(cores, usize::from)
}

/// The folder in which a model's tokenizer is looked for.
pub fn folder(path: &Path) -> PathBuf {
    match path.is_dir() {
        true => path.to_path_buf(),
        false => match path.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(parent) => parent.to_path_buf(),
            None => PathBuf::from("."),
        },
    }
}

/// Errors of an evaluation as failures of the command.
pub fn as_failure(error: EvalError) -> Failure {
    let text = error.to_string();
    if error.is_interrupt() {
        return Failure::new(Exit::Interrupted, "interrupted");
    }
    match error {
        EvalError::Protocol(_) => Failure::new(Exit::Usage, text),
        EvalError::TooShort(_) => {
            Failure::new(Exit::Input, text).help("name more text with --data")
        }
        EvalError::NotFinite { .. } => Failure::new(Exit::Failure, text)
            .help("`hlrc-opt verify` finds weights that are NaN or infinite"),
        EvalError::Cache { .. } => {
            Failure::new(Exit::Failure, text).help("--no-cache does without")
        }
        EvalError::Unlike { .. } => {
            Failure::new(Exit::Input, text).help("--ref names the model that it was made from")
        }
        EvalError::Device { .. } => Failure::new(Exit::Failure, text),
        EvalError::Exec { source, .. } => Failure::new(errors::of_exec(&source), text),
        EvalError::Damaged { .. } | EvalError::Inputs { .. } => Failure::new(Exit::Input, text),
    }
}
