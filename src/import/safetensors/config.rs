//! `config.json`: typed access to its fields, with errors that name them.
//!
//! A model's configuration leaves out what equals its class's default, so a family asks for each
//! field with its own default. Unknown fields are ignored; a field of the wrong type is an error.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::super::{ImportError, Result};
use crate::ir::Activation;

/// Most bytes of a configuration that are read.
const MAX_BYTES: u64 = 16 << 20;
/// Largest size or count that a configuration may give; products of two fit in 64 bits.
const MAX_COUNT: u64 = 1 << 31;

/// A parsed `config.json`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file, for messages.
    pub path: PathBuf,
    root: Map<String, Value>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ImportError::Read`]; [`ImportError::Config`] where it is no JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| ImportError::read(path, e))?;
        if meta.len() > MAX_BYTES {
            let problem = format!("has {} bytes; at most {MAX_BYTES} are read", meta.len());
            return Err(ImportError::config(path, "", problem));
        }
        let bytes = std::fs::read(path).map_err(|e| ImportError::read(path, e))?;
        Self::parse(path, &bytes)
    }

    /// Parses the bytes of a file; `path` is for messages.
    ///
    /// # Errors
    /// [`ImportError::Config`] where they are no JSON object.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let fault = |problem: String| ImportError::config(path, "", problem);
        let value = serde_json::from_slice(bytes).map_err(|e| fault(format!("is no JSON: {e}")))?;
        match value {
            Value::Object(root) => Ok(Self {
                path: path.to_path_buf(),
                root,
            }),
            _ => Err(fault("is no JSON object".to_string())),
        }
    }

    /// All fields.
    pub(super) fn fields(&self) -> Fields<'_> {
        Fields {
            path: &self.path,
            within: String::new(),
            map: &self.root,
        }
    }
}

/// Fields of a configuration, or of an object inside it.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    path: &'a Path,
    within: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// An error about a field.
    pub(super) fn fault(&self, name: &str, problem: impl Into<String>) -> ImportError {
        ImportError::config(self.path, &format!("{}{name}", self.within), problem)
    }

    fn get<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => {
                    let short: String = value.to_string().chars().take(60).collect();
                    Err(self.fault(name, format!("is {short}, expected {expected}")))
                }
            },
        }
    }

    /// Whether the field is there, `null` included.
    pub(super) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// A count of at least one, if it is there and not `null`.
    pub(super) fn count(&self, name: &str) -> Result<Option<u64>> {
        let range = 1..=MAX_COUNT;
        self.get(name, "a whole number from 1 to 2^31", |v| {
            v.as_u64().filter(|n| range.contains(n))
        })
    }

    /// A count that must be there.
    pub(super) fn required(&self, name: &str) -> Result<u64> {
        let count = self.count(name)?;
        count.ok_or_else(|| self.fault(name, "is missing"))
    }

    /// A count for which absent and `null` differ: absent gives the default, `null` gives `None`.
    pub(super) fn nullable(&self, name: &str, default: Option<u64>) -> Result<Option<u64>> {
        if self.has(name) {
            self.count(name)
        } else {
            Ok(default)
        }
    }

    /// A count that may be zero.
    pub(super) fn whole(&self, name: &str, default: u64) -> Result<u64> {
        let read = |v: &Value| v.as_u64().filter(|&n| n <= MAX_COUNT);
        Ok(self
            .get(name, "a whole number up to 2^31", read)?
            .unwrap_or(default))
    }

    /// A finite number, if it is there and not `null`.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>> {
        self.get(name, "a number", |v| v.as_f64().filter(|x| x.is_finite()))
    }

    /// A number above zero, if it is there and not `null`.
    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>> {
        let read = |v: &Value| v.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        self.get(name, "a number above 0", read)
    }

    /// A truth value.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self
            .get(name, "true or false", Value::as_bool)?
            .unwrap_or(default))
    }

    /// A text, if it is there and not `null`.
    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.get(name, "a text", Value::as_str)
    }

    /// A list of texts, if it is there and not `null`.
    pub(super) fn texts(&self, name: &str) -> Result<Option<Vec<&'a str>>> {
        self.get(name, "a list of texts", |v| {
            v.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// A list of whole numbers; empty where it is absent.
    pub(super) fn indices(&self, name: &str) -> Result<Vec<u64>> {
        let found = self.get(name, "a list of whole numbers", |v| {
            v.as_array()?.iter().map(Value::as_u64).collect()
        })?;
        Ok(found.unwrap_or_default())
    }

    /// An object inside, if it is there and not `null`.
    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        let map = self.get(name, "an object", Value::as_object)?;
        Ok(map.map(|map| Fields {
            path: self.path,
            within: format!("{}{name}.", self.within),
            map,
        }))
    }

    /// An activation by its name in `transformers`; `Err` in the inner result names an unknown one.
    pub(super) fn activation(
        &self,
        name: &str,
        default: &str,
    ) -> Result<Result<Activation, String>> {
        let word = self.text(name)?.unwrap_or(default);
        Ok(match word {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            // All of them are the tanh approximation, in different arithmetic.
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast"
            | "gelu_accurate" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            "tanh" => Ok(Activation::Tanh),
            other => Err(format!("{}{name} `{other}`", self.within)),
        })
    }
}
