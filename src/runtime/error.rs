//! Why a plan can't be run.

use crate::plan::PlanError;

/// Why a plan can't be run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A device that there is no such thing as.
    #[error("device `{0}` is not known: there are `cpu` and `cuda:0`, `cuda:1` and so on")]
    UnknownDevice(String),
    /// A GPU is asked for where there is none.
    #[error("no GPU can be used: {0}")]
    NoGpu(String),
    /// The driver or the device refuses.
    #[error("{doing}: {problem}")]
    Driver {
        /// What was being done.
        doing: String,
        /// The driver's word.
        problem: String,
    },
    /// Kernels are to be compiled where there is no compiler.
    #[error("no compiler of CUDA kernels: {0}")]
    NoCompiler(String),
    /// A kernel does not compile.
    #[error("kernel `{kernel}` does not compile for {arch}:\n{log}")]
    Compile {
        /// The kernel, with its defines.
        kernel: String,
        /// `sm_89`
        arch: String,
        /// The compiler's word.
        log: String,
    },
    /// The plan is for another device, or holds what this runtime has not.
    #[error("the plan can't run here: {0}")]
    Unfit(String),
    /// Memory of the device is short.
    #[error(
        "{device} has {free_bytes} bytes free, the plan needs {needed_bytes}: choose fewer bits, a shorter --ctx, or --kv q8"
    )]
    Memory {
        /// The device.
        device: String,
        /// What the plan needs.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// More tokens than the plan has room for.
    #[error("{tokens} tokens do not fit the plan's context of {context}")]
    Context {
        /// Tokens seen and new.
        tokens: usize,
        /// The plan's.
        context: usize,
    },
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A step or a buffer is not what the plan says.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl RuntimeError {
    /// A plan that names what it does not have.
    pub(crate) fn broken(what: &str, problem: impl Into<String>) -> Self {
        Self::Plan(PlanError::Run {
            what: what.to_string(),
            problem: problem.into(),
        })
    }
}
