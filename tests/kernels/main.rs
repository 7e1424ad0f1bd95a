//! The CUDA kernels of `kernels/`, run on the CPU by `kernels/emu` and compared with f64.
//!
//! A kernel is compiled with the system's C++ compiler (`CXX`, or `c++`) and loaded; without one these
//! tests are skipped with a message. Every case runs under several schedules, with poisoned outputs.

mod attention;
#[path = "../common/mod.rs"]
mod common;
mod data;
mod device;
mod embed;
mod emulate;
mod emulator;
mod experts;
mod linear;
mod many;
mod moe;
mod plan;
mod prefill;
mod rows;
mod sample;
mod terms;
mod toolchain;
mod traffic;
