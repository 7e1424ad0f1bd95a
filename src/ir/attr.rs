//! Attributes: named constants on ops, and the source's metadata on everything.

use super::{Region, Type, WeightId};

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    /// `true` or `false`.
    Bool(bool),
    /// `42`
    Int(i64),
    /// `1.5`; equality and text are by bits, so NaN payloads survive.
    Float(Float),
    /// `"text"`; any bytes.
    Str(Vec<u8>),
    /// `ints[1, 2]`
    Ints(Vec<i64>),
    /// `floats[1.0, 2.0]`
    Floats(Vec<Float>),
    /// `strings["a", "b"]`
    Strs(Vec<Vec<u8>>),
    /// `[a, b]`, of any kind.
    List(Vec<Attr>),
    /// `{k=v, l=w}`
    Dict(Attrs),
    /// `@w`: a tensor, held as a weight of the module.
    Weight(WeightId),
    /// `region "body"(%i) -> (%o) { … }`
    Region(Box<Region>),
    /// `type(f32[2])`
    Type(Type),
}

/// A 32-bit float that compares by bits.
#[derive(Clone, Copy)]
pub struct Float(pub f32);

impl PartialEq for Float {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Float {}

impl std::fmt::Debug for Float {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Attr {
    /// A string attribute.
    pub fn str(text: impl AsRef<[u8]>) -> Self {
        Attr::Str(text.as_ref().to_vec())
    }

    /// The integer inside, if this is one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Attr::Int(i) => Some(*i),
            _ => None,
        }
    }

    /// The float inside, if this is one.
    pub fn as_float(&self) -> Option<f32> {
        match self {
            Attr::Float(x) => Some(x.0),
            _ => None,
        }
    }

    /// The text inside, if this is UTF-8 text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Attr::Str(s) => std::str::from_utf8(s).ok(),
            _ => None,
        }
    }

    /// The integers inside, if this is a list of them.
    pub fn as_ints(&self) -> Option<&[i64]> {
        match self {
            Attr::Ints(v) => Some(v),
            _ => None,
        }
    }
}

/// Attributes in the source's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs(pub Vec<(String, Attr)>);

impl Attrs {
    /// Opset of ONNX's standard domain, where a module's or function's `opset_import` declares one.
    pub fn opset(&self) -> Option<i64> {
        let Some(Attr::List(list)) = self.get("opset_import") else {
            return None;
        };
        list.iter().find_map(|item| match item {
            Attr::Dict(dict) if dict.is_standard_domain() => {
                dict.get("version").and_then(Attr::as_int)
            }
            _ => None,
        })
    }

    /// Whether an entry of `opset_import` is of ONNX's standard domain.
    pub fn is_standard_domain(&self) -> bool {
        matches!(
            self.get("domain").and_then(Attr::as_str),
            None | Some("" | "ai.onnx")
        )
    }

    /// No attributes.
    pub fn new() -> Self {
        Self::default()
    }

    /// The attribute called `name`.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, a)| a)
    }

    /// Adds `name`, or replaces its value where it stands.
    pub fn set(&mut self, name: &str, value: Attr) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, slot)) => *slot = value,
            None => self.0.push((name.to_string(), value)),
        }
    }

    /// Removes `name` and returns its value.
    pub fn remove(&mut self, name: &str) -> Option<Attr> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.remove(at).1)
    }

    /// Whether there is nothing here.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Name and value, in order.
    pub fn iter(&self) -> impl Iterator<Item = &(String, Attr)> {
        self.0.iter()
    }
}
