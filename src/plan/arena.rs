//! Dependencies of steps, lifetimes of buffers, and their places in one arena.

use std::collections::{BTreeMap, BTreeSet};

use super::model::aligned;
use super::{Buffer, Step, Value, Variant, kernels};

/// A buffer that a step uses, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Use {
    /// The buffer's name.
    pub(super) name: String,
    /// The argument.
    pub(super) arg: String,
    /// Whether the step writes it (and may read it too).
    pub(super) writes: bool,
}

/// The buffers that a step uses, by the kernel's table.
pub(super) fn uses(step: &Step, variants: &[Variant]) -> Vec<Use> {
    let variant = variants.get(step.kernel as usize);
    let kernel = variant.and_then(|v| kernels::find(&v.kernel));
    let params = kernel.map(kernels::Kernel::params).unwrap_or_default();
    let mut found = Vec::new();
    for (arg, value) in step.args.iter() {
        let Value::Buffer { name, .. } = value else {
            continue;
        };
        let param = params.iter().find(|p| p.name == *arg);
        found.push(Use {
            name: name.clone(),
            arg: arg.clone(),
            writes: param.is_some_and(|p| !p.read_only),
        });
    }
    found
}

/// Fills in the steps that each step has to wait for: who wrote what it reads, and who used what it
/// writes.
pub(super) fn dependencies(steps: &mut [Step], variants: &[Variant]) {
    let mut writers: BTreeMap<String, u32> = BTreeMap::new();
    let mut readers: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for (index, step) in steps.iter_mut().enumerate() {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let mut after = BTreeSet::new();
        let uses = uses(step, variants);
        for used in &uses {
            after.extend(writers.get(&used.name));
            if used.writes {
                after.extend(readers.get(&used.name).into_iter().flatten());
            }
        }
        for used in uses {
            if used.writes {
                writers.insert(used.name.clone(), index);
                readers.remove(&used.name);
            } else {
                readers.entry(used.name).or_default().insert(index);
            }
        }
        after.remove(&index);
        step.after = after.into_iter().collect();
    }
}

/// Fills in the first and last step that use each buffer.
pub(super) fn lifetimes(buffers: &mut [Buffer], steps: &[Step], variants: &[Variant]) {
    let mut live: BTreeMap<String, [u32; 2]> = BTreeMap::new();
    for (index, step) in steps.iter().enumerate() {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        for used in uses(step, variants) {
            live.entry(used.name).or_insert([index, index])[1] = index;
        }
    }
    for buffer in buffers {
        buffer.live = live.get(&buffer.name).copied();
    }
}

/// Gives each buffer a place that no buffer has which lives at the same time; returns the arena's bytes.
///
/// Linear scan over the starts of lifetimes; the lowest gap that is large enough is taken.
pub(super) fn place(buffers: &mut [Buffer]) -> u64 {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| (buffers[i].live.unwrap_or([0, 0]), i));
    let mut active: Vec<usize> = Vec::new();
    let mut arena = 0;
    for index in order {
        let [start, _] = buffers[index].live.unwrap_or([0, 0]);
        active.retain(|&a| buffers[a].live.is_some_and(|[_, end]| end >= start));
        active.sort_by_key(|&a| buffers[a].offset);
        let bytes = aligned(buffers[index].bytes);
        let mut at = 0u64;
        for &other in &active {
            if at.saturating_add(bytes) <= buffers[other].offset {
                break;
            }
            at = at.max(
                buffers[other]
                    .offset
                    .saturating_add(aligned(buffers[other].bytes)),
            );
        }
        buffers[index].offset = at;
        arena = arena.max(at.saturating_add(bytes));
        active.push(index);
    }
    arena
}

/// Puts persistent buffers one after the other.
pub(super) fn stack(buffers: &mut [Buffer]) {
    let mut at = 0u64;
    for buffer in buffers {
        buffer.offset = at;
        at = at.saturating_add(aligned(buffer.bytes));
    }
}
