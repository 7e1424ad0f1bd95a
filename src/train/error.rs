//! Why training ends early.

use std::path::PathBuf;

use super::grad::GradError;
use crate::exec::ExecError;
use crate::store::StoreError;
use crate::weights::WeightsError;

/// Why training ends early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model has an op that cannot be differentiated.
    #[error(transparent)]
    Grad(#[from] GradError),
    /// A run of the model failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A weight cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A checkpoint cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The settings cannot be followed for this model or data.
    #[error("{0}")]
    Settings(String),
    /// The loss, a gradient or a trained value is no number.
    #[error("step {step}: {what} is not a finite number; {kept}")]
    NotFinite {
        /// The step of the optimizer.
        step: u64,
        /// The loss and where it comes from, or the tensor.
        what: String,
        /// Which state is left.
        kept: String,
    },
    /// A trained value is beyond what its stored format can hold.
    #[error("step {step}: {what}; {kept}")]
    Overflow {
        /// The step of the optimizer.
        step: u64,
        /// The tensor, the value, the format.
        what: String,
        /// Which state is left.
        kept: String,
    },
    /// A checkpoint is of another run.
    #[error("{}: {problem}; start anew without --resume", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// The user stopped it.
    #[error("interrupted")]
    Interrupted,
}

impl TrainError {
    /// The error with what is left: the last good checkpoint.
    pub(super) fn with_kept(mut self, left: impl FnOnce() -> String) -> Self {
        if let TrainError::NotFinite { kept, .. } | TrainError::Overflow { kept, .. } = &mut self {
            *kept = left();
        }
        self
    }

    /// Whether values came to what no format holds: what was trained before is as good as it was.
    pub fn is_numeric(&self) -> bool {
        matches!(
            self,
            TrainError::NotFinite { .. } | TrainError::Overflow { .. }
        )
    }

    /// Whether the user stopped it.
    pub fn is_interrupt(&self) -> bool {
        matches!(
            self,
            TrainError::Interrupted | TrainError::Exec(ExecError::Interrupted)
        )
    }
}
