//! How good a model is, and how close to the one that it was made from.
//!
//! Language models are judged on text. [`window`] cuts the tokens into windows (the protocol),
//! [`predict`] makes models alike (with a KV cache, without one, or logits from a [`cache`]),
//! [`measure`](mod@measure) takes all of them through the same windows side by side, a block of
//! positions at a time, and [`report`] makes of what was seen perplexities, divergences and their
//! errors. Other models are judged by their outputs on given [`inputs`]: [`outputs`].
//!
//! Every prediction is scored by itself ([`row`]) and all sums run in the order of the text, so
//! results do not depend on the number of threads.

pub mod cache;
mod error;
pub mod inputs;
pub mod measure;
pub mod outputs;
pub mod predict;
pub mod report;
pub mod row;
pub mod stats;
pub mod window;

pub use error::EvalError;
pub use measure::{Judged, Tally, measure};
pub use predict::{Causal, Predictor, Whole};
pub use report::{Evaluation, TextReport};
pub use window::{Protocol, Windows};

/// Result of everything in this module.
pub type Result<T, E = EvalError> = std::result::Result<T, E>;
