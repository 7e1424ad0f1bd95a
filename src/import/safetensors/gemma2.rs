//! Gemma 2 (`Gemma2ForCausalLM`): norms around each block that store gain − 1, scaled embeddings,
//! capped scores and logits, a window in every other layer.

use super::config::Fields;
use super::decoder::{Decoder, Defaults, Sliding, activation, layer_types};
use super::{Stop, unsupported};

pub(super) const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    head_dim: Some(256),
    tied: true,
    ..super::llama::DEFAULTS
};

pub(super) fn read(f: &Fields<'_>) -> Result<Decoder, Stop> {
    let decoder = Decoder {
        attn_softcap: cap(f, "attn_logit_softcapping", Some(50.0))?,
        final_softcap: cap(f, "final_logit_softcapping", Some(30.0))?,
        ..common(f)?
    };
    Ok(Decoder {
        sliding: layer_types(f, decoder.layers, Sliding::AllButEvery(2))?,
        ..decoder
    })
}

/// What Gemma 3 has too.
pub(super) fn common(f: &Fields<'_>) -> Result<Decoder, Stop> {
    if f.flag("use_bidirectional_attention", false)? {
        return unsupported("use_bidirectional_attention");
    }
    let bias = f.flag("attention_bias", false)?;
    let decoder = Decoder::read(f, &DEFAULTS)?;
    Ok(Decoder {
        qkv_bias: bias,
        out_bias: bias,
        unit_offset: true,
        sandwich: true,
        activation: activation(f, "hidden_activation", "gelu_pytorch_tanh")?,
        // In f32; `transformers` rounds it to the type that it runs in.
        embed_scale: Some((decoder.hidden as f64).sqrt()),
        attn_scale: f
            .positive("query_pre_attn_scalar")?
            .unwrap_or(256.0)
            .powf(-0.5),
        window: f.nullable("sliding_window", Some(4096))?,
        ..decoder
    })
}

/// A cap whose `null` turns it off.
pub(super) fn cap(f: &Fields<'_>, name: &str, default: Option<f64>) -> Result<Option<f64>, Stop> {
    if f.has(name) {
        Ok(f.positive(name)?)
    } else {
        Ok(default)
    }
}
