pub mod pass;
pub mod onnx;
