//! `int4` gives defaults to a struct of `shared`, which only the crate that has the struct can.

#[path = "../../../../passes/int4.rs"]
pub mod int4;
#[path = "../../../../passes/shared/mod.rs"]
pub mod shared;
