//! What several passes share: registration and the integer quantizer.

pub mod entry;
pub mod factors;
pub mod gptq;
pub mod metric;
pub mod quantize;
pub mod walk;
