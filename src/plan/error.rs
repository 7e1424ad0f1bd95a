//! Why a plan can't be made or read.

use std::path::PathBuf;

use crate::store::StoreError;

/// Why a plan can't be made, written, read or run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// An op, or how it is used, has no kernel.
    #[error("{op} `{name}`: {problem}")]
    Unsupported {
        /// What it is called in text.
        op: String,
        /// Its name in the source.
        name: String,
        /// What is not supported, and what to do.
        problem: String,
    },
    /// The module is no language model that a plan can be made of.
    #[error("{0}")]
    NotLanguageModel(String),
    /// A weight can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A weight's parts do not fit its shape.
    #[error("weight `{weight}`: {problem}")]
    Weight {
        /// The matrix or vector.
        weight: String,
        /// What does not fit.
        problem: String,
    },
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A target description or a plan that can't be understood.
    #[error("{place}: {problem}")]
    Format {
        /// The file, or the target's name.
        place: String,
        /// What is wrong, with the place in it.
        problem: String,
    },
    /// A plan does not hold what it claims.
    #[error("{0}")]
    Invalid(super::verify::Faults),
    /// A plan is run on something that it is not for.
    #[error("{what}: {problem}")]
    Run {
        /// The step, buffer or input.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// A kernel does not compile; the compiler's word.
    #[error("{0}")]
    Compile(String),
    /// It does not fit the device.
    #[error("{0}")]
    DoesNotFit(String),
    /// Stopped by the user.
    #[error("interrupted while weights were packed")]
    Interrupted,
}

impl PlanError {
    pub(super) fn unsupported(op: &str, name: &str, problem: impl Into<String>) -> Self {
        Self::Unsupported {
            op: op.to_string(),
            name: name.to_string(),
            problem: problem.into(),
        }
    }

    pub(super) fn weight(weight: &str, problem: impl Into<String>) -> Self {
        Self::Weight {
            weight: weight.to_string(),
            problem: problem.into(),
        }
    }

    pub(super) fn run(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Run {
            what: what.into(),
            problem: problem.into(),
        }
    }
}
