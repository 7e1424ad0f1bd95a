//! What a training run has seen: losses of steps, judgements of the validation examples.

use serde::{Deserialize, Serialize};

/// One step, or one judgement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps done; 0 is the untrained model.
    pub step: u64,
    /// The objective over the step's examples; in a block, the relative error of its results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Learning rate of the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Norm of the gradient before it was clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
    /// Tokens that counted.
    #[serde(default)]
    pub tokens: u64,
    /// What the validation examples say, where they were asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<Judged>,
}

/// Means over the tokens of the validation examples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Cross entropy of the next token, nats; of a block, nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_entropy: Option<f64>,
    /// KL divergence from the teacher, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Relative squared error of a block's results.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
}

impl Judged {
    /// What training goes by: the block's error, else the objective, cross entropy and KL divergence with
    /// their weights. Infinite where what counts was not judged.
    pub fn measure(&self, cross_entropy: f64, kl: f64) -> f64 {
        if let Some(error) = self.error {
            return error;
        }
        let part = |weight: f64, value: Option<f64>| match weight > 0.0 {
            true => weight * value.unwrap_or(f64::INFINITY),
            false => 0.0,
        };
        part(cross_entropy, self.cross_entropy) + part(kl, self.kl)
    }
}

fn one() -> usize {
    1
}

fn is_one(count: &usize) -> bool {
    *count == 1
}

/// A training run, as reports hold it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// The run in the words of the command.
    pub settings: String,
    /// Processes that shared the batches.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: usize,
    /// Trained tensors and their values, by kind: name of the kind, tensors, values.
    pub trained: Vec<(String, u64, u64)>,
    /// Each block's records; the block's name first.
    #[serde(default)]
    pub blocks: Vec<(String, Vec<Record>)>,
    /// What the held-out examples say of the model before it was trained, where it was trained by blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untrained: Option<Judged>,
    /// What they say of it behind its blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind_blocks: Option<Judged>,
    /// Records end to end.
    #[serde(default)]
    pub end_to_end: Vec<Record>,
    /// The step whose state was kept end to end.
    #[serde(default)]
    pub kept: u64,
}
