//! Models as what predicts the tokens of a window.

use std::ops::{ControlFlow, Range};

use super::inputs::token_inputs;
use super::{EvalError, Result};
use crate::exec::{Engine, ExecError, Rows, State, Tensor};

/// Tokens that are read at once where their logits are not wanted.
const UNSCORED: usize = 512;
/// Relative difference up to which logits are the same in another run: the order of sums may differ.
const UNCHANGED: f32 = 1e-5;

/// Tokens that a model is judged by.
const JUDGED: usize = 6;
/// What exporters call the output of a language model.
const LOGITS: &str = "logits";

/// What predicts the tokens of a window.
pub trait Predictor {
    /// Number of tokens that it knows.
    fn vocabulary(&self) -> usize;

    /// What it is called in messages.
    fn name(&self) -> &str;

    /// Begins a window; `tokens` is all that it may see.
    ///
    /// # Errors
    /// The model fails.
    fn begin(&mut self, tokens: &[u32]) -> Result<()>;

    /// Hands out the logits at some positions, `[n, vocabulary]` at a time: `each(first, logits)`,
    /// `first` counted from the range's start. Ranges ascend.
    ///
    /// # Errors
    /// The model fails.
    fn rows(&mut self, range: Range<usize>, each: &mut dyn FnMut(usize, &[f32])) -> Result<()>;
}

/// A causal language model with a KV cache.
pub struct Causal<'e> {
    engine: &'e Engine,
    name: String,
    vocabulary: usize,
    state: State,
    window: Vec<u32>,
}

impl<'e> Causal<'e> {
    /// A model, where it is one.
    ///
    /// # Errors
    /// [`ExecError::NotLanguageModel`] says what it lacks.
    pub fn new(engine: &'e Engine, name: &str) -> Result<Self, ExecError> {
        Ok(Self {
            engine,
            name: name.to_string(),
            vocabulary: engine.language_model()?.vocabulary,
            state: engine.state(1),
            window: Vec::new(),
        })
    }

    fn forward(
        &mut self,
        range: Range<usize>,
        rows: Rows,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        let tokens = self.window.get(range).unwrap_or_default();
        let mut take = |first: usize, logits: &[f32]| {
            each(first, logits);
            ControlFlow::Continue(())
        };
        let done = self
            .engine
            .forward(&mut self.state, tokens, rows, &mut take);
        done.map_err(EvalError::exec(&self.name))
    }
}

impl Predictor for Causal<'_> {
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn begin(&mut self, tokens: &[u32]) -> Result<()> {
        self.state.truncate(0, 0);
        self.state.expect(tokens.len());
        self.window = tokens.to_vec();
        Ok(())
    }

    fn rows(&mut self, range: Range<usize>, each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let mut at = self.state.len(0);
        while at < range.start {
            let end = (at + UNSCORED).min(range.start);
            self.forward(at..end, Rows::Last, &mut |_, _| {})?;
            at = end;
        }
        match range.is_empty() {
            true => Ok(()),
            false => self.forward(range, Rows::All, each),
        }
    }
}

/// A model that takes whole windows and makes logits `[1, length, vocabulary]`.
pub struct Whole<'e> {
    engine: &'e Engine,
    name: String,
    output: String,
    vocabulary: usize,
    logits: Vec<f32>,
}

impl<'e> Whole<'e> {
    /// Whether a model says that it makes logits.
    pub fn fits(engine: &Engine) -> bool {
        engine.outputs().iter().any(|port| port.name == LOGITS)
    }

    /// Whether a model predicts the next of `tokens` tokens, and how many it knows: its output `logits` has
    /// a row for each token, with a number for each that may come, and no row depends on tokens behind it.
    /// Else why not. Takes six runs over six tokens.
    ///
    /// # Errors
    /// The model fails, or takes what tokens do not tell.
    pub fn judge(
        engine: &'e Engine,
        name: &str,
        tokens: usize,
    ) -> Result<std::result::Result<usize, String>> {
        if !Self::fits(engine) {
            return Ok(Err(format!("it has no output `{LOGITS}`")));
        }
        let mut whole = Self::new(engine, name, 0);
        let last = tokens.saturating_sub(1).max(1);
        let asked: Vec<u32> = (0..JUDGED)
            .map(|at| u32::try_from(at % (last + 1)).unwrap_or(0))
            .collect();
        let shape = whole.run(&asked)?;
        let &[1, JUDGED, vocabulary] = shape.as_slice() else {
            let what = format!("{JUDGED} tokens give logits {shape:?}, not one row for each");
            return Ok(Err(what));
        };
        if vocabulary < tokens {
            let what =
                format!("its logits have {vocabulary} columns, the tokenizer {tokens} tokens");
            return Ok(Err(what));
        }
        let first = std::mem::take(&mut whole.logits);
        // With another token at any place, the rows before it stay what they are.
        for at in 1..JUDGED {
            let mut other = asked.clone();
            if let Some(token) = other.get_mut(at) {
                let next = (*token as usize + 1) % (last + 1);
                *token = u32::try_from(next).unwrap_or(0);
            }
            whole.run(&other)?;
            let rows = at * vocabulary;
            let (a, b) = (first.get(..rows), whole.logits.get(..rows));
            let (a, b) = (a.unwrap_or_default(), b.unwrap_or_default());
            let size = a.iter().fold(0f32, |most, x| most.max(x.abs()));
            let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
            if apart.fold(0f32, f32::max) > UNCHANGED * size {
                let what = format!("logits of the tokens before depend on token {}", at + 1);
                return Ok(Err(what));
            }
        }
        Ok(Ok(vocabulary))
    }

    /// A model that was [judged](Self::judge) to know so many tokens.
    pub fn new(engine: &'e Engine, name: &str, vocabulary: usize) -> Self {
        Self {
            engine,
            name: name.to_string(),
            output: LOGITS.to_string(),
            vocabulary,
            logits: Vec::new(),
        }
    }

    /// Runs a window, keeps the logits, and gives their shape.
    fn run(&mut self, tokens: &[u32]) -> Result<Vec<usize>> {
        let inputs = token_inputs(self.engine, &self.name, tokens)?;
        let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let made = self
            .engine
            .run_on(&inputs)
            .map_err(EvalError::exec(&self.name))?;
        let found = made.into_iter().find(|(name, _)| *name == self.output);
        let Some((_, tensor)) = found else {
            return Err(no_logits(&self.name, "its logits are missing"));
        };
        match tensor.data {
            crate::exec::Data::F32(values) => self.logits = values,
            _ => return Err(no_logits(&self.name, "its logits are no floats")),
        }
        Ok(tensor.shape)
    }
}

fn no_logits(name: &str, problem: &str) -> EvalError {
    let what = format!("{name} is judged as a language model, but {problem}");
    EvalError::Protocol(what)
}

impl Predictor for Whole<'_> {
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn begin(&mut self, tokens: &[u32]) -> Result<()> {
        let shape = self.run(tokens)?;
        if shape != [1, tokens.len(), self.vocabulary] {
            let what = format!("{} tokens give logits of shape {shape:?}", tokens.len());
            return Err(no_logits(&self.name, &what));
        }
        Ok(())
    }

    fn rows(&mut self, range: Range<usize>, each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let width = self.vocabulary;
        let rows = self.logits.get(range.start * width..range.end * width);
        each(0, rows.unwrap_or_default());
        Ok(())
    }
}
