//! Decompositions and codecs on plain slices; knows nothing of the IR.
//!
//! Everything here works on row-major `[out, in]` slices of `f32` and returns
//! plain structures: [`quant`] codes, [`lowrank`] factors, [`sparse`] entries.
//! Each encoder subtracts what its result decodes to, so that the caller's
//! slice is left holding the residual, rounding of the stored form included.
//!
//! Results are the same bytes for any thread count and any SIMD level: vector
//! code is plain Rust compiled several times (see `simd`), sums run in a fixed
//! order, and products that use threads are split into fixed row panels.

pub mod float;
pub mod hadamard;
pub mod hessian;
pub mod lowrank;
pub mod matrix;
pub mod quant;
pub mod sparse;
pub mod trellis;

pub(crate) mod simd;

pub use lowrank::{Block, Factor, FactorFormat, LowRank, Side};
pub use quant::{Group, QuantMatrix, ScaleMethod, Scheme};
pub use sparse::Sparse;
