//! Mistral (`MistralForCausalLM`): Llama with a window in every layer, unless it is `null`.

use super::Stop;
use super::config::Fields;
use super::decoder::{Decoder, Defaults};

pub(super) const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(8),
    ..super::llama::DEFAULTS
};

pub(super) fn read(f: &Fields<'_>) -> Result<Decoder, Stop> {
    Ok(Decoder {
        window: f.nullable("sliding_window", Some(4096))?,
        ..Decoder::read(f, &DEFAULTS)?
    })
}
