//! Mixtral (`MixtralForCausalLM`): Mistral with a mixture of experts in every layer.

use std::collections::BTreeSet;

use super::Stop;
use super::config::Fields;
use super::decoder::{Decoder, Defaults};
use super::experts::Experts;

const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    eps: 1e-5,
    theta: 1e6,
    ..super::llama::DEFAULTS
};

pub(super) fn read(f: &Fields<'_>) -> Result<Decoder, Stop> {
    let decoder = Decoder::read(f, &DEFAULTS)?;
    let experts = Experts {
        count: f.count("num_local_experts")?.unwrap_or(8),
        top_k: f.count("num_experts_per_tok")?.unwrap_or(2),
        normalize: true,
        inner: decoder.inner,
        homes: &["block_sparse_moe", "mlp"],
        names: ["w1", "w3", "w2"],
        step: 1,
        plain: BTreeSet::new(),
    };
    Ok(Decoder {
        window: f.nullable("sliding_window", None)?,
        experts: Some(experts.checked(f)?),
        ..decoder
    })
}
