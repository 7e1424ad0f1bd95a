//! What `train` takes.

use crate::cli::args::TalkArgs;
use crate::cli::eval::args::{Bos, count};
use crate::train::parameters::Kind;
use clap::{Args, ValueEnum, ValueHint};
use std::path::PathBuf;

const WHAT: &str = "What is trained";
const DATA: &str = "Data";
const COURSE: &str = "Course";
const OUTPUT: &str = "Output";
const LIMITS: &str = "Limits";

/// What `train` takes.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// Rewritten model: a .hlrc folder, or anything else that can be run
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// The original, whose predictions and layers' results are the aim
    #[arg(short = 't', long, value_name = "ORIGINAL", value_hint = ValueHint::AnyPath)]
    pub teacher: Option<PathBuf>,
    /// Layer by layer with one in memory, the whole model, or the one behind the other
    #[arg(long, value_enum, value_name = "MODE", default_value_t)]
    pub mode: Mode,

    /// Kinds of stored tensors that move; everything else stays as it is
    #[arg(long, value_enum, value_name = "KINDS", value_delimiter = ',', help_heading = WHAT,
          default_values = ["scales", "lowrank", "sparse", "norms", "bias", "plugin"])]
    pub params: Vec<Kind>,
    /// Only tensors whose name, or whose op's name, fits: part of a name, * and ?, re:REGEX
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', help_heading = WHAT)]
    pub only: Vec<String>,
    /// Weight of the next token's cross entropy [default: 0 with a teacher, 1 without]
    #[arg(long, value_name = "W", value_parser = weight, help_heading = WHAT)]
    pub ce: Option<f64>,
    /// Weight of the KL divergence from the teacher [default: 1 with a teacher]
    #[arg(long, value_name = "W", value_parser = weight, requires = "teacher", help_heading = WHAT)]
    pub kl: Option<f64>,
    /// Keep the teacher's K likeliest tokens of each position, and the mass of all others, instead of
    /// running it again for all logits; 8·K bytes per token of the data
    #[arg(long, value_name = "K", value_parser = count, requires = "teacher", help_heading = WHAT)]
    pub teacher_top: Option<usize>,

    /// Text files (UTF-8), or JSON lines: text, prompt and response, or messages (by the model's chat
    /// template); `random`: tokens drawn at random
    #[arg(short = 'd', long, value_name = "FILE", value_delimiter = ',', required = true,
          value_hint = ValueHint::FilePath, help_heading = DATA)]
    pub data: Vec<PathBuf>,
    /// Tokens of an example at most [default: 512, or what the model has if that is less]
    #[arg(long, value_name = "N", value_parser = count, help_heading = DATA)]
    pub ctx: Option<usize>,
    /// Only the first N examples, those to judge by included
    #[arg(long, value_name = "N", value_parser = count, help_heading = DATA)]
    pub examples: Option<usize>,
    /// Examples held out to judge by: a number, or a share as 10%
    #[arg(long, value_name = "N", default_value = "10%", value_parser = held_out, help_heading = DATA)]
    pub val: HeldOut,
    /// Whether every window of text begins with the BOS token
    #[arg(long, value_enum, value_name = "WHEN", default_value_t, help_heading = DATA)]
    pub bos: Bos,
    /// Folder or tokenizer.json to use in place of what is beside the model
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, help_heading = DATA)]
    pub tokenizer: Option<PathBuf>,

    /// Steps of the optimizer end to end
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = steps, help_heading = COURSE)]
    pub steps: u64,
    /// Times through the data end to end, in place of --steps
    #[arg(long, value_name = "N", value_parser = count, conflicts_with = "steps", help_heading = COURSE)]
    pub epochs: Option<usize>,
    /// Steps of the optimizer in each layer
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = steps, help_heading = COURSE)]
    pub block_steps: u64,
    /// Learning rate at its height
    #[arg(long, value_name = "RATE", default_value_t = 2e-3, value_parser = positive, help_heading = COURSE)]
    pub lr: f64,
    /// What the rate is per: a tensor's root mean square, or nothing (plain AdamW)
    #[arg(long, value_enum, value_name = "UNIT", default_value_t, help_heading = COURSE)]
    pub lr_unit: Unit,
    /// Share of the steps over which the rate rises; then it falls along a cosine
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, value_parser = share, help_heading = COURSE)]
    pub warmup: f64,
    /// Weight decay
    #[arg(long, value_name = "D", default_value_t = 0.0, value_parser = weight, help_heading = COURSE)]
    pub decay: f64,
    /// Largest norm of the gradient; 0 for none
    #[arg(long, value_name = "NORM", default_value_t = 1.0, value_parser = weight, help_heading = COURSE)]
    pub clip: f64,
    /// Examples that run at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = count, help_heading = COURSE)]
    pub batch: usize,
    /// Batches that are added up for a step
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count, help_heading = COURSE)]
    pub accumulate: usize,
    /// Steps between judgements of the held-out examples
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = steps, help_heading = COURSE)]
    pub judge_every: u64,
    /// Judgements without progress after which training ends
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = steps, help_heading = COURSE)]
    pub patience: u64,
    /// Seed of the order of examples, and of which are held out
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = COURSE)]
    pub seed: u64,

    /// Folder to write
    #[arg(short = 'o', long, value_name = "OUT", required = true, value_hint = ValueHint::AnyPath, help_heading = OUTPUT)]
    pub output: PathBuf,
    /// Replace an output that is there already
    #[arg(short = 'f', long, help_heading = OUTPUT)]
    pub force: bool,
    /// Go on from where an interrupted run of the same command ended
    #[arg(long, help_heading = OUTPUT)]
    pub resume: bool,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = steps, help_heading = OUTPUT)]
    pub checkpoint_every: u64,
    /// Print what was seen as one JSON object
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,

    /// Make each layer's activations again on the way back: less memory, a third more time
    #[arg(long, help_heading = LIMITS)]
    pub recompute: bool,
    /// Memory for activations between layers, layer by layer; more is spilled
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = size, help_heading = LIMITS)]
    pub hold: u64,
    /// Worker threads (default: one per core)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = LIMITS)]
    pub threads: Option<u16>,
    /// Share each step's batches with the other processes of `mpirun -n N hlrc-opt train …`
    #[arg(long, help_heading = LIMITS)]
    pub mpi: bool,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// What is trained at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Each layer by itself, on the results of the original's
    Blocks,
    /// The whole model, on its predictions
    #[default]
    EndToEnd,
    /// Blocks, then end to end
    Both,
}

/// What the learning rate is per.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Unit {
    /// The root mean square of each tensor at the start
    #[default]
    Rms,
    /// Nothing: plain AdamW
    Absolute,
}

/// How many examples are held out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeldOut {
    /// A number of them.
    Count(usize),
    /// A share of them.
    Share(f64),
}

fn held_out(text: &str) -> Result<HeldOut, String> {
    let bad = || "takes a number, or a share below 100% as 10%".to_string();
    match text.strip_suffix('%') {
        Some(share) => match share.parse::<f64>() {
            Ok(share) if (0.0..100.0).contains(&share) => Ok(HeldOut::Share(share / 100.0)),
            _ => Err(bad()),
        },
        None => text.parse().map(HeldOut::Count).map_err(|_| bad()),
    }
}

fn steps(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("takes a number from 1 on".to_string()),
    }
}

fn weight(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x >= 0.0 && x.is_finite() => Ok(x),
        _ => Err("takes a number from 0 on".to_string()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x.is_finite() => Ok(x),
        _ => Err("takes a number above 0".to_string()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    let parsed = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|x| x / 100.0),
        None => text.parse::<f64>(),
    };
    match parsed {
        Ok(x) if (0.0..=1.0).contains(&x) => Ok(x),
        _ => Err("takes a share, as 0.05 or 5%".to_string()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    crate::report::human::parse_size(text)
}
