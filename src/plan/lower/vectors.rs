//! Small constants: gains, frequencies of rotations, signs of Hadamard rotations.

use super::emit::{Emit, Result};
use super::macros::{Norm, Rotary};
use crate::exec::kernels::rope::RopeTable;
use crate::ir::RopeScaling;
use crate::numeric::hadamard::Rotation;
use crate::plan::PlanError;
use crate::plan::pack::recipe::Recipe;

impl Emit<'_> {
    /// The packed gain (and bias) of a norm of vectors of `width`.
    pub(super) fn norm_weight(&mut self, norm: &Norm, width: u64) -> Result<String> {
        let mut parts = vec![("gain".to_string(), norm.gain, norm.unit_offset)];
        parts.extend(norm.beta.map(|beta| ("beta".to_string(), beta, false)));
        let names = parts
            .iter()
            .filter_map(|(_, id, _)| self.module.weight(*id));
        let names = names.map(|w| w.name.clone()).collect();
        let recipe = Recipe::Vectors { parts, width };
        self.weight(&norm.name, "vector", (1, width), names, recipe)
    }

    /// The inverse frequencies of a rotation, and its factor on cosines and sines.
    ///
    /// # Errors
    /// A base that grows with the length, beyond the length from which it does.
    pub(super) fn frequencies(&mut self, name: &str, rotary: &Rotary) -> Result<(String, f32)> {
        if let Some(RopeScaling::Dynamic {
            original_context, ..
        }) = rotary.scaling
            && self.context > original_context
        {
            let problem = format!(
                "a base that grows with the length has no kernel beyond {original_context} positions; plan with --ctx {original_context} or less"
            );
            return Err(PlanError::unsupported("rope", name, problem));
        }
        let dim = usize::try_from(rotary.rotary_dim).unwrap_or(0);
        let table = RopeTable::new(rotary.theta, dim, rotary.scaling.as_ref());
        let words: Vec<u32> = table
            .inverse_frequencies()
            .iter()
            .map(|f| f.to_bits())
            .collect();
        let shape = (1, words.len() as u64);
        let recipe = Recipe::Inline {
            section: "inv_freq".to_string(),
            dtype: "f32".to_string(),
            words,
        };
        let weight = self.weight("rope", "table", shape, Vec::new(), recipe)?;
        Ok((weight, table.attention_factor()))
    }

    /// The signs of a rotation of vectors of `width`, a bit each; set is −1.
    pub(super) fn signs(&mut self, name: &str, side: Rotation, width: u64) -> Result<String> {
        let count = usize::try_from(width).unwrap_or(0);
        let signs = side.signs(count);
        let word = |signs: &[f32]| {
            let bit = |(i, s): (usize, &f32)| u32::from(*s < 0.0) << i;
            signs.iter().enumerate().map(bit).fold(0, |w, b| w | b)
        };
        let recipe = Recipe::Inline {
            section: "signs".to_string(),
            dtype: "u32".to_string(),
            words: signs.chunks(32).map(word).collect(),
        };
        self.weight(
            &format!("{name}.signs"),
            "table",
            (1, width),
            Vec::new(),
            recipe,
        )
    }
}
