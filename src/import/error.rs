//! Why an input can't be imported: what, where, what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::ir::text::ParseError;
use crate::ir::verify::Violations;
use crate::weights::WeightsError;

/// Problems of tensors that one message lists.
const LISTED: usize = 12;

/// An input that can't be imported. Its `Display` says what and where, [`ImportError::help`] what to do.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The operating system refused.
    #[error("{}: can't be read: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file of weights is damaged, missing or unreadable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Nothing that an importer reads.
    #[error("{}: {found}", path.display())]
    Unrecognised {
        /// The file or folder.
        path: PathBuf,
        /// What it is instead.
        found: String,
        /// What to do.
        help: String,
    },
    /// Text that is no module.
    #[error("{}:{source}", path.display())]
    Text {
        /// The file, or `<stdin>`.
        path: PathBuf,
        /// The first mistake.
        source: ParseError,
    },
    /// A module that breaks invariants.
    #[error("{}: {violations}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Every invariant broken.
        violations: Violations,
    },
    /// A configuration that can't be used.
    #[error("{}: {}{problem}", path.display(), Field(field))]
    Config {
        /// The `config.json` or `manifest.json`.
        path: PathBuf,
        /// The field at fault; empty where it is the file as a whole.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// Tensors that don't fit the configuration.
    #[error("{}: {}", path.display(), Listed(architecture, problems))]
    Tensors {
        /// The checkpoint.
        path: PathBuf,
        /// The architecture that `config.json` names.
        architecture: String,
        /// What is wrong, one tensor each.
        problems: Vec<String>,
    },
    /// A checkpoint whose weights are quantized already.
    #[error("{}: the weights are quantized already ({found})", path.display())]
    Quantized {
        /// The checkpoint.
        path: PathBuf,
        /// How that shows.
        found: String,
    },
    /// An ONNX file that can't be imported.
    #[error("{}", Named(path, &source.to_string()))]
    Onnx {
        /// The file.
        path: PathBuf,
        /// What is wrong, where.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ImportError {
    /// What the user can do; empty where the message says it.
    pub fn help(&self) -> &str {
        match self {
            ImportError::Read { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "check the path",
                io::ErrorKind::PermissionDenied => "check the permissions",
                _ => "",
            },
            ImportError::Unrecognised { help, .. } => help,
            ImportError::Text { .. } => "docs/ir.md has the grammar of text IR",
            ImportError::Tensors { .. } => {
                "config.json and the weights are not of one version, or the model is no plain one of \
                 its class; without config.json its matrices are imported by themselves"
            }
            ImportError::Quantized { .. } => {
                "start from the original checkpoint in f32, f16 or bf16"
            }
            _ => "",
        }
    }

    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        ImportError::Read {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(crate) fn config(path: &Path, field: &str, problem: impl Into<String>) -> Self {
        ImportError::Config {
            path: path.to_path_buf(),
            field: field.to_string(),
            problem: problem.into(),
        }
    }
}

/// A message with its file in front, unless it names that itself.
struct Named<'a>(&'a Path, &'a str);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Named(path, message) = self;
        let shown = path.display().to_string();
        match message.contains(&shown) {
            true => f.write_str(message),
            false => write!(f, "{shown}: {message}"),
        }
    }
}

struct Field<'a>(&'a str);

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            field => write!(f, "`{field}` "),
        }
    }
}

struct Listed<'a>(&'a str, &'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Listed(architecture, problems) = self;
        write!(f, "{} of the tensors of {architecture}", count(problems))?;
        for problem in problems.iter().take(LISTED) {
            write!(f, "\n  {problem}")?;
        }
        match problems.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => write!(f, "\n  … and {more} more"),
        }
    }
}

fn count(problems: &[String]) -> String {
    match problems.len() {
        1 => "1 problem".to_string(),
        n => format!("{n} problems"),
    }
}
