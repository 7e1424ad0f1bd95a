//! Execution on the CPU: native transformer ops and the terms of linears.
//!
//! [`Engine::new`] compiles a module's graph to steps: weights are located in their mapped files
//! and checked, nothing is read yet. [`Engine::run`] runs any module on named inputs;
//! [`Engine::forward`] appends tokens to the sequences of a [`State`] (their KV caches) and hands
//! out logits in chunks. [`pool`] holds the threads, [`kernels`] the arithmetic on plain slices.
//!
//! Results are bit-identical for any number of threads.

mod activations;
mod attend;
mod error;
mod foreign;
mod grad;
pub mod kernels;
mod linear;
mod matrix;
mod ops;
pub mod pool;
mod program;
mod run;
pub mod segments;
mod state;
mod tensor;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::ir::{Attr, Module};
use crate::store::{Reader, StoreError};
use crate::weights::{FileCache, MappedFile};

pub use error::ExecError;
pub use kernels::instruction_set;
pub use pool::Pool;
pub use program::Port;
pub use state::State;
pub use tensor::{Data, Tensor};

use kernels::gemm::PANEL;
use program::{Arg, Kind, Program};
use run::Run;
use tensor::Buffers;

/// Logits that are computed at once, so that a long text does not need them all in memory.
const LOGITS_AT_ONCE: usize = 1 << 23;

/// Values in buffers that an engine keeps between runs: those of [`LOGITS_AT_ONCE`] and some more.
const SPARE: usize = LOGITS_AT_ONCE + LOGITS_AT_ONCE / 2;

/// Inputs of language models that [`Engine::forward`] supplies: token ids, a mask of ones (there
/// is no padding) and the places behind the cache.
const TOKENS: &str = "input_ids";
const MASK: &str = "attention_mask";
const POSITIONS: &str = "position_ids";

/// How to run a module.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of threads.
    pub threads: usize,
    /// How exactly quantized terms are multiplied.
    pub precision: Precision,
    /// Terms to leave out.
    pub without: Without,
}

/// How exactly quantized terms are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// Activations stay f32.
    #[default]
    Exact,
    /// Activations are rounded to int8, 32 along `in` sharing a scale; about twice as fast.
    Int8,
}

/// Kinds of terms that are left out, to see what they are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Without {
    /// Leave low-rank terms out.
    pub low_rank: bool,
    /// Leave sparse terms and outlier columns out.
    pub sparse: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            precision: Precision::Exact,
            without: Without::default(),
        }
    }
}

/// Which positions' logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// The last position of each sequence.
    Last,
    /// Every position.
    All,
}

/// What a causal language model is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LanguageModel {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Most tokens of a sequence, where the source says.
    pub max_positions: Option<usize>,
}

/// A module, ready to run.
pub struct Engine {
    program: Program,
    pool: Pool,
    options: Options,
    max_positions: Option<usize>,
    stop: Option<&'static AtomicBool>,
    /// The files that weights are in.
    files: Vec<Arc<MappedFile>>,
    /// Buffers that the last run left behind: fresh pages cost more than small products.
    spare: Mutex<Buffers>,
}

impl Engine {
    /// Compiles the module's first graph. Weights are located and checked, not read.
    ///
    /// # Errors
    /// [`ExecError::Unsupported`] names an op that cannot be run; [`ExecError::Store`] a weight
    /// that is missing or damaged.
    pub fn new(module: &Module, files: &FileCache, options: &Options) -> Result<Self, ExecError> {
        let reader = Reader::new(files);
        let max_positions = module.meta.get("max_positions").and_then(Attr::as_int);
        Ok(Self {
            program: program::compile(module, &reader, options)?,
            pool: Pool::new(options.threads),
            options: options.clone(),
            max_positions: max_positions.and_then(|n| usize::try_from(n).ok()),
            stop: None,
            files: files.mapped(),
            spare: Mutex::default(),
        })
    }

    /// Puts other bytes in the place of weights: little-endian elements in the weights' own types and
    /// sizes. Terms read them as they read the file's.
    ///
    /// # Errors
    /// A weight of another size.
    pub fn replace(&mut self, bytes: &HashMap<String, Bytes>) -> Result<(), ExecError> {
        self.program.replace(bytes)
    }

    /// Looks at `flag` between ops; a run stops with [`ExecError::Interrupted`] once it is set.
    pub fn set_interrupt(&mut self, flag: &'static AtomicBool) {
        self.stop = Some(flag);
    }

    /// Buffers for a run; those of the last one, if no other run has them.
    fn buffers(&self) -> Buffers {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut spare)
    }

    /// Keeps a run's buffers for the next one.
    fn keep(&self, mut buffers: Buffers) {
        buffers.shrink(SPARE);
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        *spare = buffers;
    }

    /// Refuses files that were truncated since they were mapped.
    fn check_files(&self) -> Result<(), ExecError> {
        for file in &self.files {
            let fault = |source| StoreError::Weights {
                weight: file.path().display().to_string(),
                source,
            };
            file.check_whole().map_err(fault)?;
        }
        Ok(())
    }

    /// What the module takes.
    pub fn inputs(&self) -> &[Port] {
        &self.program.inputs
    }

    /// What the module makes.
    pub fn outputs(&self) -> &[Port] {
        &self.program.outputs
    }

    /// The threads, for kernels outside the module.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Runs the module on named inputs and returns its outputs in order.
    ///
    /// Decoders see the inputs as whole sequences, without a cache.
    ///
    /// # Errors
    /// [`ExecError::Input`] for an input that is missing, unknown or ill-shaped;
    /// [`ExecError::Shape`] where an op meets a tensor that does not fit it.
    pub fn run(&self, inputs: &[(&str, Tensor)]) -> Result<Vec<(String, Tensor)>, ExecError> {
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
        self.run_on(&inputs)
    }

    /// As [`Engine::run`], on inputs that the caller keeps.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_on(&self, inputs: &[(&str, &Tensor)]) -> Result<Vec<(String, Tensor)>, ExecError> {
        self.check_files()?;
        let mut run = Run::new(self, None);
        let known = |name: &str| self.program.inputs.iter().any(|p| p.name == name);
        if let Some((name, _)) = inputs.iter().find(|(n, _)| !known(n)) {
            let names: Vec<&str> = self.program.inputs.iter().map(|p| &*p.name).collect();
            return Err(ExecError::Input {
                name: (*name).to_string(),
                problem: format!("the model has no such input; it has {}", names.join(", ")),
            });
        }
        for port in &self.program.inputs {
            let given = inputs.iter().find(|(n, _)| *n == port.name);
            let (_, value) = given.ok_or_else(|| ExecError::Input {
                name: port.name.clone(),
                problem: "is missing".to_string(),
            })?;
            value.check(&port.name)?;
            if let Arg::Slot(slot) = port.arg {
                run.set(slot, (*value).clone());
            }
        }
        run.steps(&self.program.steps)?;
        let output = |port: &Port| {
            let value = run.get(port.arg).cloned();
            let value = value.ok_or_else(|| ExecError::Input {
                name: port.name.clone(),
                problem: "is an output that nothing computes".to_string(),
            });
            Ok((port.name.clone(), value?))
        };
        self.program.outputs.iter().map(output).collect()
    }

    /// What kind of language model this is.
    ///
    /// # Errors
    /// [`ExecError::NotLanguageModel`] says what is missing.
    pub fn language_model(&self) -> Result<LanguageModel, ExecError> {
        let fault = |why: &str| Err(ExecError::NotLanguageModel(why.to_string()));
        let supplied = |p: &Port| matches!(&*p.name, TOKENS | MASK | POSITIONS);
        if let Some(other) = self.program.inputs.iter().find(|p| !supplied(p)) {
            return fault(&format!("it takes {:?} besides token ids", other.name));
        }
        if !self.program.inputs.iter().any(|p| p.name == TOKENS) {
            return fault("it takes no input_ids");
        }
        if self.program.caches.is_empty() {
            return fault("it has no attention with a KV cache");
        }
        if let Some(op) = self.program.steps.iter().find_map(|step| step.mixing()) {
            return fault(&format!(
                "{op} mixes tokens and keeps none of those before, so that it needs whole sequences"
            ));
        }
        let [output] = self.program.outputs.as_slice() else {
            return fault("it has more than one output");
        };
        let head = self.program.steps.iter().rev().find_map(|s| match &s.kind {
            Kind::Linear(linear) => Some((s, linear)),
            _ => None,
        });
        let Some((step, linear)) = head else {
            return fault("it has no head");
        };
        let reaches = |slot: Option<usize>| slot.is_some_and(|s| Arg::Slot(s) == output.arg);
        let last = self.program.steps.last();
        if !step.outputs.iter().any(|s| reaches(*s))
            && !last.is_some_and(|l| l.outputs.iter().any(|s| reaches(*s)))
        {
            return fault("its output is no logits");
        }
        Ok(LanguageModel {
            vocabulary: linear.matrix.rows,
            max_positions: self.max_positions,
        })
    }

    /// Most tokens of a sequence, where the source says.
    pub fn max_positions(&self) -> Option<usize> {
        self.max_positions
    }

    /// Empty KV caches for some sequences.
    pub fn state(&self, sequences: usize) -> State {
        State::new(sequences, &self.program.caches)
    }

    /// Bytes of the KV cache of one sequence of so many tokens.
    pub fn cache_bytes(&self, tokens: usize) -> u64 {
        let values = |&(heads, width): &(usize, usize)| 2 * (heads as u64) * (width as u64);
        let each: u64 = self.program.caches.iter().map(values).sum();
        each.saturating_mul(tokens as u64)
            .saturating_mul(size_of::<f32>() as u64)
    }

    /// Appends tokens to the sequences of `state` and hands out logits.
    ///
    /// `tokens` is `[sequences, len]`, row-major. `each(first, logits)` gets logits
    /// `[n, vocabulary]` of the wanted rows from number `first` on: with [`Rows::All`] row
    /// `sequence · len + position`, with [`Rows::Last`] row `sequence`; [`ControlFlow::Break`]
    /// leaves the rest out. On an error the caches are as they were.
    ///
    /// # Errors
    /// [`ExecError::NotLanguageModel`], [`ExecError::Input`] for tokens outside the vocabulary or
    /// a count that is no multiple of the sequences, [`ExecError::Context`],
    /// [`ExecError::Interrupted`].
    pub fn forward(
        &self,
        state: &mut State,
        tokens: &[u32],
        rows: Rows,
        each: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), ExecError> {
        let model = self.language_model()?;
        self.check_files()?;
        let sequences = state.sequences();
        let len = tokens.len().checked_div(sequences).unwrap_or(0);
        self.check_tokens(state, tokens, len, model)?;
        let wanted: Vec<usize> = match rows {
            Rows::All => (0..tokens.len()).collect(),
            Rows::Last => (1..=sequences).map(|s| s * len - 1).collect(),
        };
        let before: Vec<usize> = (0..sequences).map(|s| state.len(s)).collect();
        let mut run = Run::new(self, Some(&mut *state));
        for port in &self.program.inputs {
            let Arg::Slot(slot) = port.arg else { continue };
            let ids = match &*port.name {
                POSITIONS => {
                    let places = before.iter().flat_map(|past| *past..past + len);
                    places
                        .map(|p| i64::try_from(p).unwrap_or(i64::MAX))
                        .collect()
                }
                MASK => vec![1; tokens.len()],
                _ => tokens.iter().map(|&t| i64::from(t)).collect(),
            };
            run.set(slot, Tensor::i64(&[sequences, len], ids));
        }
        let chunk = (LOGITS_AT_ONCE / model.vocabulary.max(1)).clamp(16, 1 << 16);
        // Whole panels of tokens where there are several.
        let chunk = if chunk > PANEL {
            chunk / PANEL * PANEL
        } else {
            chunk
        };
        let result = run.in_chunks(tokens.len(), &wanted, chunk, each);
        drop(run);
        for (s, &old) in before.iter().enumerate() {
            if let Some(sequence) = state.sequences.get_mut(s) {
                sequence.len = old + len;
            }
            if result.is_err() {
                state.truncate(s, old);
            }
        }
        result
    }

    fn check_tokens(
        &self,
        state: &State,
        tokens: &[u32],
        len: usize,
        model: LanguageModel,
    ) -> Result<(), ExecError> {
        let fault = |problem: String| {
            Err(ExecError::Input {
                name: "tokens".to_string(),
                problem,
            })
        };
        if len == 0 || len * state.sequences() != tokens.len() {
            let (n, of) = (tokens.len(), state.sequences());
            return fault(format!(
                "{n} tokens are not the same number for each of {of} sequences"
            ));
        }
        let beyond = tokens.iter().find(|&&t| t as usize >= self.vocabulary());
        if let Some(token) = beyond {
            return fault(format!(
                "token {token} is outside the vocabulary of {}",
                self.vocabulary()
            ));
        }
        let longest = (0..state.sequences()).map(|s| state.len(s)).max();
        let asked = longest.unwrap_or(0) + len;
        match model.max_positions {
            Some(context) if asked > context => Err(ExecError::Context { asked, context }),
            _ => Ok(()),
        }
    }

    /// Entries of the table of token embeddings; other tables may be of positions.
    fn vocabulary(&self) -> usize {
        let mut tables = self.program.steps.iter().filter_map(|s| match &s.kind {
            Kind::Embedding(table) => Some((s.inputs.first().copied(), table.rows)),
            _ => None,
        });
        let tokens = self.program.inputs.iter().find(|p| p.name == TOKENS);
        let reads = |(arg, _): &(Option<program::Arg>, usize)| *arg == tokens.map(|p| p.arg);
        let first = tables.clone().next();
        tables.find(reads).or(first).map_or(0, |(_, rows)| rows)
    }
}
