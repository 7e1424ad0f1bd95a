//! What is known of the operand that is no weight.

use super::Finder;
use crate::ir::{Dim, Op, Operand, Type, ValueId, shapes};

impl Finder<'_> {
    /// Number of dimensions, as far as it can be inferred.
    pub(super) fn rank(&self, operand: Operand) -> Option<usize> {
        match operand {
            Operand::Value(id) => self.shapes.rank(self.index, id),
            _ => None,
        }
    }

    /// Whether the file itself says how many dimensions there are.
    pub(super) fn states_rank(&self, operand: Operand) -> bool {
        let Operand::Value(id) = operand else {
            return false;
        };
        let ty = self.graph.value(id).and_then(|value| value.ty.as_ref());
        matches!(ty, Some(Type::Tensor(tensor)) if tensor.shape.is_some())
    }

    /// Checks that an activation can be of this rank, and its `axis` of this size.
    pub(super) fn fits(
        &self,
        operand: Operand,
        axis: isize,
        rank: Option<usize>,
        size: u64,
    ) -> Result<(), String> {
        let Operand::Value(id) = operand else {
            return Ok(());
        };
        // Where a statement contradicts a rule, one of the two alone knows.
        for shapes in [self.shapes, self.derived] {
            if let Some(dims) = shapes.dims(self.index, id) {
                self.dims_fit(id, dims, (axis, rank, size))?;
            }
        }
        Ok(())
    }

    fn dims_fit(
        &self,
        id: ValueId,
        dims: &[Dim],
        (axis, rank, size): (isize, Option<usize>, u64),
    ) -> Result<(), String> {
        let shown = || {
            let name = self.graph.value(id).map_or("", |value| &value.name);
            format!("the activation %{name} is {}", shape(dims))
        };
        if let Some(rank) = rank.filter(|rank| *rank != dims.len()) {
            return Err(format!("{}, where {rank} axes are needed", shown()));
        }
        let at = usize::try_from(axis).ok();
        let at = at.or_else(|| dims.len().checked_sub(axis.unsigned_abs()));
        match at.and_then(|at| dims.get(at)) {
            Some(Dim::Known(found)) if u64::try_from(*found).ok() != Some(size) => {
                Err(format!("{}, the matrix takes {size} inputs", shown()))
            }
            Some(_) => Ok(()),
            None => Err(format!("{}, which has no axis of {size} inputs", shown())),
        }
    }

    /// Says why a node without a constant weight is left alone, where its weight is one that the
    /// caller gives.
    pub(super) fn not_constant(&mut self, op: &Op, operands: &[Operand]) {
        for &operand in operands {
            let Some(value) = self.origin(operand) else {
                continue;
            };
            if !self.graph.body.inputs.contains(&value) {
                continue;
            }
            if self.index > 0 {
                if self.is_given_a_weight(value) {
                    self.parameters += 1;
                    return;
                }
                continue;
            }
            let name = self.graph.value(value).map_or("", |value| &value.name);
            let weights = self.graph.body.weights.iter();
            let mut weights = weights.filter_map(|&id| self.module.weight(id));
            if weights.any(|weight| weight.name == name) {
                let why = format!(
                    "its weight {name} is an input of the graph too, so callers may replace it"
                );
                return self.missed(op, why);
            }
        }
    }

    /// Whether a call passes a constant for the function's parameter.
    fn is_given_a_weight(&mut self, value: ValueId) -> bool {
        if let Some(&given) = self.given.get(&value) {
            return given;
        }
        let given = self.calls_give_a_weight(value);
        self.given.insert(value, given);
        given
    }

    fn calls_give_a_weight(&self, value: ValueId) -> bool {
        let inputs = &self.graph.body.inputs;
        let Some(place) = inputs.iter().position(|input| *input == value) else {
            return false;
        };
        let graphs = self.module.graphs.iter();
        let mut calls = graphs.flat_map(|graph| {
            let ops = graph.ops.iter();
            let calls = ops.filter(|op| shapes::calls(op, self.graph));
            calls.map(move |op| (graph, op))
        });
        calls.any(|(graph, op)| match op.inputs.get(place) {
            Some(Operand::Weight(_)) => true,
            Some(Operand::Value(given)) => graph.ops.iter().any(|maker| {
                let constant = super::onnx_of(maker).is_some_and(|o| o.op_type == "Constant");
                constant && maker.results.contains(&Some(*given))
            }),
            _ => false,
        })
    }
}

fn shape(dims: &[Dim]) -> String {
    let dim = |dim: &Dim| match dim {
        Dim::Known(size) => size.to_string(),
        Dim::Symbol(text) => text.clone(),
        Dim::Unknown => "?".to_owned(),
    };
    let dims: Vec<String> = dims.iter().map(dim).collect();
    format!("[{}]", dims.join(","))
}
