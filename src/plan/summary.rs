//! What a plan costs: bytes per token, what cards could do at best, what is fused and what is not.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::{Estimate, Place, Plan, Program, Step};
use crate::ir::site::layer_of;
use crate::report::human;

/// What decoding a token of each sequence reads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes of device memory, of weights, caches and activations.
    pub device_bytes: u64,
    /// Bytes that the host reads.
    pub host_bytes: u64,
}

/// A card, and what it could do at best.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofline {
    /// Its name.
    pub card: String,
    /// Its memory.
    pub memory_bytes: u64,
    /// Tokens per second, all sequences together, if memory alone were the limit.
    pub tokens_per_second: f64,
    /// Whether weights, keys and values, workspace and a reserve of 1 GiB fit.
    pub fits: bool,
}

/// What driver and context take.
pub const RESERVE: u64 = 1 << 30;

impl Traffic {
    /// Of a program's steps.
    pub fn of(program: &Program) -> Self {
        let sum = |place: Place| {
            let steps = program.steps.iter().filter(|s| s.place == place);
            steps.map(|s| s.estimate.bytes).fold(0, u64::saturating_add)
        };
        Self {
            device_bytes: sum(Place::Device),
            host_bytes: sum(Place::Host),
        }
    }
}

/// Every card of the target's architecture.
pub fn rooflines(plan: &Plan) -> Vec<Roofline> {
    let Some(decode) = plan.program("decode") else {
        return Vec::new();
    };
    let traffic = Traffic::of(decode);
    let target = &plan.target;
    let own = std::iter::once((&target.card, target.memory_bytes, target.bandwidth_gbps));
    let others = target
        .cards
        .iter()
        .map(|c| (&c.card, c.memory_bytes, c.bandwidth_gbps));
    let needed = plan.device_bytes().saturating_add(RESERVE);
    let one = |(card, memory_bytes, gbps): (&String, u64, f64)| {
        let seconds = traffic.device_bytes as f64 / (gbps * 1e9)
            + traffic.host_bytes as f64 / (target.host_gbps * 1e9);
        Roofline {
            card: card.clone(),
            memory_bytes,
            tokens_per_second: f64::from(plan.shape.batch) / seconds.max(1e-12),
            fits: needed <= memory_bytes,
        }
    };
    own.chain(others).map(one).collect()
}

/// Launches of each layer of a program, by how many layers have so many.
pub fn launches_per_layer(program: &Program) -> BTreeMap<usize, usize> {
    let mut layers: BTreeMap<u32, usize> = BTreeMap::new();
    for step in &program.steps {
        if let Some(layer) = layer_of(&step.name) {
            *layers.entry(layer).or_default() += 1;
        }
    }
    let mut counts = BTreeMap::new();
    for launches in layers.into_values() {
        *counts.entry(launches).or_default() += 1;
    }
    counts
}

/// What a step does besides its kernel's first purpose, by its defines.
fn fused(plan: &Plan, step: &Step) -> Option<String> {
    let variant = plan.kernels.get(step.kernel as usize)?;
    let is = |name: &str| variant.define(name) != 0;
    let mut with: Vec<&str> = Vec::new();
    match variant.define("XIN") {
        1 => with.push("RMS norm"),
        2 => with.push("layer norm"),
        _ => {}
    }
    if variant.define("FORMAT") == 0
        && variant.define("ACT") == 0
        && variant.kernel == "fused_linear"
    {
        with.push("8-bit rounding");
    }
    let flags = [
        ("LOWRANK", "low rank"),
        ("SPARSE", "sparse"),
        ("BIAS", "bias"),
        ("GLU", "gate"),
        ("SOFTCAP", "cap"),
        ("RESIDUAL", "residual"),
        ("QK_NORM", "head norms"),
        ("ROPE", "rotation"),
    ];
    with.extend(
        flags
            .iter()
            .filter(|(define, _)| is(define))
            .map(|(_, what)| *what),
    );
    if variant.kernel == "attention_decode" {
        with.push("append");
    }
    let weight = match step.args.get("q") {
        Some(super::Value::Section { weight, .. }) => plan.weight(weight),
        _ => None,
    };
    let linear = variant.kernel == "fused_linear" || variant.kernel == "linear_prefill";
    let parts = weight.filter(|_| linear).map_or(0, |w| w.parts.len());
    let mut text = String::new();
    if parts > 1 {
        text = format!("{parts} matrices");
    }
    if !with.is_empty() {
        text += if text.is_empty() { "with " } else { " with " };
        text += &with.join(", ");
    }
    (!text.is_empty()).then_some(text)
}

/// The summary as text.
pub fn render(plan: &Plan) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    let shape = &plan.shape;
    line(format!(
        "{} on {}: batch {}, context {}, keys and values in {}",
        plan.model, plan.target.arch, shape.batch, shape.context, plan.kv.format
    ));
    line(format!(
        "device memory: weights {}, keys and values {} ({} per token), workspace {}: {}",
        human::size(plan.weight_bytes(Place::Device)),
        human::size(plan.kv_bytes()),
        human::size(plan.kv.bytes_per_token),
        human::size(plan.workspace_bytes()),
        human::size(plan.device_bytes()),
    ));
    let host = plan.weight_bytes(Place::Host);
    if host > 0 {
        line(format!("host memory: weights {}", human::size(host)));
    }
    for program in &plan.programs {
        let Estimate { bytes, us, .. } = program.estimate();
        let layers: Vec<String> = launches_per_layer(program)
            .iter()
            .map(|(launches, layers)| format!("{launches} in {}", human::plural(*layers, "layer")))
            .collect();
        line(format!(
            "{}: {} launches ({}), {} per run with a full context, {:.1} ms expected",
            program.name,
            program.steps.len(),
            layers.join(", "),
            human::size(bytes),
            us / 1e3
        ));
    }
    if let Some(decode) = plan.program("decode") {
        let traffic = Traffic::of(decode);
        let batch = u64::from(shape.batch.max(1));
        line(format!(
            "bytes per token: {} ({})",
            traffic.device_bytes / batch,
            human::size(traffic.device_bytes / batch)
        ));
        if traffic.host_bytes > 0 {
            line(format!(
                "bytes per token on the host: {}",
                traffic.host_bytes / batch
            ));
        }
        line("at best, by bandwidth alone:".to_string());
        for card in rooflines(plan) {
            line(format!(
                "  {:<14} {:>8.1} tokens/s{}",
                card.card,
                card.tokens_per_second,
                if card.fits { "" } else { "  (does not fit)" }
            ));
        }
        line("fused:".to_string());
        let first = decode
            .steps
            .iter()
            .filter(|s| layer_of(&s.name).is_none_or(|l| l == 0));
        for step in first {
            if let Some(text) = fused(plan, step) {
                line(format!("  {}: {text}", step.name));
            }
        }
    }
    if !plan.notes.is_empty() {
        line("not fused, or kept otherwise:".to_string());
        for (text, places) in grouped(plan) {
            line(format!("  {text} ({places})"));
        }
    }
    out
}

/// Notes with the same text, and where they are.
fn grouped(plan: &Plan) -> Vec<(String, String)> {
    let mut found: Vec<(String, Vec<&str>)> = Vec::new();
    for note in &plan.notes {
        match found.iter_mut().find(|(text, _)| *text == note.text) {
            Some((_, places)) => places.push(&note.at),
            None => found.push((note.text.clone(), vec![&note.at])),
        }
    }
    let join = |(text, places): (String, Vec<&str>)| {
        let shown = places
            .iter()
            .take(3)
            .copied()
            .collect::<Vec<_>>()
            .join(", ");
        match places.len().checked_sub(3) {
            Some(more) if more > 0 => (text, format!("{shown} and {more} more")),
            _ => (text, shown),
        }
    };
    found.into_iter().map(join).collect()
}

/// The summary as JSON.
pub fn json(plan: &Plan) -> Json {
    let programs = plan.programs.iter().map(|program| {
        let estimate = program.estimate();
        json!({
            "name": program.name,
            "tokens": program.tokens,
            "launches": program.steps.len(),
            "launches_per_layer": launches_per_layer(program).into_iter().map(|(launches, layers)| json!({"launches": launches, "layers": layers})).collect::<Vec<_>>(),
            "device_bytes": Traffic::of(program).device_bytes,
            "host_bytes": Traffic::of(program).host_bytes,
            "flops": estimate.flops,
            "expected_us": estimate.us,
        })
    });
    let cards = rooflines(plan).into_iter().map(|card| {
        json!({
            "card": card.card,
            "memory_bytes": card.memory_bytes,
            "tokens_per_second": card.tokens_per_second,
            "fits": card.fits,
        })
    });
    json!({
        "model": plan.model,
        "target": plan.target.arch,
        "batch": plan.shape.batch,
        "context": plan.shape.context,
        "kv": plan.kv.format,
        "weight_bytes": plan.weight_bytes(Place::Device),
        "host_weight_bytes": plan.weight_bytes(Place::Host),
        "kv_bytes": plan.kv_bytes(),
        "kv_bytes_per_token": plan.kv.bytes_per_token,
        "workspace_bytes": plan.workspace_bytes(),
        "device_bytes": plan.device_bytes(),
        "kernels": plan.kernels.len(),
        "programs": programs.collect::<Vec<_>>(),
        "rooflines": cards.collect::<Vec<_>>(),
        "notes": plan.notes,
    })
}
