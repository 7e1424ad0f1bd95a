//! Masks: what a tensor added to scores, or chosen by, lets each position see.

use super::probe::Facts;
use super::sample::{PROBES, Size};
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
    pub(super) fn operand(self) -> Operand {
        let (Mask::Added(operand)
        | Mask::Kept(operand)
        | Mask::Dropped(operand)
        | Mask::Keys(operand)) = self;
        operand
    }
}

/// Which keys a position sees, keys that are left out for all aside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rule {
    /// All.
    Open,
    /// Those at its place and before.
    Causal,
    /// So many latest of them.
    Window(u64),
}

impl Rule {
    /// Whether the position sees the key; both are places in the whole sequence.
    pub(super) fn shows(self, position: usize, key: usize) -> bool {
        match self {
            Rule::Open => true,
            Rule::Causal => key <= position,
            Rule::Window(width) => key <= position && ((position - key) as u64) < width,
        }
    }
}

/// What masks show together.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) causal: bool,
    pub(super) window: Option<u64>,
    /// `[B,T]`, 1 = attend.
    pub(super) keys: In,
}

/// Masks of scores of these sizes, and what they show.
pub(super) type Known = (Vec<Mask>, [Size; 2], Result<Shown, String>);

/// What may be seen at a probe: batch, query, key.
pub(super) struct Seen {
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
        let known = |(of, at, _): &&Known| of == masks && *at == sizes;
        if let Some((_, _, known)) = self.shown.iter().find(known) {
            return known.clone();
        }
        let shown = self.shown_by(masks, sizes);
        self.shown.push((masks.to_vec(), sizes, shown.clone()));
        shown
    }

    fn shown_by(&self, masks: &[Mask], sizes: [Size; 2]) -> Result<Shown, String> {
        let seen = self.seen_at_all(&self.facts, masks, sizes)?;
        let mut keys = vec![None];
        for &id in &self.graph.body.inputs {
            let operand = Operand::Value(id);
            let shape = self.facts.sizes(operand);
            if shape.is_some_and(|s| s.len() == 2 && s.last() == sizes.last())
                && self.facts.side(operand).is_some()
                && !self.facts.is_tokens(operand)
            {
                keys.push(Some(id));
            }
        }
        for key in keys {
            let Some(rule) = self.rule_of(&seen, key) else {
                continue;
            };
            let rule = self.beyond((masks, sizes, key), rule)?;
            return Ok(Shown {
                causal: rule != Rule::Open,
                window: match rule {
                    Rule::Window(width) => Some(width),
                    Rule::Open | Rule::Causal => None,
                },
                keys: match key {
                    None => In::None,
                    Some(id) => In::Source(Source::Old(id)),
                },
            });
        }
        Err("attention under a mask that is not causal, a window or one of keys".to_string())
    }

    /// The rule by which positions are seen at all probes, besides the keys that `key` leaves out.
    pub(super) fn rule_of(&self, seen: &[Seen], key: Option<ValueId>) -> Option<Rule> {
        let values = key.and_then(|id| self.facts.side(Operand::Value(id)));
        let open = |probe: usize, width: usize, b: usize, k: usize| match &values {
            None => key.is_none(),
            Some(values) => {
                let tensor: Option<&Tensor> = values.get(probe);
                let value = tensor.and_then(|t| t.values()?.get(b * width + k).copied());
                value.is_some_and(|v| v != 0.0)
            }
        };
        let reach = seen.iter().map(Seen::reach).max().unwrap_or(0);
        let rules = [Rule::Open, Rule::Causal, Rule::Window(reach as u64)];
        rules.into_iter().find(|rule| {
            seen.iter().enumerate().all(|(probe, seen)| {
                seen.is(|b, q, k| rule.shows(q + seen.past, k) && open(probe, seen.total, b, k))
            })
        })
    }

    /// What may be seen at each probe.
    pub(super) fn seen_at_all(
        &self,
        facts: &Facts<'_>,
        masks: &[Mask],
        sizes: [Size; 2],
    ) -> Result<Vec<Seen>, String> {
        (0..PROBES)
            .map(|probe| self.seen(facts, masks, sizes, probe))
            .collect()
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
            let tensor = facts.get(mask.operand(), probe);
            let tensor = tensor.filter(|_| !facts.is_tokens(mask.operand()));
            let tensor = tensor.ok_or(unknown)?;
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
