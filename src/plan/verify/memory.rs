//! Weights in the blob, buffers in their arenas.

use super::{Faults, unique};
use crate::plan::{ALIGNMENT, Buffer, Plan, Program, element_bytes};

/// A range of bytes, and when it is in use.
struct Taken<'a> {
    name: String,
    start: u64,
    end: u64,
    live: Option<[u32; 2]>,
    buffer: Option<&'a Buffer>,
}

pub(super) fn weights(plan: &Plan, faults: &mut Faults) {
    unique(
        plan.weights.iter().map(|w| w.name.as_str()),
        "weight",
        faults,
    );
    let mut taken = Vec::new();
    for weight in &plan.weights {
        let at = format!("weight {}", weight.name);
        unique(
            weight.sections.iter().map(|s| s.name.as_str()),
            &format!("{at}, section"),
            faults,
        );
        for section in &weight.sections {
            let at = format!("{at}, section {}", section.name);
            let Some(size) = element_bytes(&section.dtype) else {
                faults.add(at, format!("type {} is not known", section.dtype));
                continue;
            };
            if !section.bytes.is_multiple_of(size) {
                faults.add(
                    &at,
                    format!("{} bytes are no whole elements", section.bytes),
                );
            }
            let end = section.offset.checked_add(section.bytes);
            let inside = end.is_some_and(|end| plan.blob.as_ref().is_none_or(|b| end <= b.bytes));
            if !inside {
                faults.add(&at, "lies outside of the blob");
            }
            if !section.offset.is_multiple_of(ALIGNMENT) {
                faults.add(
                    &at,
                    format!("begins at {}, no multiple of {ALIGNMENT}", section.offset),
                );
            }
            taken.push(Taken {
                name: at,
                start: section.offset,
                end: section.offset.saturating_add(section.bytes),
                live: None,
                buffer: None,
            });
        }
    }
    disjoint(taken, faults);
}

pub(super) fn persistent(plan: &Plan, faults: &mut Faults) {
    unique(
        plan.persistent.iter().map(|b| b.name.as_str()),
        "buffer",
        faults,
    );
    let taken = plan
        .persistent
        .iter()
        .map(|b| checked(b, "", u64::MAX, faults));
    disjoint(taken.collect(), faults);
}

pub(super) fn program(plan: &Plan, program: &Program, faults: &mut Faults) {
    let names = program
        .buffers
        .iter()
        .chain(&plan.persistent)
        .map(|b| b.name.as_str());
    unique(names, &format!("{}, buffer", program.name), faults);
    let place = format!("{}, ", program.name);
    let taken = program
        .buffers
        .iter()
        .map(|b| checked(b, &place, program.arena_bytes, faults));
    disjoint(taken.collect(), faults);
}

/// A buffer's own claims.
fn checked<'a>(buffer: &'a Buffer, place: &str, arena: u64, faults: &mut Faults) -> Taken<'a> {
    let at = format!("{place}buffer {}", buffer.name);
    let elements = buffer.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    let bytes = elements
        .zip(element_bytes(&buffer.dtype))
        .and_then(|(n, size)| n.checked_mul(size));
    if bytes != Some(buffer.bytes) {
        faults.add(
            &at,
            format!(
                "{} bytes are not those of {:?} {}",
                buffer.bytes, buffer.dims, buffer.dtype
            ),
        );
    }
    if !buffer.offset.is_multiple_of(ALIGNMENT) {
        faults.add(
            &at,
            format!("begins at {}, no multiple of {ALIGNMENT}", buffer.offset),
        );
    }
    let end = buffer.offset.checked_add(buffer.bytes);
    if end.is_none_or(|end| end > arena) {
        faults.add(&at, "lies outside of its arena");
    }
    Taken {
        name: at,
        start: buffer.offset,
        end: end.unwrap_or(u64::MAX),
        live: buffer.live,
        buffer: Some(buffer),
    }
}

/// No two overlap while both are in use.
fn disjoint(mut taken: Vec<Taken<'_>>, faults: &mut Faults) {
    taken.sort_by_key(|t| t.start);
    let together = |a: &Taken<'_>, b: &Taken<'_>| match (a.live, b.live) {
        (Some([a0, a1]), Some([b0, b1])) => a0 <= b1 && b0 <= a1,
        // A buffer of a program that no step uses is in nobody's way.
        _ => a.buffer.is_none_or(|x| x.live.is_none()) && b.buffer.is_none_or(|x| x.live.is_none()),
    };
    for (index, one) in taken.iter().enumerate() {
        let behind = taken
            .iter()
            .skip(index + 1)
            .take_while(|other| other.start < one.end);
        for other in behind {
            if one.start < one.end && other.start < other.end && together(one, other) {
                faults.add(
                    &one.name,
                    format!("overlaps {} while both are in use", other.name),
                );
            }
        }
    }
}
