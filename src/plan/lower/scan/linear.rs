//! Linears: alone, as a gate with its factor, or as what attention reads.

use super::{Result, Scan};
use crate::ir::{Activation, Layout, Native, Op, OpId, OpKind, Role, ValueId};
use crate::plan::lower::macros::{Macro, Outputs, Part};

/// A gated product, found from one of its linears.
struct Gated {
    gate: Part,
    up: Part,
    activation: Activation,
    /// Ops that the launch does.
    taken: Vec<OpId>,
    value: ValueId,
}

impl<'a> Scan<'a> {
    pub(super) fn linear(&mut self, id: OpId, op: &'a Op) -> Result<()> {
        let OpKind::Linear(linear) = &op.kind else {
            return Ok(());
        };
        if linear.layout != Layout::Rows {
            return self.refuse(
                op,
                "it contracts another axis than the last, which has no kernel",
            );
        }
        let value = self.result(op)?;
        if self.feeds_attention(value) {
            // Emitted with the attention that reads it.
            return Ok(());
        }
        if let Some(gated) = self.gated(id, op, value)? {
            return self.emit_gated(op, gated);
        }
        let input = self.value(op, 0)?;
        let (x, norm) = self.normed(op, input)?;
        // Kernels multiply behind the activation.
        let (epilogue, result) = self.epilogue(value, linear.scale == 1.0);
        let width = linear.matrix.out_features;
        let part = Part {
            op: id,
            name: op.name.clone(),
            rows: 0..width,
        };
        let name = self.linear_name(op, value);
        let y = self.slot(&name, width);
        self.macros.push(Macro::Linear {
            name,
            x,
            norm,
            outputs: Outputs::Rows(vec![part]),
            epilogue,
            y,
            y_offset: 0,
            last: linear.role == Role::Head,
        });
        self.values.insert(result, y);
        Ok(())
    }

    pub(super) fn linear_name(&self, op: &Op, value: ValueId) -> String {
        match op.name.is_empty() {
            true => value.to_string().trim_start_matches('%').to_string(),
            false => op.name.clone(),
        }
    }

    /// Whether all that a value is for is attention, by way of slices, norms of heads and rotations.
    fn feeds_attention(&self, value: ValueId) -> bool {
        let Some(users) = self.users.get(&value).filter(|u| !u.is_empty()) else {
            return false;
        };
        users.iter().all(|&id| {
            let Some(op) = self.graph.op(id) else {
                return false;
            };
            let next = op.results.first().copied().flatten();
            match &op.kind {
                OpKind::Native(Native::Attention { .. }) => true,
                OpKind::Native(
                    Native::RmsNorm { slice: Some(_), .. }
                    | Native::Rope { .. }
                    | Native::Slice { .. },
                ) => next.is_some_and(|v| self.feeds_attention(v)),
                _ => false,
            }
        })
    }

    /// A value as rows of a linear's matrix, by way of at most one slice.
    pub(super) fn rows_of(&self, value: ValueId) -> Option<(Part, ValueId, Vec<OpId>)> {
        let (id, op) = self.maker(value)?;
        match &op.kind {
            OpKind::Linear(linear) => {
                let part = Part {
                    op: id,
                    name: op.name.clone(),
                    rows: 0..linear.matrix.out_features,
                };
                Some((part, self.value(op, 0).ok()?, vec![id]))
            }
            OpKind::Native(Native::Slice { start, width }) => {
                let (part, x, mut taken) = self.rows_of(self.value(op, 0).ok()?)?;
                let end = start.checked_add(*width)?;
                if part.rows.start != 0 || end > part.rows.end {
                    return None;
                }
                taken.push(id);
                let rows = *start..end;
                Some((Part { rows, ..part }, x, taken))
            }
            _ => None,
        }
    }

    /// The product `activation(gate) · up` that the linear `id` is part of.
    fn gated(&self, id: OpId, op: &Op, value: ValueId) -> Result<Option<Gated>> {
        let input = self.value(op, 0)?;
        let mut reached = vec![value];
        let mut found = None;
        while let Some(value) = reached.pop() {
            for &user in self.users.get(&value).into_iter().flatten() {
                let Some(next) = self.graph.op(user) else {
                    continue;
                };
                let result = next.results.first().copied().flatten();
                match &next.kind {
                    OpKind::Native(Native::Slice { .. } | Native::Activate { .. }) => {
                        reached.extend(result);
                    }
                    OpKind::Native(Native::Mul) => found = Some((user, next)),
                    _ => {}
                }
            }
        }
        let Some((mul, product)) = found else {
            return Ok(None);
        };
        let (a, b) = (self.value(product, 0)?, self.value(product, 1)?);
        let activated = |v: ValueId| {
            let (at, op) = self.maker(v)?;
            match &op.kind {
                OpKind::Native(Native::Activate { function }) => {
                    Some((at, self.value(op, 0).ok()?, *function))
                }
                _ => None,
            }
        };
        let pair = activated(a)
            .map(|g| (g, a, b))
            .or_else(|| activated(b).map(|g| (g, b, a)));
        let Some(((activate, inner, activation), gate_value, up_value)) = pair else {
            return Ok(None);
        };
        let (Some((gate, gx, mut taken)), Some((up, ux, more))) =
            (self.rows_of(inner), self.rows_of(up_value))
        else {
            return Ok(None);
        };
        let width = |p: &Part| p.rows.end - p.rows.start;
        let once = |v: ValueId| self.only_user(v).is_some();
        let alone = once(gate_value) && once(inner) && once(up_value);
        if gx != input || ux != input || width(&gate) != width(&up) || !alone {
            return Ok(None);
        }
        let linears = [gate.op, up.op];
        let plain = |id: &OpId| match self.graph.op(*id).map(|op| &op.kind) {
            Some(OpKind::Linear(linear)) => linear.scale == 1.0,
            _ => false,
        };
        if !linears.iter().all(plain) {
            return Ok(None);
        }
        if !linears.contains(&id)
            || (gate.op != up.op && !linears.iter().all(|l| self.is_whole_use(*l)))
        {
            return Ok(None);
        }
        taken.extend(more);
        taken.extend([activate, mul]);
        Ok(Some(Gated {
            gate,
            up,
            activation,
            taken,
            value: self.result(product)?,
        }))
    }

    /// Whether a linear's result has one user.
    fn is_whole_use(&self, id: OpId) -> bool {
        let result = self
            .graph
            .op(id)
            .and_then(|op| op.results.first().copied().flatten());
        result.is_some_and(|v| self.only_user(v).is_some())
    }

    fn emit_gated(&mut self, op: &'a Op, gated: Gated) -> Result<()> {
        let input = self.value(op, 0)?;
        let (x, norm) = self.normed(op, input)?;
        let name = common_name(&gated.gate.name, "gate_up");
        let y = self.slot(&name, gated.gate.rows.end - gated.gate.rows.start);
        let name = self.slots.get(y.0).map_or(name, |slot| slot.name.clone());
        self.done.extend(gated.taken);
        self.values.insert(gated.value, y);
        self.macros.push(Macro::Linear {
            name,
            x,
            norm,
            outputs: Outputs::Gated {
                gate: gated.gate,
                up: gated.up,
                activation: gated.activation,
            },
            epilogue: Default::default(),
            y,
            y_offset: 0,
            last: false,
        });
        Ok(())
    }
}

/// `layers.0.mlp.gate_proj` and `gate_up` make `layers.0.mlp.gate_up`; so does a node of ONNX,
/// `/layers.0/mlp/gate_proj/MatMul`, with its slashes.
pub(super) fn common_name(name: &str, what: &str) -> String {
    let module = match name.rsplit_once('/') {
        Some((module, op)) if op.starts_with(char::is_uppercase) => module,
        _ => name,
    };
    match module.rfind(['.', '/']) {
        Some(at) => format!("{}{what}", &module[..=at]),
        None => what.to_string(),
    }
}
