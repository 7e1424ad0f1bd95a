//! Completions and manual pages, made from the definitions.

use super::args::{Cli, CompletionsArgs, ManArgs};
use super::{Exit, Failure, print};
use clap::CommandFactory;

/// Prints a completion script.
pub fn completions(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hlrc-opt", &mut script);
    print(&script)?;
    Ok(Exit::Ok)
}

/// Prints the manual page, or writes one per subcommand into a directory.
pub fn man(args: &ManArgs) -> Result<Exit, Failure> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command())
            .render(&mut page)
            .map_err(|error| Failure::stdout(&error))?;
        print(&page)?;
        return Ok(Exit::Ok);
    };
    std::fs::create_dir_all(dir).map_err(|error| Failure::write(dir, &error))?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(|error| Failure::write(dir, &error))?;
    Ok(Exit::Ok)
}
