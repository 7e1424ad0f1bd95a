//! Trains what the passes before it have stored: scales, factors, outliers, norms; codes stay.
//!
//! It ends a pipeline and works on the finished model, with the pipeline's input as its teacher: the
//! result's predictions are drawn towards the original's, or with `mode=blocks` each layer's results
//! towards those of the original's layer. Bytes and formats stay what they were. `hlrc-opt train` is
//! the same as a command of its own, and says more of what the options mean; `docs/train.md` has the
//! method. The text is that of `data`, else that of `--calib`.
//!
//! Before: `linear %x { low_rank(@w.u, @w.v, r=6) + quant(@w.codes, @w.scales, @w.zeros, int2, group=32) }`
//! After:  the same terms with other factors and scales.
//!
//! Cost: a step runs the original once and the result three times over batch × ctx tokens. Memory: the
//! activations of a batch and the trained values five times; layer by layer, those of one layer.
//! Source: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization" (AdamW), arXiv
//! 1711.05101; G. Hinton et al., "Distilling the knowledge in a neural network", arXiv 1503.02531.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use crate::ir::patch::Patch;
use crate::pass::{ModulePass, Pass, PassError, Rewrite};

/// Options of `train`; what is not given is as `hlrc-opt train` has it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Kinds of stored tensors that move: scales, zeros, lowrank, sparse, norms, bias, dense, codes.
    /// Default: scales,lowrank,sparse,norms,bias.
    #[schemars(extend("list" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params: Option<String>,
    /// Only tensors whose name, or whose op's name, fits: part of a name, * and ?, re:REGEX. Default: all.
    #[schemars(extend("list" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<String>,
    /// The whole model, layer by layer, or the one behind the other. Default: end-to-end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<ModeOption>,
    /// Text files or JSON lines; several need quotes: "a.txt,b.txt". Default: the text of `--calib`.
    #[schemars(extend("list" = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Folder or tokenizer.json, where it is not beside the pipeline's input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The original, where it is not the pipeline's input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// Steps of the optimizer end to end. Default: 300.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Times through the data end to end, in place of `steps`.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// Steps of the optimizer in each layer. Default: 100.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_steps: Option<u64>,
    /// Learning rate at its height. Default: 0.002.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// What the rate is per: a tensor's root mean square, or nothing (plain AdamW). Default: rms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_unit: Option<UnitOption>,
    /// Share of the steps over which the rate rises. Default: 5%.
    #[schemars(range(min = 0.0, max = 1.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup: Option<f64>,
    /// Weight decay. Default: 0.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay: Option<f64>,
    /// Largest norm of the gradient; 0 for none. Default: 1.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// Examples that run at once. Default: 4.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// Batches that are added up for a step. Default: 1.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accumulate: Option<u64>,
    /// Tokens of an example at most. Default: 512, or what the model has if that is less.
    #[schemars(range(min = 2))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ctx: Option<u64>,
    /// Only the first N examples. Default: all.
    #[schemars(range(min = 2))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<u64>,
    /// Examples held out to judge by: a number, or a share as 10%. Default: 10%.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val: Option<f64>,
    /// Weight of the KL divergence from the teacher. Default: 1.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Weight of the next token's cross entropy. Default: 0.
    #[schemars(range(min = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ce: Option<f64>,
    /// Keep the teacher's N likeliest tokens of each position instead of running it again. Default: all.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_top: Option<u64>,
    /// Steps between judgements of the held-out examples. Default: 25.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge_every: Option<u64>,
    /// Judgements without progress after which training ends. Default: 8.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// Steps between checkpoints. Default: 50.
    #[schemars(range(min = 1))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
    /// Make each layer's activations again on the way back: less memory, a third more time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
}

/// What is trained at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ModeOption {
    /// Each layer by itself, on the results of the original's.
    Blocks,
    /// The whole model, on its predictions.
    EndToEnd,
    /// Blocks, then end to end.
    Both,
}

/// What the learning rate is per.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UnitOption {
    /// The root mean square of each tensor at the start.
    Rms,
    /// Nothing: plain AdamW.
    Absolute,
}

impl Train {
    fn build(self) -> Result<Pass, PassError> {
        let share = |val: f64| val < 1.0 || val.fract() == 0.0;
        if let Some(val) = self.val.filter(|&val| !share(val)) {
            let text = format!("`val` is a number of examples or a share below 100%, not {val}");
            return Err(PassError::new(text));
        }
        if self.kl == Some(0.0) && self.ce.unwrap_or(0.0) == 0.0 {
            let text = "with `kl=0` there is nothing to learn from; give `ce` a weight";
            return Err(PassError::new(text));
        }
        Ok(Pass::Module(Box::new(self)))
    }
}

impl ModulePass for Train {
    /// It needs the weights that the passes before it have made: the main job runs it when they are
    /// written.
    fn run(&self, _: &mut Rewrite<'_>) -> Result<Patch, PassError> {
        let text =
            "it works on a finished model; it stands last in the pipeline of the main command";
        Err(PassError::new(text))
    }
}

pass_entry!("train", Train, Train::build);
