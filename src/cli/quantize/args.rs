//! What `quantize` takes, and the table of its types.

use crate::cli::args::TalkArgs;
use crate::cli::table::Table;
use crate::pass::pipeline::preset::{PRESETS, Preset};
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// What `quantize` takes.
#[derive(Debug, Clone, Args)]
pub struct QuantizeArgs {
    /// Model: .onnx, a Hugging Face directory, .safetensors (or its index), .hlir
    #[arg(value_name = "IN", value_hint = ValueHint::AnyPath)]
    pub input: PathBuf,
    /// Output (default ./STEM-TYPE.hlrc), type in upper or lower case, number of threads
    #[arg(value_name = "[OUT] TYPE [THREADS]", required = true, num_args = 1..=3, value_hint = ValueHint::AnyPath)]
    pub words: Vec<String>,
    /// Statistics of activations: a file of `calibrate`, text to run the model on, or `self`
    #[arg(long, value_name = "STATS|TEXT", value_delimiter = ',', value_hint = ValueHint::FilePath)]
    pub calib: Vec<PathBuf>,
    /// What this scope selects gets this pipeline or @TYPE instead (`none` leaves it)
    #[arg(
        short = 't',
        long = "tensor",
        alias = "tensor-type",
        value_name = "SCOPE=PIPELINE"
    )]
    pub overrides: Vec<String>,
    /// Say what would be done: sizes, memory, time; reads headers only
    #[arg(long)]
    pub dry_run: bool,
    /// Judge the output against the input on this text (20 windows of 512 tokens)
    #[arg(long, value_name = "FILE", value_delimiter = ',', value_hint = ValueHint::FilePath,
          conflicts_with = "dry_run")]
    pub eval: Vec<PathBuf>,
    /// Replace output that is there already
    #[arg(short = 'f', long)]
    pub force: bool,
    /// Go on from where an interrupted run of the same command ended
    #[arg(long, conflicts_with = "force")]
    pub resume: bool,
    /// Print the report as one JSON object on stdout
    #[arg(long)]
    pub json: bool,
    /// Memory to stay within, as 4GiB
    #[arg(long, value_name = "SIZE")]
    pub mem_limit: Option<String>,
    /// Worker threads (default: one per core)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// The types, for the help's end.
pub fn types() -> String {
    let mut table = Table::new(&["  type", "MB>", "KL>", "without --calib>", "what it is"]);
    let mut others = Vec::new();
    for preset in PRESETS {
        let Some(measured) = preset.measured else {
            others.push(preset.name);
            continue;
        };
        table.row([
            format!("  {}", preset.name),
            format!("{:.1}", measured.bytes as f64 / 1e6),
            figure(measured.divergence),
            figure(measured.uncalibrated),
            preset.summary.to_owned(),
        ]);
    }
    format!(
        "Types, with size and KL divergence of SmolLM2-135M (269 MB in bf16) on WikiText-2:\n\
         {}\n\
         Others: {}. Each is a preset of pipelines: `hlrc-opt passes @q4`\n\
         prints it. q6 to q2 are for .hlrc output; for .onnx take q8 or one of the others.",
        table.render(),
        others.join(", ")
    )
}

fn figure(value: f64) -> String {
    let decimals = match value {
        v if v < 0.01 => 4,
        v if v < 1.0 => 3,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// The type called so, in upper or lower case.
///
/// # Errors
/// What to write instead.
pub fn named(word: &str) -> Result<&'static Preset, String> {
    let name = word.trim_start_matches('@').to_ascii_lowercase();
    if let Some(preset) = PRESETS.iter().find(|preset| preset.name == name) {
        return Ok(preset);
    }
    // Q4_K_M, IQ4_NL, Q8_0 …
    let bits = name.trim_start_matches('i').strip_prefix('q');
    let bits = bits.and_then(|rest| rest.split('_').next());
    let near = PRESETS
        .iter()
        .find(|p| p.name.strip_prefix('q').is_some_and(|b| Some(b) == bits));
    Err(match near {
        Some(near) if name.contains('_') => format!(
            "{word} is one of llama.cpp's; the type of as many bits here is {}",
            near.name
        ),
        _ => {
            let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
            format!("types are {}", names.join(", "))
        }
    })
}
