//! What `--emit plan` takes.

use clap::{Args, ValueEnum};

const PLAN: &str = "Kernel plan";

/// What is written in place of a model, and for which device.
#[derive(Debug, Clone, Default, Args)]
pub struct PlanArgs {
    /// Write a kernel plan in place of a model: launches, packed weights, sources (-S: its text, to stdout)
    #[arg(long, value_enum, value_name = "WHAT", help_heading = PLAN)]
    pub emit: Option<Emit>,
    /// Device of the plan: sm_80, sm_86, sm_89, sm_90, sm_120, or a .json file that describes one
    #[arg(long, value_name = "TARGET", default_value = "sm_89", hide_default_value = false, help_heading = PLAN)]
    pub target: String,
    /// Print what the plan costs: bytes per token, tokens per second at best, what is fused, what is not
    #[arg(long, requires = "emit", help_heading = PLAN)]
    pub summary: bool,
    /// Compile the kernels for the target too, with nvcc or NVRTC: the plan then runs where neither is
    #[arg(long, requires = "emit", help_heading = PLAN)]
    pub compile: bool,
    /// Where weights are kept: `experts=host`, `re:REGEX=host` or part of a name; the last that fits counts
    #[arg(long, value_name = "WEIGHTS=PLACE", requires = "emit", help_heading = PLAN)]
    pub placement: Vec<String>,
    /// Positions of a page of keys and values; contiguous without
    #[arg(long, value_name = "N", requires = "emit", value_parser = clap::value_parser!(u32).range(1..=65536),
          help_heading = PLAN)]
    pub page: Option<u32>,
    /// Keep activations of codes exact instead of rounding them to 8 bits
    #[arg(long, requires = "emit", help_heading = PLAN)]
    pub exact_activations: bool,
}

/// What is written in place of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Emit {
    /// A kernel plan
    Plan,
}
