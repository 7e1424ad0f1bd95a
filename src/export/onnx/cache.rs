//! The KV cache as inputs and outputs of the model.
//!
//! Each cached attention takes `past_key_values.N.key` and `.value`, `[B, kv_heads, past, head_dim]`,
//! and gives `present.N.key` and `.value` with the new tokens behind them: the names and layout
//! that Hugging Face's exporters use. Positions go on from the past's length.

use super::ExportError;
use super::lower::{Lowerer, Site, no_form};
use crate::ir::{Attr, Dim, Native, OpKind, Operand, TensorType, Type, ValueId};
use crate::weights::DType;

/// What the past's length is kept under among shared values.
const LENGTH: &str = "length of the past";

impl Lowerer<'_> {
    /// Declares the inputs of the past, where the caller asked for a cache.
    ///
    /// # Errors
    /// No attention of the module has a cache.
    pub(super) fn declare_cache(&mut self) -> Result<(), ExportError> {
        if !self.options.cache {
            return Ok(());
        }
        let cached = self.graph.ops.iter().filter_map(|op| match &op.kind {
            OpKind::Native(Native::Attention {
                kv_heads,
                head_dim,
                cache: Some(slot),
                ..
            }) => Some((*slot, *kv_heads as i64, *head_dim as i64)),
            _ => None,
        });
        let mut slots: Vec<(u64, i64, i64)> = cached.collect();
        slots.sort_unstable();
        slots.dedup();
        if slots.is_empty() {
            return Err(ExportError::NoForm {
                op: "attention".to_owned(),
                what: "no attention of this model has a KV cache; leave --onnx-cache out"
                    .to_owned(),
            });
        }
        for (slot, kv_heads, head_dim) in slots {
            let mut declare = |part: &str| {
                let ty = cache_type((kv_heads, head_dim), "past_sequence");
                let name = format!("past_key_values.{slot}.{part}");
                let id = self.graph.add_value(&name, Some(ty));
                self.graph.body.inputs.push(id);
                Operand::Value(id)
            };
            let past = vec![declare("key"), declare("value")];
            self.shared.insert(format!("past {slot}"), past);
        }
        Ok(())
    }

    /// Number of tokens in the past, an `i64` scalar; none without a cache.
    pub(super) fn past_length(&mut self, site: &mut Site) -> Option<Operand> {
        if let Some(&[length]) = self.shared.get(LENGTH).map(Vec::as_slice) {
            return Some(length);
        }
        let is_key = |(name, _): &(&String, &Vec<Operand>)| name.starts_with("past ");
        let first = self
            .shared
            .iter()
            .filter(is_key)
            .min_by_key(|(name, _)| *name);
        let key = *first?.1.first()?;
        let length = self.size(site, key, 2);
        self.shared.insert(LENGTH.to_owned(), vec![length]);
        Some(length)
    }

    /// Keys and values `[B, kv_heads, S, head_dim]` behind those of the past, which become outputs.
    pub(super) fn with_past(
        &mut self,
        site: &mut Site,
        (k, v): (Operand, Operand),
        native: &Native,
    ) -> Result<(Operand, Operand), ExportError> {
        let Native::Attention {
            kv_heads,
            head_dim,
            cache: Some(slot),
            ..
        } = native
        else {
            return Ok((k, v));
        };
        let past = self.shared.get(&format!("past {slot}")).cloned();
        let Some(&[past_k, past_v]) = past.as_deref() else {
            return Ok((k, v));
        };
        let both = |this: &mut Self, past, new, site: &mut Site| {
            let axis = vec![("axis", Attr::Int(2))];
            this.standard(site, "Concat", vec![past, new], axis)
        };
        let (all_k, all_v) = (both(self, past_k, k, site), both(self, past_v, v, site));
        for (part, all) in [("key", all_k), ("value", all_v)] {
            let Operand::Value(id) = all else {
                return Err(no_form(site, "a cache of something that is no value"));
            };
            let ty = cache_type((*kv_heads as i64, *head_dim as i64), "total_sequence");
            self.present(id, &format!("present.{slot}.{part}"), ty);
        }
        Ok((all_k, all_v))
    }

    /// Makes a value an output.
    fn present(&mut self, id: ValueId, name: &str, ty: Type) {
        if let Some(value) = self.graph.values.get_mut(id.index()) {
            value.name = name.to_owned();
            value.ty = Some(ty);
        }
        self.graph.body.outputs.push(Operand::Value(id));
    }
}

fn cache_type((kv_heads, head_dim): (i64, i64), length: &str) -> Type {
    Type::Tensor(TensorType {
        dtype: DType::F32,
        shape: Some(vec![
            Dim::symbol("B"),
            Dim::Known(kv_heads),
            Dim::symbol(length),
            Dim::Known(head_dim),
        ]),
    })
}
