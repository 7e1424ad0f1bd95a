//! What `run` takes.

use crate::cli::args::TalkArgs;
use crate::cli::device::DeviceArgs;
use clap::{Args, ValueEnum, ValueHint};
use std::path::PathBuf;

const TEXT: &str = "Text";
const CHOICE: &str = "Choice of tokens";
const LIMITS: &str = "Limits";
const OUTPUT: &str = "Output";

/// What `run` takes.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Model: a Hugging Face directory, .safetensors, .hlrc or .onnx, with its tokenizer.json beside it
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// `-` reads the prompt from standard input
    #[arg(value_name = "-", value_parser = ["-"], conflicts_with_all = ["prompt", "prompt_file"])]
    pub stdin: Option<String>,

    /// Text to continue; with --chat, what the user says
    #[arg(short = 'p', long, value_name = "TEXT", allow_hyphen_values = true, help_heading = TEXT)]
    pub prompt: Option<String>,
    /// File with the prompt; - is standard input
    #[arg(short = 'f', long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "prompt",
          help_heading = TEXT)]
    pub prompt_file: Option<PathBuf>,
    /// Put the prompt into the model's chat template; without a prompt, converse on the terminal
    #[arg(long, help_heading = TEXT)]
    pub chat: bool,
    /// What the system says in front of a conversation
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true, help_heading = TEXT)]
    pub system: Option<String>,
    /// Folder or tokenizer.json to use in place of what is beside the model
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath, help_heading = TEXT)]
    pub tokenizer: Option<PathBuf>,

    /// 0 takes the likeliest token; 1 draws as the model says, more makes it wilder [default: 0]
    #[arg(long, alias = "temperature", value_name = "T", allow_negative_numbers = true, help_heading = CHOICE)]
    pub temp: Option<f32>,
    /// Draw from the K likeliest tokens
    #[arg(long, value_name = "K", help_heading = CHOICE)]
    pub top_k: Option<usize>,
    /// Draw from the fewest likeliest tokens that have this share of the probability together
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = CHOICE)]
    pub top_p: Option<f32>,
    /// Draw from tokens with at least this share of the likeliest one's probability
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = CHOICE)]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens that came before by this
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, help_heading = CHOICE)]
    pub repeat_penalty: f32,
    /// Seed of the draws; the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = CHOICE)]
    pub seed: u64,

    /// Tokens to make at most [default: 256; with --chat, what the context holds]
    #[arg(short = 'n', long, value_name = "N", help_heading = LIMITS)]
    pub max_tokens: Option<usize>,
    /// End in front of this text; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = LIMITS)]
    pub stop: Vec<String>,
    /// Go on where the model says that its text ends
    #[arg(long, help_heading = LIMITS)]
    pub ignore_eos: bool,
    /// Tokens to stay within, the prompt's included [default: what the model was made for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = LIMITS)]
    pub ctx: Option<u32>,
    /// Worker threads (default: one per core)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          help_heading = LIMITS)]
    pub threads: Option<u16>,
    /// How quantized weights are multiplied
    #[arg(long, value_enum, value_name = "HOW", default_value_t, help_heading = LIMITS)]
    pub precision: PrecisionArg,
    /// Where it runs.
    #[command(flatten)]
    pub device: DeviceArgs,

    /// The result as JSON on stdout: one object at the end, or a line for each token too
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "object",
          value_name = "FORM", help_heading = OUTPUT)]
    pub json: Option<JsonForm>,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// How quantized weights are multiplied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// With activations in f32
    #[default]
    Exact,
    /// With activations rounded to 8 bits in groups of 32: faster
    Int8,
}

/// Forms of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum JsonForm {
    /// One object at the end
    Object,
    /// A line for each token as it comes, the object as the last line
    Lines,
}
