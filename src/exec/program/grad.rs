//! Ops of training to steps, and weights that change between runs.

use std::collections::{HashMap, HashSet};

use super::{Arg, Compiler, Kind, Port, Program, Step, fuse_glu, mark_last_uses_within};
use crate::exec::ExecError;
use crate::exec::grad::{ExpertGrad, PreparedGrad, Work};
use crate::exec::tensor::Data;
use crate::ir::{Grad, GradKind, Native, Operand, Region, Training};
use crate::store::StoreError;
use crate::weights::DType;
use crate::weights::read::decode_f32;
use bytes::Bytes;

/// What the op is called in messages.
pub(super) fn label(grad: &Grad) -> &'static str {
    match &grad.kind {
        GradKind::Of(native) => match native {
            Native::RmsNorm { .. } => "grad.rms_norm",
            Native::LayerNorm { .. } => "grad.layer_norm",
            Native::Rope { .. } => "grad.rope",
            Native::Attention { .. } => "grad.attention",
            Native::Activate { .. } => "grad.activate",
            Native::Add => "grad.add",
            Native::Mul => "grad.mul",
            Native::Scale { .. } => "grad.scale",
            Native::Softcap { .. } => "grad.softcap",
            Native::Hadamard { .. } => "grad.hadamard",
            Native::Slice { .. } => "grad.slice",
            Native::Positions => "grad.positions",
            Native::FirstToken => "grad.first_token",
        },
        GradKind::Op(training) => training.name(),
    }
}

impl Compiler<'_> {
    pub(super) fn grad(&mut self, grad: &Grad) -> Result<PreparedGrad, ExecError> {
        let work = match &grad.kind {
            GradKind::Of(Native::Attention {
                heads,
                kv_heads,
                head_dim,
                scale,
                causal,
                window,
                softcap,
                ..
            }) => {
                // Backward graphs see whole sequences: there is no cache to make room for.
                let native = Native::Attention {
                    heads: *heads,
                    kv_heads: *kv_heads,
                    head_dim: *head_dim,
                    scale: *scale,
                    causal: *causal,
                    window: *window,
                    softcap: *softcap,
                    cache: None,
                };
                Work::Of(self.native(&native))
            }
            GradKind::Of(native) => Work::Of(self.native(native)),
            GradKind::Op(training) => Work::new(training),
        };
        let matrix = match &grad.matrix {
            Some(matrix) => Some(self.matrix(matrix)?),
            None => None,
        };
        let experts = grad.experts.iter().map(|region| self.expert_grad(region));
        Ok(PreparedGrad {
            work,
            matrix,
            experts: experts.collect::<Result<_, ExecError>>()?,
        })
    }

    fn expert_grad(&mut self, region: &Region) -> Result<ExpertGrad, ExecError> {
        let [tokens, slopes] = region.inputs.as_slice() else {
            return Err(ExecError::Unsupported {
                op: "grad.moe".to_string(),
                name: region.name.clone(),
                problem: "an expert has no two inputs".to_string(),
            });
        };
        let sizes = region
            .outputs
            .iter()
            .skip(2)
            .map(|o| self.size_of(region, o));
        let sizes: Vec<usize> = sizes.collect();
        let mut steps = self.steps(region)?;
        let outputs = region.outputs.iter().map(|o| self.arg(o));
        let outputs = outputs.collect::<Result<Vec<Arg>, ExecError>>()?;
        let ports: Vec<Port> = outputs
            .iter()
            .map(|&arg| Port {
                name: String::new(),
                ty: None,
                arg,
            })
            .collect();
        fuse_glu(&mut steps, &ports);
        let inputs = [tokens.index(), slopes.index()];
        mark_last_uses_within(&mut steps, &ports, &inputs);
        Ok(ExpertGrad {
            inputs,
            outputs,
            steps,
            sizes,
        })
    }

    /// Number of values of a gradient by a parameter, from the op that makes it.
    fn size_of(&self, region: &Region, output: &Operand) -> usize {
        let Operand::Value(value) = output else {
            return 0;
        };
        let ops = region.ops.iter().filter_map(|&id| self.graph.op(id));
        let mut makers = ops.filter_map(|op| {
            let at = op.results.iter().position(|r| *r == Some(*value))?;
            Some((op, at))
        });
        let Some((op, at)) = makers.next() else {
            return 0;
        };
        let crate::ir::OpKind::Grad(grad) = &op.kind else {
            return 0;
        };
        let of_weight = |operand: Option<&Operand>| match operand {
            Some(Operand::Weight(id)) => self.module.weight(*id).and_then(|w| w.elements()),
            _ => None,
        };
        let size = match (&grad.kind, &grad.matrix) {
            (GradKind::Op(Training::Term { of }), Some(matrix)) => matrix
                .terms
                .first()
                .map(|term| of.len(matrix, term, &self.module.weights)),
            (GradKind::Op(Training::Factors { .. }), Some(matrix)) => {
                let part = [crate::ir::Part::U, crate::ir::Part::V].get(at).copied();
                let term = matrix.terms.first().zip(part);
                term.map(|(term, part)| part.len(matrix, term, &self.module.weights))
            }
            (GradKind::Of(_), _) => of_weight(op.inputs.get(at + 1)),
            // A bias's, of a linear before it.
            (GradKind::Op(Training::SumRows), _) => self.bias_before(region, op.inputs.first()),
            _ => None,
        };
        size.and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
    }

    /// Rows of the matrix whose `dy` this is.
    fn bias_before(&self, region: &Region, dy: Option<&Operand>) -> Option<u64> {
        let ops = region.ops.iter().filter_map(|&id| self.graph.op(id));
        let mut readers = ops.filter(|op| op.inputs.first() == dy);
        readers.find_map(|op| match &op.kind {
            crate::ir::OpKind::Grad(grad) => grad.matrix.as_ref().map(|m| m.out_features),
            _ => None,
        })
    }
}

impl ExpertGrad {
    pub(super) fn reads_outside(&self) -> Vec<usize> {
        let made = self.steps.iter().flat_map(|s| s.outputs.clone()).flatten();
        let mut inside: HashSet<usize> = made.collect();
        inside.extend(self.inputs);
        let reads = self.steps.iter().flat_map(Step::reads);
        reads.filter(|slot| !inside.contains(slot)).collect()
    }
}

impl Program {
    /// Puts other bytes in the place of weights.
    pub(in crate::exec) fn replace(
        &mut self,
        bytes: &HashMap<String, Bytes>,
    ) -> Result<(), ExecError> {
        for (tensor, (name, dtype)) in self.constants.iter_mut().zip(&self.constant_names) {
            if let (Some(bytes), Data::F32(values)) = (bytes.get(name), &mut tensor.data) {
                decode(name, *dtype, bytes, values)?;
            }
        }
        self.steps
            .iter_mut()
            .try_for_each(|step| of_step(step, bytes))
    }
}

fn decode(name: &str, dtype: DType, bytes: &Bytes, values: &mut [f32]) -> Result<(), ExecError> {
    let fits = dtype.bytes_for(values.len() as u64) == Some(bytes.len() as u64);
    if fits && decode_f32(dtype, bytes, values) {
        return Ok(());
    }
    let problem = format!("{} bytes in place of {} values", bytes.len(), values.len());
    Err(ExecError::Store(StoreError::Damaged {
        weight: name.to_string(),
        problem,
    }))
}

fn of_step(step: &mut Step, bytes: &HashMap<String, Bytes>) -> Result<(), ExecError> {
    match &mut step.kind {
        Kind::Linear(linear) => {
            let bias = linear.bias.as_mut().zip(linear.bias_of.as_ref());
            if let Some((values, (name, dtype))) = bias
                && let Some(bytes) = bytes.get(name)
            {
                decode(name, *dtype, bytes, values)?;
            }
            linear.matrix.replace(bytes)
        }
        Kind::Embedding(table) => table.replace(bytes),
        Kind::Moe(moe) => {
            let mut steps = moe.experts.iter_mut().flat_map(|e| &mut e.steps);
            steps.try_for_each(|step| of_step(step, bytes))
        }
        Kind::Grad(op) => {
            if let Some(matrix) = &mut op.matrix {
                matrix.replace(bytes)?;
            }
            let mut steps = op.experts.iter_mut().flat_map(|e| &mut e.steps);
            steps.try_for_each(|step| of_step(step, bytes))
        }
        Kind::Native(_) | Kind::Glu(_) | Kind::Foreign(_) => Ok(()),
    }
}
