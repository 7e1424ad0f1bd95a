//! New ops of a backward graph.

use super::{Backward, GradError, Parameter};
use crate::ir::{Attrs, Grad, Native, Op, OpId, OpKind, Operand, Training, ValueId};

impl Backward<'_> {
    /// The operand as the ops that are written now see it.
    pub(super) fn see(&self, operand: Operand) -> Operand {
        match operand {
            Operand::Value(v) => Operand::Value(self.renamed.get(&v).copied().unwrap_or(v)),
            other => other,
        }
    }

    /// Whether a gradient by the operand is wanted by something.
    pub(super) fn is_active(&self, operand: Option<&Operand>) -> bool {
        matches!(operand, Some(Operand::Value(v)) if self.active.contains(v))
    }

    /// Adds an op, named after the one that it is of; one value for each result that is wanted.
    pub(super) fn emit(
        &mut self,
        of: &Op,
        kind: OpKind,
        inputs: Vec<Operand>,
        wanted: &[bool],
    ) -> Vec<Option<ValueId>> {
        let make = |&wanted: &bool| wanted.then(|| self.graph.add_value("", None));
        let results: Vec<Option<ValueId>> = wanted.iter().map(make).collect();
        let id = self.graph.add_op(Op {
            name: of.name.clone(),
            kind,
            inputs,
            results: results.clone(),
            meta: Attrs::new(),
        });
        self.ops.push(id);
        results
    }

    /// [`Self::emit`] of an op of training with one result.
    pub(super) fn emit_one(
        &mut self,
        of: &Op,
        grad: Grad,
        inputs: Vec<Operand>,
    ) -> Option<ValueId> {
        let kind = OpKind::Grad(Box::new(grad));
        self.emit(of, kind, inputs, &[true])
            .into_iter()
            .next()
            .flatten()
    }

    /// Adds to the gradient by a value.
    pub(super) fn give(&mut self, of: &Op, operand: Option<&Operand>, gradient: Option<ValueId>) {
        let (Some(Operand::Value(value)), Some(gradient)) = (operand, gradient) else {
            return;
        };
        if !self.active.contains(value) {
            return;
        }
        let sum = match self.by_value.get(value).copied() {
            Some(before) => self.sum(of, before, gradient),
            None => gradient,
        };
        self.by_value.insert(*value, sum);
    }

    /// Adds to the gradient by a parameter.
    pub(super) fn give_parameter(
        &mut self,
        of: &Op,
        parameter: Parameter,
        gradient: Option<ValueId>,
    ) {
        let Some(gradient) = gradient else { return };
        let sum = match self.by_parameter.get(&parameter).copied() {
            Some(before) => self.sum(of, before, gradient),
            None => gradient,
        };
        self.by_parameter.insert(parameter, sum);
    }

    fn sum(&mut self, of: &Op, a: ValueId, b: ValueId) -> ValueId {
        let inputs = vec![Operand::Value(a), Operand::Value(b)];
        let made = self.emit(of, OpKind::Native(Native::Add), inputs, &[true]);
        made.into_iter().next().flatten().unwrap_or(a)
    }

    /// A loss: its gradient by what it is of.
    pub(super) fn root(&mut self, op: &Op, gradient: Training) -> Result<(), GradError> {
        let inputs = op.inputs.iter().map(|&input| self.see(input)).collect();
        let made = self.emit_one(op, Grad::op(gradient), inputs);
        self.give(op, op.inputs.first(), made);
        Ok(())
    }

    /// Emits forward ops once more; gradients of the layer read these values.
    pub(super) fn emit_again(&mut self, ops: &[OpId]) {
        let from = self.from;
        for op in ops.iter().filter_map(|&id| from.op(id)) {
            // Experts are made again within their own gradient.
            if super::loss_of(op).is_some() || !op.kind.regions().is_empty() {
                continue;
            }
            let inputs = op.inputs.iter().map(|&input| self.see(input)).collect();
            let wanted: Vec<bool> = op.results.iter().map(Option::is_some).collect();
            let made = self.emit(op, op.kind.clone(), inputs, &wanted);
            for (old, new) in op.results.iter().zip(made) {
                if let (Some(old), Some(new)) = (old, new) {
                    self.renamed.insert(*old, new);
                }
            }
        }
    }
}
