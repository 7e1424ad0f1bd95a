//! Plugins: passes and kinds of terms from shared libraries, loaded at run time.
//!
//! The interface is plain C (`passes/sdk/abi`, `docs/plugins.md`): tables of functions with sizes, and
//! handles that mean nothing outside of the callback that they were given to. No Rust type crosses. What
//! comes out of it are ordinary passes ([`matrix`], [`module`]) and kinds of terms ([`kind`]), so that
//! nothing else of the tool knows who made a pass. A loaded library is never unloaded.
//!
//! A plugin's mistakes are errors that name it: its handles, numbers, texts and tensors are checked before
//! they are used, and its edits are a patch that is verified before it counts. What C cannot check, a crash
//! of the process, needs a process of its own ([`isolate`]).

mod borrow;
mod context;
mod edit;
mod elf;
mod error;
mod host;
pub mod isolate;
mod kind;
mod library;
mod matrix;
mod module;
mod scene;
mod stated;
mod walk;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{OnceLock, RwLock};

use super::PassEntry;
pub use error::LoadError;

/// A plugin that is loaded.
pub struct Plugin {
    /// Its name.
    pub name: &'static str,
    /// Its version, for people.
    pub version: String,
    /// Where it was loaded from.
    pub path: PathBuf,
    /// Major and minor version of the interface that it needs.
    pub abi: (u32, u32),
    /// Whether it runs in processes of its own.
    pub isolated: bool,
    /// Its passes.
    pub passes: Vec<PassEntry>,
    /// Its kinds of terms: full name and one line about each.
    pub kinds: Vec<(String, String)>,
}

static PLUGINS: RwLock<Vec<&'static Plugin>> = RwLock::new(Vec::new());
static CANCEL: OnceLock<&'static AtomicBool> = OnceLock::new();
static ON_PROGRESS: OnceLock<fn(&str)> = OnceLock::new();
/// The run's seed, for callbacks that are of no site.
static SEED: AtomicU64 = AtomicU64::new(0);

/// Every loaded plugin, in the order of loading.
pub fn loaded() -> Vec<&'static Plugin> {
    PLUGINS.read().unwrap_or_else(|e| e.into_inner()).clone()
}

/// Passes of loaded plugins.
pub fn entries() -> Vec<PassEntry> {
    let plugins = PLUGINS.read().unwrap_or_else(|e| e.into_inner());
    plugins.iter().flat_map(|p| p.passes.clone()).collect()
}

/// The plugin that a pass comes from; none where it is built in.
pub fn of(pass: &str) -> Option<&'static Plugin> {
    loaded()
        .into_iter()
        .find(|p| p.passes.iter().any(|e| e.name == pass))
}

/// The flag that plugins see as the user's wish to stop; the first one counts.
pub fn set_cancel(flag: &'static AtomicBool) {
    let _ = CANCEL.set(flag);
}

/// Who hears of the progress that plugins report; the first one counts.
pub fn set_progress(hear: fn(&str)) {
    let _ = ON_PROGRESS.set(hear);
}

/// Sets the run's seed before passes are built: `create`, `traits` and `cost` get it, which are of no site.
pub fn set_seed(seed: u64) {
    SEED.store(seed, Ordering::Relaxed);
}

fn seed() -> u64 {
    SEED.load(Ordering::Relaxed)
}

/// Has a plugin that ends this process out of a callback end it with code 1.
pub fn guard_exit() {
    context::guard_exit();
}

fn cancelled() -> bool {
    CANCEL.get().is_some_and(|f| f.load(Ordering::Relaxed))
}

/// Loads a plugin into this process, or into processes of its own. One that is loaded already stays as it is.
///
/// # Errors
/// [`LoadError`]; nothing of the plugin is registered then.
pub fn load(path: &Path, isolated: bool) -> Result<&'static Plugin, LoadError> {
    let path = std::fs::canonicalize(path).map_err(|source| LoadError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    if let Some(known) = loaded().into_iter().find(|p| p.path == path) {
        return Ok(known);
    }
    elf::check(&path)?;
    let (plugin, kinds) = match isolated {
        true => isolate::describe(&path)?,
        false => library::open(&path)?,
    };
    register(plugin, kinds)
}

type Kinds = Vec<&'static dyn super::kind::TermKind>;

fn register(plugin: Plugin, kinds: Kinds) -> Result<&'static Plugin, LoadError> {
    let mut plugins = PLUGINS.write().unwrap_or_else(|e| e.into_inner());
    let bad = |what: String| LoadError::Invalid {
        path: plugin.path.clone(),
        what,
    };
    if let Some(other) = plugins.iter().find(|p| p.name == plugin.name) {
        let (name, place) = (plugin.name, other.path.display());
        return Err(bad(format!(
            "a plugin `{name}` is loaded already, from {place}"
        )));
    }
    for (index, entry) in plugin.passes.iter().enumerate() {
        let name = entry.name;
        if crate::passes::ALL.iter().any(|e| e.name == name) {
            return Err(bad(format!(
                "its pass `{name}` has the name of a built-in pass"
            )));
        }
        let twice = plugin.passes.iter().take(index).any(|e| e.name == name);
        if twice {
            return Err(bad(format!("it registers the pass `{name}` twice")));
        }
        let other = plugins
            .iter()
            .find(|p| p.passes.iter().any(|e| e.name == name));
        if let Some(other) = other {
            let place = other.path.display();
            return Err(bad(format!(
                "its pass `{name}` is loaded already, from {place}"
            )));
        }
    }
    for (index, kind) in kinds.iter().enumerate() {
        let twice = kinds.iter().take(index).any(|k| k.name() == kind.name());
        if twice || super::kind::find(kind.name()).is_some() {
            let name = kind.name();
            return Err(bad(format!("it registers the kind of term `{name}` twice")));
        }
    }
    for kind in kinds {
        super::kind::register(kind);
    }
    let plugin: &'static Plugin = Box::leak(Box::new(plugin));
    plugins.push(plugin);
    Ok(plugin)
}

/// A library that `HLRC_PLUGIN_PATH` names.
pub struct Found {
    /// The library.
    pub path: PathBuf,
    /// Whether it was named itself, and not as one of a folder, where others may lie too.
    pub named: bool,
}

/// Libraries that `HLRC_PLUGIN_PATH` names: files, and all libraries of folders, in the order of names.
///
/// # Errors
/// A part that is neither.
pub fn search(list: &std::ffi::OsStr) -> Result<Vec<Found>, LoadError> {
    let mut found = Vec::new();
    for part in std::env::split_paths(list).filter(|p| !p.as_os_str().is_empty()) {
        let read = |source| LoadError::Read {
            path: part.clone(),
            source,
        };
        if !std::fs::metadata(&part).map_err(read)?.is_dir() {
            found.push(Found {
                path: part,
                named: true,
            });
            continue;
        }
        let files = std::fs::read_dir(&part).map_err(read)?;
        let library = |path: &PathBuf| {
            let extension = path.extension().and_then(|e| e.to_str());
            // Compilers of C are often told to write `.so` on macOS too.
            extension == Some(std::env::consts::DLL_EXTENSION)
                || (cfg!(unix) && extension == Some("so"))
        };
        let mut files: Vec<PathBuf> = files.flatten().map(|f| f.path()).filter(library).collect();
        files.sort();
        found.extend(files.into_iter().map(|path| Found { path, named: false }));
    }
    Ok(found)
}
