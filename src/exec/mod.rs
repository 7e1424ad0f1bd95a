//! Execution on the CPU: native transformer ops and the terms of linears.
//!
//! [`pool`] holds the threads, [`kernels`] the arithmetic on plain slices.

pub mod kernels;
pub mod pool;

pub use pool::Pool;
