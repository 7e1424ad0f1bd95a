//! Element types.

#[allow(dead_code)] // a shared source
#[path = "../../../src/weights/dtype.rs"]
pub mod dtype;

pub use dtype::DType;
