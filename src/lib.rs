pub mod cli;
pub mod numeric;
pub mod onnx;
pub mod pass;
pub mod report;
pub mod weights;
