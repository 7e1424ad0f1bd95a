//! What `report` takes.

use crate::cli::args::TalkArgs;
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Matrices whose spectra are computed where nothing is said.
pub const SPECTRA: &str = "8";
/// Most of them.
const MOST_SPECTRA: usize = 64;

/// What `report` takes.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Output to report on: its folder, its .onnx file, or its report.json
    #[arg(value_name = "OUT", value_hint = ValueHint::AnyPath)]
    pub input: PathBuf,
    /// Page to write (default ./STEM.html), or - for stdout
    #[arg(short = 'o', long, value_name = "FILE.html", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// The original, whose singular values are shown
    #[arg(short = 'r', long = "ref", alias = "reference", value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub reference: Option<PathBuf>,
    /// Matrices whose singular values are computed (needs --ref), or `none`
    #[arg(long, value_name = "N", default_value = SPECTRA, value_parser = spectra)]
    pub spectra: usize,
    /// Evaluation to show, as `eval --json` printed it, in place of the report's own
    #[arg(long, value_name = "FILE.json", value_hint = ValueHint::FilePath)]
    pub eval: Option<PathBuf>,
    /// Replace a page that is there already
    #[arg(short = 'f', long)]
    pub force: bool,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// A number of matrices; `none` is 0.
pub fn spectra(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count <= MOST_SPECTRA => Ok(count),
        _ if text == "none" => Ok(0),
        _ => Err(format!("write a number from 1 to {MOST_SPECTRA}, or none")),
    }
}
