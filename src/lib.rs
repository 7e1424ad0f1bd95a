//! hlrc: the library behind `hlrc-opt`.

pub mod cli;
pub mod ir;
pub mod numeric;
pub mod onnx;
pub mod pass;
pub mod report;
pub mod weights;
