//! The registry: every pass that a pipeline may name, sorted by name.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Pass, PassError};

/// What the tool knows of a pass without running it.
#[derive(Clone, Copy)]
pub struct PassEntry {
    /// Name in pipelines.
    pub name: &'static str,
    /// One line: what it does.
    pub summary: &'static str,
    /// The pass file's header: what and why, before and after, cost, source.
    pub doc: &'static str,
    /// JSON Schema of the options, with their documentation, units and defaults.
    pub schema: fn() -> Value,
    /// The pass with these options.
    pub build: fn(Map<String, Value>) -> Result<Pass, PassError>,
}

/// Every pass, sorted by name.
pub fn passes() -> Vec<PassEntry> {
    let mut entries: Vec<PassEntry> = crate::passes::ALL.to_vec();
    entries.sort_by_key(|entry| entry.name);
    entries
}

/// The pass called `name`.
pub fn find(name: &str) -> Option<PassEntry> {
    crate::passes::ALL.iter().find(|e| e.name == name).copied()
}

/// The schema of an options struct, as JSON.
pub fn schema_of<T: schemars::JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// An options struct from what the pipeline says.
///
/// # Errors
/// An option that the struct does not have, or a value that does not fit.
pub fn options<T: DeserializeOwned>(pairs: Map<String, Value>) -> Result<T, PassError> {
    serde_json::from_value(Value::Object(pairs)).map_err(PassError::new)
}
