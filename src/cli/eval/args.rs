//! What `eval` takes.

use crate::cli::args::TalkArgs;
use crate::cli::device::DeviceArgs;
use crate::cli::run::args::PrecisionArg;
use clap::{Args, ValueEnum, ValueHint};
use std::path::PathBuf;

const PROTOCOL: &str = "Protocol";
const GATES: &str = "Gates";
const CACHE: &str = "Cache of the reference's logits";
const LIMITS: &str = "Limits";
const OUTPUT: &str = "Output";

/// What `eval` takes.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// Models to judge; several are compared with each other, window by window
    #[arg(value_name = "MODEL", required = true, num_args = 1.., value_hint = ValueHint::AnyPath)]
    pub models: Vec<PathBuf>,
    /// The original, whose predictions or outputs are the measure
    #[arg(short = 'r', long = "ref", alias = "reference", value_name = "ORIGINAL", value_hint = ValueHint::AnyPath)]
    pub reference: Option<PathBuf>,
    /// Text files (UTF-8) to predict, or of which each line is an input of an encoder
    #[arg(short = 'd', long, value_name = "FILE", value_delimiter = ',', value_hint = ValueHint::FilePath,
          required_unless_present = "inputs")]
    pub data: Vec<PathBuf>,
    /// Inputs by name, as numpy's savez writes them; outputs are compared
    #[arg(long, value_name = "FILE.npz", value_delimiter = ',', value_hint = ValueHint::FilePath,
          conflicts_with = "data", requires = "reference")]
    pub inputs: Vec<PathBuf>,
    /// Each once more without its low-rank terms, its sparse terms, and both
    #[arg(long)]
    pub ablate: bool,

    /// Tokens of a window, BOS included [default: 2048, or what the model has if that is less]
    #[arg(long, value_name = "N", value_parser = count, help_heading = PROTOCOL)]
    pub ctx: Option<usize>,
    /// Tokens of a window where `ctx` says nothing and the models have as many.
    #[arg(skip)]
    pub usual: Option<usize>,
    /// Tokens between the starts of windows [default: a window's, not overlapping]; only new positions count
    #[arg(long, value_name = "N", value_parser = count, help_heading = PROTOCOL)]
    pub stride: Option<usize>,
    /// Predictions at the start of every window that do not count (llama.cpp: half of --ctx)
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = PROTOCOL)]
    pub skip: usize,
    /// Whether every window begins with the BOS token
    #[arg(long, value_enum, value_name = "WHEN", default_value_t, help_heading = PROTOCOL)]
    pub bos: Bos,
    /// Only the first N windows (or lines)
    #[arg(long, value_name = "N", value_parser = count, help_heading = PROTOCOL)]
    pub windows: Option<usize>,
    /// Lines like this separate documents: they are left out, and documents are tokenized one by one
    #[arg(long, value_name = "LINE", allow_hyphen_values = true, help_heading = PROTOCOL)]
    pub split: Option<String>,
    /// Folder or tokenizer.json to use in place of what is beside the models
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, help_heading = PROTOCOL)]
    pub tokenizer: Option<PathBuf>,

    /// Exit with 5 where a model's mean KL divergence (nats per token) is above this
    #[arg(long, value_name = "X", value_parser = gate, requires = "reference", help_heading = GATES)]
    pub max_kl: Option<f64>,
    /// Exit with 5 where a model's perplexity over the original's is above this
    #[arg(long, value_name = "X", value_parser = gate, requires = "reference", help_heading = GATES)]
    pub max_ppl_ratio: Option<f64>,

    /// Folder of the cache [default: hlrc-opt in the user's folder of caches]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = CACHE)]
    pub cache: Option<PathBuf>,
    /// Bytes that the cache may have; what does not fit is computed each time
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = size, help_heading = CACHE)]
    pub cache_limit: u64,
    /// Neither read nor write the cache
    #[arg(long, conflicts_with_all = ["cache", "cache_limit"], help_heading = CACHE)]
    pub no_cache: bool,

    /// Worker threads (default: one per core)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = LIMITS)]
    pub threads: Option<u16>,
    /// How quantized weights of the models are multiplied (the original's always exactly)
    #[arg(long, value_enum, value_name = "HOW", default_value_t, help_heading = LIMITS)]
    pub precision: PrecisionArg,
    /// Where the models run; the original stays on the processor.
    #[command(flatten)]
    pub device: DeviceArgs,

    /// One JSON object
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// Whether windows begin with BOS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Bos {
    /// Where the model's tokenizer puts one in front of text
    #[default]
    Auto,
    /// In every window
    Always,
    /// In none
    Never,
}

/// Windows and context of the evaluation that ends `opt --eval`.
const AFTER_OPT: (usize, usize) = (20, 512);

impl EvalArgs {
    /// The evaluation of an output against its input: 20 windows of 512 tokens, or of as many as the model has.
    pub fn after_opt(
        output: PathBuf,
        input: PathBuf,
        data: &[PathBuf],
        threads: Option<u16>,
        talk: TalkArgs,
    ) -> Self {
        Self {
            models: vec![output],
            reference: Some(input),
            data: data.to_vec(),
            inputs: Vec::new(),
            ablate: false,
            device: DeviceArgs::default(),
            ctx: None,
            usual: Some(AFTER_OPT.1),
            stride: None,
            skip: 0,
            bos: Bos::Auto,
            windows: Some(AFTER_OPT.0),
            split: None,
            tokenizer: None,
            max_kl: None,
            max_ppl_ratio: None,
            cache: None,
            cache_limit: 4 << 30,
            no_cache: false,
            threads,
            precision: PrecisionArg::Exact,
            json: false,
            talk,
        }
    }
}

/// A number of which none would leave nothing to measure.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("takes a number from 1 on".to_string()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    crate::report::human::parse_size(text)
}

/// A limit: a number that something can be above.
fn gate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(limit) if limit >= 0.0 => Ok(limit),
        _ => Err("takes a number from 0 on".to_string()),
    }
}
