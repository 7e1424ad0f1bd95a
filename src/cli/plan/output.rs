//! Where a plan goes.

use super::super::args::OptArgs;
use super::super::{Exit, Failure};
use super::default_output;
use crate::plan::folder::PLAN_FILE;
use std::path::{Path, PathBuf};

/// Where a plan goes.
pub(super) enum Place {
    /// Its text to stdout.
    Stdout,
    /// Nowhere: what it would cost is told.
    Nowhere,
    /// A folder.
    Folder(PathBuf),
}

impl Place {
    /// By the command line.
    ///
    /// # Errors
    /// Nothing may or can be written there.
    pub(super) fn of(args: &OptArgs, input: &Path) -> Result<Self, Failure> {
        if args.dry_run {
            return Ok(Self::Nowhere);
        }
        if args.text {
            return match &args.output {
                None => Ok(Self::Stdout),
                Some(path) if path == Path::new("-") => Ok(Self::Stdout),
                Some(_) => Err(Failure::new(
                    Exit::Usage,
                    "-S prints a plan's text to stdout, and -o names a place",
                )
                .help("leave one out; a plan's folder has its text in it, plan.txt")),
            };
        }
        let path = match &args.output {
            Some(path) if path == Path::new("-") => {
                return Err(Failure::new(
                    Exit::Usage,
                    "a plan is a folder, and can't go to stdout",
                )
                .help("name a folder with -o, or add -S for its text"));
            }
            Some(path) => path.clone(),
            None => default_output(input)?,
        };
        let shown = path.display().to_string();
        let fault = |what: String, help: &str| Err(Failure::new(Exit::Failure, what).help(help));
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        if !parent.unwrap_or(Path::new(".")).is_dir() {
            return fault(
                format!("{shown}: the folder that it is to be in does not exist"),
                "create it first",
            );
        }
        if path.symlink_metadata().is_ok() {
            if !path.is_dir() {
                return fault(
                    format!("{shown}: is a file, and a plan is a folder"),
                    "choose another place with -o",
                );
            }
            let mut entries = path.read_dir().map_err(|e| Failure::read(&path, &e))?;
            let empty = entries.next().is_none();
            if !empty && !path.join(PLAN_FILE).is_file() {
                return fault(
                    format!("{shown}: is no plan, and is not replaced"),
                    "choose another place with -o, or remove it yourself",
                );
            }
            if !empty && !args.force {
                return fault(
                    format!("{shown}: is there already"),
                    "--force replaces it, -o chooses another place",
                );
            }
        }
        Ok(Self::Folder(path))
    }

    /// Where a rewritten model stays until its plan is made.
    pub(super) fn scratch(&self) -> PathBuf {
        match self {
            Place::Folder(path) => {
                let mut name = path.file_name().unwrap_or_default().to_os_string();
                name.push(".model");
                path.with_file_name(name)
            }
            _ => std::env::temp_dir().join(format!("hlrc-plan-{}.model", std::process::id())),
        }
    }
}
