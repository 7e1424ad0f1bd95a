//! The command line: parses arguments, calls the library, prints errors.

pub mod args;
mod argv;
mod error;
mod generate;
pub mod signal;

pub use error::{Exit, Failure};

use crate::pass::pipeline::error::nearest;
use args::{Cli, Command};
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;

/// Runs the command that the process's arguments say; the whole of `main`.
pub fn main() -> ExitCode {
    signal::install();
    let argv = argv::normalise(std::env::args_os());
    let cli = match Cli::try_parse_from(argv) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, with code 0; a closed pipe is no error.
            let _ = error.print();
            if let Some(hint) = usage_hint(&error) {
                let _ = writeln!(std::io::stderr().lock(), "\n  help: {hint}");
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(cli)));
    let exit = match outcome {
        Ok(Ok(exit)) => exit,
        Ok(Err(failure)) => {
            if !failure.is_silent() {
                let _ = writeln!(std::io::stderr().lock(), "error: {failure}");
            }
            failure.exit
        }
        Err(_) => Exit::Panic,
    };
    ExitCode::from(exit as u8)
}

/// What a usage error most likely comes from, beyond what clap can know.
fn usage_hint(error: &clap::Error) -> Option<String> {
    use clap::error::{ContextKind, ErrorKind};
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let extra = error.get(ContextKind::InvalidArg)?.to_string();
    if extra.starts_with('-') {
        return None;
    }
    let first = std::env::args().nth(1).unwrap_or_default();
    match nearest(&first, argv::COMMANDS) {
        Some(command) if command != first => Some(format!("did you mean the command `{command}`?")),
        _ => Some(
            "there is one input; quote the pipeline, so that the shell keeps it whole: -p 'a{k=v l=w},b'".into(),
        ),
    }
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    match cli.command {
        Some(Command::Completions(args)) => generate::completions(&args),
        Some(Command::Man(args)) => generate::man(&args),
        _ => Err(Failure::new(Exit::Failure, "not wired up yet")),
    }
}

/// Writes a command's result to stdout.
///
/// # Errors
/// A [`Failure`]; silent where the reader closed the pipe.
pub fn print(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text)
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::stdout(&error))
}
