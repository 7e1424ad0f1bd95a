pub mod cli;
pub mod onnx;
pub mod pass;
pub mod report;
pub mod weights;
