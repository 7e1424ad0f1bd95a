//! Qwen 2 and 2.5 (`Qwen2ForCausalLM`): biases on q, k and v; later layers may have a window.

use super::Stop;
use super::config::Fields;
use super::decoder::{Decoder, Defaults, Sliding, layer_types};

pub(super) const DEFAULTS: Defaults = Defaults {
    kv_heads: Some(32),
    ..super::llama::DEFAULTS
};

pub(super) fn read(f: &Fields<'_>) -> Result<Decoder, Stop> {
    let decoder = Decoder::read(f, &DEFAULTS)?;
    Ok(Decoder {
        qkv_bias: true,
        window: window(f)?,
        sliding: sliding(f, decoder.layers)?,
        ..decoder
    })
}

/// The window, where `use_sliding_window` turns it on.
pub(super) fn window(f: &Fields<'_>) -> Result<Option<u64>, Stop> {
    let on = f.flag("use_sliding_window", false)?;
    Ok(f.nullable("sliding_window", Some(4096))?.filter(|_| on))
}

/// Layers from `max_window_layers` on have the window, unless `layer_types` says otherwise.
pub(super) fn sliding(f: &Fields<'_>, layers: u64) -> Result<Sliding, Stop> {
    let first = f.whole("max_window_layers", 28)?;
    layer_types(f, layers, Sliding::From(first))
}
