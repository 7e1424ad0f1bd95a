//! The executor as a language model.

use super::args::{PrecisionArg, RunArgs};
use super::{Exit, Failure, load, signal};
use crate::exec::{Engine, ExecError, Options, Precision, Rows, State};
use crate::report::progress::Progress;
use crate::text::generate::{LanguageModel, ModelError};
use crate::weights::FileCache;
use std::ops::ControlFlow;
use std::path::Path;

/// Threads that the user, or the machine, allows.
pub fn threads(args: &RunArgs) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    args.threads.map_or(cores, usize::from)
}

/// Opens a model to be run.
pub fn open(args: &RunArgs, progress: &Progress) -> Result<Engine, Failure> {
    let loaded = load::executable(&args.model)?;
    loaded.tell(&args.model, progress);
    let options = Options {
        threads: threads(args),
        precision: match args.precision {
            PrecisionArg::Exact => Precision::Exact,
            PrecisionArg::Int8 => Precision::Int8,
        },
        ..Options::default()
    };
    let engine = Engine::new(&loaded.module, &FileCache::new(), &options);
    let mut engine = engine.map_err(|error| loaded.refused(&args.model, &error))?;
    if let Err(error) = engine.language_model() {
        return Err(loaded.refused(&args.model, &error));
    }
    engine.set_interrupt(signal::flag());
    Ok(engine)
}

/// One sequence of a causal language model.
pub struct Causal<'e> {
    engine: &'e Engine,
    state: State,
    vocabulary: usize,
    context: Option<usize>,
    logits: Vec<f32>,
}

impl<'e> Causal<'e> {
    /// A sequence that has seen nothing.
    pub fn new(engine: &'e Engine, path: &Path) -> Result<Self, Failure> {
        let model = engine
            .language_model()
            .map_err(|error| Failure::new(Exit::Input, format!("{}: {error}", path.display())))?;
        Ok(Self {
            engine,
            state: engine.state(1),
            vocabulary: model.vocabulary,
            context: model.max_positions,
            logits: Vec::new(),
        })
    }

    /// Tokens that the model was made for.
    pub fn context(&self) -> Option<usize> {
        self.context
    }
}

impl LanguageModel for Causal<'_> {
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn forward(&mut self, tokens: &[u32]) -> Result<&[f32], ModelError> {
        let logits = &mut self.logits;
        let mut take = |_: usize, row: &[f32]| {
            row.clone_into(logits);
            ControlFlow::Continue(())
        };
        match self
            .engine
            .forward(&mut self.state, tokens, Rows::Last, &mut take)
        {
            Ok(()) => Ok(&self.logits),
            Err(ExecError::Interrupted) => Err(ModelError::Interrupted),
            Err(error) => Err(ModelError::Failed(error.into())),
        }
    }

    fn expect(&mut self, tokens: usize) {
        self.state.expect(tokens);
    }

    fn rewind(&mut self, keep: usize) -> usize {
        self.state.truncate(0, keep);
        self.state.len(0)
    }
}
