//! Arguments of a step, by name.

use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What an argument is.
///
/// In JSON `null`, a number, `"buffer"`, `"buffer+256"` (bytes) or `"@weight/section"`.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A null pointer, where the variant does not use the argument.
    Null,
    /// An `int`.
    Int(i64),
    /// A `float`.
    Float(f32),
    /// A place in a buffer.
    Buffer {
        /// The buffer's name.
        name: String,
        /// Bytes from its start.
        offset: u64,
    },
    /// A section of a packed weight.
    Section {
        /// The weight's name.
        weight: String,
        /// The section's name.
        section: String,
    },
}

impl Value {
    /// The start of a buffer.
    pub fn buffer(name: impl Into<String>) -> Self {
        Self::at(name, 0)
    }

    /// A place in a buffer.
    pub fn at(name: impl Into<String>, offset: u64) -> Self {
        Self::Buffer {
            name: name.into(),
            offset,
        }
    }

    /// A section of a weight.
    pub fn section(weight: impl Into<String>, section: impl Into<String>) -> Self {
        Self::Section {
            weight: weight.into(),
            section: section.into(),
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix('@') {
            let (weight, section) = rest
                .rsplit_once('/')
                .ok_or_else(|| format!("`{text}` is not @WEIGHT/SECTION"))?;
            return Ok(Self::section(weight, section));
        }
        let Some((name, offset)) = text.rsplit_once('+') else {
            return Ok(Self::buffer(text));
        };
        let offset = offset
            .parse()
            .map_err(|_| format!("`{text}` is not BUFFER+BYTES"))?;
        Ok(Self::at(name, offset))
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Int(i) => write!(f, "{i}"),
            Value::Float(x) => write!(f, "{x:?}"),
            Value::Buffer { name, offset: 0 } => f.write_str(name),
            Value::Buffer { name, offset } => write!(f, "{name}+{offset}"),
            Value::Section { weight, section } => write!(f, "@{weight}/{section}"),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => serializer.serialize_unit(),
            Value::Int(i) => serializer.serialize_i64(*i),
            Value::Float(x) => serializer.serialize_f32(*x),
            other => serializer.collect_str(other),
        }
    }
}

struct ValueVisitor;

impl Visitor<'_> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null, a number, a buffer or @weight/section")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v))
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<Value, E> {
        i64::try_from(v).map(Value::Int).map_err(E::custom)
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v as f32))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        Value::from_text(v).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

/// Arguments by name, in the order of the kernel's parameters; a map in JSON.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Args(pub Vec<(String, Value)>);

impl Args {
    /// The argument called `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// Adds an argument, or replaces it where it stands.
    pub fn set(&mut self, name: &str, value: Value) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, slot)) => *slot = value,
            None => self.0.push((name.to_string(), value)),
        }
    }

    /// An integer argument; 0 where it is not given.
    pub fn int(&self, name: &str) -> i64 {
        match self.get(name) {
            Some(Value::Int(i)) => *i,
            _ => 0,
        }
    }

    /// Name and value, in order.
    pub fn iter(&self) -> impl Iterator<Item = &(String, Value)> {
        self.0.iter()
    }
}

impl Serialize for Args {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

struct ArgsVisitor;

impl<'de> Visitor<'de> for ArgsVisitor {
    type Value = Args;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("arguments by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Args, A::Error> {
        let mut args = Args::default();
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if args.get(&name).is_some() {
                return Err(A::Error::custom(format!(
                    "argument `{name}` is given twice"
                )));
            }
            args.0.push((name, value));
        }
        Ok(args)
    }
}

impl<'de> Deserialize<'de> for Args {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ArgsVisitor)
    }
}
