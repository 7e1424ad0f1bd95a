//! The library's errors as failures of a command: which exit code, what to do.

use super::{Exit, Failure};
use crate::exec::ExecError;
use crate::export::hlrc::FolderError;
use crate::export::onnx::ExportError;
use crate::opt::OptError;
use crate::pass::manager::{RunError, ScheduleError};
use crate::report::human;
use crate::store::{SinkError, StoreError};
use crate::weights::WeightsError;

/// A pipeline that can't be run.
pub fn schedule(error: &ScheduleError) -> Failure {
    Failure::new(Exit::Usage, error.to_string())
}

/// A job that ended early.
pub fn job(error: &OptError) -> Failure {
    let text = error.to_string();
    match error {
        OptError::Run(error) => run(error),
        OptError::Folder(FolderError::Store(error)) => store(error),
        OptError::Folder(FolderError::Io { path, source }) => Failure::write(path, source),
        OptError::Folder(FolderError::Weights(error)) | OptError::Weights(error) => weights(error),
        OptError::Folder(FolderError::Sink(error)) | OptError::Sink(error) => sink(error),
        OptError::Folder(FolderError::Interrupted) => Failure::new(Exit::Interrupted, text)
            .help("the same command with --resume goes on from there"),
        OptError::Export(ExportError::Store(error)) if is_plugin(error) => store(error),
        OptError::Folder(_) | OptError::Export(_) => Failure::new(Exit::Failure, text),
    }
}

/// Passes that ended early.
pub fn run(error: &RunError) -> Failure {
    let text = error.to_string();
    match error {
        RunError::Syntax(_) => Failure::new(Exit::Usage, text),
        RunError::Pass { .. } | RunError::Invalid { .. } | RunError::Patch(_) => {
            Failure::new(Exit::Failure, text).reproducible()
        }
        RunError::Statistics { .. } => Failure::new(Exit::Input, text),
        RunError::Weight { .. } | RunError::NothingToDo | RunError::NothingLeft(_) => Failure::new(Exit::Failure, text),
        RunError::Panic { .. } => Failure::new(Exit::Panic, format!("internal error: {text}"))
            .help("this is a bug in the pass; please report it with the reproducer (RUST_BACKTRACE=1 shows more)")
            .reproducible(),
        RunError::Store(error) => store(error),
        RunError::Sink(error) => sink(error),
        RunError::Memory { site, need, limit } => {
            let (need, limit) = (human::size(*need), human::size(*limit));
            let what = format!("--mem-limit {limit}: {site} alone takes {need} with one thread");
            let help = format!("allow {need}, or leave the tensor out with -t '{site}=none'");
            Failure::new(Exit::Infeasible, what).help(help)
        }
        RunError::Interrupted { .. } => {
            Failure::new(Exit::Interrupted, text).help("the same command with --resume goes on from there")
        }
    }
}

fn store(error: &StoreError) -> Failure {
    Failure::new(of_store(error), error.to_string())
}

fn is_plugin(error: &StoreError) -> bool {
    matches!(error, StoreError::Kind { .. } | StoreError::Plugin { .. })
}

/// The code of a weight that can't be had.
pub fn of_store(error: &StoreError) -> Exit {
    match error {
        StoreError::TooLarge(_) => Exit::Infeasible,
        StoreError::Kind { .. } => Exit::Plugin,
        StoreError::Plugin { .. } => Exit::Failure,
        _ => Exit::Input,
    }
}

/// The code of a model that can't be run.
pub fn of_exec(error: &ExecError) -> Exit {
    match error {
        ExecError::Store(error) if is_plugin(error) => of_store(error),
        ExecError::Interrupted => Exit::Interrupted,
        _ => Exit::Input,
    }
}

fn sink(error: &SinkError) -> Failure {
    match error {
        SinkError::Weights(error) => weights(error),
        _ => Failure::new(Exit::Failure, error.to_string()),
    }
}

fn weights(error: &WeightsError) -> Failure {
    let exit = if error.is_bad_input() {
        Exit::Input
    } else {
        Exit::Failure
    };
    Failure::new(exit, error.to_string())
}
