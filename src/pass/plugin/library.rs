//! Shared libraries: opened, asked for their description, which is checked before anything of it is used.
#![allow(unsafe_code)]

use std::mem::offset_of;
use std::path::Path;

use hlrc_pass_abi::*;
use serde_json::{Map, Value};

use super::context::Inside;
use super::kind::ForeignKind;
use super::matrix::{ForeignMatrix, Made};
use super::module::ForeignModule;
use super::{Kinds, LoadError, Plugin, borrow, host};
use crate::ir::is_word;
use crate::pass::{Pass, PassEntry, PassError};

/// A pass of a plugin, for ever.
pub(super) struct Def {
    /// The plugin's name and version.
    pub(super) plugin: String,
    /// The pass's name.
    pub(super) name: String,
    /// As far as the plugin knows the struct.
    pub(super) raw: HlrcPassDef,
    /// Where the plugin has it.
    pub(super) own: *const HlrcPassDef,
}

// SAFETY: the interface says that definitions never change and may be used from any thread.
unsafe impl Send for Def {}
// SAFETY: as above.
unsafe impl Sync for Def {}

impl Def {
    /// An error that names plugin and pass.
    pub(super) fn error(&self, what: &str) -> PassError {
        PassError::new(format!(
            "plugin {}: pass {}: {what}",
            self.plugin, self.name
        ))
    }

    pub(super) fn refusal(&self, error: &PassError) -> PassError {
        self.error(&error.to_string())
    }
}

/// Loads a library with all that it needs: a symbol that nobody has is found out now, and not when it is
/// called, which would end the process.
fn loaded(path: &Path) -> Result<libloading::Library, libloading::Error> {
    #[cfg(unix)]
    // SAFETY: loading runs the library's initialisers; whoever names a plugin trusts it with that.
    unsafe {
        use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
        Library::open(Some(path), RTLD_NOW | RTLD_LOCAL).map(libloading::Library::from)
    }
    #[cfg(not(unix))]
    // SAFETY: as above.
    unsafe {
        libloading::Library::new(path)
    }
}

/// Opens a library and reads its description.
pub(super) fn open(path: &Path) -> Result<(Plugin, Kinds), LoadError> {
    let _inside = Inside::load(path);
    let library = loaded(path).map_err(|e| LoadError::Open {
        path: path.to_path_buf(),
        what: deepest(&e),
    })?;
    // Never unloaded: passes, texts and functions of it are used to the end.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    // SAFETY: by the interface, a symbol of this name is such a function.
    let entry = unsafe { library.get::<HlrcEntry>(HLRC_ENTRY.as_bytes()) };
    let entry = entry.map_err(|_| LoadError::NoSymbol {
        path: path.to_path_buf(),
    })?;
    let bad = |what: String| LoadError::Invalid {
        path: path.to_path_buf(),
        what,
    };
    // SAFETY: the entry is the plugin's, by the interface; the table lives for ever.
    let raw = unsafe { entry(host::table()) };
    if raw.is_null() {
        let what = "its entry gives no description: it can't work with this host";
        return Err(bad(what.to_string()));
    }
    // SAFETY: the first fields are the same in all versions.
    let (size, major, minor) = unsafe { ((*raw).size, (*raw).abi_major, (*raw).abi_minor) };
    if major != HLRC_ABI_MAJOR {
        return Err(LoadError::Major {
            path: path.to_path_buf(),
            have: major,
            need: HLRC_ABI_MAJOR,
        });
    }
    if minor > HLRC_ABI_MINOR {
        return Err(LoadError::Minor {
            path: path.to_path_buf(),
            major,
            have: minor,
            need: HLRC_ABI_MINOR,
        });
    }
    let least = offset_of!(HlrcPlugin, term_count) + size_of::<usize>();
    if size < least {
        return Err(bad(format!(
            "its description has {size} bytes, version {major}.0 has {least}"
        )));
    }
    // SAFETY: `size` bytes, by the interface; all fields may be zero.
    let raw = unsafe { borrow::sized(raw, least) }.map_err(|e| bad(e.to_string()))?;
    describe(path, &raw).map_err(|e| bad(e.to_string()))
}

fn describe(path: &Path, raw: &HlrcPlugin) -> Result<(Plugin, Kinds), PassError> {
    // SAFETY: texts and lists of a description live for ever, by the interface.
    let (name, version, passes, terms) = unsafe {
        (
            borrow::text(raw.name)?,
            borrow::text(raw.version)?,
            borrow::slice(raw.passes, raw.pass_count, "passes")?,
            borrow::slice(raw.terms, raw.term_count, "terms")?,
        )
    };
    let word = name.replace('-', "_");
    if !is_word(&word) {
        let what = "names are made of letters, digits, `-` and `_`";
        return Err(PassError::new(format!("it is called `{name}`; {what}")));
    }
    let title = format!("{name} {version}");
    let mut kinds: Kinds = Vec::new();
    for &def in terms {
        kinds.push(Box::leak(Box::new(ForeignKind::new(&title, &word, def)?)));
    }
    let entries = passes.iter().map(|&def| entry(&title, def));
    let plugin = Plugin {
        name: Box::leak(name.to_string().into_boxed_str()),
        version: version.to_string(),
        path: path.to_path_buf(),
        abi: (raw.abi_major, raw.abi_minor),
        isolated: false,
        passes: entries.collect::<Result<_, _>>()?,
        kinds: kinds
            .iter()
            .map(|k| (k.name().to_string(), k.summary().to_string()))
            .collect(),
    };
    Ok((plugin, kinds))
}

fn entry(plugin: &str, own: *const HlrcPassDef) -> Result<PassEntry, PassError> {
    let least = offset_of!(HlrcPassDef, run) + size_of::<usize>();
    // SAFETY: definitions live for ever, by the interface; all fields may be zero.
    let raw = unsafe { borrow::sized(own, least) }?;
    // SAFETY: so do their texts.
    let (name, summary, doc, schema) = unsafe {
        (
            borrow::text(raw.name)?,
            borrow::text(raw.summary)?,
            borrow::text(raw.doc)?,
            borrow::text(raw.schema)?,
        )
    };
    if !is_pass_name(name) {
        let what = "names are words of small letters and digits with `-` between them";
        return Err(PassError::new(format!("a pass is called `{name}`; {what}")));
    }
    let bad = |what: &str| PassError::new(format!("pass {name}: {what}"));
    if raw.create.is_none() {
        return Err(bad("it has no `create`"));
    }
    match (raw.peel, raw.run, raw.traits) {
        (Some(_), None, Some(_)) | (None, Some(_), _) => {}
        (Some(_), None, None) => return Err(bad("it has `peel` and no `traits`")),
        (Some(_), Some(_), _) => return Err(bad("it has both `peel` and `run`")),
        (None, None, _) => return Err(bad("it has neither `peel` nor `run`")),
    }
    let schema = checked_schema(schema).map_err(|e| bad(&e))?;
    let def: &'static Def = Box::leak(Box::new(Def {
        plugin: plugin.to_string(),
        name: name.to_string(),
        raw,
        own,
    }));
    let known = schema.clone();
    let build = move |options: Map<String, Value>| -> Result<Pass, PassError> {
        let options = with_defaults(&known, options);
        let options = serde_json::to_string(&options).map_err(PassError::new)?;
        let made = Made::new(def, &options)?;
        Ok(match def.raw.peel {
            Some(_) => Pass::Matrix(Box::new(ForeignMatrix::stated(made)?)),
            None => Pass::Module(Box::new(ForeignModule::new(made)?)),
        })
    };
    Ok(PassEntry {
        name: Box::leak(name.to_string().into_boxed_str()),
        summary: Box::leak(summary.to_string().into_boxed_str()),
        doc: Box::leak(doc.to_string().into_boxed_str()),
        schema: Box::leak(Box::new(move || schema.clone())),
        build: Box::leak(Box::new(build)),
    })
}

/// The schema of options as the pipeline needs it: an object whose properties are known.
pub(super) fn checked_schema(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(serde_json::json!({
            "type": "object", "properties": {}, "additionalProperties": false
        }));
    }
    let schema: Value =
        serde_json::from_str(text).map_err(|e| format!("its schema is no JSON: {e}"))?;
    let properties = schema.get("properties");
    if !schema.is_object() || properties.is_some_and(|p| !p.is_object()) {
        return Err("its schema is not that of an object".to_string());
    }
    Ok(schema)
}

/// Options with the schema's defaults for those that are not given, so that a plugin finds them all.
fn with_defaults(schema: &Value, mut options: Map<String, Value>) -> Map<String, Value> {
    let properties = schema.get("properties").and_then(Value::as_object);
    for (name, about) in properties.into_iter().flatten() {
        if let (Some(default), false) = (about.get("default"), options.contains_key(name)) {
            options.insert(name.clone(), default.clone());
        }
    }
    options
}

/// Whether pipelines can name a pass so.
fn is_pass_name(name: &str) -> bool {
    let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 60
        && name.bytes().all(letters)
        && !name.ends_with('-')
        && !name.contains("--")
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
