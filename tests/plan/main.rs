//! Kernel plans: lowered, packed, verified, and run by the reference interpreter against the executor.

mod cli;
#[path = "../common/mod.rs"]
mod common;
mod equal;
mod faults;
mod golden;
mod headers;
mod model;
mod steps;
