//! Arguments about plugins.

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

const PLUGINS: &str = "Plugins";

/// Which plugins are loaded; every command takes these.
#[derive(Debug, Clone, Default, Args)]
pub struct PluginArgs {
    /// A plugin with passes and kinds of terms, loaded before the pipeline is read; may be given several times
    #[arg(long = "load-pass-plugin", alias = "load-plugin", value_name = "LIBRARY", global = true,
          value_hint = ValueHint::FilePath, help_heading = PLUGINS)]
    pub load: Vec<PathBuf>,
    /// Run plugins in processes of their own, so that a crash of theirs is an error like others
    #[arg(long, global = true, help_heading = PLUGINS)]
    pub isolate_plugins: bool,
}

/// What `plugin` takes.
#[derive(Debug, Clone, Args)]
pub struct PluginCommand {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What `plugin` does.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// List the loaded plugins with their passes
    List {
        /// JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a plugin holds: its version, passes with options, kinds of terms
    Info {
        /// The library
        #[arg(value_name = "LIBRARY", value_hint = ValueHint::FilePath)]
        library: PathBuf,
        /// JSON
        #[arg(long)]
        json: bool,
    },
    /// Try a plugin: each pass with its defaults on small matrices, its kinds of terms against what they decode
    Check {
        /// The library
        #[arg(value_name = "LIBRARY", value_hint = ValueHint::FilePath)]
        library: PathBuf,
    },
    /// Write a plugin to start from, with a golden test
    New {
        /// Name of the pass and its folder, as pipelines will spell it
        #[arg(value_name = "NAME")]
        name: String,
        /// Language of its source
        #[arg(long, value_enum, default_value_t, value_name = "LANGUAGE")]
        lang: Language,
        /// Folder to write it to [default: NAME]
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
        /// The SDK, passes/sdk of hlrc-opt's sources [default: found from here, else hlrc-opt's repository]
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        sdk: Option<PathBuf>,
    },
}

/// Language of a plugin's source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// Rust, with the SDK
    #[default]
    Rust,
    /// C, with the header alone
    C,
}
