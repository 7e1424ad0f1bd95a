//! hlrc: the library behind `hlrc-opt`.

pub mod budget;
pub mod calib;
pub mod cli;
pub mod eval;
pub mod exec;
pub mod export;
pub mod import;
pub mod ir;
pub mod numeric;
pub mod onnx;
pub mod opt;
pub mod pass;
#[path = "../passes/mod.rs"]
pub mod passes;
pub mod plan;
pub mod report;
pub mod runtime;
pub mod store;
pub mod text;
pub mod train;
pub mod weights;
