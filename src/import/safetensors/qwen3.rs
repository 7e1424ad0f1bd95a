//! Qwen 3 (`Qwen3ForCausalLM`): norms of each head of q and k, heads of 128.

use super::Stop;
use super::config::Fields;
use super::decoder::{Decoder, Defaults};
use super::qwen2;

pub(super) const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(32),
    head_dim: Some(128),
    ..super::llama::DEFAULTS
};

pub(super) fn read(f: &Fields<'_>) -> Result<Decoder, Stop> {
    let decoder = Decoder::read(f, &DEFAULTS)?;
    let bias = f.flag("attention_bias", false)?;
    Ok(Decoder {
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: true,
        window: qwen2::window(f)?,
        sliding: qwen2::sliding(f, decoder.layers)?,
        ..decoder
    })
}
