//! `quantize`: a preset by its name, in the manner of llama-quantize.

pub mod args;

use super::args::{Cli, Command, OptArgs};
use super::describe::bits_per_weight;
use super::load::{self, Source};
use super::opt;
use super::table::Table;
use super::{Exit, Failure, errors, print};
use crate::ir::site::sites;
use crate::ir::{Matrix, Module, Term, WeightId};
use crate::pass::Calibration;
use crate::pass::manager::Schedule;
use crate::pass::pipeline::Pipeline;
use crate::pass::pipeline::preset::Preset;
use crate::report::human;
use args::{QuantizeArgs, named};
use clap::Parser;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// Runs a preset on a model and says what the types of its tensors take.
///
/// # Errors
/// As `opt`; a type that is not known.
pub fn run(args: &QuantizeArgs) -> Result<Exit, Failure> {
    let words = words(args)?;
    let source = Source::of(&args.input)?;
    let name = format!("{}-{}.hlrc", source.stem(), words.preset.name);
    let output = words.output.clone().unwrap_or_else(|| PathBuf::from(name));
    let opt = arguments(args, &words, &output)?;
    if args.calib.is_empty() && !args.json && uses_statistics(words.preset)? {
        let progress = opt::progress(&args.talk);
        progress.stage(
            "Without --calib",
            "codes are chosen by the weights alone; with it the same bytes lose less",
        );
    }
    let exit = opt::run(&opt)?;
    let quiet = args.talk.quiet || args.json || args.dry_run;
    if exit == Exit::Ok && !quiet && output.is_dir() {
        print(format!("\n{}", by_type(&load::model(&output)?)).as_bytes())?;
    }
    Ok(exit)
}

/// Whether a pass of the preset does better with statistics.
fn uses_statistics(preset: &Preset) -> Result<bool, Failure> {
    let pipeline = Pipeline::parse(preset.pipeline)?;
    let schedule = Schedule::new(&pipeline, &[], None).map_err(|e| errors::schedule(&e))?;
    let mut steps = schedule.steps.iter();
    Ok(steps.any(|step| step.pass.calibration() != Calibration::Unused))
}

/// `[OUT] TYPE [THREADS]`, told apart.
struct Words {
    output: Option<PathBuf>,
    preset: &'static Preset,
    threads: Option<u16>,
}

fn words(args: &QuantizeArgs) -> Result<Words, Failure> {
    let usage = |what: String| Failure::new(Exit::Usage, what);
    let mut words = args.words.as_slice();
    let mut threads = args.threads;
    if let [before @ .., last] = words
        && !before.is_empty()
        && let Ok(count) = last.parse::<u16>()
    {
        if threads.is_some() {
            return Err(usage(format!(
                "threads are given twice: {last} and --threads"
            )));
        }
        threads = Some(count);
        words = before;
    }
    let (output, word) = match words {
        [word] => (None, word),
        [output, word] => (Some(PathBuf::from(output)), word),
        _ => {
            let what = format!("`{}`: expected [OUT] TYPE [THREADS]", args.words.join(" "));
            return Err(usage(what).help("hlrc-opt quantize IN OUT.hlrc q4 8"));
        }
    };
    let preset =
        named(word).map_err(|help| usage(format!("there is no type `{word}`")).help(help))?;
    Ok(Words {
        output,
        preset,
        threads,
    })
}

/// The same as arguments of `opt`.
fn arguments(args: &QuantizeArgs, words: &Words, output: &Path) -> Result<OptArgs, Failure> {
    let mut line: Vec<String> = ["hlrc-opt", "opt", "-p"].map(str::to_owned).into();
    line.push(format!("@{}", words.preset.name));
    for one in &args.overrides {
        line.extend(["-t".to_owned(), one.clone()]);
    }
    for (option, value) in [
        ("--threads", words.threads.map(|n| n.to_string())),
        ("--mem-limit", args.mem_limit.clone()),
    ] {
        if let Some(value) = value {
            line.push(format!("{option}={value}"));
        }
    }
    for (option, given) in [
        ("--dry-run", args.dry_run),
        ("--force", args.force),
        ("--resume", args.resume),
        ("--json", args.json),
    ] {
        if given {
            line.push(option.to_owned());
        }
    }
    line.extend(["--".to_owned(), "-".to_owned()]);
    let cli = Cli::try_parse_from(line)
        .map_err(|error| Failure::new(Exit::Usage, error.render().to_string().trim().to_owned()))?;
    let mut opt = match cli.command {
        Some(Command::Opt(opt)) => *opt,
        _ => cli.opt,
    };
    // Paths as they are: they need not be UTF-8.
    opt.input = Some(args.input.clone());
    opt.output = Some(output.to_path_buf());
    opt.calib.clone_from(&args.calib);
    opt.eval.clone_from(&args.eval);
    opt.talk = args.talk;
    Ok(opt)
}

/// Tensors, weights and bytes of one type.
#[derive(Default)]
struct Sum {
    tensors: usize,
    weights: u64,
    bytes: u64,
}

/// What the types of tensors take, as a table.
fn by_type(module: &Module) -> String {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    let mut add = |name: String, weights: u64, bytes: u64| {
        let sum = sums.entry(name).or_default();
        sum.tensors += 1;
        sum.weights = sum.weights.saturating_add(weights);
        sum.bytes = sum.bytes.saturating_add(bytes);
    };
    let mut held: HashSet<WeightId> = HashSet::new();
    for site in sites(module) {
        let Some(matrix) = site.matrix(module) else {
            continue;
        };
        held.extend(matrix.terms.iter().flat_map(Term::weights));
        let bytes = matrix.bytes(&module.weights);
        add(type_of(module, matrix), matrix.entries(), bytes);
    }
    for (at, weight) in module.weights.iter().enumerate() {
        if !held.contains(&WeightId::new(at)) {
            let name = format!("{} (norms, biases)", weight.dtype);
            add(name, weight.elements().unwrap_or(0), weight.bytes());
        }
    }
    let mut table = Table::new(&["type", "tensors>", "weights>", "size>", "bits/weight>"]);
    for (name, sum) in &sums {
        table.row([
            name.clone(),
            sum.tensors.to_string(),
            human::count(sum.weights),
            human::size(sum.bytes),
            format!("{:.2}", bits_per_weight(sum.bytes, sum.weights)),
        ]);
    }
    table.render()
}

/// The formats of a matrix's terms: `int8`, `trellis 4`, `low_rank + int4`.
fn type_of(module: &Module, matrix: &Matrix) -> String {
    let term = |term: &Term| match term {
        Term::Dense(view) => module
            .weight(view.weight)
            .map_or_else(String::new, |weight| weight.dtype.to_string()),
        Term::Quant(quant) => format!("int{}", quant.scheme.bits),
        Term::Trellis(_) => {
            let bits = bits_per_weight(term.bytes(matrix, &module.weights), matrix.entries());
            // Scales and odd sides make it a little more.
            format!("trellis {}", (4.0 * bits).floor() / 4.0)
        }
        other => other.name().to_owned(),
    };
    let names: Vec<String> = matrix.terms.iter().map(term).collect();
    names.join(" + ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Words, Failure> {
        let line = ["hlrc-opt", "quantize", "in"].iter().chain(words);
        match Cli::try_parse_from(line).expect("parses").command {
            Some(Command::Quantize(args)) => super::words(&args),
            _ => panic!("another command"),
        }
    }

    #[test]
    fn words_are_told_apart() {
        let told = |words: &[&str]| {
            let found = parsed(words).expect("understood");
            let output = found.output.map(|path| path.display().to_string());
            (output, found.preset.name, found.threads)
        };
        assert_eq!(told(&["q4"]), (None, "q4", None));
        assert_eq!(told(&["Q4", "2"]), (None, "q4", Some(2)));
        assert_eq!(
            told(&["a.hlrc", "HL4_M"]),
            (Some("a.hlrc".into()), "hl4_m", None)
        );
        assert_eq!(
            told(&["a", "@Q8", "16"]),
            (Some("a".into()), "q8", Some(16))
        );
    }

    #[test]
    fn types_of_others_are_named() {
        let help = |word: &str| parsed(&[word]).map(|_| ()).expect_err("refused").help;
        assert!(help("Q4_K_M").ends_with("is q4"));
        assert!(help("iq2_xs").ends_with("is q2"));
        assert!(help("f16").starts_with("types are q8"));
        assert!(help("8").starts_with("types are"));
        assert!(parsed(&["a", "b", "q4"]).is_err());
        assert!(parsed(&["a", "q4", "2", "--threads=3"]).is_err());
    }
}
