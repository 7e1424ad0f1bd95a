//! Training of rewritten modules.
//!
//! [`grad`] makes a backward graph of a module, IR to IR; the executor runs it like any graph.
//! [`parameters`] says which stored tensors move and how they are kept in their formats,
//! [`optimizer`] moves them, [`data`] orders examples, [`loss`] puts losses on a language model.
//! [`end_to_end`] trains a whole model; [`blocks`] trains layer by layer, with one in memory.
//! Results depend on the settings and the data alone: not on threads, nor on interruptions; with
//! [`ranks`] that share the batches, up to the order of sums.

pub mod blocks;
pub mod checkpoint;
pub mod data;
pub mod end_to_end;
mod error;
pub mod extract;
pub mod grad;
pub mod history;
mod learner;
pub mod loss;
pub mod optimizer;
pub mod parameters;
pub mod ranks;
mod teacher;

pub use error::TrainError;
pub use history::{History, Judged, Record};

use std::sync::atomic::AtomicBool;

use optimizer::Schedule;
use parameters::Choice;
use serde::{Deserialize, Serialize};

/// How to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Which parameters.
    pub choice: Choice,
    /// Weight of the next token's cross entropy in the objective.
    pub cross_entropy: f64,
    /// Weight of the KL divergence from the teacher.
    pub kl: f64,
    /// Hold the teacher's likeliest tokens and the mass of all others, instead of all logits.
    pub top: Option<usize>,
    /// Steps of the optimizer end to end.
    pub steps: u64,
    /// Steps of the optimizer in each block.
    pub block_steps: u64,
    /// Learning rate and its course.
    pub schedule: Schedule,
    /// Examples that run at once.
    pub batch: usize,
    /// Batches that are added up for a step.
    pub accumulate: usize,
    /// Steps between judgements of the validation examples.
    pub judge_every: u64,
    /// Judgements without progress until training ends.
    pub patience: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Make layers' values again on the way back instead of keeping them.
    pub recompute: bool,
    /// Seed of the examples' order.
    pub seed: u64,
}

impl Settings {
    /// What is to be small of a judgement.
    pub fn measure(&self, judged: &Judged) -> f64 {
        judged.measure(self.cross_entropy, self.kl)
    }
}

/// Who hears of progress, and may stop it.
pub trait Watch {
    /// A step was done, or the validation examples were judged.
    fn record(&mut self, place: Place, record: &Record);
    /// Set where the user wants to stop.
    fn interrupt(&self) -> &'static AtomicBool;
}

/// Where training is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The block, of how many; none end to end.
    pub block: Option<(usize, usize)>,
    /// Steps in all, of this block.
    pub steps: u64,
}
