//! Attention: what its q, k and v are made of.

use super::linear::common_name;
use super::{Result, Scan, stem};
use crate::ir::{Native, Op, OpId, OpKind, Operand, ValueId};
use crate::plan::lower::macros::{Attention, Macro, Norm, Outputs, Part, Rotary};

/// What stands between a linear and attention.
struct Traced {
    part: Part,
    input: ValueId,
    norm: Option<Norm>,
    rotary: Option<Rotary>,
    taken: Vec<OpId>,
}

impl<'a> Scan<'a> {
    pub(super) fn attention(&mut self, op: &'a Op, native: &Native) -> Result<()> {
        let Native::Attention {
            heads,
            kv_heads,
            head_dim,
            scale,
            causal,
            window,
            softcap,
            cache,
        } = native
        else {
            return Ok(());
        };
        let Some(cache) = cache.filter(|_| *causal) else {
            return self.refuse(op, "attention without a KV cache has no kernel");
        };
        if let Some(Operand::Value(mask)) = op.inputs.get(3) {
            let named = self
                .graph
                .value(*mask)
                .is_some_and(|v| v.name == "attention_mask");
            if !named || !self.graph.body.inputs.contains(mask) {
                return self.refuse(op, "a mask that is computed has no kernel");
            }
        }
        let mut traced = Vec::with_capacity(3);
        for (index, name) in ["q", "k", "v"].into_iter().enumerate() {
            let value = self.value(op, index)?;
            match self.trace(value, *head_dim) {
                Some(found) => traced.push(found),
                None => {
                    return self.refuse(
                        op,
                        format!("its {name} is not a linear's result, with a norm of its heads and a rotation at most"),
                    );
                }
            }
        }
        let [q, k, v]: [Traced; 3] = match traced.try_into() {
            Ok(three) => three,
            Err(_) => return self.refuse(op, "it has not three inputs"),
        };
        if v.norm.is_some()
            || v.rotary.is_some()
            || q.rotary != k.rotary
            || q.norm.is_some() != k.norm.is_some()
        {
            return self.refuse(
                op,
                "q, k and v are normed or rotated in a way that has no kernel",
            );
        }
        let widths = [(&q, *heads), (&k, *kv_heads), (&v, *kv_heads)];
        if widths
            .iter()
            .any(|(t, n)| t.part.rows.end - t.part.rows.start != n * head_dim)
        {
            return self.refuse(op, "q, k or v is not as wide as its heads");
        }
        let norms = match (&q.norm, &k.norm) {
            (Some(a), Some(b)) if a.eps == b.eps && a.unit_offset == b.unit_offset => {
                Some((a.clone(), b.clone()))
            }
            (None, None) => None,
            _ => {
                return self.refuse(
                    op,
                    "norms of q and k differ in their epsilon, which has no kernel",
                );
            }
        };
        let rotary = q.rotary.clone();
        let name = match op.name.is_empty() {
            true => common_name(&q.part.name, "attention"),
            false => op.name.clone(),
        };
        let (offsets, qkv) = self.project(op, &name, [q, k, v])?;
        let y = self.slot(&format!("{name}.y"), heads * head_dim);
        self.macros.push(Macro::Attend {
            name,
            attention: Attention {
                heads: *heads,
                kv_heads: *kv_heads,
                head_dim: *head_dim,
                scale: *scale,
                window: *window,
                softcap: *softcap,
                cache,
                offsets,
                norms,
                rotary,
            },
            qkv,
            y,
        });
        let result = self.result(op)?;
        self.values.insert(result, y);
        Ok(())
    }

    /// The linears of q, k and v, those of one input together; where each stands in the slot.
    fn project(
        &mut self,
        op: &'a Op,
        name: &str,
        traced: [Traced; 3],
    ) -> Result<([u64; 3], crate::plan::lower::macros::Slot)> {
        let mut offsets = [0u64; 3];
        let mut width = 0;
        for (offset, t) in offsets.iter_mut().zip(&traced) {
            *offset = width;
            width += t.part.padded();
        }
        let y = self.slot(&format!("{name}.qkv"), width);
        let mut rest: Vec<(Traced, u64)> = traced.into_iter().zip(offsets).collect();
        while !rest.is_empty() {
            let input = rest[0].0.input;
            let count = rest.iter().take_while(|(t, _)| t.input == input).count();
            let group: Vec<(Traced, u64)> = rest.drain(..count).collect();
            let start = group.first().map_or(0, |(_, at)| *at);
            let (x, norm) = self.normed(op, input)?;
            let named = match count {
                3 => format!("{name}.qkv"),
                _ => group
                    .first()
                    .map_or_else(String::new, |(t, _)| t.part.name.clone()),
            };
            let mut parts = Vec::new();
            for (t, _) in group {
                self.done.extend(t.taken);
                parts.push(t.part);
            }
            self.macros.push(Macro::Linear {
                name: named,
                x,
                norm,
                outputs: Outputs::Rows(parts),
                epilogue: Default::default(),
                y,
                y_offset: start,
                last: false,
            });
        }
        Ok((offsets, y))
    }

    fn trace(&self, mut value: ValueId, head_dim: u64) -> Option<Traced> {
        let (mut norm, mut rotary, mut taken) = (None, None, Vec::new());
        loop {
            let (id, op) = self.maker(value)?;
            match &op.kind {
                OpKind::Native(Native::Rope {
                    head_dim: width,
                    rotary_dim,
                    theta,
                    interleaved,
                    scaling,
                    ..
                }) if rotary.is_none() && norm.is_none() => {
                    let positions = self.value(op, 1).ok()?;
                    if *width != head_dim || !self.is_positions(positions) {
                        return None;
                    }
                    rotary = Some(Rotary {
                        theta: *theta,
                        rotary_dim: *rotary_dim,
                        interleaved: *interleaved,
                        scaling: scaling.clone(),
                    });
                }
                OpKind::Native(Native::RmsNorm {
                    eps,
                    unit_offset,
                    slice: Some(slice),
                }) if norm.is_none() && *slice == head_dim => {
                    let gain = self.weight(op, 1).ok()?;
                    norm = Some(Norm {
                        name: stem(&self.module.weight(gain)?.name),
                        layer: false,
                        gain,
                        beta: None,
                        unit_offset: *unit_offset,
                        eps: *eps,
                    });
                }
                OpKind::Linear(_) | OpKind::Native(Native::Slice { .. }) => {
                    let (part, input, more) = self.rows_of(value)?;
                    taken.extend(more);
                    return Some(Traced {
                        part,
                        input,
                        norm,
                        rotary,
                        taken,
                    });
                }
                _ => return None,
            }
            taken.push(id);
            value = self.value(op, 0).ok()?;
        }
    }
}
