//! `--dry-run`: what a run would take, from headers alone.

use super::args::OptArgs;
use super::describe::percent;
use super::table::Table;
use super::{Exit, Failure, print};
use crate::ir::Module;
use crate::pass::manager::{Plan, Schedule};
use crate::report::human;
use serde_json::json;
use std::time::Duration;

/// Reading, hashing and writing a byte, nanoseconds.
const NANOS_PER_BYTE: f64 = 1.0;

/// Sums over the sites that passes would run on.
#[derive(Default)]
struct Sums {
    sites: usize,
    parameters: u64,
    bytes: u64,
    nanos: f64,
}

/// Passes that matrices get, with how many and how large they are.
type Groups = Vec<(String, usize, u64)>;

/// Prints what a run would do and take.
pub fn run(
    args: &OptArgs,
    pipeline: &str,
    module: &Module,
    schedule: &Schedule,
    plan: &Plan,
) -> Result<Exit, Failure> {
    let (sums, by_pipeline) = sums(schedule, plan);
    let estimate = &plan.estimate;
    let total = module
        .weights
        .iter()
        .map(|weight| weight.bytes())
        .fold(0, u64::saturating_add);
    let output = total
        .saturating_sub(sums.bytes)
        .saturating_add(estimate.term_bytes);
    let moved = total.saturating_add(output) as f64 * NANOS_PER_BYTE;
    let seconds = (sums.nanos / estimate.workers.max(1) as f64 + moved) / 1e9;
    let bits = 8.0 * estimate.term_bytes as f64 / sums.parameters.max(1) as f64;
    if args.json {
        let json = json!({
            "pipeline": pipeline,
            "sites": sums.sites,
            "parameters": sums.parameters,
            "bytes_before": total,
            "bytes_after_at_most": output,
            "rewritten_bytes_before": sums.bytes,
            "rewritten_bytes_after_at_most": estimate.term_bytes,
            "bits_per_weight_at_most": bits,
            "peak_memory_bytes_at_most": estimate.peak_memory_bytes,
            "workers": estimate.workers,
            "seconds_roughly": seconds,
            "groups": by_pipeline.iter().map(|(passes, sites, bytes)| json!({"passes": passes, "sites": sites, "bytes": bytes})).collect::<Vec<_>>(),
        });
        print((serde_json::to_string_pretty(&json).unwrap_or_default() + "\n").as_bytes())?;
        return Ok(Exit::Ok);
    }
    let mut table = Table::new(&["passes", "matrices>", "size>"]);
    for (names, count, bytes) in &by_pipeline {
        table.row([names.clone(), count.to_string(), human::size(*bytes)]);
    }
    let mut text = table.render();
    text.push_str(&format!(
        "\n{} of {} ({}) would be rewritten: {} -> at most {} ({bits:.2} bits/weight)\n\
         model    {} -> at most {}\n\
         memory   at most {} with {}\n\
         time     roughly {}\n",
        human::plural(sums.sites, "site"),
        human::count(sums.parameters),
        percent(sums.bytes as f64 / total.max(1) as f64),
        human::size(sums.bytes),
        human::size(estimate.term_bytes),
        human::size(total),
        human::size(output),
        human::size(estimate.peak_memory_bytes),
        human::plural(estimate.workers, "worker"),
        human::duration(Duration::from_secs_f64(seconds.clamp(0.0, 1e9))),
    ));
    print(text.as_bytes())?;
    Ok(Exit::Ok)
}

fn sums(schedule: &Schedule, plan: &Plan) -> (Sums, Groups) {
    let mut sums = Sums::default();
    let mut groups: Groups = Vec::new();
    for site in &plan.sites {
        let steps = site.steps.iter();
        let names: Vec<&str> = steps
            .filter_map(|&step| schedule.steps.get(step))
            .map(|s| s.name)
            .collect();
        let names = match names.is_empty() {
            true => "left as it is".to_owned(),
            false => names.join(","),
        };
        match groups.iter_mut().find(|(known, ..)| *known == names) {
            Some((_, count, bytes)) => {
                (*count, *bytes) = (*count + 1, bytes.saturating_add(site.bytes));
            }
            None => groups.push((names, 1, site.bytes)),
        }
        if site.steps.is_empty() {
            continue;
        }
        sums.sites += 1;
        sums.bytes = sums.bytes.saturating_add(site.bytes);
        sums.parameters = sums.parameters.saturating_add(site.parameters);
        sums.nanos += site.nanos;
    }
    (sums, groups)
}
