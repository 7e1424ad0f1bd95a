//! Whether a plan fits a device, and what would.

use super::{PackedWeight, Place, Plan, PlanError};
use crate::ir::site::layer_of;
use crate::report::human;

/// Checks a plan against a device's memory.
///
/// # Errors
/// [`PlanError::DoesNotFit`] with the bytes that each part takes, and what would fit.
pub fn check(plan: &Plan, device_bytes: u64, reserve: u64) -> Result<(), PlanError> {
    let needed = plan.device_bytes().saturating_add(reserve);
    if needed <= device_bytes {
        return Ok(());
    }
    let mut text = format!(
        "the plan takes {}: weights {}, keys and values {}, workspace {}, reserve {}; the device has {}",
        human::size(needed),
        human::size(plan.weight_bytes(Place::Device)),
        human::size(plan.kv_bytes()),
        human::size(plan.workspace_bytes()),
        human::size(reserve),
        human::size(device_bytes)
    );
    let advice = advice(plan, device_bytes, reserve);
    text += &format!("\n  what would fit: {}", advice.join("; "));
    Err(PlanError::DoesNotFit(text))
}

/// Bits of a weight below which no pass goes.
const FEWEST_BITS: f64 = 1.5;

fn advice(plan: &Plan, device_bytes: u64, reserve: u64) -> Vec<String> {
    let mut found = Vec::new();
    let fixed = plan
        .device_bytes()
        .saturating_sub(plan.kv_bytes())
        .saturating_add(reserve);
    let left = device_bytes.saturating_sub(fixed);
    let each = plan
        .kv
        .bytes_per_token
        .saturating_mul(u64::from(plan.shape.batch));
    if left > 0 && each > 0 && plan.kv_bytes() > 0 {
        // Windows keep less; that only leaves more room.
        let context = left / each;
        if context >= 256 && context < u64::from(plan.shape.context) {
            found.push(format!("--ctx {}", context / 256 * 256));
        }
        let halved = plan.kv_bytes() / 32 * 17;
        if plan.kv.format == "f16" && fixed.saturating_add(halved) <= device_bytes {
            found.push("--kv q8".to_string());
        }
    }
    let excess = plan
        .device_bytes()
        .saturating_add(reserve)
        .saturating_sub(device_bytes);
    let experts = |w: &PackedWeight| w.name.contains(".experts.");
    let placed = |(first, last, moved): (u32, u32, u64), what: &str, of: &str| {
        format!(
            "--placement '{}{of}=host' ({} of {what}layers {first} to {last} go to main memory)",
            layers_pattern(first, last),
            human::size(moved)
        )
    };
    if let Some(layers) = last_layers(plan, excess, experts) {
        found.push(placed(layers, "the experts of ", r".*\.experts\."));
    } else if let Some(layers) = last_layers(plan, excess, |_| true) {
        found.push(placed(layers, "", ""));
    }
    let room = device_bytes.saturating_sub(
        plan.kv_bytes()
            .saturating_add(plan.workspace_bytes())
            .saturating_add(reserve),
    );
    let weights = plan.weight_bytes(Place::Device);
    let bits = |bytes: u64| bytes as f64 * 8.0 / entries(plan).max(1) as f64;
    if weights > room && bits(room) >= FEWEST_BITS {
        found.push(format!(
            "weights in {:.0} % of their bytes: {:.2} bits each on average, which are {:.2} now \
             (`hlrc-opt fit` says with which passes)",
            room as f64 / weights as f64 * 100.0,
            bits(room),
            bits(weights)
        ));
    }
    if found.is_empty() {
        found.push("nothing of this model; take a device with more memory".to_string());
    }
    found
}

/// Bytes of the weights on the device that are meant.
fn on_device(plan: &Plan, meant: impl Fn(&PackedWeight) -> bool) -> u64 {
    let all = plan.weights.iter();
    let meant = all.filter(|w| w.place == Place::Device && meant(w));
    meant.map(PackedWeight::bytes).sum()
}

/// Entries of all matrices on the device.
fn entries(plan: &Plan) -> u64 {
    let matrices = plan.weights.iter().filter(|w| is_matrix(w));
    let matrices = matrices.filter(|w| w.place == Place::Device);
    matrices.map(|w| w.rows.saturating_mul(w.cols)).sum()
}

fn is_matrix(weight: &PackedWeight) -> bool {
    weight.pack != "vector" && weight.pack != "table"
}

/// The fewest layers, from the last one on, whose weights, those that are meant, are so many bytes: the
/// first and the last of them, and their bytes.
fn last_layers(
    plan: &Plan,
    excess: u64,
    meant: impl Fn(&PackedWeight) -> bool,
) -> Option<(u32, u32, u64)> {
    // Tables that layers share may have numbers in their names.
    let matrices = plan.weights.iter().filter(|w| is_matrix(w));
    let last = matrices.filter_map(|w| layer_of(&w.name)).max()?;
    let mut moved = 0u64;
    for layer in (0..=last).rev() {
        moved += on_device(plan, |w| layer_of(&w.name) == Some(layer) && meant(w));
        if moved >= excess {
            return Some((layer, last, moved));
        }
    }
    None
}

/// A placement's pattern for weights of layers `first` to `last`.
fn layers_pattern(first: u32, last: u32) -> String {
    let mut words = Vec::new();
    let mut layer = first;
    while layer <= last {
        let (ten, end) = (layer / 10, last.min(layer / 10 * 10 + 9));
        let ten = if ten == 0 {
            String::new()
        } else {
            ten.to_string()
        };
        words.push(match end - layer {
            0 => format!("{ten}{}", layer % 10),
            _ => format!("{ten}[{}-{}]", layer % 10, end % 10),
        });
        layer = end + 1;
    }
    format!("re:\\.({})\\.", words.join("|"))
}

#[cfg(test)]
mod tests {
    use super::layers_pattern;

    #[test]
    fn patterns_fit_their_layers_alone() {
        assert_eq!(layers_pattern(53, 61), r"re:\.(5[3-9]|6[0-1])\.");
        for (first, last) in [(0, 0), (7, 30), (98, 125), (9, 10)] {
            let pattern = layers_pattern(first, last);
            let pattern = pattern.strip_prefix("re:").expect("a pattern");
            let pattern = regex::Regex::new(pattern).expect("a pattern");
            for layer in 0..200 {
                let name = format!("model.layers.{layer}.mlp.down_proj");
                assert_eq!(
                    pattern.is_match(&name),
                    (first..=last).contains(&layer),
                    "{first} to {last}: {layer}"
                );
            }
        }
    }
}
