//! What the options ask for: settings, their words, and what a run is known by.

use super::args::{HeldOut, Mode, TrainArgs, Unit};
use super::data::Data;
use crate::cli::{Exit, Failure, load};
use crate::ir::Module;
use crate::report::human;
use crate::train::Settings;
use crate::train::optimizer::Schedule;
use crate::train::parameters::Choice;
use crate::weights::Digest;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Examples of a step at most.
const MOST_EXAMPLES: usize = 1 << 24;

/// The settings that the options ask for.
///
/// # Errors
/// They don't go together.
pub fn settings(
    args: &TrainArgs,
    data: &Data,
    vocabulary: usize,
    ranks: usize,
) -> Result<Settings, Failure> {
    let usage = |what: String, help: &str| Failure::new(Exit::Usage, what).help(help);
    let per_step = args
        .batch
        .checked_mul(args.accumulate)
        .filter(|&n| n <= MOST_EXAMPLES);
    let Some(per_step) = per_step else {
        let what = format!("--batch {} --accumulate {}", args.batch, args.accumulate);
        let what = format!("{what}: a step has at most {MOST_EXAMPLES} examples");
        return Err(usage(what, "make one of them smaller"));
    };
    let each = match args.mode {
        Mode::EndToEnd => per_step,
        Mode::Blocks | Mode::Both => args.accumulate,
    };
    if each < ranks {
        let what = match args.mode {
            Mode::EndToEnd => format!("a step of {}", human::plural(each, "example")),
            _ => format!("a block's step of {}", human::plural(each, "batch")),
        };
        let what = format!("{what} for {ranks} ranks leaves some with nothing to do");
        return Err(usage(what, "raise --accumulate, or start fewer"));
    }
    let steps = match args.epochs {
        None => args.steps,
        Some(epochs) => {
            let examples = epochs.checked_mul(data.train.len());
            let examples = examples
                .ok_or_else(|| usage(format!("--epochs {epochs}: too many"), "make it smaller"))?;
            examples.div_ceil(per_step.max(1)).max(1) as u64
        }
    };
    let taught = args.teacher.is_some();
    let cross_entropy = args.ce.unwrap_or(if taught { 0.0 } else { 1.0 });
    let kl = args.kl.unwrap_or(if taught { 1.0 } else { 0.0 });
    if cross_entropy == 0.0 && kl == 0.0 {
        let what = "--kl 0 without --ce leaves nothing to learn from".to_string();
        return Err(usage(what, "give --ce a weight"));
    }
    Ok(Settings {
        choice: Choice {
            kinds: args.params.iter().copied().collect(),
            only: args.only.clone(),
        },
        cross_entropy,
        kl,
        top: args.teacher_top.filter(|&top| top < vocabulary),
        steps,
        block_steps: args.block_steps,
        schedule: Schedule {
            rate: args.lr,
            relative: args.lr_unit == Unit::Rms,
            warm_up: args.warmup,
            decay: args.decay,
            clip: (args.clip > 0.0).then_some(args.clip),
            ..Schedule::default()
        },
        batch: args.batch,
        accumulate: args.accumulate,
        judge_every: args.judge_every,
        patience: args.patience,
        checkpoint_every: args.checkpoint_every,
        recompute: args.recompute,
        seed: args.seed,
    })
}

/// The run in the words of a pipeline, for manifests and reports.
pub fn words(args: &TrainArgs, settings: &Settings) -> String {
    let kinds: Vec<&str> = settings.choice.kinds.iter().map(|k| k.name()).collect();
    let mode = match args.mode {
        Mode::Blocks => format!("mode=blocks block_steps={}", settings.block_steps),
        Mode::EndToEnd => format!("mode=end-to-end steps={}", settings.steps),
        Mode::Both => format!(
            "mode=both block_steps={} steps={}",
            settings.block_steps, settings.steps
        ),
    };
    let kinds = match kinds.as_slice() {
        [one] => one.to_string(),
        several => format!("\"{}\"", several.join(",")),
    };
    let quoted = |words: Vec<String>| format!("{:?}", words.join(","));
    let path = |path: &PathBuf| path.display().to_string();
    let mut more = format!("data={}", quoted(args.data.iter().map(path).collect()));
    if let Some(teacher) = &args.teacher {
        more += &format!(" teacher={}", quoted(vec![path(teacher)]));
    }
    if !args.only.is_empty() {
        more += &format!(" only={}", quoted(args.only.clone()));
    }
    if let Some(ctx) = args.ctx {
        more += &format!(" ctx={ctx}");
    }
    more += &match args.val {
        HeldOut::Share(share) => format!(" val={}%", 100.0 * share),
        HeldOut::Count(count) => format!(" val={count}"),
    };
    let schedule = &settings.schedule;
    format!(
        "train{{{mode} params={kinds} {more} kl={} ce={} lr={} warmup={} decay={} clip={} batch={} accumulate={}}}",
        settings.kl,
        settings.cross_entropy,
        schedule.rate,
        schedule.warm_up,
        schedule.decay,
        schedule.clip.unwrap_or(0.0),
        settings.batch,
        settings.accumulate
    )
}

/// Everything that the result depends on, hashed: what `--resume` goes by.
pub fn fingerprint(
    args: &TrainArgs,
    (settings, ranks): (&Settings, usize),
    module: &Module,
    data: &Data,
) -> Result<String, Failure> {
    let stamp = |path: &Path| -> Result<Vec<(String, u64, u128)>, Failure> {
        let files = load::source(&load::Source::of(path)?)?.files;
        let stamped = files.iter().map(|file| {
            let meta = std::fs::metadata(file).ok();
            let modified = meta.as_ref().and_then(|m| m.modified().ok());
            let since = modified.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
            let bytes = meta.map_or(0, |m| m.len());
            (
                file.display().to_string(),
                bytes,
                since.map_or(0, |t| t.as_nanos()),
            )
        });
        Ok(stamped.collect())
    };
    let teacher = args.teacher.as_deref().map(stamp).transpose()?;
    let text = Digest::of(crate::ir::text::print(module).as_bytes()).to_hex();
    let mode = format!("{:?}", args.mode);
    let whole = (
        env!("CARGO_PKG_VERSION"),
        (mode, settings),
        (text, stamp(&args.model)?, teacher),
        &data.hash,
        // The order of sums.
        ranks,
    );
    let json = serde_json::to_vec(&whole).unwrap_or_default();
    Ok(Digest::of(&json).to_hex())
}
