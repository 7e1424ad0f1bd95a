//! The registry: every pass that a pipeline may name, sorted by name; those of loaded plugins too.

use super::{PassEntry, plugin};

/// Every pass, sorted by name.
pub fn passes() -> Vec<PassEntry> {
    let mut entries: Vec<PassEntry> = crate::passes::ALL.to_vec();
    entries.extend(plugin::entries());
    entries.sort_by_key(|entry| entry.name);
    entries
}

/// The pass called `name`.
pub fn find(name: &str) -> Option<PassEntry> {
    let built_in = crate::passes::ALL.iter().find(|e| e.name == name).copied();
    built_in.or_else(|| plugin::entries().into_iter().find(|e| e.name == name))
}
