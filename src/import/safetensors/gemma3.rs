//! Gemma 3, text (`Gemma3ForCausalLM`, and the text part of `Gemma3ForConditionalGeneration`): Gemma 2
//! with norms of q and k instead of capped scores, five of six layers local with a rotation of their own.

use super::Stop;
use super::config::Fields;
use super::decoder::{Decoder, Sliding, layer_types};
use super::gemma2;
use super::rope::Rope;

pub(super) fn read(f: &Fields<'_>) -> Result<Decoder, Stop> {
    let decoder = gemma2::common(f)?;
    let pattern = f.count("sliding_window_pattern")?.unwrap_or(6);
    let (full, local) = ("full_attention", "sliding_attention");
    Ok(Decoder {
        qk_norm: true,
        // attn_logit_softcapping is a field of the class that its attention never reads.
        final_softcap: gemma2::cap(f, "final_logit_softcapping", None)?,
        sliding: layer_types(f, decoder.layers, Sliding::AllButEvery(pattern))?,
        rope: Rope::read(f, full, "rope_theta", 1e6)?,
        sliding_rope: Some(Rope::unscaled(f, local, "rope_local_base_freq", 1e4)?),
        ..decoder
    })
}
