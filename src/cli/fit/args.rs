//! What `fit` takes, and `opt --vram`.

use crate::budget::running::KvFormat;
use crate::cli::args::TalkArgs;
use clap::{Args, ValueEnum, ValueHint};
use std::path::PathBuf;

const DEVICE: &str = "Device memory";

/// What `fit` takes.
#[derive(Debug, Clone, Args)]
pub struct FitArgs {
    /// Model: anything that `opt` takes, or a config.json (or its folder) without weights
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub input: PathBuf,
    /// The device and what it shall hold.
    #[command(flatten)]
    pub load: LoadArgs,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// A device's memory, and what it shall hold beside the weights.
#[derive(Debug, Clone, Default, Args)]
pub struct LoadArgs {
    /// Memory of the device, as 24GiB; tensors (files around them are not counted) get what keys and values,
    /// activations and the reserve leave
    #[arg(long, value_name = "SIZE", value_parser = super::size, help_heading = DEVICE)]
    pub vram: Option<u64>,
    /// Tokens of each sequence [default: 8192, or the model's most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32),
          help_heading = DEVICE)]
    pub ctx: Option<u64>,
    /// How keys and values are kept [default: f16]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = DEVICE)]
    pub kv: Option<Kv>,
    /// Sequences at a time [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 20),
          help_heading = DEVICE)]
    pub batch: Option<u64>,
    /// Tokens of a sequence that go through the model at once [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32),
          help_heading = DEVICE)]
    pub chunk: Option<u64>,
    /// What driver and context keep for themselves [default: 1GiB; 1007 MiB measured on an H100 with CUDA 13]
    #[arg(long, value_name = "SIZE", value_parser = super::size_or_none, help_heading = DEVICE)]
    pub reserve: Option<u64>,
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kv {
    /// 4 bytes, as `run` keeps them
    F32,
    /// 2 bytes (f16 or bf16)
    #[value(alias = "bf16")]
    F16,
    /// 8-bit codes, 32 sharing a scale: 8.5 bits
    #[value(alias = "q8_0")]
    Q8,
    /// 4-bit codes, 32 sharing a scale: 4.5 bits
    #[value(alias = "q4_0")]
    Q4,
}

impl LoadArgs {
    /// The first option that is given and says nothing without a device's memory.
    pub fn given(&self) -> Option<&'static str> {
        let given = [
            ("--ctx", self.ctx.is_some()),
            ("--kv", self.kv.is_some()),
            ("--batch", self.batch.is_some()),
            ("--chunk", self.chunk.is_some()),
            ("--reserve", self.reserve.is_some()),
        ];
        given
            .into_iter()
            .find(|(_, given)| *given)
            .map(|(option, _)| option)
    }
}

impl Kv {
    /// The format.
    pub fn format(self) -> KvFormat {
        match self {
            Kv::F32 => KvFormat::F32,
            Kv::F16 => KvFormat::F16,
            Kv::Q8 => KvFormat::Q8,
            Kv::Q4 => KvFormat::Q4,
        }
    }
}
