//! MatMul with a constant on either side, and the Add of a bias behind it.

use super::{Finder, SPELLING, onnx_of, spelling};
use crate::ir::{Attr, Attrs, Layout, Linear, OnnxOp, Op, OpId, OpKind, Operand, WeightId};

impl Finder<'_> {
    pub(super) fn matmul(&mut self, id: OpId, op: &Op, onnx: &OnnxOp) {
        let &[a, b] = op.inputs.as_slice() else {
            return;
        };
        let (left, right) = (self.constant(a), self.constant(b));
        let (found, activation, layout) = match (left, right) {
            (Some(_), Some(_)) => return,
            (None, None) if self.sparse_matmul(id, op, a, b) => return,
            (None, None) => return self.not_constant(op, &[a, b]),
            (None, Some(found)) => (found, a, Layout::Rows),
            (Some(found), None) => match self.rank(b) {
                None => {
                    let why = "the weight is on the left and the rank of the activation is \
                                   unknown";
                    return self.missed(op, why);
                }
                Some(0 | 1) => {
                    let why = "the weight is on the left and the activation is a vector";
                    return self.missed(op, why);
                }
                Some(_) => (found, b, Layout::Columns),
            },
        };
        if found.dims.len() != 2 {
            return self.missed(op, format!("the constant {:?} is no matrix", found.dims));
        }
        // Rows see W as [in, out]; columns as [out, in].
        let flip = layout == Layout::Rows;
        let Some(linear) = self.linear_of(op, &found, flip, layout, 1.0) else {
            return;
        };
        let axis = if layout == Layout::Rows { -1 } else { -2 };
        if let Err(why) = self.fits(activation, axis, None, linear.matrix.in_features) {
            return self.missed(op, why);
        }
        let mut raised = op.clone();
        raised.inputs = vec![activation];
        let mut spelled = spelling(onnx, &found);
        if layout == Layout::Columns && !self.states_rank(activation) {
            // The exporter turns axes around and has to know how many there are.
            let rank = self
                .rank(activation)
                .and_then(|rank| i64::try_from(rank).ok());
            spelled.set("rank", Attr::Int(rank.unwrap_or(2)));
        }
        if layout == Layout::Rows
            && let Some(end) = self.bias_behind(op, &linear)
        {
            return self.with_bias(id, op, linear, activation, spelled, end, &found.chain);
        }
        raised.kind = OpKind::Linear(linear);
        raised.meta.set(SPELLING, Attr::Dict(spelled));
        self.replace(id, raised, &found.chain);
    }

    /// The Add behind a MatMul that is its only user and adds one value per output.
    pub(super) fn bias_behind(
        &mut self,
        op: &Op,
        linear: &Linear,
    ) -> Option<(OpId, WeightId, bool)> {
        let &[Some(result)] = op.results.as_slice() else {
            return None;
        };
        let graph = self.graph;
        let &[Some(id)] = self.users.get(&result)?.as_slice() else {
            return None;
        };
        let add = graph.op(id)?;
        let one = super::has_one_result(add);
        if onnx_of(add)?.op_type != "Add" || self.raised.contains_key(&id) || !one {
            return None;
        }
        let &[a, b] = add.inputs.as_slice() else {
            return None;
        };
        let first = a != Operand::Value(result);
        let other = if first { a } else { b };
        let bias = match other {
            Operand::Weight(id) => id,
            Operand::Value(value) => {
                let (_, _, onnx) = self
                    .maker(value)
                    .filter(|(_, _, o)| o.op_type == "Constant")?;
                match onnx.attrs.get("value")? {
                    Attr::Weight(id) => *id,
                    _ => return None,
                }
            }
            Operand::None => return None,
        };
        let weight = self.module.weight(bias)?;
        // More axes than one could raise the rank of the sum.
        (weight.dims == [linear.matrix.out_features]).then_some((id, bias, first))
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn with_bias(
        &mut self,
        id: OpId,
        op: &Op,
        mut linear: Linear,
        activation: Operand,
        mut spelled: Attrs,
        (add_id, bias, first): (OpId, WeightId, bool),
        chain: &[OpId],
    ) {
        let graph = self.graph;
        let Some(add) = graph.op(add_id) else { return };
        let between = op
            .results
            .first()
            .copied()
            .flatten()
            .and_then(|id| graph.value(id));
        let mut second = Attrs::new();
        second.set("name", Attr::str(&add.name));
        second.set("first", Attr::Bool(first));
        second.set(
            "between",
            Attr::str(between.map_or("", |value| &value.name)),
        );
        if !add.meta.is_empty() {
            second.set("meta", Attr::Dict(add.meta.clone()));
        }
        spelled.set("add", Attr::Dict(second));
        linear.bias = Some(bias);
        let mut raised = op.clone();
        raised.kind = OpKind::Linear(linear);
        raised.inputs = vec![activation];
        raised.results = add.results.clone();
        raised.meta.set(SPELLING, Attr::Dict(spelled));
        // The sum stands where the Add stood: its inputs are all made by then.
        self.replace(add_id, raised, chain);
        let at = self.at(id);
        self.patch.replace(at, Vec::new());
        self.raised.insert(id, Vec::new());
        for input in &add.inputs {
            if let Operand::Value(value) = input {
                self.chains.extend(self.makers.get(value));
            }
        }
    }
}
