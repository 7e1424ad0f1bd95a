//! The new body of the graph: what its outputs need, and nothing else.

use std::collections::{HashMap, HashSet};

use super::expr::Expr;
use super::view::Source;
use super::{In, Raiser};
use crate::ir::patch::Patch;
use crate::ir::{Attrs, OnnxOp, Op, OpId, OpKind, OpRef, Operand, ValueId, WeightId};
use crate::pass::Remark;

/// Something that the outputs need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Item {
    /// An op that stays.
    Kept(OpId),
    /// A new op.
    New(usize),
    /// A copy of a value under a name that must stay.
    Copy(ValueId),
}

struct Emitter<'a, 'b> {
    raiser: &'b Raiser<'a>,
    /// Results of new ops.
    results: HashMap<usize, ValueId>,
    needed: HashSet<Item>,
    open: Vec<Item>,
}

impl<'a> Raiser<'a> {
    /// The patch and what there is to say; or why the past can't become a cache.
    pub(super) fn emitted(mut self) -> Result<(Patch, Vec<Remark>), String> {
        let outputs = self.outputs();
        let results = self.new_results(&outputs);
        let mut emitter = Emitter {
            raiser: &self,
            results,
            needed: HashSet::new(),
            open: Vec::new(),
        };
        for output in &outputs {
            if let Operand::Value(id) = output {
                emitter.need_exactly(*id);
            }
        }
        emitter.close();
        let body = emitter.ordered();
        let kept: Vec<OpId> = body
            .iter()
            .filter_map(|item| match item {
                Item::Kept(id) => Some(*id),
                _ => None,
            })
            .collect();
        let ops: Vec<Op> = body
            .into_iter()
            .filter_map(|item| emitter.op(item))
            .collect();
        let inputs = self.left_inputs(&ops)?;
        if self.changes(&ops) {
            self.replace(ops, inputs, outputs);
        }
        let said = self.remarks(&kept);
        Ok((self.patch, said))
    }

    /// Outputs, less those that the cache replaces.
    fn outputs(&self) -> Vec<Operand> {
        let cached = |operand: &Operand| match operand {
            Operand::Value(id) => {
                let past = match self.forms.get(id) {
                    Some(Expr::Leaf(view)) => view.past.is_some(),
                    _ => false,
                };
                past || self.kept.contains(id)
            }
            _ => false,
        };
        let outputs = self.graph.body.outputs.iter().copied();
        outputs.filter(|o| !cached(o)).collect()
    }

    /// Inputs, less the past that the cache replaces.
    fn left_inputs(&self, ops: &[Op]) -> Result<Vec<ValueId>, String> {
        let named = |id: ValueId| self.graph.value(id).map_or("", |v| v.name.as_str());
        let read: HashSet<Operand> = ops
            .iter()
            .flat_map(|op| op.inputs.iter().copied())
            .collect();
        let mut left = Vec::new();
        for &id in &self.graph.body.inputs {
            let past = self.cache && super::sample::is_past(named(id));
            let name = named(id);
            let settled = self.whole && (name.contains("mask") || name.contains("position"));
            if settled && !read.contains(&Operand::Value(id)) {
                continue;
            }
            if !past {
                left.push(id);
            } else if read.contains(&Operand::Value(id)) {
                return Err(format!("{} is read otherwise than by attention", named(id)));
            }
        }
        Ok(left)
    }

    /// Gives new ops' results the ids of the values that they are.
    fn new_results(&mut self, outputs: &[Operand]) -> HashMap<usize, ValueId> {
        let mut results = HashMap::new();
        let whole = |forms: &HashMap<ValueId, Expr>, id: ValueId| match forms.get(&id) {
            Some(Expr::Leaf(view)) if view.is_whole() => match view.base {
                Source::New(at) => Some(at),
                Source::Old(_) => None,
            },
            _ => None,
        };
        let all = self
            .graph
            .body
            .ops
            .iter()
            .filter_map(|&id| self.graph.op(id));
        let made = all.flat_map(|op| op.results.iter().flatten().copied());
        let outputs = outputs.iter().filter_map(|o| match o {
            Operand::Value(id) => Some(*id),
            _ => None,
        });
        for id in outputs.chain(made) {
            if let Some(at) = whole(&self.forms, id) {
                results.entry(at).or_insert(id);
            }
        }
        for at in 0..self.made.len() {
            results
                .entry(at)
                .or_insert_with(|| self.patch.add_value(0, "", None));
        }
        results
    }

    /// Whether the new body differs from the old one.
    fn changes(&self, ops: &[Op]) -> bool {
        let old = self
            .graph
            .body
            .ops
            .iter()
            .filter_map(|&id| self.graph.op(id));
        !old.eq(ops.iter())
    }

    fn replace(&mut self, ops: Vec<Op>, inputs: Vec<ValueId>, outputs: Vec<Operand>) {
        let before: HashSet<WeightId> = self
            .graph
            .walk()
            .iter()
            .filter_map(|&id| self.graph.op(id))
            .flat_map(Op::weights)
            .collect();
        let mut old = self.graph.body.ops.iter();
        if let Some(&first) = old.next() {
            self.patch.replace(
                OpRef {
                    graph: 0,
                    op: first,
                },
                ops,
            );
        }
        for &op in old {
            self.patch.replace(OpRef { graph: 0, op }, Vec::new());
        }
        self.patch.set_ports(0, inputs, outputs);
        let mut dropped: Vec<WeightId> = before.into_iter().collect();
        dropped.sort_unstable();
        for id in dropped {
            self.patch.drop_weight(id);
        }
    }
}

impl Emitter<'_, '_> {
    /// What a value is read from: the result of a new op, or an older value that it equals.
    fn read(&self, id: ValueId) -> ValueId {
        match self.raiser.forms.get(&id) {
            Some(Expr::Leaf(view)) if view.is_whole() => self.value(view.base),
            _ => id,
        }
    }

    fn value(&self, source: Source) -> ValueId {
        match source {
            Source::Old(id) => id,
            Source::New(at) => self.results.get(&at).copied().unwrap_or(ValueId::new(0)),
        }
    }

    fn add(&mut self, item: Item) {
        if self.needed.insert(item) {
            self.open.push(item);
        }
    }

    fn need(&mut self, id: ValueId) {
        match self.raiser.forms.get(&id) {
            Some(Expr::Leaf(view)) if view.is_whole() => self.need_source(view.base),
            _ => self.need_source(Source::Old(id)),
        }
    }

    fn need_source(&mut self, source: Source) {
        match source {
            Source::New(at) => self.add(Item::New(at)),
            Source::Old(id) => {
                if let Some((_, op)) = self.raiser.makers.get(&id) {
                    self.add(Item::Kept(*op));
                }
            }
        }
    }

    /// Needs a value under its own id.
    fn need_exactly(&mut self, id: ValueId) {
        if self.read(id) != id {
            self.add(Item::Copy(id));
        } else {
            self.need(id);
        }
    }

    /// Follows what is needed to what that needs.
    fn close(&mut self) {
        while let Some(item) = self.open.pop() {
            match item {
                Item::Copy(id) => self.need(id),
                Item::New(at) => {
                    let inputs = self.raiser.made.get(at).map(|m| m.inputs.clone());
                    for input in inputs.into_iter().flatten() {
                        if let In::Source(source) = input {
                            self.need_source(source);
                        }
                    }
                }
                Item::Kept(id) => self.need_inputs(id),
            }
        }
    }

    fn need_inputs(&mut self, id: OpId) {
        let graph = self.raiser.graph;
        let Some(op) = graph.op(id) else { return };
        for input in &op.inputs {
            if let Operand::Value(value) = input {
                self.need(*value);
            }
        }
        // Regions read values under their own ids.
        let mut regions = op.kind.regions();
        while let Some(region) = regions.pop() {
            for output in &region.outputs {
                if let Operand::Value(value) = output {
                    self.need_exactly(*value);
                }
            }
            for inner in region.ops.iter().filter_map(|&op| graph.op(op)) {
                for input in &inner.inputs {
                    if let Operand::Value(value) = input {
                        self.need_exactly(*value);
                    }
                }
                regions.extend(inner.kind.regions());
            }
        }
    }

    /// Needed items in an order in which everything is made before it is read.
    fn ordered(&self) -> Vec<Item> {
        let raiser = self.raiser;
        let mut items: Vec<((usize, usize, usize), Item)> = Vec::new();
        let places: HashMap<OpId, usize> = raiser
            .graph
            .body
            .ops
            .iter()
            .enumerate()
            .map(|(i, &op)| (op, i))
            .collect();
        for &item in &self.needed {
            let key = match item {
                Item::Kept(id) => match places.get(&id) {
                    Some(index) => (index + 1, 0, 0),
                    None => continue,
                },
                Item::New(at) => (raiser.made.get(at).map_or(0, |m| m.anchor), 1, at),
                Item::Copy(id) => {
                    let source = match raiser.forms.get(&id) {
                        Some(Expr::Leaf(view)) => view.base,
                        _ => Source::Old(id),
                    };
                    (raiser.anchor(source), 2, id.index())
                }
            };
            items.push((key, item));
        }
        items.sort_unstable_by_key(|(key, _)| *key);
        items.into_iter().map(|(_, item)| item).collect()
    }

    fn op(&self, item: Item) -> Option<Op> {
        match item {
            Item::Kept(id) => {
                let mut op = self.raiser.graph.op(id)?.clone();
                for input in &mut op.inputs {
                    if let Operand::Value(value) = input {
                        *value = self.read(*value);
                    }
                }
                Some(op)
            }
            Item::New(at) => {
                let made = self.raiser.made.get(at)?;
                let input = |input: &In| match input {
                    In::Source(source) => Operand::Value(self.value(*source)),
                    In::Weight(id) => Operand::Weight(*id),
                    In::None => Operand::None,
                };
                let inputs = made.inputs.iter().map(input).collect();
                let mut op = Op::new(made.kind.clone(), inputs, *self.results.get(&at)?);
                op.name.clone_from(&made.name);
                Some(op)
            }
            Item::Copy(id) => {
                let kind = OpKind::Onnx(OnnxOp {
                    domain: String::new(),
                    op_type: "Identity".to_owned(),
                    overload: String::new(),
                    attrs: Attrs::new(),
                });
                Some(Op::new(kind, vec![Operand::Value(self.read(id))], id))
            }
        }
    }
}
