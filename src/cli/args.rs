//! The command line's definition; help, completions and the manual are made from it.

use crate::budget::Family;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

/// The `opt` of model weights: rewrites linears into low-rank, sparse and quantized terms.
///
/// Reads a model (ONNX, safetensors, text IR, or an earlier output), runs a pipeline of passes over it,
/// verifies the result after each, and writes a smaller model with a report of what every tensor cost.
#[derive(Debug, Parser)]
#[command(
    name = "hlrc-opt",
    override_usage = "hlrc-opt [opt] [OPTIONS] <IN> [-p PIPELINE] [-o OUT]\n       hlrc-opt <COMMAND>",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true,
    max_term_width = 110,
    after_help = EXAMPLES,
    after_long_help = concat_examples()
)]
pub struct Cli {
    /// The subcommand; none means `opt`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What `opt` takes.
    #[command(flatten)]
    pub opt: OptArgs,
    /// Which plugins are loaded.
    #[command(flatten)]
    pub plugins: super::plugin::args::PluginArgs,
}

const EXAMPLES: &str = "\
Examples:
  hlrc-opt model.onnx -p lowrank,outlier,int4
  hlrc-opt model.onnx -p 'lowrank{rank=64},outlier{density=0.5%},int4{group=32}' -o small.onnx
  hlrc-opt llama/ -p 'layers[0-15](int8),default(@hl4_m)' -t 'down_proj=int4{group=128}' --dry-run
  hlrc-opt model.onnx -p int4 -S -o - | less
  hlrc-opt llama/ -p int4 --emit plan --target sm_89 -o plan/
  hlrc-opt passes lowrank";

/// The long help's end: examples, exit codes, environment.
fn concat_examples() -> String {
    format!(
        "{EXAMPLES}\n\n\
Pipeline syntax:
  PASS{{key=value flag}},…   options in braces; values may be quoted; 0.5% is 0.005
  SCOPE(PASS,…)            only what the scope selects: layers[0-15,20], re:REGEX,
                           part of a name or a pattern with * and ?, embeddings,
                           head, vocabulary (both), experts, default (what no other selects)
  @PRESET                  a named pipeline
  Quote it, so that the shell leaves braces and parentheses alone.
  `hlrc-opt passes` lists passes and presets.

Exit codes:
  0    all went well
  1    a pass, a check or an output failed
  2    the command line or the pipeline is not understood
  3    the input is bad or of an unsupported format
  4    it can't be done within the limits given
  5    a quality gate was missed
  6    a plugin can't be loaded, or terms need one that is not
  101  internal error; a reproducer was written
  130  interrupted; --resume continues

Environment:
  HLRC_PLUGIN_PATH   plugins to load, or folders of them, with `:` between
  NO_COLOR           no colours, as --color=never
  RAYON_NUM_THREADS  threads where --threads is not given"
    )
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a pipeline on a model and write the result (the default)
    #[command(override_usage = "hlrc-opt [opt] [OPTIONS] <IN> [-p PIPELINE] [-o OUT]", after_help = EXAMPLES,
              after_long_help = concat_examples())]
    Opt(Box<OptArgs>),
    /// Quantize a model to a named type, in the manner of llama-quantize
    #[command(after_help = super::quantize::args::types())]
    Quantize(Box<super::quantize::args::QuantizeArgs>),
    /// Run a language model: continue a text, or converse
    Run(Box<super::run::args::RunArgs>),
    /// Show what a model holds: linears, tensors, graph
    Inspect(InspectArgs),
    /// Say what of a model fits into a device's memory, from headers or a config.json alone
    Fit(Box<super::fit::args::FitArgs>),
    /// Compare two models: structure, and each tensor's relative error
    Diff(DiffArgs),
    /// Check a model: hashes of the manifest, shapes, NaN and Inf, reload
    Verify(VerifyArgs),
    /// Judge models: perplexity and KL divergence on text, outputs on given inputs
    Eval(Box<super::eval::args::EvalArgs>),
    /// Time the launches of a kernel plan on a GPU, beside their estimates
    Bench(Box<super::bench::args::BenchArgs>),
    /// Measure what goes into each linear on text, for passes that weigh errors by it
    Calibrate(Box<super::calibrate::args::CalibrateArgs>),
    /// Spend the same bytes on a model in several ways, and judge the results side by side
    Compare(Box<super::compare::args::CompareArgs>),
    /// Train what a rewritten model stores: scales, factors, outliers, norms, against the original or on a task
    Train(Box<super::train::args::TrainArgs>),
    /// Write the report of an output as an HTML page with plots
    Report(super::report::args::ReportArgs),
    /// List the passes and presets, or describe one with its options
    Passes(PassesArgs),
    /// Run what a crash reproducer recorded
    RunReproducer(ReproducerArgs),
    /// Write the skeleton of a new pass with its golden test
    NewPass(NewPassArgs),
    /// List plugins, look at one, try one, or write a new one
    Plugin(super::plugin::args::PluginCommand),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page
    Man(ManArgs),
}

const PIPELINE: &str = "Pipeline";
const OUTPUT: &str = "Output";
const LIMITS: &str = "Limits";
const DEBUG: &str = "Looking inside";

/// What `opt` takes.
#[derive(Debug, Clone, Args)]
pub struct OptArgs {
    /// Model: .onnx, a Hugging Face directory, .safetensors (or its index), .hlir, .hlrc, or - for text IR
    #[arg(value_name = "IN", value_hint = ValueHint::AnyPath, required_unless_present = "print_pipeline")]
    pub input: Option<PathBuf>,

    /// Passes to run, in order; see `hlrc-opt passes`
    #[arg(short = 'p', long = "pipeline", aliases = ["passes", "pass-pipeline"], value_name = "PIPELINE",
          default_value = "", hide_default_value = true, help_heading = PIPELINE)]
    pub pipeline: String,
    /// What this scope selects gets this pipeline instead (`none` leaves it); the last one that fits counts
    #[arg(short = 't', long = "tensor", alias = "tensor-type", value_name = "SCOPE=PIPELINE",
          help_heading = PIPELINE)]
    pub overrides: Vec<String>,
    /// Print the pipeline's canonical form, presets and defaults spelled out, and end
    #[arg(long, aliases = ["print-pipeline-passes", "dump-pass-pipeline"], help_heading = PIPELINE)]
    pub print_pipeline: bool,
    /// Run no pass after the first with this name
    #[arg(long, value_name = "PASS", help_heading = PIPELINE)]
    pub stop_after: Option<String>,
    /// Apply passes to the first N sites only, to find the one that breaks something
    #[arg(long, alias = "opt-bisect-limit", value_name = "N", help_heading = PIPELINE)]
    pub bisect_limit: Option<u64>,
    /// Statistics of activations for passes that use them: a file of `calibrate`, an importance matrix
    /// (GGUF), or text to run the input on (64 windows of 512 tokens); `self`: text that it writes itself
    #[arg(long, value_name = "STATS|TEXT", value_delimiter = ',', value_hint = ValueHint::FilePath,
          help_heading = PIPELINE)]
    pub calib: Vec<PathBuf>,
    /// Take statistics behind what is compressed already: the pipeline runs once with those of the original,
    /// the text then goes through the result
    #[arg(long, requires = "calib", conflicts_with_all = ["dry_run", "resume"], help_heading = PIPELINE)]
    pub sequential: bool,
    /// Mean bits per weight of the matrices, spread over them so that the model suffers least
    #[arg(long, value_name = "BITS", value_parser = bits, conflicts_with_all = ["target_size", "vram", "dry_run", "resume"],
          help_heading = PIPELINE)]
    pub target_bpw: Option<f64>,
    /// Bytes of the whole output on disk, all files and embeddings and head included, as 60MB, met in the same way
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with_all = ["vram", "dry_run", "resume"],
          help_heading = PIPELINE)]
    pub target_size: Option<u64>,
    /// What matrices may become so that a target is met [default: trellis]
    #[arg(long, value_enum, value_name = "FAMILIES", value_delimiter = ',', help_heading = PIPELINE)]
    pub candidates: Vec<Family>,
    /// A device's memory in place of a size.
    #[command(flatten)]
    pub load: super::fit::args::LoadArgs,
    /// Seed of all randomness; the same seed gives the same bytes for any number of threads
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = PIPELINE)]
    pub seed: u64,

    /// Where to write: a directory (default ./STEM.hlrc), a .onnx or .hlir file, or - for stdout
    #[arg(short = 'o', long, value_name = "OUT", value_hint = ValueHint::AnyPath, help_heading = OUTPUT)]
    pub output: Option<PathBuf>,
    /// Write text IR (to stdout unless -o says where)
    #[arg(short = 'S', long = "emit-text", help_heading = OUTPUT)]
    pub text: bool,
    /// How ONNX output spells quantized weights
    #[arg(long, value_enum, value_name = "FORM", default_value_t, help_heading = OUTPUT)]
    pub onnx_quant: OnnxQuant,
    /// ONNX output of a decoder takes and gives its KV cache (past_key_values.N.key, present.N.key …)
    #[arg(long, help_heading = OUTPUT)]
    pub onnx_cache: bool,
    /// Bytes per weight file of the output, as 5GiB
    #[arg(long, value_name = "SIZE", default_value = "5GiB", value_parser = size, help_heading = OUTPUT)]
    pub shard_size: u64,
    /// Replace output that is there already
    #[arg(short = 'f', long, help_heading = OUTPUT)]
    pub force: bool,
    /// Go on from where an interrupted run of the same command ended
    #[arg(long, conflicts_with_all = ["force", "vram"], help_heading = OUTPUT)]
    pub resume: bool,
    /// Say what would be done: sizes, memory, time; reads headers only
    #[arg(long, help_heading = OUTPUT)]
    pub dry_run: bool,
    /// Print the report as one JSON object on stdout
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
    /// Judge the output against the input on this text (20 windows of 512 tokens; see `eval`) and report it
    #[arg(long, value_name = "FILE", value_delimiter = ',', value_hint = ValueHint::FilePath,
          conflicts_with = "dry_run", help_heading = OUTPUT)]
    pub eval: Vec<PathBuf>,
    /// Write the report as an HTML page with plots too (see `report`)
    #[arg(long, value_name = "FILE.html", value_hint = ValueHint::FilePath, conflicts_with = "dry_run",
          help_heading = OUTPUT)]
    pub html: Option<PathBuf>,
    /// Matrices whose singular values the page shows, or `none`
    #[arg(long, value_name = "N", default_value = super::report::args::SPECTRA, requires = "html",
          value_parser = super::report::args::spectra, help_heading = OUTPUT)]
    pub spectra: usize,
    /// What to write in place of a model.
    #[command(flatten)]
    pub plan: super::plan::args::PlanArgs,

    /// Memory to stay within, as 4GiB; refused at once where it can't be kept
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = LIMITS)]
    pub mem_limit: Option<u64>,
    /// Worker threads (default: one per core)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          help_heading = LIMITS)]
    pub threads: Option<u16>,
    /// One thread, as MLIR spells it
    #[arg(long, hide = true)]
    pub mlir_disable_threading: bool,

    /// What to look at while passes run.
    #[command(flatten)]
    pub debug: DebugArgs,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// Instrumentation of the pass manager.
#[derive(Debug, Clone, Default, Args)]
pub struct DebugArgs {
    /// Don't verify the IR after each built-in pass
    #[arg(long, overrides_with = "verify_each", help_heading = DEBUG)]
    pub no_verify_each: bool,
    /// Verify the IR after each pass (on by default)
    #[arg(long, overrides_with = "no_verify_each", hide = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_name = "BOOL")]
    pub verify_each: Option<bool>,
    /// Print the IR before these passes, or before all
    #[arg(long, aliases = ["print-before", "mlir-print-ir-before"], value_name = "PASS", num_args = 0..=1,
          require_equals = true, default_missing_value = "*", value_delimiter = ',', help_heading = DEBUG)]
    pub print_ir_before: Vec<String>,
    /// Print the IR after these passes, or after all
    #[arg(long, aliases = ["print-after", "mlir-print-ir-after"], value_name = "PASS", num_args = 0..=1,
          require_equals = true, default_missing_value = "*", value_delimiter = ',', help_heading = DEBUG)]
    pub print_ir_after: Vec<String>,
    /// Print the IR before every pass
    #[arg(long, aliases = ["print-before-all", "mlir-print-ir-before-all"], help_heading = DEBUG)]
    pub print_ir_before_all: bool,
    /// Print the IR after every pass
    #[arg(long, aliases = ["print-after-all", "mlir-print-ir-after-all"], help_heading = DEBUG)]
    pub print_ir_after_all: bool,
    /// Print the IR after the passes that changed it
    #[arg(long, aliases = ["print-changed", "mlir-print-ir-after-change"], help_heading = DEBUG)]
    pub print_ir_after_change: bool,
    /// Time of each pass, on stderr
    #[arg(long, aliases = ["time-passes", "mlir-timing"], value_enum, num_args = 0..=1, require_equals = true,
          default_missing_value = "list", value_name = "FORM", help_heading = DEBUG)]
    pub timing: Option<TimingForm>,
    /// Counts of what each pass did, on stderr
    #[arg(long, aliases = ["mlir-pass-statistics"], value_enum, num_args = 0..=1, require_equals = true,
          default_missing_value = "text", value_name = "FORM", help_heading = DEBUG)]
    pub stats: Option<StatsForm>,
    /// Remarks to print: what passes did, left out and why, and found
    #[arg(long, alias = "pass-remarks", value_enum, num_args = 0..=3, require_equals = true,
          default_missing_values = ["passed", "missed", "analysis"], value_delimiter = ',',
          value_name = "KINDS", help_heading = DEBUG)]
    pub remarks: Vec<RemarkKind>,
    /// Only remarks in which this expression is found
    #[arg(long, value_name = "REGEX", help_heading = DEBUG)]
    pub remarks_filter: Option<String>,
    /// Write all remarks to a YAML file
    #[arg(long, alias = "pass-remarks-output", value_name = "FILE", value_hint = ValueHint::FilePath,
          help_heading = DEBUG)]
    pub remarks_output: Option<PathBuf>,
    /// Where a failure leaves what reproduces it (default ./hlrc-crash-HASH.hlir)
    #[arg(long, alias = "mlir-pass-pipeline-crash-reproducer", value_name = "FILE",
          value_hint = ValueHint::FilePath, help_heading = DEBUG)]
    pub crash_reproducer: Option<PathBuf>,
}

/// How much to say, and in which colours.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct TalkArgs {
    /// Errors only
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// More detail; twice for still more
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// Colours on stderr
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Color,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl ValueEnum for Family {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.name()))
    }
}

/// How ONNX output spells quantized weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OnnxQuant {
    /// com.microsoft.MatMulNBits: fast kernels of ONNX Runtime
    #[default]
    #[value(name = "matmulnbits", alias = "nbits")]
    MatMulNBits,
    /// Standard blocked DequantizeLinear (opset 21)
    Qdq,
}

/// How timings are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TimingForm {
    /// One line per pass, slowest first
    List,
    /// In the pipeline's order, with what each contains
    Tree,
    /// JSON
    Json,
}

/// How statistics are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatsForm {
    /// A table
    Text,
    /// JSON
    Json,
}

/// Kinds of remarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RemarkKind {
    /// What a pass did
    Passed,
    /// What it left alone, and why
    Missed,
    /// What it found
    Analysis,
}

/// What `inspect` takes.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Model to show
    #[arg(value_name = "IN", value_hint = ValueHint::AnyPath)]
    pub input: PathBuf,
    /// Every stored tensor, not only the linears
    #[arg(long)]
    pub tensors: bool,
    /// The operations of the graph
    #[arg(long)]
    pub graph: bool,
    /// Graphviz source of the graph
    #[arg(long, conflicts_with_all = ["json", "tensors", "graph"])]
    pub dot: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// What `diff` takes.
#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// The reference
    #[arg(value_name = "A", value_hint = ValueHint::AnyPath)]
    pub a: PathBuf,
    /// What is compared with it
    #[arg(value_name = "B", value_hint = ValueHint::AnyPath)]
    pub b: PathBuf,
    /// Only tensors in whose name this expression is found
    #[arg(long, value_name = "REGEX")]
    pub filter: Option<String>,
    /// Only compare structure: names, shapes, terms
    #[arg(long)]
    pub structure: bool,
    /// Exit with 5 where a tensor's relative error is above this
    #[arg(long, value_name = "ERROR")]
    pub max_error: Option<f64>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// What `verify` takes.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Model to check
    #[arg(value_name = "IN", value_hint = ValueHint::AnyPath)]
    pub input: PathBuf,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// What `passes` takes.
#[derive(Debug, Clone, Args)]
pub struct PassesArgs {
    /// Pass or @preset to describe
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// JSON, option schemas included
    #[arg(long)]
    pub json: bool,
}

/// What `run-reproducer` takes.
#[derive(Debug, Clone, Args)]
pub struct ReproducerArgs {
    /// The file that a crash left
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// How much to say.
    #[command(flatten)]
    pub talk: TalkArgs,
}

/// What `new-pass` takes.
#[derive(Debug, Clone, Args)]
pub struct NewPassArgs {
    /// Name of the pass, as pipelines will spell it
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Root of the source tree
    #[arg(long, value_name = "DIR", default_value = ".", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
}

/// What `completions` takes.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// What `man` takes.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// Write a page for each subcommand into this directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
}

/// Mean bits per weight.
pub fn bits(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(bits) if bits.is_finite() && bits > 0.0 => Ok(bits),
        _ => Err("takes a number above 0, as 3.25".to_string()),
    }
}

fn size(text: &str) -> Result<u64, String> {
    crate::report::human::parse_size(text)
}
