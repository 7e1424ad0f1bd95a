//! `bench`: how long each launch of a plan takes on a GPU, beside its estimate and the device's bandwidth.

pub mod args;

#[cfg(feature = "cuda")]
mod timed;

#[cfg(not(feature = "cuda"))]
use {
    super::{Exit, Failure},
    args::BenchArgs,
};

/// Times a plan.
///
/// # Errors
/// There is no GPU, or the model does not run on it.
#[cfg(not(feature = "cuda"))]
pub fn run(args: &BenchArgs) -> Result<Exit, Failure> {
    let what = format!(
        "{}: this program was built without the feature `cuda`",
        args.model.display()
    );
    Err(Failure::new(Exit::Failure, what).help("build it with default features"))
}

#[cfg(feature = "cuda")]
pub use timed::run;
