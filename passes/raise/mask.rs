//! Masks: what a tensor added to scores, or chosen by, lets each position see.

use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

use super::probe::{Facts, PROBES, Size};
use super::tensor::Tensor;
use super::view::Source;
use super::{In, Raiser};
use crate::ir::{Operand, ValueId};

/// Scores at or below this count for nothing: older BERTs add −10000.
pub(super) const BLOCKED: f64 = -9999.0;

/// How a tensor masks scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mask {
    /// Added: 0 keeps.
    Added(Operand),
    /// Kept where it is true.
    Kept(Operand),
    /// Dropped where it is true.
    Dropped(Operand),
    /// `[B,T]`: keys that may be seen.
    Keys(Operand),
}

impl Mask {
    fn operand(self) -> Operand {
        let (Mask::Added(operand)
        | Mask::Kept(operand)
        | Mask::Dropped(operand)
        | Mask::Keys(operand)) = self;
        operand
    }
}

/// What masks show together.
pub(super) struct Shown {
    pub(super) causal: bool,
    pub(super) window: Option<u64>,
    /// `[B,T]`, 1 = attend.
    pub(super) keys: In,
}

/// What may be seen at a probe: batch, query, key.
struct Seen {
    batch: usize,
    length: usize,
    total: usize,
    past: usize,
    seen: Vec<bool>,
}

impl Seen {
    fn at(&self, b: usize, q: usize, k: usize) -> bool {
        let at = (b * self.length + q) * self.total + k;
        self.seen.get(at).copied().unwrap_or(false)
    }

    /// Whether it is this rule, wherever the rule lets a position see anything.
    fn is(&self, rule: impl Fn(usize, usize, usize) -> bool) -> bool {
        (0..self.batch).all(|b| {
            (0..self.length).all(|q| {
                let any = (0..self.total).any(|k| rule(b, q, k));
                !any || (0..self.total).all(|k| self.at(b, q, k) == rule(b, q, k))
            })
        })
    }
}

impl Raiser<'_> {
    /// What masks let positions see, scores being `[S, T]`.
    pub(super) fn mask(&mut self, masks: &[Mask], sizes: [Size; 2]) -> Result<Shown, String> {
        let mut seen = Vec::new();
        for probe in 0..PROBES {
            seen.push(self.seen(&self.facts, masks, sizes, probe)?);
        }
        let mut keys = vec![None];
        for &id in &self.graph.body.inputs {
            let shape = self.facts.sizes(Operand::Value(id));
            if shape.is_some_and(|s| s.len() == 2 && s.last() == sizes.last())
                && let Some(values) = self.facts.side(Operand::Value(id))
            {
                keys.push(Some((id, values)));
            }
        }
        for key in &keys {
            let open = |probe: usize, b: usize, k: usize| match key {
                None => true,
                Some((_, values)) => {
                    let tensor: Option<&Tensor> = values.get(probe);
                    let width = sizes.last().map_or(0, |s| s[probe]);
                    let value = tensor.and_then(|t| t.values()?.get(b * width + k).copied());
                    value.is_some_and(|v| v != 0.0)
                }
            };
            let all = |rule: &dyn Fn(&Seen, usize, usize) -> bool| {
                let at = |(p, seen): (usize, &Seen)| {
                    seen.is(|b, q, k| rule(seen, q, k) && open(p, b, k))
                };
                seen.iter().enumerate().all(at)
            };
            let shown = |causal, window| Shown {
                causal,
                window,
                keys: match key {
                    None => In::None,
                    Some((id, _)) => In::Source(Source::Old(*id)),
                },
            };
            if all(&|_, _, _| true) {
                return Ok(shown(false, None));
            }
            if all(&|s, q, k| k <= q + s.past) {
                let keys = key.as_ref().map(|(id, _)| *id);
                return Ok(shown(true, self.far_window(masks, sizes, keys)));
            }
            let reach = seen.iter().map(Seen::reach).max().unwrap_or(0);
            if all(&|s, q, k| k <= q + s.past && q + s.past - k < reach) {
                return Ok(shown(true, Some(reach as u64)));
            }
        }
        Err("attention under a mask that is not causal, a window or one of keys".to_string())
    }

    /// A window that is wider than the probes: what a mask shows where constants are small.
    fn far_window(
        &mut self,
        masks: &[Mask],
        sizes: [Size; 2],
        key: Option<ValueId>,
    ) -> Option<u64> {
        const SMALL: f64 = 4.0;
        for n in self.constants_above(masks, sizes) {
            if !self.swapped.contains_key(&n) {
                let facts = self.facts.swapped(self.graph, n as f64, SMALL);
                self.swapped.insert(n, Rc::new(facts));
            }
            let facts = self.swapped.get(&n)?.clone();
            let seen: Result<Vec<Seen>, String> = (0..PROBES)
                .map(|probe| self.seen(&facts, masks, sizes, probe))
                .collect();
            let Ok(seen) = seen else { continue };
            let reach = seen.iter().map(Seen::reach).max().unwrap_or(0);
            let window = |(probe, seen): (usize, &Seen)| {
                let keys = key.and_then(|id| self.facts.get(Operand::Value(id), probe));
                let open = |b: usize, k: usize| match &keys {
                    None => true,
                    Some(keys) => keys
                        .values()
                        .and_then(|v| v.get(b * seen.total + k))
                        .is_some_and(|v| *v != 0.0),
                };
                seen.is(|b, q, k| k <= q + seen.past && q + seen.past - k < reach && open(b, k))
            };
            let limited = seen.iter().any(|s| reach < s.total);
            if limited && seen.iter().enumerate().all(window) {
                return (n + reach as u64).checked_sub(SMALL as u64);
            }
        }
        None
    }

    /// Whole numbers that masks are made from and that are too large to show at the probes.
    fn constants_above(&self, masks: &[Mask], sizes: [Size; 2]) -> Vec<u64> {
        let least = sizes.iter().flatten().copied().min().unwrap_or(0) as f64;
        let mut open: Vec<Operand> = masks.iter().map(|m| m.operand()).collect();
        let mut seen: HashSet<Operand> = HashSet::new();
        let mut found = BTreeSet::new();
        while let Some(operand) = open.pop() {
            if !seen.insert(operand) {
                continue;
            }
            if let Some(number) = self.facts.number(operand).map(f64::abs)
                && number.fract() == 0.0
                && number > least
                && number < f64::from(i32::MAX)
            {
                found.insert(number as u64);
            }
            if let Operand::Value(value) = operand
                && let Some(op) = self
                    .makers
                    .get(&value)
                    .and_then(|(_, id)| self.graph.op(*id))
            {
                open.extend(&op.inputs);
            }
        }
        found.into_iter().collect()
    }

    fn seen(
        &self,
        facts: &Facts<'_>,
        masks: &[Mask],
        sizes: [Size; 2],
        probe: usize,
    ) -> Result<Seen, String> {
        let [length, total] = sizes.map(|size| size[probe]);
        let ids = self.graph.body.inputs.iter().find_map(|&id| {
            let tensor = self.facts.get(Operand::Value(id), probe)?;
            (tensor.rank() >= 2).then(|| tensor.shape.first().copied())?
        });
        let batch = ids.unwrap_or(1);
        let mut seen = Seen {
            batch,
            length,
            total,
            past: total.saturating_sub(length),
            seen: vec![true; batch * length * total],
        };
        for mask in masks {
            let unknown = "a mask of unknown numbers";
            let tensor = facts.get(mask.operand(), probe).ok_or(unknown)?;
            let tensor = match (mask, tensor.shape.as_slice()) {
                (Mask::Keys(_), &[rows, cols]) => tensor.reshaped(vec![rows, 1, cols]),
                _ => Some(tensor),
            };
            let tensor = tensor.ok_or(unknown)?;
            let tensor = lanes(&tensor, batch, length, total)?;
            let values = tensor.values().ok_or("a mask of unknown numbers")?;
            for (slot, &value) in seen.seen.iter_mut().zip(values) {
                *slot &= match mask {
                    Mask::Kept(_) | Mask::Keys(_) => value != 0.0,
                    Mask::Dropped(_) => value == 0.0,
                    Mask::Added(_) if value.is_nan() => true,
                    Mask::Added(_) if value <= BLOCKED => false,
                    Mask::Added(_) if value.abs() < 1e-6 => true,
                    Mask::Added(_) => return Err("a bias on scores that is no mask".to_string()),
                };
            }
        }
        Ok(seen)
    }
}

impl Seen {
    /// How many latest positions the one sees that sees most, by distance.
    fn reach(&self) -> usize {
        let mut reach = 0;
        for q in 0..self.length {
            for k in 0..=(q + self.past).min(self.total.saturating_sub(1)) {
                if (0..self.batch).any(|b| self.at(b, q, k)) {
                    reach = reach.max(q + self.past - k + 1);
                }
            }
        }
        reach
    }
}

/// A mask as `[B,S,T]`: the same for every head.
fn lanes(mask: &Tensor, batch: usize, length: usize, total: usize) -> Result<Tensor, String> {
    let per_head = || "a mask for each head".to_string();
    let mut shape = mask.shape.clone();
    while shape.len() > 3 {
        // Axes between batch and length are of heads.
        if shape.get(1) == Some(&1) {
            shape.remove(1);
        } else if shape.first() == Some(&1) && shape.len() > 4 {
            shape.remove(0);
        } else {
            return expanded(mask, batch, length, total).ok_or_else(per_head);
        }
    }
    let flat = mask.reshaped(shape).ok_or_else(per_head)?;
    flat.broadcast(&[batch, length, total]).ok_or_else(per_head)
}

/// A mask that is stored for each head, all of them alike: the first head's.
fn expanded(mask: &Tensor, batch: usize, length: usize, total: usize) -> Option<Tensor> {
    let heads = *mask.shape.get(1)?;
    let first = mask.take(1, &[0], &[])?;
    for head in 1..heads {
        let other = mask.take(1, &[i64::try_from(head).ok()?], &[])?;
        if other.data != first.data {
            return None;
        }
    }
    first.broadcast(&[batch, length, total])
}
