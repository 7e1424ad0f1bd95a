//! From the IR to files.

pub mod hlrc;
pub mod onnx;
