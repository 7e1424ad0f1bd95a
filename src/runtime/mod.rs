//! Running kernel plans.
//!
//! A [`Device`] holds a plan's memory and runs its programs: [`crate::plan::interpret::Machine`] on
//! the CPU, for judging, or a GPU (`cuda`, with the feature of that name). [`PlanModel`] makes a
//! language model of either: tokens in, logits out. A runtime knows no kernel and no model: [`bind`]
//! turns each step's arguments into addresses and numbers, in the order of the kernel's ABI.
//!
//! CUDA's libraries are loaded at run time. The same program runs where there are none, and says so
//! when a GPU is asked for.

pub mod bind;
mod compiler;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod error;
#[cfg(feature = "cuda")]
mod made_up;
mod model;
mod source;

pub use compiler::Compiler;
pub use device::{Device, Place};
pub use error::RuntimeError;
pub use model::PlanModel;
pub use source::flattened;
