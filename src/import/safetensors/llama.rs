//! Llama 1 to 3 (`LlamaForCausalLM`), and what shares its class: SmolLM, TinyLlama, Yi, …

use super::Stop;
use super::config::Fields;
use super::decoder::{Decoder, Defaults};

pub(super) const DEFAULTS: Defaults = Defaults {
    kv_heads: None,
    head_dim: None,
    eps: 1e-6,
    theta: 1e4,
    tied: false,
};

pub(super) fn read(f: &Fields<'_>) -> Result<Decoder, Stop> {
    let bias = f.flag("attention_bias", false)?;
    Ok(Decoder {
        qkv_bias: bias,
        out_bias: bias,
        mlp_bias: f.flag("mlp_bias", false)?,
        ..Decoder::read(f, &DEFAULTS)?
    })
}
