//! The ONNX file format: a lossless protobuf layer, no meaning of operators.
//!
//! `bytes → decode → Message → encode → bytes` is the identity for every
//! input that decodes; tensor payloads stay ranges of the file. Readers of
//! models use the field constants of [`schema`] with the accessors of
//! [`message::Message`]; [`layout`] carries what a canonical encoding would
//! lose through a representation that holds meaning only.

pub mod decode;
pub mod encode;
pub mod external;
pub mod layout;
pub mod mapping;
pub mod message;
pub mod schema;
pub mod wire;

pub use decode::{Limits, decode};
pub use encode::{Payloads, encode, encoded_len};
pub use layout::Layout;
pub use message::{Blob, Field, Message, Value};
pub use wire::WireError;

#[cfg(test)]
mod tests;
