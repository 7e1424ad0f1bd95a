//! What `compare` takes.

use crate::budget::Family;
use crate::cli::args::{TalkArgs, bits};
use crate::cli::eval::args::count;
use clap::{ArgGroup, Args, ValueHint};
use std::path::PathBuf;

/// What `compare` takes.
#[derive(Debug, Clone, Args)]
#[command(group = ArgGroup::new("target").required(true).args(["bpw", "size"]))]
pub struct CompareArgs {
    /// Model to compress in each way
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub input: PathBuf,
    /// Text on which statistics are taken and costs are measured: a file of `calibrate`, or text files
    #[arg(long, value_name = "STATS|TEXT", value_delimiter = ',', required = true, value_hint = ValueHint::FilePath)]
    pub calib: Vec<PathBuf>,
    /// Text on which the results are judged; not that of --calib
    #[arg(short = 'd', long, value_name = "FILE", value_delimiter = ',', required = true, value_hint = ValueHint::FilePath)]
    pub data: Vec<PathBuf>,
    /// Bits per weight of the matrices; several give a curve
    #[arg(long = "target-bpw", value_name = "BITS", value_delimiter = ',', value_parser = bits)]
    pub bpw: Vec<f64>,
    /// Bytes of each whole output on disk, all files and embeddings and head included, as 60MB; several give a curve
    #[arg(long = "target-size", value_name = "SIZE", value_delimiter = ',', value_parser = size)]
    pub size: Vec<u64>,
    /// Ways to compare, each within the same bytes; `mixed` may take any candidate of the others [default:
    /// int,outlier-int,lowrank-int,lowrank-outlier-int,trellis,mixed]
    #[arg(long, value_name = "WAYS", value_delimiter = ',', value_parser = way)]
    pub ways: Vec<Way>,
    /// Pipeline around the matrices, with `trellis` in their place, as 'trellis,embeddings(int8)'
    #[arg(
        short = 'p',
        long = "pipeline",
        value_name = "PIPELINE",
        default_value = "trellis"
    )]
    pub pipeline: String,
    /// Tokens of a window of --data (of a line, for encoders) [default: 512, or what the model has if that is less]
    #[arg(long, value_name = "N", value_parser = count)]
    pub ctx: Option<usize>,
    /// Windows (or lines) of --data
    #[arg(long, value_name = "N", value_parser = count)]
    pub windows: Option<usize>,
    /// Keep the compressed models in this folder
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub keep: Option<PathBuf>,
    /// Write the table as Markdown to a file too
    #[arg(long, value_name = "FILE.md", value_hint = ValueHint::FilePath)]
    pub markdown: Option<PathBuf>,
    /// Draw what it cost against bytes, as an SVG file
    #[arg(long, value_name = "FILE.svg", value_hint = ValueHint::FilePath)]
    pub plot: Option<PathBuf>,
    /// Worker threads (default: one per core)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// One way to spend the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Candidates of one family.
    One(Family),
    /// Candidates of all families that are compared.
    Mixed,
}

impl Way {
    /// What is compared where nothing is said.
    pub const DEFAULT: [Way; 6] = [
        Way::One(Family::Int),
        Way::One(Family::OutlierInt),
        Way::One(Family::LowRankInt),
        Way::One(Family::LowRankOutlierInt),
        Way::One(Family::Trellis),
        Way::Mixed,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Way::One(family) => family.name(),
            Way::Mixed => "mixed",
        }
    }
}

fn way(text: &str) -> Result<Way, String> {
    let one = Family::ALL.into_iter().find(|f| f.name() == text);
    match (one, text) {
        (Some(family), _) => Ok(Way::One(family)),
        (None, "mixed") => Ok(Way::Mixed),
        _ => {
            let names: Vec<&str> = Family::ALL.iter().map(|f| f.name()).collect();
            Err(format!("takes {}, mixed", names.join(", ")))
        }
    }
}

fn size(text: &str) -> Result<u64, String> {
    crate::report::human::parse_size(text)
}
