//! What `calibrate` takes.

use crate::cli::args::TalkArgs;
use crate::cli::eval::args::{Bos, count};
use clap::{Args, ValueHint};
use std::path::PathBuf;

const PROTOCOL: &str = "Protocol";
const OUTPUT: &str = "Output";
const LIMITS: &str = "Limits";

/// What `calibrate` takes.
#[derive(Debug, Clone, Args)]
pub struct CalibrateArgs {
    /// Model to run; with --show, to check the file against; with --merge there is none
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath, required_unless_present_any = ["merge", "show"])]
    pub model: Option<PathBuf>,
    /// Text files (UTF-8) to run it on, windows taken from each in turn; encoders take lines. `self`: text
    /// that the model writes itself
    #[arg(short = 'd', long, value_name = "FILE", value_delimiter = ',', value_hint = ValueHint::FilePath,
          required_unless_present_any = ["merge", "show"])]
    pub data: Vec<PathBuf>,
    /// Add up statistics of one model instead of running it
    #[arg(long, value_name = "STATS", num_args = 1.., value_hint = ValueHint::FilePath,
          conflicts_with_all = ["model", "data"], requires = "output")]
    pub merge: Vec<PathBuf>,
    /// Print what a file of statistics holds, or an importance matrix of llama.cpp (GGUF)
    #[arg(long, alias = "show-statistics", value_name = "STATS", value_hint = ValueHint::FilePath,
          conflicts_with_all = ["data", "merge", "output"])]
    pub show: Option<PathBuf>,

    /// Tokens of a window, BOS included; of a line at most [default: 512, or what the model has if that is less]
    #[arg(long, value_name = "N", value_parser = count, conflicts_with_all = ["merge", "show"], help_heading = PROTOCOL)]
    pub ctx: Option<usize>,
    /// Windows of all files together; lines make up as many tokens
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count,
          conflicts_with_all = ["merge", "show"], help_heading = PROTOCOL)]
    pub windows: usize,
    /// Whether every window begins with the BOS token
    #[arg(long, value_enum, value_name = "WHEN", default_value_t, conflicts_with_all = ["merge", "show"], help_heading = PROTOCOL)]
    pub bos: Bos,
    /// Seed of the text that the model writes itself; texts have none
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with_all = ["merge", "show"], help_heading = PROTOCOL)]
    pub seed: u64,
    /// Folder or tokenizer.json to use in place of what is beside the model
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath,
          conflicts_with_all = ["merge", "show"], help_heading = PROTOCOL)]
    pub tokenizer: Option<PathBuf>,

    /// File to write [default: STEM.calibration in the current folder]
    #[arg(short = 'o', long, value_name = "STATS", value_hint = ValueHint::FilePath, help_heading = OUTPUT)]
    pub output: Option<PathBuf>,
    /// Replace a file that is there already
    #[arg(short = 'f', long, conflicts_with = "show", help_heading = OUTPUT)]
    pub force: bool,
    /// Go on from where an interrupted run of the same command ended
    #[arg(long, conflicts_with_all = ["force", "merge", "show"], help_heading = OUTPUT)]
    pub resume: bool,
    /// One JSON object
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,

    /// Memory to stay within, as 4GiB (mapped weights apart); what lives between segments is spilled beyond it
    #[arg(long, value_name = "SIZE", value_parser = size,
          conflicts_with_all = ["merge", "show"], help_heading = LIMITS)]
    pub mem_limit: Option<u64>,
    /// Worker threads (default: one per core)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          conflicts_with_all = ["merge", "show"], help_heading = LIMITS)]
    pub threads: Option<u16>,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

fn size(text: &str) -> Result<u64, String> {
    crate::report::human::parse_size(text)
}
