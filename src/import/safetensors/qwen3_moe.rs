//! Qwen 3 with experts (`Qwen3MoeForCausalLM`): Qwen 3 whose MLP is a mixture in most layers.

use super::config::Fields;
use super::decoder::{Decoder, Defaults, Sliding};
use super::experts::Experts;
use super::{Stop, qwen2, qwen3};

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(4),
    head_dim: None,
    ..qwen3::DEFAULTS
};

pub(super) fn read(f: &Fields<'_>) -> Result<Decoder, Stop> {
    let bias = f.flag("attention_bias", false)?;
    // Zero experts make every layer plain.
    let count = match f.has("num_experts") {
        true => f.whole("num_experts", 128)?,
        false => f.whole("num_local_experts", 128)?,
    };
    let experts = Experts {
        count,
        top_k: f.count("num_experts_per_tok")?.unwrap_or(8),
        normalize: f.flag("norm_topk_prob", false)?,
        inner: f.count("moe_intermediate_size")?.unwrap_or(768),
        homes: &["mlp"],
        names: ["gate_proj", "up_proj", "down_proj"],
        step: f.count("decoder_sparse_step")?.unwrap_or(1),
        plain: f.indices("mlp_only_layers")?.into_iter().collect(),
    };
    let experts = match count {
        0 => None,
        _ => Some(experts.checked(f)?),
    };
    Ok(Decoder {
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: true,
        // Here the window is every layer's; max_window_layers has no say.
        window: qwen2::window(f)?,
        sliding: Sliding::All,
        experts,
        ..Decoder::read(f, &DEFAULTS)?
    })
}
