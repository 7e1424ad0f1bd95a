//! A language model that runs as a plan.

use super::{Device, RuntimeError};
use crate::eval::{self, Predictor};
use crate::plan::Plan;
use crate::text::generate::{LanguageModel, ModelError};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A plan on a device, and one sequence that it has seen.
pub struct PlanModel<D> {
    plan: Arc<Plan>,
    device: D,
    name: String,
    seen: usize,
    logits: Vec<f32>,
    window: Vec<u32>,
    stop: Option<&'static AtomicBool>,
}

impl<D: Device> PlanModel<D> {
    /// A sequence that has seen nothing.
    pub fn new(plan: Arc<Plan>, device: D) -> Self {
        Self {
            name: plan.model.clone(),
            plan,
            device,
            seen: 0,
            logits: Vec::new(),
            window: Vec::new(),
            stop: None,
        }
    }

    /// Ends between two runs of a program when this is set.
    pub fn set_interrupt(&mut self, stop: &'static AtomicBool) {
        self.stop = Some(stop);
    }

    /// Tokens that the plan has room for.
    pub fn context(&self) -> usize {
        self.plan.shape.context as usize
    }

    /// Runs tokens behind those seen; the logits behind the last.
    ///
    /// # Errors
    /// The context is full, or the device fails.
    pub fn advance(&mut self, tokens: &[u32]) -> Result<&[f32], RuntimeError> {
        let total = self.seen.saturating_add(tokens.len());
        if total > self.context() {
            return Err(RuntimeError::Context {
                tokens: total,
                context: self.context(),
            });
        }
        let chunk = (self.plan.shape.chunk as usize).max(1);
        for part in tokens.chunks(chunk) {
            if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return Err(RuntimeError::Interrupted);
            }
            let ids: Vec<i32> = part
                .iter()
                .map(|&t| i32::try_from(t).unwrap_or(-1))
                .collect();
            if let [id] = ids[..] {
                self.decode(id)?;
            } else {
                self.prefill(&ids)?;
            }
            self.seen += part.len();
        }
        self.logits.resize(self.plan.shape.vocabulary as usize, 0.0);
        let mut bytes = vec![0; self.logits.len() * 4];
        self.device.read("logits", &mut bytes)?;
        let values = bytes.as_chunks::<4>().0.iter();
        self.logits
            .iter_mut()
            .zip(values)
            .for_each(|(l, b)| *l = f32::from_le_bytes(*b));
        Ok(&self.logits)
    }

    /// One token of sequence 0; the others see token 0 at position 0, which nobody reads.
    fn decode(&mut self, id: i32) -> Result<(), RuntimeError> {
        let batch = (self.plan.shape.batch as usize).max(1);
        let row = |first: i32| {
            let mut row = vec![0; batch];
            row[0] = first;
            row
        };
        self.set("tokens", &row(id))?;
        self.set("positions", &row(small(self.seen)))?;
        self.set("sampling", &vec![0; 3 * batch])?;
        self.set("sampling_top_k", &vec![0; batch])?;
        self.device.run("decode")
    }

    fn prefill(&mut self, ids: &[i32]) -> Result<(), RuntimeError> {
        let chunk = self.plan.shape.chunk as usize;
        let mut prompt = ids.to_vec();
        prompt.resize(chunk.max(ids.len()), 0);
        let positions: Vec<i32> = (0..prompt.len()).map(|i| small(self.seen + i)).collect();
        self.set("prompt", &prompt)?;
        self.set("prompt_positions", &positions)?;
        self.set("scalars", &[small(ids.len()), small(self.seen), 0])?;
        self.device.run("prefill")
    }

    /// Fills an input, where the plan has it.
    fn set(&mut self, buffer: &str, values: &[i32]) -> Result<(), RuntimeError> {
        if !self.plan.persistent.iter().any(|b| b.name == buffer) {
            return Ok(());
        }
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.device.write(buffer, &bytes)
    }

    /// Gives each sequence its own pages, in order.
    ///
    /// # Errors
    /// The device refuses.
    pub fn assign_pages(&mut self) -> Result<(), RuntimeError> {
        let Some(pages) = self.plan.persistent.iter().find(|b| b.name == "pages") else {
            return Ok(());
        };
        let count = i32::try_from(pages.bytes / 4).unwrap_or(0);
        self.set("pages", &(0..count).collect::<Vec<_>>())
    }

    /// Whether every cache still holds all positions.
    fn caches_are_whole(&self) -> bool {
        let batch = u64::from(self.plan.shape.batch).max(1);
        let caches = self.plan.persistent.iter().filter(|b| b.is_cache());
        let mut held = caches.map(|b| b.dims.iter().take(2).product::<u64>() / batch);
        held.all(|positions| positions >= self.seen as u64)
    }
}

fn small(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

impl<D: Device> LanguageModel for PlanModel<D> {
    fn vocabulary(&self) -> usize {
        self.plan.shape.vocabulary as usize
    }

    fn forward(&mut self, tokens: &[u32]) -> Result<&[f32], ModelError> {
        match self.advance(tokens) {
            Ok(_) => Ok(&self.logits),
            Err(RuntimeError::Interrupted) => Err(ModelError::Interrupted),
            Err(error) => Err(ModelError::Failed(error.into())),
        }
    }

    /// A cache of a window that has wrapped around has lost what lies before: nothing is kept then.
    fn rewind(&mut self, keep: usize) -> usize {
        self.seen = if self.caches_are_whole() {
            keep.min(self.seen)
        } else {
            0
        };
        self.seen
    }
}

impl<D: Device> Predictor for PlanModel<D> {
    fn vocabulary(&self) -> usize {
        self.plan.shape.vocabulary as usize
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn begin(&mut self, tokens: &[u32]) -> eval::Result<()> {
        self.seen = 0;
        self.window = tokens.to_vec();
        Ok(())
    }

    /// What lies before the range goes through as a prompt, the range token by token.
    fn rows(
        &mut self,
        range: Range<usize>,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> eval::Result<()> {
        if range.start < self.seen {
            self.seen = 0;
        }
        let window = std::mem::take(&mut self.window);
        let mut run = || -> Result<(), RuntimeError> {
            let before = window.get(self.seen..range.start).unwrap_or_default();
            if !before.is_empty() {
                self.advance(before)?;
            }
            for (row, token) in window
                .get(range.clone())
                .unwrap_or_default()
                .iter()
                .enumerate()
            {
                each(row, self.advance(std::slice::from_ref(token))?);
            }
            Ok(())
        };
        let done = run();
        self.window = window;
        done.map_err(|error| eval::EvalError::Device {
            model: self.name.clone(),
            source: Box::new(error),
        })
    }
}
