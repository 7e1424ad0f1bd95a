//! Calibration: second moments of what goes into each linear, on text.
//!
//! [`calibrate`] streams a model segment by segment ([`crate::exec::segments`]) over windows of
//! tokens and writes, for each distinct input of linears, `H = Σ x xᵀ` (f32, the upper triangle), its
//! diagonal and the number of tokens. [`Statistics`] reads such a file, or an importance matrix of
//! llama.cpp, one site at a time.

mod error;
mod file;
mod gather;
mod gguf;
pub(crate) mod hold;
mod imatrix;
mod merge;
mod metadata;
mod own;
mod plan;
mod run;
mod summary;
#[cfg(test)]
mod tests;
mod windows;
mod write;

pub use error::{CalibError, Result};
pub use file::{SiteStatistics, Statistics, is_statistics};
pub use merge::merge;
pub use metadata::{
    DataFile, Metadata, ModelId, Protocol, SiteInput, Source, fingerprint, stamp, token_hash,
};
pub use own::write as write_own;
pub use run::{Job, Progress, calibrate};
pub use summary::{RoleSummary, Summary};
pub use windows::{Windows, batches, cut, lines};
