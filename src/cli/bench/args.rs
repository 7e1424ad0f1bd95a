//! What `bench` takes.

use crate::cli::args::TalkArgs;
use crate::cli::device::DeviceArgs;
use crate::cli::run::args::PrecisionArg;
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// What `bench` takes.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Model, or the folder of a kernel plan
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// Where it runs.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Tokens that a sequence has seen when the next one is timed [default: 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..))]
    pub past: Option<u32>,
    /// Positions that the plan has room for [default: the model's most, at most 8192]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,
    /// How quantized weights are multiplied
    #[arg(long, value_enum, value_name = "HOW", default_value = "int8")]
    pub precision: PrecisionArg,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}
