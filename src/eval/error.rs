//! Why a model cannot be judged.

use std::path::PathBuf;

use crate::exec::ExecError;
use crate::runtime::RuntimeError;

/// Why a model cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A model failed while it ran, or was interrupted.
    #[error("{model}: {source}")]
    Exec {
        /// The model.
        model: String,
        /// What happened.
        source: ExecError,
    },
    /// A model failed on its device, or was interrupted there.
    #[error("{model}: {source}")]
    Device {
        /// The model.
        model: String,
        /// What happened.
        source: Box<RuntimeError>,
    },
    /// Settings that contradict each other or the model.
    #[error("{0}")]
    Protocol(String),
    /// Too little text for one prediction.
    #[error("the text has {0} tokens; one prediction takes two")]
    TooShort(usize),
    /// Two models that do not speak of the same tokens or outputs.
    #[error("{a} and {b} cannot be compared: {problem}")]
    Unlike {
        /// One model.
        a: String,
        /// The other.
        b: String,
        /// What differs.
        problem: String,
    },
    /// Logits that are no numbers.
    #[error("{model}: logits at position {position} of window {window} are NaN or infinite")]
    NotFinite {
        /// The model.
        model: String,
        /// The window, from 0.
        window: usize,
        /// The position in it.
        position: usize,
    },
    /// A cache file that does not say what it should; the caller computes it again.
    #[error("{}: the cached logits are damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A cache file that cannot be written.
    #[error("{}: {source}", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// Inputs that cannot be read.
    #[error("{}: {problem}", path.display())]
    Inputs {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl EvalError {
    /// Whether the user stopped it.
    pub fn is_interrupt(&self) -> bool {
        match self {
            EvalError::Exec { source, .. } => matches!(source, ExecError::Interrupted),
            EvalError::Device { source, .. } => matches!(**source, RuntimeError::Interrupted),
            _ => false,
        }
    }

    pub(super) fn exec(model: &str) -> impl FnOnce(ExecError) -> Self {
        let model = model.to_string();
        move |source| EvalError::Exec { model, source }
    }
}
