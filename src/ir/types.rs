//! Types of values: tensors with symbolic dimensions, and what ONNX has besides.

use crate::weights::DType;

/// One dimension of a shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// A size known when the module was made.
    Known(i64),
    /// A named size such as `B`, or an exporter's expression such as `past + seq`, kept as text.
    Symbol(String),
    /// Nothing is known.
    Unknown,
}

/// Element type and shape of a tensor; `shape` is `None` where even the rank is unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Option<Vec<Dim>>,
}

/// Type of a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A dense tensor: `f32[B,S,384]`, or `f32[*]` where the rank is unknown.
    Tensor(TensorType),
    /// A sparse tensor: `sparse<f32[4,4]>`.
    Sparse(TensorType),
    /// A sequence: `seq<f32[*]>`.
    Seq(Box<Type>),
    /// An optional: `optional<f32[*]>`.
    Optional(Box<Type>),
    /// A map: `map<i64, f32[*]>`.
    Map(DType, Box<Type>),
    /// An opaque type of a domain: `opaque<"domain", "name">`.
    Opaque(String, String),
    /// A value-info entry that names no type.
    None,
}

impl Type {
    /// A tensor type from its parts.
    pub fn tensor(dtype: DType, shape: Vec<Dim>) -> Self {
        Type::Tensor(TensorType {
            dtype,
            shape: Some(shape),
        })
    }

    /// The tensor type inside, if this is a dense tensor.
    pub fn as_tensor(&self) -> Option<&TensorType> {
        match self {
            Type::Tensor(t) => Some(t),
            _ => None,
        }
    }
}

impl Dim {
    /// A named dimension.
    pub fn symbol(name: &str) -> Self {
        Dim::Symbol(name.to_string())
    }
}
