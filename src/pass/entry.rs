//! An entry of the registry: what is known of a pass without running it.

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
    pub schema: &'static (dyn Fn() -> Value + Sync),
    /// The pass with these options.
    pub build: &'static (dyn Fn(Map<String, Value>) -> Result<Pass, PassError> + Sync),
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
