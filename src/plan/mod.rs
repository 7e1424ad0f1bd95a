//! Kernel plans: a language model as launches of CUDA kernels over packed weights.
//!
//! [`lower`] turns a module into a [`Plan`]: which kernel variants there are, where each weight's
//! packed bytes lie in one blob, which buffers live from which step to which, and which launches
//! make a token ([`Program`]s for decoding and for a prompt). [`pack`] writes the blob; [`verify`]
//! checks a plan against its own claims and the table of [`kernels`]; [`interpret`] runs it on the
//! CPU from the plan and the blob alone. [`text`] prints it to be read, [`summary`] says what it
//! costs. `docs/plan.md` describes the format.
//!
//! A linear `y = (Q + S + U·V) x` is one launch: norms go into its prologue, bias, activation, gate
//! and residual into its epilogue. What is not fused is listed with the reason.
//!
//! The plan knows nothing of the CUDA runtime, and a runtime knows nothing of models: a step names
//! a kernel variant and its arguments, and each argument a buffer, a part of the blob or a number.

mod arena;
mod args;
mod cost;
mod error;
pub mod fit;
pub mod folder;
pub mod imagine;
pub mod interpret;
pub mod kernels;
pub mod lower;
mod model;
pub mod pack;
pub mod summary;
pub mod target;
pub mod text;
pub mod verify;

pub use args::{Args, Value};
pub use error::PlanError;
pub use model::{
    Blob, Buffer, Capture, Estimate, Kv, Note, PackedWeight, Place, Plan, Program, Section, Shape,
    Step, Variant, aligned, element_bytes,
};
pub use target::Target;

/// Version of the plan's format.
pub const PLAN_VERSION: u32 = 1;
/// Version of the packs' layout.
pub const PACK_VERSION: u32 = 1;
/// Alignment of buffers in an arena and of sections in the blob, bytes.
pub const ALIGNMENT: u64 = 256;
