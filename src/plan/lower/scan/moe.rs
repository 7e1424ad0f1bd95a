//! Mixtures of experts: what each expert's region is made of.

use super::{Result, Scan};
use crate::ir::{Activation, Moe, Native, Op, OpId, OpKind, Operand, Region, ValueId};
use crate::plan::lower::macros::{Macro, Part};

impl<'a> Scan<'a> {
    pub(super) fn moe(&mut self, id: OpId, op: &'a Op, moe: &Moe) -> Result<()> {
        let _ = id;
        let mut experts = Vec::with_capacity(moe.experts.len());
        let mut activation = None;
        for (index, region) in moe.experts.iter().enumerate() {
            let found = self.expert(region);
            let Some((parts, function)) = found else {
                let problem = format!(
                    "expert {index} is not down(activation(gate(x)) · up(x)), the one form that has a kernel (of \
                     `fold-rotations` with down=false)"
                );
                return self.refuse(op, problem);
            };
            if *activation.get_or_insert(function) != function {
                return self.refuse(op, "its experts have different activations");
            }
            experts.push(parts);
        }
        let Some(activation) = activation else {
            return self.refuse(op, "it has no experts");
        };
        let (input, logits) = (self.value(op, 0)?, self.value(op, 1)?);
        let logits = self.operand(op, logits)?;
        let (x, norm) = self.normed(op, input)?;
        let value = self.result(op)?;
        let (residual, result) = match self.residual_of(value) {
            Some((add, slot, sum)) => {
                self.done.insert(add);
                (Some(slot), sum)
            }
            None => (None, value),
        };
        let name = match op.name.is_empty() {
            true => "experts".to_string(),
            false => format!("{}.experts", op.name),
        };
        let y = self.slot(&name, self.width(x));
        self.macros.push(Macro::Experts {
            name,
            x,
            norm,
            logits,
            top_k: u64::from(moe.top_k),
            normalize: moe.normalize,
            experts,
            activation,
            residual,
            y,
        });
        self.values.insert(result, y);
        Ok(())
    }

    /// Gate, up and down of an expert.
    fn expert(&self, region: &Region) -> Option<([Part; 3], Activation)> {
        let makers = |value: ValueId| {
            region.ops.iter().find_map(|&id| {
                let op = self.graph.op(id)?;
                op.results.contains(&Some(value)).then_some((id, op))
            })
        };
        let input = *region.inputs.first()?;
        let Operand::Value(output) = region.outputs.first()? else {
            return None;
        };
        let value = |op: &Op, index: usize| match op.inputs.get(index) {
            Some(Operand::Value(v)) => Some(*v),
            _ => None,
        };
        let whole = |id: OpId, op: &Op| {
            let OpKind::Linear(linear) = &op.kind else {
                return None;
            };
            Some(Part {
                op: id,
                name: op.name.clone(),
                rows: 0..linear.matrix.out_features,
            })
        };
        let rows = |v: ValueId| -> Option<Part> {
            let (id, op) = makers(v)?;
            if let OpKind::Native(Native::Slice { start, width }) = op.kind {
                let (inner, linear) = makers(value(op, 0)?)?;
                let part = whole(inner, linear)?;
                let end = start.checked_add(width)?;
                let fits = end <= part.rows.end && value(linear, 0)? == input;
                return fits.then_some(Part {
                    rows: start..end,
                    ..part
                });
            }
            (value(op, 0)? == input).then(|| whole(id, op))?
        };
        let (down_id, down_op) = makers(*output)?;
        let down = whole(down_id, down_op)?;
        let (_, product) = makers(value(down_op, 0)?)?;
        if !matches!(product.kind, OpKind::Native(Native::Mul)) {
            return None;
        }
        let (a, b) = (value(product, 0)?, value(product, 1)?);
        for (gate, up) in [(a, b), (b, a)] {
            let (_, activate) = makers(gate)?;
            if let OpKind::Native(Native::Activate { function }) = activate.kind {
                let gate = rows(value(activate, 0)?)?;
                return Some(([gate, rows(up)?, down], function));
            }
        }
        None
    }
}
