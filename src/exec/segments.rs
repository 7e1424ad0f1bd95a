//! Parts of a program that run one after the other, with what goes into their linears.
//!
//! A program is cut where few values live, behind each layer of a transformer. What lives at a cut
//! ([`Held`]) is all that the next part needs besides the model's inputs, so that many inputs can go
//! through one part before any goes through the next: the weights of one part are in memory, and
//! whatever a [`Tap`] gathers of one part. A part can be run by another engine too, one whose
//! weights were rewritten.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::program::{Arg, Kind, PreparedMoe, Program, Step};
use super::run::Run;
use super::tensor::Tensor;
use super::{Engine, ExecError};
use crate::ir::site::layer_of;
use crate::ir::{Layout, OpId, ValueId};

/// Sees what goes into linears.
pub trait Tap {
    /// Activations `[rows, width]` that go into `op`: a linear, or a mixture of experts.
    fn see(&mut self, op: OpId, x: &[f32], width: usize);
}

/// A tap for those who want no activations.
pub struct Blind;

impl Tap for Blind {
    fn see(&mut self, _: OpId, _: &[f32], _: usize) {}
}

/// The parts of a program, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Segments {
    /// Each of them.
    pub list: Vec<Segment>,
}

/// Consecutive steps of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    steps: Range<usize>,
    /// Values that it leaves for later ones.
    leave: Vec<usize>,
    /// Linears whose results nobody wants: only their inputs are looked at.
    seen_only: Vec<usize>,
    /// Number of the layer, where names tell.
    pub layer: Option<u32>,
    /// The distinct inputs of its linears.
    pub inputs: Vec<LinearInput>,
    /// Its mixtures of experts.
    pub mixtures: Vec<Mixture>,
}

/// What one or more linears multiply.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearInput {
    /// The op at which a tap sees it first.
    pub first: OpId,
    /// The linears that take it.
    pub linears: Vec<OpId>,
    /// Its width.
    pub width: usize,
    /// The mixture (index in [`Segment::mixtures`]), the expert, and which of the expert's inner
    /// inputs this is; an expert's own input is the mixture's.
    pub expert: Option<(usize, usize, usize)>,
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// The op.
    pub op: OpId,
    /// Of each expert, a linear that a tap sees once for each token that the expert gets.
    pub counted_at: Vec<Option<OpId>>,
    /// The linears of each expert.
    pub linears: Vec<Vec<OpId>>,
}

/// What lives between two segments, of one batch of inputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Held {
    /// Values by their place; which values they are the segments know.
    pub values: Vec<(usize, Tensor)>,
}

impl Engine {
    /// Cuts the program into segments.
    ///
    /// Steps behind the last linear's input, the multiplication with the head above all, are in none.
    pub fn segments(&self) -> Segments {
        cut(&self.program)
    }

    /// Runs one segment on what the one before left.
    ///
    /// `inputs` are the model's, the same for all segments of a batch; the first segment takes an
    /// empty [`Held`]. Sequences are whole, there is no cache. The engine may be another than the one
    /// that the segments are of, where it [fits](Segments::fits).
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_segment(
        &self,
        segment: &Segment,
        inputs: &[(String, Tensor)],
        held: Held,
        tap: &mut dyn Tap,
    ) -> Result<Held, ExecError> {
        self.check_files()?;
        let mut run = Run::new(self, None);
        run.tap = Some(tap);
        for port in &self.program.inputs {
            let given = inputs.iter().find(|(name, _)| *name == port.name);
            if let (Some((name, value)), Arg::Slot(slot)) = (given, port.arg) {
                value.check(name)?;
                run.set(slot, value.clone());
            }
        }
        for (slot, value) in held.values {
            run.set(slot, value);
        }
        run.steps(self.steps_of(segment))?;
        for step in self.seen_only(segment) {
            let Kind::Linear(linear) = &step.kind else {
                continue;
            };
            let x = run.operand(step, 0)?;
            let rows = super::linear::turned(linear, x, step)?;
            run.tell(step, &rows.values, linear.matrix.cols);
        }
        let leave = segment.leave.iter().map(|&slot| {
            let value = run.take(slot);
            let lost = || ExecError::Input {
                name: format!("%{slot}"),
                problem: "a value between two segments is missing; the engine is of another \
                          module than the segments"
                    .to_string(),
            };
            Ok((slot, value.ok_or_else(lost)?))
        });
        Ok(Held {
            values: leave.collect::<Result<_, ExecError>>()?,
        })
    }

    /// Gives back the mapped pages of a segment's weights.
    pub fn release_segment(&self, segment: &Segment) {
        fn release(step: &Step) {
            match &step.kind {
                Kind::Linear(linear) => linear.matrix.release(),
                Kind::Embedding(table) => table.release(),
                Kind::Moe(moe) => moe.experts.iter().flat_map(|e| &e.steps).for_each(release),
                _ => {}
            }
        }
        self.steps_of(segment).iter().for_each(release);
    }

    fn steps_of(&self, segment: &Segment) -> &[Step] {
        let steps = self.program.steps.get(segment.steps.clone());
        steps.unwrap_or_default()
    }

    fn seen_only<'a>(&'a self, segment: &'a Segment) -> impl Iterator<Item = &'a Step> {
        let steps = &self.program.steps;
        segment.seen_only.iter().filter_map(|&at| steps.get(at))
    }
}

impl Segment {
    /// The values that it leaves for later segments.
    pub fn leaves(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.leave.iter().map(|&slot| ValueId::new(slot))
    }
}

impl Segments {
    /// Whether an engine has the same steps over the same values, with whatever weights.
    pub fn fits(&self, engine: &Engine) -> bool {
        *self == engine.segments()
    }
}

impl Held {
    /// Bytes of the values.
    pub fn bytes(&self) -> usize {
        let size = |(_, tensor): &(usize, Tensor)| match &tensor.data {
            super::Data::F32(v) => size_of_val(v.as_slice()),
            super::Data::I64(v) => size_of_val(v.as_slice()),
            super::Data::Bool(v) => v.len(),
        };
        self.values.iter().map(size).sum()
    }
}

/// Where a linear's input is: its value, and the axis along which the linear reads it.
type Place = (Arg, Layout);

fn cut(program: &Program) -> Segments {
    let (end, seen_only) = needed(&program.steps);
    let (steps, rest) = program.steps.split_at(end);
    let mut reads: Vec<(usize, Vec<usize>)> = steps
        .iter()
        .enumerate()
        .map(|(i, s)| (i, s.reads().collect()))
        .collect();
    let behind = rest
        .iter()
        .enumerate()
        .filter(|(i, _)| seen_only.contains(&(end + i)));
    reads.push((end, behind.flat_map(|(_, s)| s.reads()).collect()));
    let mut last_read: HashMap<usize, usize> = HashMap::new();
    for (at, slots) in reads {
        last_read.extend(slots.into_iter().map(|slot| (slot, at)));
    }
    let mut made: Vec<(usize, usize)> = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        made.extend(step.outputs.iter().flatten().map(|&slot| (at, slot)));
    }
    let living = |cut: usize| -> Vec<usize> {
        let lives = |&&(at, slot): &&(usize, usize)| {
            at < cut && last_read.get(&slot).is_some_and(|&last| last >= cut)
        };
        made.iter().filter(lives).map(|&(_, slot)| slot).collect()
    };
    let cuts = cuts(program, end, &living);
    let mut list = Vec::new();
    let mut start = 0;
    for at in cuts.into_iter().chain([end]) {
        let last = at == end;
        let seen_only = if last { seen_only.clone() } else { Vec::new() };
        let inside = &program.steps[start..at];
        let behind = seen_only.iter().filter_map(|&i| program.steps.get(i));
        let (inputs, mixtures) = inputs(inside.iter().chain(behind));
        list.push(Segment {
            steps: start..at,
            leave: if last { Vec::new() } else { living(at) },
            layer: inside
                .iter()
                .filter(|s| has_linears(s))
                .find_map(|s| layer_of(&s.name)),
            seen_only,
            inputs,
            mixtures,
        });
        start = at;
    }
    Segments { list }
}

/// Where the steps end that some linear's input needs, and the linears behind.
fn needed(steps: &[Step]) -> (usize, Vec<usize>) {
    let mut wanted: HashSet<usize> = HashSet::new();
    let mut end = 0;
    for (at, step) in steps.iter().enumerate().rev() {
        let makes = step
            .outputs
            .iter()
            .flatten()
            .any(|slot| wanted.contains(slot));
        if makes || matches!(step.kind, Kind::Moe(_)) {
            end = end.max(at + 1);
            wanted.extend(step.reads());
        } else if matches!(step.kind, Kind::Linear(_)) {
            wanted.extend(step.reads());
        }
    }
    let behind = steps.iter().enumerate().skip(end);
    let linears = behind.filter(|(_, s)| matches!(s.kind, Kind::Linear(_)));
    (end, linears.map(|(at, _)| at).collect())
}

fn has_linears(step: &Step) -> bool {
    matches!(step.kind, Kind::Linear(_) | Kind::Moe(_))
}

/// Where to cut: behind each layer, at the place where the fewest values live.
///
/// Without layers' numbers in the names, wherever as few live as anywhere between linears; what was
/// made before the first linear (positions, masks) does not count, since it lives all along.
fn cuts(program: &Program, end: usize, living: &dyn Fn(usize) -> Vec<usize>) -> Vec<usize> {
    let linears = program
        .steps
        .iter()
        .enumerate()
        .filter(|(_, s)| has_linears(s));
    let linears: Vec<(usize, Option<u32>)> =
        linears.map(|(at, s)| (at, layer_of(&s.name))).collect();
    let pairs = linears.iter().zip(linears.iter().skip(1));
    let between = |from: usize, to: usize| (from + 1..=to).filter(|&at| at < end);
    let fewest = |places: &mut dyn Iterator<Item = usize>| {
        places
            .map(|at| (living(at).len(), at))
            .min()
            .map(|(_, at)| at)
    };
    let named = linears.iter().any(|(_, layer)| layer.is_some());
    if named {
        let changes = pairs.filter(|((_, a), (_, b))| a != b);
        return changes
            .filter_map(|((a, _), (b, _))| fewest(&mut between(*a, *b)))
            .collect();
    }
    let first = linears.first().map_or(0, |(at, _)| *at);
    let early: HashSet<usize> = living(first).into_iter().collect();
    let count = |at: usize| {
        living(at)
            .iter()
            .filter(|slot| !early.contains(slot))
            .count()
    };
    let best =
        |(a, b): (&(usize, _), &(usize, _))| between(a.0, b.0).map(|at| (count(at), at)).min();
    let places: Vec<(usize, usize)> = pairs.filter_map(best).collect();
    let least = places.iter().map(|(n, _)| *n).min().unwrap_or(0);
    places
        .iter()
        .filter(|(n, _)| *n == least)
        .map(|(_, at)| *at)
        .collect()
}

/// The distinct inputs of the linears of some steps.
fn inputs<'a>(steps: impl Iterator<Item = &'a Step>) -> (Vec<LinearInput>, Vec<Mixture>) {
    let mut found = Inputs::default();
    for step in steps {
        match &step.kind {
            Kind::Linear(linear) => {
                let place = (
                    step.inputs.first().copied().unwrap_or(Arg::None),
                    linear.layout,
                );
                found.add(place, step.id, linear.matrix.cols, None, true);
            }
            Kind::Moe(moe) => found.mixture(step, moe),
            _ => {}
        }
    }
    (found.list, found.mixtures)
}

#[derive(Default)]
struct Inputs {
    list: Vec<LinearInput>,
    places: HashMap<Place, usize>,
    mixtures: Vec<Mixture>,
}

impl Inputs {
    fn add(
        &mut self,
        place: Place,
        op: OpId,
        width: usize,
        expert: Option<(usize, usize, usize)>,
        is_linear: bool,
    ) {
        let next = self.list.len();
        let at = *self.places.entry(place).or_insert(next);
        if at == next {
            self.list.push(LinearInput {
                first: op,
                linears: Vec::new(),
                width,
                expert,
            });
        }
        if let Some(input) = self.list.get_mut(at).filter(|_| is_linear) {
            input.linears.push(op);
        }
    }

    fn mixture(&mut self, step: &Step, moe: &PreparedMoe) {
        let outer = (
            step.inputs.first().copied().unwrap_or(Arg::None),
            Layout::Rows,
        );
        let number = self.mixtures.len();
        let mut mixture = Mixture {
            op: step.id,
            counted_at: Vec::new(),
            linears: Vec::new(),
        };
        for (e, expert) in moe.experts.iter().enumerate() {
            let (mut linears, mut inner) = (Vec::new(), 0);
            for part in &expert.steps {
                let Kind::Linear(linear) = &part.kind else {
                    continue;
                };
                linears.push(part.id);
                let place = (
                    part.inputs.first().copied().unwrap_or(Arg::None),
                    linear.layout,
                );
                if place == (Arg::Slot(expert.input), Layout::Rows) {
                    self.add(outer, step.id, linear.matrix.cols, None, false);
                    self.add(outer, part.id, linear.matrix.cols, None, true);
                } else {
                    let known = self.list.len();
                    self.add(
                        place,
                        part.id,
                        linear.matrix.cols,
                        Some((number, e, inner)),
                        true,
                    );
                    inner += self.list.len() - known;
                }
            }
            mixture.counted_at.push(linears.first().copied());
            mixture.linears.push(linears);
        }
        self.mixtures.push(mixture);
    }
}
