//! The command line: parses arguments, calls the library, prints errors.

pub mod args;
mod argv;
pub mod bench;
mod budget;
pub mod calibrate;
mod checks;
pub mod compare;
mod describe;
pub mod device;
mod diff;
mod dot;
mod dry_run;
mod error;
mod errors;
pub mod eval;
pub mod fit;
mod generate;
mod inspect;
pub mod load;
mod new_pass;
mod opt;
mod outcome;
mod passes;
pub mod plan;
pub mod plugin;
pub mod prepare;
pub mod quantize;
pub mod report;
mod reproducer;
pub mod run;
mod sequential;
pub mod signal;
mod table;
mod target;
pub mod train;
mod trained;
mod verify;
mod watch;

pub use error::{Exit, Failure};

use crate::pass::pipeline::error::nearest;
use args::{Cli, Command, OptArgs};
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;

/// Runs the command that the process's arguments say; the whole of `main`.
pub fn main() -> ExitCode {
    if let Some(code) = plugin::child() {
        return code;
    }
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
    reproducer::remember_panics();
    // What a reproducer is written from, should this come to one.
    let recorded = match &cli.command {
        None => Some(cli.opt.clone()),
        Some(Command::Opt(args)) => Some((**args).clone()),
        _ => None,
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(cli)));
    let exit = match outcome {
        Ok(Ok(exit)) => exit,
        Ok(Err(failure)) => tell(&failure, recorded.as_ref()),
        Err(_) => tell(&panicked(), recorded.as_ref()),
    };
    ExitCode::from(exit as u8)
}

/// Prints a failure, and where it can be reproduced writes how.
fn tell(failure: &Failure, recorded: Option<&OptArgs>) -> Exit {
    if failure.is_silent() {
        return failure.exit;
    }
    let mut text = format!("error: {failure}");
    if let Some(args) = recorded.filter(|_| failure.reproducible) {
        match reproducer::write(args, &failure.message) {
            Ok(path) => text.push_str(&format!(
                "\n  reproduce: hlrc-opt run-reproducer {}",
                path.display()
            )),
            Err(error) => text.push_str(&format!(
                "\n  note: no reproducer could be written: {error}"
            )),
        }
    }
    // Without a stderr there is nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
    failure.exit
}

fn panicked() -> Failure {
    let said = reproducer::last_panic().unwrap_or_else(|| "no message".into());
    Failure::new(Exit::Panic, format!("internal error: {said}"))
        .help("this is a bug in hlrc-opt; please report it with the reproducer (RUST_BACKTRACE=1 shows more)")
        .reproducible()
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
    plugin::load(&cli.plugins)?;
    match cli.command {
        None => opt::run(&cli.opt),
        Some(Command::Opt(args)) => opt::run(&args),
        Some(Command::Quantize(args)) => quantize::run(&args),
        Some(Command::Run(args)) => run::run(&args),
        Some(Command::Inspect(args)) => inspect::run(&args),
        Some(Command::Fit(args)) => fit::run(&args),
        Some(Command::Diff(args)) => diff::run(&args),
        Some(Command::Verify(args)) => verify::run(&args),
        Some(Command::Eval(args)) => eval::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Calibrate(args)) => calibrate::run(&args),
        Some(Command::Compare(args)) => compare::run(&args),
        Some(Command::Train(args)) => train::run(&args),
        Some(Command::Report(args)) => report::run(&args),
        Some(Command::Passes(args)) => passes::run(&args),
        Some(Command::RunReproducer(args)) => opt::rerun(&args),
        Some(Command::Completions(args)) => generate::completions(&args),
        Some(Command::Man(args)) => generate::man(&args),
        Some(Command::NewPass(args)) => new_pass::run(&args),
        Some(Command::Plugin(args)) => plugin::run(&args, &cli.plugins),
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
