//! Why a module cannot be run, or a run failed.

use crate::store::StoreError;

/// Why a module cannot be run, or a run failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// An op that the executor has no kernel for.
    #[error("cannot run {op}{}: {problem}", named(name))]
    Unsupported {
        /// What the op is called in text.
        op: String,
        /// The op's name in its source; may be empty.
        name: String,
        /// What is missing, and what to do.
        problem: String,
    },
    /// An op met a tensor that does not fit it.
    #[error("{op}{}: {problem}", named(name))]
    Shape {
        /// What the op is called in text.
        op: String,
        /// The op's name in its source; may be empty.
        name: String,
        /// What does not fit.
        problem: String,
    },
    /// A weight cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An input is missing, unknown, or of the wrong type or size.
    #[error("input {name}: {problem}")]
    Input {
        /// The input.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The module does not predict tokens.
    #[error("not a causal language model: {0}")]
    NotLanguageModel(String),
    /// More tokens than the model has positions for.
    #[error("{asked} tokens do not fit the model's context of {context}")]
    Context {
        /// Tokens that the sequence would have.
        asked: usize,
        /// Positions that the model knows.
        context: usize,
    },
    /// The user, or the caller, stopped the run.
    #[error("interrupted")]
    Interrupted,
}

fn named(name: &str) -> String {
    if name.is_empty() {
        String::new()
    } else {
        format!(" {name:?}")
    }
}
