//! From the IR to files.

mod exchange;
pub mod hlrc;
pub mod onnx;
