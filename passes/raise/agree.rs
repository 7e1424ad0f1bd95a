//! Raised at short samples and at longer ones: what does not come out the same is left alone.
//!
//! A number, a rule or a function that is recognised by its values may be another one further out: a
//! window, a clipped position, frequencies that change with the length. Both raised graphs are gone
//! through side by side; the first op of which they differ stays as it is, and both begin anew.

use std::collections::HashSet;

use serde_json::Value as Json;

use super::doubt::doubts;
use super::expr::Expr;
use super::probe::Facts;
use super::rope::{Half, Partial};
use super::sample::{FAR, NEAR, Size};
use super::view::{View, fixed};
use super::{Done, In, Made, Raiser};
use crate::ir::{Graph, Module, OpId, OpKind, Operand, WeightId};

/// Relative difference of frequencies that are the same.
const TOLERANCE: f64 = 1e-3;

/// What is known at short samples, and at the longest that the model's tables have room for.
pub(super) struct Samples<'a> {
    module: &'a Module,
    graph: &'a Graph,
    whole: bool,
    near: Facts<'a>,
    far: Option<Facts<'a>>,
}

impl<'a> Samples<'a> {
    /// Goes through the graph with each.
    pub(super) fn of(module: &'a Module, graph: &'a Graph, whole: bool) -> Self {
        let mut near = Facts::new(module, graph, whole, NEAR);
        let longer = FAR
            .iter()
            .map(|samples| Facts::new(module, graph, whole, *samples));
        let mut far = longer.into_iter().find(|far| far.knows(&near));
        if let Some(far) = &mut far {
            let doubtful = doubts(graph, [&near, far]);
            near.doubt(&doubtful);
            far.doubt(&doubtful);
        }
        Self {
            module,
            graph,
            whole,
            near,
            far,
        }
    }

    /// What both samples agree on; `why` says why the past is no cache.
    pub(super) fn raised(&self, cache: bool, why: Option<&str>) -> Raiser<'a> {
        let mut left = HashSet::new();
        let raiser = |facts: &Facts<'a>, left: &HashSet<OpId>| {
            let at = (self.module, self.graph);
            let mut raiser = Raiser::new(at, facts.copy(), (cache, self.whole), left);
            if let Some(why) = why {
                raiser.near(why, "past keys and values");
            }
            raiser.raised()
        };
        loop {
            let near = raiser(&self.near, &left);
            let Some(far) = &self.far else {
                let mut near = near;
                near.near(
                    "what longer sequences show, for which the model has no room",
                    "all",
                );
                return near;
            };
            match difference(&near, &raiser(far, &left)) {
                None => return near,
                Some(_) if left.len() == self.graph.body.ops.len() => return near,
                // An op that was left already is not what differs: nothing is raised then.
                Some(op) if !left.insert(op) => left.extend(&self.graph.body.ops),
                Some(_) => {}
            }
        }
    }
}

/// The first op of which two raised graphs differ.
fn difference(near: &Raiser<'_>, far: &Raiser<'_>) -> Option<OpId> {
    // What is a constant in short sequences is the same one in long ones.
    let constant = |side: Operand| match near.facts.constant(side) {
        None => true,
        Some(own) => {
            let other = far.facts.constant(side);
            other.is_some_and(|other| own.shape == other.shape && own.data == other.data)
        }
    };
    let mut from = (0, 0);
    for (done, other) in near.log.iter().zip(&far.log) {
        let forms = match (&done.form, &other.form) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                let [own, theirs] = [near, far].map(|raiser| raiser.facts.samples());
                a.canonical(own) == b.canonical(theirs) && a.sides().into_iter().all(constant)
            }
            _ => false,
        };
        if !forms || !same_until(near, far, from, (done, other)) {
            return Some(done.op);
        }
        from = (done.made, done.weights);
    }
    // What outputs and unknown ops read is made last.
    let last = |raiser: &Raiser<'_>| (raiser.made.len(), raiser.patch.added().len());
    let same = last(near) == last(far) && same_made(near, far, from, last(near));
    if same {
        return None;
    }
    near.log.last().map(|done| done.op)
}

fn same_until(
    near: &Raiser<'_>,
    far: &Raiser<'_>,
    from: (usize, usize),
    (done, other): (&Done, &Done),
) -> bool {
    (done.made, done.weights) == (other.made, other.weights)
        && same_made(near, far, from, (done.made, done.weights))
}

/// Whether new ops and weights between these numbers are the same.
fn same_made(
    near: &Raiser<'_>,
    far: &Raiser<'_>,
    from: (usize, usize),
    to: (usize, usize),
) -> bool {
    let op = |at: usize| match (near.made.get(at), far.made.get(at)) {
        (Some(a), Some(b)) => a.is_same(near, b, far),
        _ => false,
    };
    let weight = |at: usize| near.patch.added().get(at) == far.patch.added().get(at);
    (from.0..to.0).all(op) && (from.1..to.1).all(weight)
}

impl Made {
    fn is_same(&self, own: &Raiser<'_>, other: &Made, theirs: &Raiser<'_>) -> bool {
        let dims = |made: &Made, raiser: &Raiser<'_>| {
            let samples = raiser.facts.samples();
            let dims = made.dims.iter().map(|&size| canonical(size, samples));
            dims.collect::<Vec<Size>>()
        };
        let weight = |input: &In| match input {
            In::Weight(id) => Some(*id),
            _ => None,
        };
        let kept = |id: &WeightId| own.module.weight(*id).is_some();
        // Those that are added were compared where they were.
        let inputs = self.inputs.len() == other.inputs.len()
            && self.inputs.iter().zip(&other.inputs).all(|(a, b)| {
                a == b || matches!((weight(a), weight(b)), (Some(a), Some(b)) if !kept(&a) && !kept(&b))
            });
        let kinds = match (&self.kind, &other.kind) {
            (OpKind::Native(a), OpKind::Native(b)) => {
                match (serde_json::to_value(a), serde_json::to_value(b)) {
                    (Ok(a), Ok(b)) => alike(&a, &b),
                    _ => false,
                }
            }
            (a, b) => a == b,
        };
        kinds
            && inputs
            && self.anchor == other.anchor
            && self.uniform == other.uniform
            && dims(self, own) == dims(other, theirs)
    }
}

/// Whether attributes are the same, up to what estimates of frequencies differ by.
fn alike(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => a == b || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()),
            _ => a == b,
        },
        (Json::Array(a), Json::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b))
        }
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| alike(a, b)))
        }
        (a, b) => a == b,
    }
}

/// A size without the samples that it is of: so many batches, lengths, pasts or wholes, or one of
/// these and so many.
fn canonical(size: Size, samples: &super::sample::Samples) -> Size {
    if fixed(size).is_some() {
        return size;
    }
    let [a, b] = samples;
    let named = [
        [a.length, b.length],
        [a.length + a.past, b.length + b.past],
        [a.past, b.past],
        [a.batch, b.batch],
        [a.batch * a.length, b.batch * b.length],
        [a.batch * (a.length + a.past), b.batch * (b.length + b.past)],
    ];
    let [x, y] = size;
    let times = named
        .iter()
        .position(|[p, q]| x % p == 0 && y % q == 0 && x / p == y / q);
    let plus = || {
        let mut all = named.iter();
        all.position(|[p, q]| x.wrapping_sub(*p) == y.wrapping_sub(*q))
    };
    let code = |kind: usize, which: usize| usize::MAX - 100 * kind - which;
    match (times, plus()) {
        (Some(which), _) => [code(1, which), x / named.get(which).map_or(1, |[p, _]| *p)],
        (_, Some(which)) => {
            let more = x.wrapping_sub(named.get(which).map_or(0, |[p, _]| *p));
            [code(2, which), more]
        }
        _ => [code(3, 0), 0],
    }
}

impl View {
    fn canonical(&self, samples: &super::sample::Samples) -> View {
        let mut view = self.clone();
        let sizes = view.axes.iter_mut().flatten().map(|atom| &mut atom.size);
        sizes
            .chain(&mut view.dims)
            .for_each(|size| *size = canonical(*size, samples));
        view
    }
}

impl Expr {
    /// Operands in it that do not depend on activations.
    fn sides(&self) -> Vec<Operand> {
        match self {
            Expr::Side(side) => vec![*side],
            Expr::Sum(_, terms) => terms.iter().flat_map(Expr::sides).collect(),
            Expr::Product(_, powers) => powers.iter().flat_map(|(e, _)| e.sides()).collect(),
            Expr::Mean(inner) | Expr::Call(_, inner) => inner.sides(),
            _ => Vec::new(),
        }
    }

    /// The same without the samples that sizes are of.
    fn canonical(&self, samples: &super::sample::Samples) -> Expr {
        let view = |view: &View| view.canonical(samples);
        let boxed = |expr: &Expr| Box::new(expr.canonical(samples));
        match self {
            Expr::Leaf(leaf) => Expr::Leaf(view(leaf)),
            Expr::Side(_) | Expr::Number(_) => self.clone(),
            Expr::Sum(constant, terms) => {
                let terms = terms.iter().map(|term| term.canonical(samples));
                Expr::Sum(*constant, terms.collect())
            }
            Expr::Product(factor, powers) => {
                let powers = powers
                    .iter()
                    .map(|(e, power)| (e.canonical(samples), *power));
                Expr::Product(*factor, powers.collect())
            }
            Expr::Mean(inner) => Expr::Mean(boxed(inner)),
            Expr::Call(function, inner) => Expr::Call(*function, boxed(inner)),
            Expr::Turned(turned, pairs) => Expr::Turned(view(turned), *pairs),
            Expr::Walsh(walsh) => {
                let mut walsh = walsh.clone();
                (walsh.view, walsh.plain) = (view(&walsh.view), view(&walsh.plain));
                Expr::Walsh(walsh)
            }
            Expr::Half(half) => Expr::Half(Box::new(Half {
                a: view(&half.a),
                b: view(&half.b),
                layout: view(&half.layout),
                ..(**half).clone()
            })),
            Expr::Partial(part) => {
                let mut part: Partial = (**part).clone();
                part.view = view(&part.view);
                // The op that it becomes is compared.
                (part.angles.theta, part.angles.scaling) = (0.0, None);
                Expr::Partial(Box::new(part))
            }
            Expr::Scores(scores) => Expr::Scores(Box::new(scores.map_views(view))),
            Expr::Chances(scores) => Expr::Chances(Box::new(scores.map_views(view))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_the_same_at_all_samples() {
        let of = |size: fn(usize, usize, usize) -> usize| {
            let at = |samples: &super::super::sample::Samples| {
                let sizes = samples.map(|s| size(s.batch, s.length, s.past));
                canonical(sizes, samples)
            };
            (at(&NEAR), at(&FAR[0]))
        };
        for (same, (near, far)) in [
            (true, of(|_, _, _| 64)),
            (true, of(|_, length, _| length)),
            (true, of(|_, length, past| length + past)),
            (true, of(|batch, length, _| 8 * batch * length)),
            (true, of(|_, length, _| length - 1)),
            (false, of(|_, length, _| length.min(32))),
            (false, of(|_, length, _| length.max(32))),
            (false, of(|_, length, _| length.min(120))),
        ] {
            assert_eq!(near == far, same, "{near:?} {far:?}");
        }
    }
}
