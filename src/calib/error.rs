//! Why there are no statistics.

use std::path::{Path, PathBuf};

use crate::exec::ExecError;
use crate::export::hlrc::FolderError;
use crate::report::human;
use crate::weights::WeightsError;

/// Why there are no statistics. [`CalibError::help`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CalibError {
    /// The model failed while it ran, or was interrupted.
    #[error("{model}: {source}")]
    Exec {
        /// The model.
        model: String,
        /// What happened.
        source: ExecError,
    },
    /// Settings that contradict each other, the model or the text.
    #[error("{0}")]
    Protocol(String),
    /// An activation that is no number, or squares that no f32 holds.
    #[error("{site}: what goes into it in window {window}, position {position}, is {what}")]
    NotFinite {
        /// The linear.
        site: String,
        /// The window, from 0.
        window: usize,
        /// The position in it.
        position: usize,
        /// NaN, infinite, or too large to be squared.
        what: &'static str,
    },
    /// The sums of one segment do not fit.
    #[error("the sums of {site} and its neighbours, and the activations of a batch, take {}, --mem-limit is {}", human::size(*need), human::size(*limit))]
    Memory {
        /// A linear of the segment.
        site: String,
        /// Bytes that are needed.
        need: u64,
        /// Bytes that are allowed.
        limit: u64,
    },
    /// The file cannot be read or written as a container.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The partial folder cannot be made or is used by another run.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A file that is no statistics, or damaged ones.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// An interrupted run that was another one.
    #[error("{}: the interrupted run was another one: {what}", path.display())]
    Other {
        /// Its journal.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// Statistics that cannot be added up, or do not fit the model.
    #[error("{a} and {b} do not go together: {problem}")]
    Unlike {
        /// One of them.
        a: String,
        /// The other.
        b: String,
        /// What differs.
        problem: String,
    },
}

/// What calibration returns.
pub type Result<T> = std::result::Result<T, CalibError>;

impl CalibError {
    /// What the user can do; empty where the message says it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::NotFinite { .. } => {
                "`hlrc-opt verify` finds weights that are NaN or infinite; other text may do"
            }
            Self::Memory { .. } => "allow more, or leave the limit out",
            Self::Other { .. } => "run without --resume to start anew",
            Self::Folder(FolderError::NothingToResume(_)) => "run without --resume",
            Self::Format { .. } => "make it anew with `hlrc-opt calibrate`",
            _ => "",
        }
    }

    /// Whether the user, or the caller, stopped it.
    pub fn is_interrupt(&self) -> bool {
        matches!(
            self,
            Self::Exec {
                source: ExecError::Interrupted,
                ..
            }
        )
    }

    pub(super) fn exec(model: &str) -> impl FnOnce(ExecError) -> Self {
        move |source| Self::Exec {
            model: model.to_string(),
            source,
        }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_path_buf(),
            source,
        }
    }

    pub(super) fn format(path: &Path, problem: impl Into<String>) -> Self {
        Self::Format {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }
}
