//! `opt`: import, passes, output.

use super::args::{Cli, Color, Command, OptArgs, ReproducerArgs, TalkArgs};
use super::load::{self, Source};
use super::prepare::{Prepared, prepare};
use super::rebase::rebase;
use super::target::Target;
use super::{Exit, Failure, print, reproducer};
use crate::ir::{Module, text};
use crate::report::progress::{Progress, Style};
use clap::Parser;
use std::path::Path;

/// Runs a pipeline on a model and writes the result.
pub fn run(args: &OptArgs) -> Result<Exit, Failure> {
    let prepared = prepare(args)?;
    if args.print_pipeline {
        print(prepared.spelled_out().as_bytes())?;
        return Ok(Exit::Ok);
    }
    let Some(input) = &args.input else {
        return Err(Failure::new(Exit::Usage, "no input is named").help("hlrc-opt IN -p PIPELINE"));
    };
    let source = Source::of(input)?;
    let target = Target::of(args, &source)?;
    let progress = progress(&args.talk);
    progress.stage("Importing", &load::describe(&source));
    let module = load::source(&source)?;
    execute(args, &prepared, &target, &progress, module)
}

/// Runs what a reproducer recorded; what it writes goes to a folder that is removed again.
pub fn rerun(args: &ReproducerArgs) -> Result<Exit, Failure> {
    let recorded = reproducer::read(&args.file)?;
    let scratch = std::env::temp_dir().join(format!("hlrc-rerun-{}.hlrc", std::process::id()));
    let words = ["hlrc-opt", "opt"].into_iter().map(str::to_owned);
    let input = recorded.input.to_string_lossy().into_owned();
    let words = words
        .chain(recorded.arguments)
        .chain(["--".to_owned(), input]);
    let cli = Cli::try_parse_from(words).map_err(|error| {
        let told = error.to_string();
        Failure::new(
            Exit::Input,
            format!(
                "{}: the recorded arguments don't fit: {told}",
                args.file.display()
            ),
        )
    })?;
    let mut again = match cli.command {
        Some(Command::Opt(again)) => *again,
        _ => cli.opt,
    };
    again.talk = args.talk;
    again.output = Some(scratch.clone());
    let prepared = prepare(&again)?;
    let progress = progress(&again.talk);
    progress.stage("Reproducing", &recorded.failure);
    let module = match recorded.module {
        Some(module) => module,
        None => load::model(&recorded.input)?,
    };
    let outcome = execute(
        &again,
        &prepared,
        &Target::Folder(scratch.clone()),
        &progress,
        module,
    );
    // A scratch folder that can't be removed is not this command's failure.
    let _ = std::fs::remove_dir_all(&scratch);
    let exit = outcome?;
    progress.stage("Done", "it did not happen again");
    Ok(exit)
}

fn execute(
    _args: &OptArgs,
    _prepared: &Prepared,
    target: &Target,
    _progress: &Progress,
    mut module: Module,
) -> Result<Exit, Failure> {
    match target {
        Target::Stdout => {
            rebase(&mut module, Path::new("."));
            print(text::print(&module).as_bytes())?;
        }
        Target::Text(path) => {
            rebase(&mut module, path.parent().unwrap_or(Path::new(".")));
            write_text(path, &text::print(&module))?;
        }
        _ => {
            let what = "this kind of output is not available in this build";
            return Err(Failure::new(Exit::Failure, what));
        }
    }
    Ok(Exit::Ok)
}

/// Progress as the flags want it.
pub fn progress(talk: &TalkArgs) -> Progress {
    let color = match talk.color {
        Color::Auto => None,
        Color::Always => Some(true),
        Color::Never => Some(false),
    };
    Progress::new(Style::stderr(talk.quiet, talk.verbose, color))
}

/// Writes a text file whole or not at all: under a temporary name, then renamed.
///
/// # Errors
/// A [`Failure`] with the path.
pub fn write_text(path: &Path, content: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::write(path, &error);
    // A device (/dev/full, /dev/stdout) is written to; there is nothing to rename onto.
    if path.exists() && !path.is_file() {
        return std::fs::write(path, content).map_err(failed);
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written =
        std::fs::write(&temporary, content).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        // Nothing half-written is left; that this fails too changes nothing.
        let _ = std::fs::remove_file(&temporary);
        failed(error)
    })
}
