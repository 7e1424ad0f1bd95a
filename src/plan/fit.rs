//! Whether a plan fits a device, and what would.

use super::{Place, Plan, PlanError};
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
    let experts =
        |w: &&super::PackedWeight| w.place == Place::Device && w.name.contains(".experts.");
    let moved: u64 = plan
        .weights
        .iter()
        .filter(experts)
        .map(super::PackedWeight::bytes)
        .sum();
    if moved > 0
        && plan
            .device_bytes()
            .saturating_sub(moved)
            .saturating_add(reserve)
            <= device_bytes
    {
        found.push(format!(
            "--placement experts=host ({} go to main memory)",
            human::size(moved)
        ));
    }
    let room = device_bytes.saturating_sub(
        plan.kv_bytes()
            .saturating_add(plan.workspace_bytes())
            .saturating_add(reserve),
    );
    let weights = plan.weight_bytes(Place::Device);
    if room > 0 && weights > room {
        found.push(format!(
            "weights in {:.0} % of their bytes, by fewer bits (`hlrc-opt fit` says which)",
            room as f64 / weights as f64 * 100.0
        ));
    }
    if found.is_empty() {
        found.push("nothing of this model; take a device with more memory".to_string());
    }
    found
}
