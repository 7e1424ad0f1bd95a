//! Times a plan and prints what it found.

use super::super::device::{self, Planning};
use super::super::run::args::PrecisionArg;
use super::super::{Exit, Failure, opt, print};
use super::args::BenchArgs;
use crate::plan::Plan;
use crate::runtime::cuda::Measured;
use crate::runtime::{Device, Place};
use serde_json::json;
use std::fmt::Write as _;

/// Tokens that a sequence has seen where `--past` says nothing.
const PAST: u32 = 128;

/// Times a plan.
///
/// # Errors
/// There is no GPU, or the model does not run on it.
pub fn run(args: &BenchArgs) -> Result<Exit, Failure> {
    if args.device.device == Place::Cpu {
        let what = "bench times the launches of a plan, and the processor has none";
        return Err(Failure::new(Exit::Usage, what).help("add --device cuda:0"));
    }
    let progress = opt::progress(&args.talk);
    let planning = Planning {
        context: args.ctx,
        exact: args.precision == PrecisionArg::Exact,
    };
    let (plan, mut loaded) = args.device.load(&args.model, planning, &progress, true)?;
    let past = args.past.unwrap_or(PAST.min(plan.shape.context - 1));
    if past >= plan.shape.context {
        let what = format!(
            "--past {past} does not fit the plan's context of {}",
            plan.shape.context
        );
        return Err(Failure::new(Exit::Infeasible, what).help("less, or more with --ctx"));
    }
    let failure = |error| device::failure(&error);
    prepare(&plan, &mut *loaded, past).map_err(failure)?;
    progress.stage("Timing", loaded.gpu().name());
    let decode = loaded.bench(&plan, "decode").map_err(failure)?;
    let prefill = loaded.bench(&plan, "prefill").map_err(failure)?;
    let text = match args.json {
        true => {
            serde_json::to_string_pretty(&as_json(&plan, &decode, &prefill)).unwrap_or_default()
                + "\n"
        }
        false => render(&plan, &decode, &prefill),
    };
    print(text.as_bytes())?;
    Ok(Exit::Ok)
}

/// Inputs as in the middle of a text: token 0 everywhere, `past` positions seen.
fn prepare(
    plan: &Plan,
    device: &mut dyn Device,
    past: u32,
) -> Result<(), crate::runtime::RuntimeError> {
    for buffer in &plan.persistent {
        let count = usize::try_from(buffer.bytes / 4).unwrap_or(0);
        let value = |i: usize| match buffer.name.as_str() {
            "positions" => Some(past),
            "prompt_positions" | "pages" => u32::try_from(i).ok(),
            "scalars" => Some(if i == 0 { plan.shape.chunk } else { 0 }),
            "tokens" | "prompt" | "sampling" | "sampling_top_k" => Some(0),
            _ => None,
        };
        let Some(values) = (0..count).map(value).collect::<Option<Vec<u32>>>() else {
            continue;
        };
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        device.write(&buffer.name, &bytes)?;
    }
    Ok(())
}

fn rate(tokens: u32, us: f64) -> f64 {
    f64::from(tokens) * 1e6 / us
}

fn as_json(plan: &Plan, decode: &Measured, prefill: &Measured) -> serde_json::Value {
    let program = |m: &Measured, tokens: u32| {
        let steps = m.steps.iter().map(|s| {
            json!({ "step": s.name, "kernel": s.kernel, "bytes": s.bytes, "estimated_us": s.estimated_us, "measured_us": s.measured_us })
        });
        json!({
            "tokens": tokens, "us": m.program_us, "tokens_per_second": rate(tokens, m.program_us),
            "steps": steps.collect::<Vec<_>>(),
        })
    };
    json!({
        "device": decode.device, "model": plan.model, "read_gbps": decode.read_gbps,
        "decode": program(decode, plan.shape.batch), "prefill": program(prefill, plan.shape.chunk),
    })
}

fn render(plan: &Plan, decode: &Measured, prefill: &Measured) -> String {
    let mut text = format!(
        "{} on {}; a kernel that only reads reaches {:.0} GB/s\n",
        plan.model, decode.device, decode.read_gbps
    );
    for (name, m, tokens) in [
        ("decode", decode, plan.shape.batch),
        ("prefill", prefill, plan.shape.chunk),
    ] {
        let sum: f64 = m.steps.iter().map(|s| s.measured_us).sum();
        let bytes: u64 = m.steps.iter().map(|s| s.bytes).sum();
        let _ = writeln!(
            text,
            "\n{name}: {tokens} tokens in {:.1} us as a graph ({:.1} us step by step), {:.1} tokens/s, {:.1} % of bandwidth",
            m.program_us,
            sum,
            rate(tokens, m.program_us),
            share(bytes, m.program_us, m.read_gbps)
        );
        let _ = writeln!(
            text,
            "{:<28} {:<18} {:>12} {:>11} {:>11} {:>9}",
            "step", "kernel", "bytes", "planned us", "measured us", "of bandw."
        );
        for s in &m.steps {
            let part = share(s.bytes, s.measured_us, m.read_gbps);
            let _ = writeln!(
                text,
                "{:<28} {:<18} {:>12} {:>11.2} {:>11.2} {:>7.1} %",
                s.name, s.kernel, s.bytes, s.estimated_us, s.measured_us, part
            );
        }
    }
    text
}

/// Percent of the measured bandwidth.
fn share(bytes: u64, us: f64, gbps: f64) -> f64 {
    bytes as f64 / us / 1e3 / gbps * 100.0
}
