//! Plugins in processes of their own: a crash is an error like others.
//!
//! A child is this program with the hidden command `plugin-child`. It loads the plugin and answers questions
//! on its standard input: modules go through the pipe as text, with their weights mapped from the same
//! files; the matrix at hand is in a file that both sides map. Children wait for the next question when one
//! is answered; there are as many as threads have asked at once.

mod child;
mod passes;
mod pipes;
mod serve;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use child::Child;
use wire::{Answer, Ask};

use super::{Kinds, LoadError, Plugin};
use crate::pass::{PassEntry, PassError};
pub use serve::{OpenStatistics, serve};

/// The hidden command that a child is started with.
pub const COMMAND: &str = "plugin-child";

/// Its last argument where somebody hears of progress.
pub const TELL: &str = "--progress";

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// The program that children run, where it is not this process's own: for tests.
pub fn set_program(path: PathBuf) {
    let _ = PROGRAM.set(path);
}

/// A plugin that runs elsewhere.
struct Remote {
    /// The library.
    path: PathBuf,
    /// The plugin's name and version, once they are known.
    title: OnceLock<String>,
    idle: Mutex<Vec<Child>>,
}

impl Remote {
    /// Asks a child that is idle, or a new one.
    fn ask(
        &self,
        ask: &Ask,
        blobs: &[&[u8]],
        matrix: Option<&mut [f32]>,
    ) -> Result<Answer, PassError> {
        let idle = self.idle.lock().unwrap_or_else(|e| e.into_inner()).pop();
        let mut child = match idle {
            Some(child) => child,
            None => Child::start(&self.path).map_err(PassError::new)?,
        };
        // A child that failed is not asked again: it ends with its handle.
        let answer = child.ask(ask, blobs, matrix).map_err(PassError::new)?;
        self.idle
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .push(child);
        match answer {
            Answer::Failed { message } => Err(PassError::new(message)),
            answer => Ok(answer),
        }
    }

    /// An error of the process itself, with what it was at.
    fn error(&self, what: &str, error: &PassError) -> PassError {
        let title = self.title.get().map_or("", String::as_str);
        let said = error.to_string();
        match said.starts_with("plugin ") {
            true => error.clone(),
            false => PassError::new(format!("plugin {title}: {what}: {said}")),
        }
    }
}

/// Loads a plugin in a child, and makes what stands for its passes here.
pub(super) fn describe(path: &Path) -> Result<(Plugin, Kinds), LoadError> {
    let failed = |what: String| LoadError::Process {
        path: path.to_path_buf(),
        what,
    };
    let remote: &'static Remote = Box::leak(Box::new(Remote {
        path: path.to_path_buf(),
        title: OnceLock::new(),
        idle: Mutex::new(Vec::new()),
    }));
    let answer = remote.ask(&Ask::Describe, &[], None);
    let Answer::Plugin(about) = answer.map_err(|e| failed(e.to_string()))? else {
        return Err(failed(
            "it gave another answer than its description".to_string(),
        ));
    };
    let _ = remote
        .title
        .set(format!("{} {}", about.name, about.version));
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let mut passes = Vec::new();
    for pass in about.passes {
        let name = leak(pass.name);
        let schema = pass.schema;
        passes.push(PassEntry {
            name,
            summary: leak(pass.summary),
            doc: leak(pass.doc),
            schema: Box::leak(Box::new(move || schema.clone())),
            build: Box::leak(Box::new(move |options| {
                passes::build(remote, name, options)
            })),
        });
    }
    let mut kinds: Kinds = Vec::new();
    for (name, summary) in &about.kinds {
        kinds.push(Box::leak(Box::new(passes::RemoteKind {
            remote,
            name: name.clone(),
            summary: summary.clone(),
        })));
    }
    let plugin = Plugin {
        name: leak(about.name),
        version: about.version,
        path: path.to_path_buf(),
        abi: about.abi,
        isolated: true,
        passes,
        kinds: about.kinds,
    };
    Ok((plugin, kinds))
}
