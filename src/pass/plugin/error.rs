//! Why a plugin cannot be loaded.

use std::path::PathBuf;

/// Why a plugin cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such file, or it can't be read.
    #[error("{}: can't be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The file is no shared library.
    #[error("{}: is no shared library: {what}", path.display())]
    NotLibrary {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// The library is for another machine.
    #[error("{}: is a library for {have}, this is {need}", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What it is for.
        have: String,
        /// What it should be for.
        need: &'static str,
    },
    /// The file ends before what its header promises.
    #[error("{}: is cut off: its header promises {need} bytes, it has {have}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that it should have.
        need: u64,
        /// Bytes that it has.
        have: u64,
    },
    /// The system's loader refuses it.
    #[error("{}: can't be loaded: {what}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The loader's word.
        what: String,
    },
    /// It exports no entry.
    #[error("{}: is no plugin: it exports no symbol `{}`", path.display(), hlrc_pass_abi::HLRC_ENTRY)]
    NoSymbol {
        /// The file.
        path: PathBuf,
    },
    /// It is of another major version of the interface.
    #[error(
        "{}: was built for major version {have} of the plugin interface, this is {need}; {}", path.display(),
        if have > need { "a newer hlrc-opt loads it" } else { "build it anew with the current SDK" }
    )]
    Major {
        /// The file.
        path: PathBuf,
        /// Its version.
        have: u32,
        /// This one.
        need: u32,
    },
    /// It needs what a later minor version has.
    #[error(
        "{}: needs version {major}.{have} of the plugin interface, this is {major}.{need}; a newer hlrc-opt loads it",
        path.display()
    )]
    Minor {
        /// The file.
        path: PathBuf,
        /// The major version of both.
        major: u32,
        /// The minor version that it needs.
        have: u32,
        /// This one.
        need: u32,
    },
    /// It contradicts the interface.
    #[error("{}: is not a valid plugin: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Its own process ended, or could not be started.
    #[error("{}: its process failed: {what}", path.display())]
    Process {
        /// The file.
        path: PathBuf,
        /// How.
        what: String,
    },
}

impl LoadError {
    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self {
            Self::Read { .. } => {
                "check the path given with --load-pass-plugin or in HLRC_PLUGIN_PATH"
            }
            Self::NotLibrary { .. } | Self::NoSymbol { .. } => {
                "docs/plugins.md says how a plugin is built; `hlrc-opt plugin new NAME` makes one"
            }
            Self::Architecture { .. } => "build it for this machine",
            Self::Truncated { .. } => "copy or build it anew",
            Self::Open { .. } => "`ldd -r` shows which libraries and symbols it lacks",
            Self::Major { .. } | Self::Minor { .. } => "",
            Self::Invalid { .. } | Self::Process { .. } => "tell the plugin's author",
        }
    }
}
