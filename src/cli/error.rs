//! What ends a command: a message in three parts, and the exit code.

use crate::import::ImportError;
use crate::pass::pipeline::SyntaxError;
use std::fmt;
use std::path::Path;

/// Exit codes, as the manual documents them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All went well.
    Ok = 0,
    /// A pass or a verification failed, or output could not be written.
    Failure = 1,
    /// The command line or the pipeline can't be understood.
    Usage = 2,
    /// The input is damaged or of an unsupported format.
    Input = 3,
    /// It can't be done within the limits given.
    Infeasible = 4,
    /// A quality gate was missed.
    Gate = 5,
    /// A plugin can't be loaded, or one that terms need is not loaded.
    Plugin = 6,
    /// An internal error; a reproducer was written.
    Panic = 101,
    /// Interrupted; `--resume` continues.
    Interrupted = 130,
}

/// Why a command ended: what happened, where, what to do.
#[derive(Debug)]
pub struct Failure {
    /// The code that the process ends with.
    pub exit: Exit,
    /// What happened, with the place (file, tensor, offset, column) in it.
    pub message: String,
    /// What to do about it; may be empty.
    pub help: String,
    /// Whether the same module and arguments give it again, so that a reproducer is of use.
    pub reproducible: bool,
}

impl Failure {
    /// A failure with its code and message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            help: String::new(),
            reproducible: false,
        }
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// The same, marked as coming from a pass or a check of its result.
    #[must_use]
    pub fn reproducible(mut self) -> Self {
        self.reproducible = true;
        self
    }

    /// A file that could not be read.
    pub fn read(path: &Path, error: &std::io::Error) -> Self {
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check the file's permissions",
            _ => "",
        };
        Self::new(
            Exit::Input,
            format!("{}: can't be read: {error}", path.display()),
        )
        .help(help)
    }

    /// A file that could not be written.
    pub fn write(path: &Path, error: &std::io::Error) -> Self {
        let help = match error.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                "choose a place that can be written with -o"
            }
            std::io::ErrorKind::StorageFull => "free some space, or choose another place with -o",
            std::io::ErrorKind::NotFound => "create the directory first",
            _ => "",
        };
        Self::new(
            Exit::Failure,
            format!("{}: can't be written: {error}", path.display()),
        )
        .help(help)
    }

    /// Output to stdout that failed; a closed pipe (`| head`) is no error.
    pub fn stdout(error: &std::io::Error) -> Self {
        let exit = if error.kind() == std::io::ErrorKind::BrokenPipe {
            Exit::Ok
        } else {
            Exit::Failure
        };
        Self::new(exit, format!("stdout: can't be written: {error}"))
    }

    /// Whether there is anything to tell the user.
    pub fn is_silent(&self) -> bool {
        self.exit == Exit::Ok
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.help.is_empty() {
            Ok(())
        } else {
            write!(f, "\n  help: {}", self.help)
        }
    }
}

impl std::error::Error for Failure {}

impl From<SyntaxError> for Failure {
    fn from(error: SyntaxError) -> Self {
        // Its Display has the place and the help in it.
        Self::new(Exit::Usage, error.to_string())
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        Self::new(Exit::Input, error.to_string()).help(error.help())
    }
}
