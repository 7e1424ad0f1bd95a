//! Steps that become one.

use std::collections::HashMap;

use super::{Arg, Kind, Port, Step};
use crate::exec::ops::Prepared;

/// Turns `t = activate(a); y = mul(t, b)` into one step where nothing else reads `t`.
pub(super) fn fuse_glu(steps: &mut Vec<Step>, outputs: &[Port]) {
    let mut uses: HashMap<usize, usize> = HashMap::new();
    for slot in steps.iter().flat_map(Step::reads) {
        *uses.entry(slot).or_default() += 1;
    }
    for port in outputs {
        if let Arg::Slot(slot) = port.arg {
            *uses.entry(slot).or_default() += 1;
        }
    }
    let mut at = 0;
    while at + 1 < steps.len() {
        if let Some(glu) = glu(&steps[at], &steps[at + 1], &uses) {
            steps.splice(at..at + 2, [glu]);
        }
        at += 1;
    }
}

fn glu(first: &Step, second: &Step, uses: &HashMap<usize, usize>) -> Option<Step> {
    let Kind::Native(Prepared::Activate(function)) = first.kind else {
        return None;
    };
    let Kind::Native(Prepared::Mul) = second.kind else {
        return None;
    };
    let gated = (*first.outputs.first()?)?;
    let (a, b) = (*second.inputs.first()?, *second.inputs.get(1)?);
    let other = if a == Arg::Slot(gated) { b } else { a };
    // A weight has one value per column, not per element.
    if !matches!(other, Arg::Slot(_)) {
        return None;
    }
    let once = uses.get(&gated) == Some(&1) && (a == Arg::Slot(gated) || b == Arg::Slot(gated));
    once.then(|| Step {
        kind: Kind::Glu(function),
        id: second.id,
        op: "activate·mul",
        name: second.name.clone(),
        inputs: vec![first.inputs[0], other],
        outputs: second.outputs.clone(),
        last_uses: Vec::new(),
    })
}
