//! Masks beyond the probes: what shows in longer sequences only.
//!
//! Probes are short. A number that is larger than they are, or a stored tensor of which they see a
//! corner, may change the rule further out: a window, a chunk, a local pattern. Each such number is
//! made small, each such tensor is looked at whole, and what follows no rule is refused.

use std::collections::{BTreeMap, HashSet};

use super::Raiser;
use super::doubt::{has_pieces, is_flat};
use super::mask::{Mask, Rule};
use super::probe::Facts;
use super::sample::Size;
use super::tensor::{Tensor, count};
use crate::ir::{OpId, OpKind, Operand, ValueId};

/// What takes the place of a large number: twice, so that what grows with it is told from what does not.
const SMALL: [u64; 2] = [3, 4];

/// What masks are made from.
#[derive(Default)]
struct Behind {
    /// The ops, in the graph's order.
    ops: BTreeMap<usize, OpId>,
    /// Whole numbers that are too large to show at the probes, and where they stand.
    numbers: BTreeMap<u64, HashSet<Operand>>,
    /// Other numbers that are too large to show.
    fractions: Vec<f64>,
    /// Stored tensors that are larger than the probes.
    stored: Vec<Operand>,
}

impl Raiser<'_> {
    /// The rule in sequences of any length, where this is the one at the probes.
    pub(super) fn beyond(
        &self,
        (masks, sizes, key): (&[Mask], [Size; 2], Option<ValueId>),
        rule: Rule,
    ) -> Result<Rule, String> {
        let behind = self.made_from(masks, sizes);
        if let Some(number) = behind.fractions.first() {
            return Err(format!("a mask that {number} changes in longer sequences"));
        }
        let undecided = |facts: &Facts<'_>, id: OpId| self.is_undecided(facts, id);
        let mut open: Vec<OpId> = behind.ops.values().copied().collect();
        open.retain(|&id| undecided(&self.facts, id));
        let mut found = rule;
        for &operand in &behind.stored {
            let tensor = self.facts.get(operand, 0);
            let kept = tensor.and_then(|tensor| stored_rule(&tensor, found));
            found = kept.ok_or_else(|| {
                let name = self.operand_name(operand);
                format!("a mask that comes from {name}, which is not causal or a window throughout")
            })?;
        }
        for (&number, at) in &behind.numbers {
            let told = || format!("a mask that {number} changes in longer sequences");
            let [low, high] = SMALL.map(|small| {
                let constants = (at, small as f64);
                let facts = self.facts.swapped(self.graph, &behind.ops, constants);
                // What the number decides when it is small is this number's doing.
                open.retain(|&id| undecided(&facts, id));
                let seen = self.seen_at_all(&facts, masks, sizes).ok()?;
                Some(self.rule_of(&seen, key))
            });
            found = match (low, high) {
                // A size, or what hidden scores are filled with: no mask can be made with another.
                (None, None) => found,
                (Some(Some(a)), Some(Some(b))) if a == b && a == rule => found,
                (Some(Some(Rule::Window(a))), Some(Some(Rule::Window(b)))) if b == a + 1 => {
                    let width = (number + a).checked_sub(SMALL[0]).ok_or_else(told)?;
                    match found {
                        Rule::Causal => Rule::Window(width),
                        Rule::Window(known) if known == width => found,
                        _ => return Err(told()),
                    }
                }
                _ => return Err(told()),
            };
        }
        match open.first().and_then(|&id| self.graph.op(id)) {
            None => Ok(found),
            Some(op) => Err(format!(
                "a mask whose {} may change in longer sequences",
                op.name
            )),
        }
    }

    /// Whether an op has pieces, and sees what grows with the sequence in one of them alone.
    fn is_undecided(&self, facts: &Facts<'_>, id: OpId) -> bool {
        let Some(op) = self.graph.op(id) else {
            return false;
        };
        let OpKind::Onnx(onnx) = &op.kind else {
            return false;
        };
        has_pieces(onnx) && is_flat(op, onnx, [facts, facts])
    }

    /// Goes back from masks to what they are made from; sizes are asked of shapes, which are known.
    fn made_from(&self, masks: &[Mask], sizes: [Size; 2]) -> Behind {
        let least = sizes.iter().flatten().copied().min().unwrap_or(0);
        let mut open: Vec<Operand> = masks.iter().map(|m| m.operand()).collect();
        let mut seen: HashSet<Operand> = HashSet::new();
        let mut behind = Behind::default();
        while let Some(operand) = open.pop() {
            if operand == Operand::None || !seen.insert(operand) {
                continue;
            }
            let maker = match operand {
                Operand::Value(value) => self.makers.get(&value),
                _ => None,
            };
            let op = maker.and_then(|(index, id)| Some((*index, *id, self.graph.op(*id)?)));
            let Some((index, id, op)) = op else {
                if matches!(operand, Operand::Weight(_)) {
                    self.source(operand, least, &mut behind);
                }
                continue;
            };
            behind.ops.insert(index, id);
            // A number that is computed from smaller ones is one itself.
            if self.facts.number(operand).is_some() {
                self.source(operand, least, &mut behind);
                continue;
            }
            let name = match &op.kind {
                OpKind::Onnx(onnx) => onnx.op_type.as_str(),
                _ => "",
            };
            match name {
                "Shape" | "Size" => {}
                "Constant" => self.source(operand, least, &mut behind),
                _ => open.extend(&op.inputs),
            }
            if name == "ConstantOfShape" {
                self.filled(operand, least, &mut behind);
            }
        }
        behind
    }

    /// A constant, by what it may do.
    fn source(&self, operand: Operand, least: usize, behind: &mut Behind) {
        let tensor = self.facts.get(operand, 0);
        match tensor.as_ref().and_then(Tensor::number) {
            Some(number) => note(number, operand, least, behind),
            None if tensor.is_some_and(|t| t.shape.iter().any(|&d| d > least)) => {
                behind.stored.push(operand);
            }
            None => {}
        }
    }

    /// The number that a tensor is full of.
    fn filled(&self, operand: Operand, least: usize, behind: &mut Behind) {
        let tensor = self.facts.get(operand, 0);
        let first = tensor.as_ref().and_then(|t| t.values()?.first().copied());
        if let Some(number) = first {
            note(number, operand, least, behind);
        }
    }

    /// What a constant is called in its source.
    fn operand_name(&self, operand: Operand) -> String {
        match operand {
            Operand::Weight(id) => {
                let weight = self.module.weight(id);
                weight.map_or(String::new(), |w| format!("@{}", w.name))
            }
            Operand::Value(id) => {
                let value = self.graph.value(id);
                value.map_or(String::new(), |v| format!("%{}", v.name))
            }
            Operand::None => String::new(),
        }
    }
}

/// Remembers a number that the probes are too short for.
fn note(number: f64, operand: Operand, least: usize, behind: &mut Behind) {
    let size = number.abs();
    if size <= least as f64 || size >= f64::from(i32::MAX) {
        return;
    }
    match size.fract() == 0.0 {
        true => {
            let places = behind.numbers.entry(size as u64);
            places.or_default().insert(operand);
        }
        false => behind.fractions.push(number),
    }
}

/// The rule with a whole stored tensor in it: the same, or the window that the tensor shows; none where
/// the tensor's numbers follow none.
///
/// A tensor follows a rule where its numbers tell seen from unseen and nothing else: then any mask that
/// is made of them, number by number, follows it too.
fn stored_rule(tensor: &Tensor, rule: Rule) -> Option<Rule> {
    let data = tensor.values()?;
    let same = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan());
    let all = |values: &[f64]| values.iter().all(|&v| same(v, values[0]));
    if data.is_empty() || all(data) {
        return Some(rule);
    }
    let long = tensor.shape.iter().filter(|&&d| d > 1).count();
    if long == 1 {
        // Positions, or whatever else grows by the same amount.
        let step = data.get(1)? - data.first()?;
        let even = step.fract() == 0.0;
        let even = even && data.windows(2).all(|pair| pair[1] - pair[0] == step);
        return even.then_some(rule);
    }
    let [.., rows, cols] = *tensor.shape.as_slice() else {
        return None;
    };
    let size = count(&[rows, cols]).filter(|n| *n > 0)?;
    let follows = |rule: Rule| {
        data.chunks(size).all(|matrix| {
            let mut told: [Option<f64>; 2] = [None; 2];
            matrix.iter().enumerate().all(|(at, &value)| {
                let slot = &mut told[usize::from(rule.shows(at / cols, at % cols))];
                same(*slot.get_or_insert(value), value)
            })
        })
    };
    match rule {
        Rule::Open => None,
        Rule::Causal if follows(rule) => Some(rule),
        Rule::Causal => {
            let last = data.get((rows - 1) * cols..size)?;
            let newest = (rows - 1).min(cols - 1);
            let seen = last.get(..=newest)?.iter().rev();
            let width = seen.take_while(|v| same(**v, last[newest])).count();
            Some(Rule::Window(width as u64)).filter(|rule| follows(*rule))
        }
        Rule::Window(_) => (follows(rule) || follows(Rule::Causal)).then_some(rule),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::DType;

    fn matrix(size: usize, shows: impl Fn(usize, usize) -> bool) -> Tensor {
        let data = (0..size * size).map(|at| f64::from(shows(at / size, at % size)));
        Tensor::new(DType::Bool, vec![1, 1, size, size], data.collect())
    }

    #[test]
    fn stored_masks_are_looked_at_whole() {
        let causal = matrix(64, |q, k| k <= q);
        assert_eq!(stored_rule(&causal, Rule::Causal), Some(Rule::Causal));
        assert_eq!(stored_rule(&causal, Rule::Window(5)), Some(Rule::Window(5)));
        assert_eq!(stored_rule(&causal, Rule::Open), None);
        let local = matrix(64, |q, k| k <= q && q - k < 32);
        assert_eq!(stored_rule(&local, Rule::Causal), Some(Rule::Window(32)));
        let chunks = matrix(64, |q, k| k <= q && q / 32 == k / 32);
        assert_eq!(stored_rule(&chunks, Rule::Causal), None);
        let hole = matrix(64, |q, k| k <= q && (q, k) != (50, 3));
        assert_eq!(stored_rule(&hole, Rule::Causal), None);
    }

    #[test]
    fn stored_vectors_may_be_positions() {
        let vector = |values: Vec<f64>| Tensor::new(DType::I64, vec![1, values.len()], values);
        let places = vector((0..40).map(f64::from).collect());
        assert_eq!(stored_rule(&places, Rule::Causal), Some(Rule::Causal));
        let jump = vector((0..40).map(|i| f64::from(i % 32)).collect());
        assert_eq!(stored_rule(&jump, Rule::Causal), None);
        assert_eq!(
            stored_rule(&vector(vec![1.0; 40]), Rule::Open),
            Some(Rule::Open)
        );
    }
}
