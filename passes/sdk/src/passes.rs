//! What several of hlrc-opt's passes share: registration, the integer quantizer, factors, metrics.

#[allow(dead_code)] // shared sources
#[path = "../../shared/mod.rs"]
pub mod shared;
