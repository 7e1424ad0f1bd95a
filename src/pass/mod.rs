//! Passes: what rewrites the IR.

pub mod pipeline;
