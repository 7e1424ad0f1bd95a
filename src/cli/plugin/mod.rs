//! `plugin`, and the loading of plugins for every command.

pub mod args;
mod check;
mod new;

use args::{Action, PluginArgs, PluginCommand};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::table::Table;
use super::{Exit, Failure, argv, passes, print, signal};
use crate::calib::Statistics;
use crate::pass::MomentSource;
use crate::pass::plugin::{self, LoadError, Plugin, isolate};

/// Variable that names libraries, or folders of them.
const PATH: &str = "HLRC_PLUGIN_PATH";
/// Between two lines about the progress of a plugin.
const PAUSE: Duration = Duration::from_secs(3);

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match signal::interrupted() {
            // What was loaded has not stopped by itself, and was ended.
            true => Self::new(Exit::Interrupted, format!("interrupted: {error}")),
            false => Self::new(Exit::Plugin, error.to_string()).help(error.help()),
        }
    }
}

/// Loads what arguments and environment name, in this order.
///
/// # Errors
/// The first that can't be loaded; exit code 6.
pub fn load(args: &PluginArgs) -> Result<(), Failure> {
    plugin::set_cancel(signal::flag());
    plugin::guard_exit();
    if !argv::quiet() {
        plugin::set_progress(hear);
    }
    for path in &args.load {
        plugin::load(path, args.isolate_plugins)?;
    }
    for found in plugin::search(&std::env::var_os(PATH).unwrap_or_default())? {
        match plugin::load(&found.path, args.isolate_plugins) {
            // A folder may hold libraries of others.
            Err(error @ LoadError::NoSymbol { .. }) if !found.named => {
                if !argv::quiet() {
                    // Without a stderr there is nobody to tell.
                    let _ = writeln!(std::io::stderr().lock(), "warning: {PATH}: {error}");
                }
            }
            loaded => {
                loaded?;
            }
        }
    }
    Ok(())
}

/// Tells what a plugin says of a long work: a line every few seconds, none of what is done at once.
fn hear(text: &str) {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(|e| e.into_inner());
    let waited = last.get_or_insert_with(Instant::now).elapsed();
    if waited > PAUSE {
        *last = Some(Instant::now());
        let mut stderr = std::io::stderr().lock();
        // On a terminal the bar stands on this line; it is drawn anew below.
        let clear = match stderr.is_terminal() {
            true => "\r\x1b[K",
            false => "",
        };
        // Without a stderr there is nobody to tell.
        let _ = writeln!(stderr, "{clear}    Progress {text}");
    }
}

/// Arguments that load the same plugins again.
pub fn arguments() -> Vec<String> {
    let mut out = Vec::new();
    for plugin in plugin::loaded() {
        out.extend([
            "--load-pass-plugin".to_owned(),
            plugin.path.display().to_string(),
        ]);
        if plugin.isolated && !out.contains(&"--isolate-plugins".to_owned()) {
            out.push("--isolate-plugins".to_owned());
        }
    }
    out
}

/// Runs `plugin`.
pub fn run(command: &PluginCommand, args: &PluginArgs) -> Result<Exit, Failure> {
    let text = match &command.action {
        Action::List { json } => list(*json),
        Action::Info { library, json } => {
            let plugin = plugin::load(library, args.isolate_plugins)?;
            match json {
                true => pretty(&about(plugin)),
                false => info(plugin),
            }
        }
        Action::Check { library } => check::run(plugin::load(library, args.isolate_plugins)?)?,
        Action::New {
            name,
            lang,
            dir,
            sdk,
        } => new::run(name, *lang, dir.as_deref(), sdk.as_deref())?,
    };
    print(text.as_bytes())?;
    Ok(Exit::Ok)
}

/// The other side of `--isolate-plugins`: `plugin-child LIBRARY SHARED`, on standard input and output.
pub fn child() -> Option<std::process::ExitCode> {
    let mut argv = std::env::args_os().skip(1);
    if argv.next()? != isolate::COMMAND {
        return None;
    }
    let (plugin, shared) = (PathBuf::from(argv.next()?), PathBuf::from(argv.next()?));
    plugin::set_cancel(signal::flag());
    if argv.next().is_some_and(|word| word == isolate::TELL) {
        plugin::set_progress(hear);
    }
    let done = signal::with_private_stdout(|to| serve(&plugin, &shared, to));
    Some(match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(_) => std::process::ExitCode::FAILURE,
    })
}

fn serve(plugin: &Path, shared: &Path, to: &mut std::fs::File) -> std::io::Result<()> {
    let from = &mut std::io::stdin().lock();
    isolate::serve(plugin, shared, open_statistics, from, to)
}

fn open_statistics(path: &Path) -> Result<Box<dyn MomentSource>, String> {
    let opened = Statistics::open(path).map_err(|e| e.to_string())?;
    Ok(Box::new(opened))
}

fn pretty(value: &Value) -> String {
    // A value made of strings and maps always prints.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

fn about(plugin: &Plugin) -> Value {
    json!({
        "name": plugin.name,
        "version": plugin.version,
        "path": plugin.path,
        "abi": format!("{}.{}", plugin.abi.0, plugin.abi.1),
        "isolated": plugin.isolated,
        "passes": plugin.passes.iter().map(passes::describe_json).collect::<Vec<_>>(),
        "terms": plugin.kinds.iter().map(|(name, summary)| json!({"name": name, "summary": summary}))
            .collect::<Vec<_>>(),
    })
}

fn list(json: bool) -> String {
    let plugins = plugin::loaded();
    if json {
        return pretty(&plugins.iter().map(|p| about(p)).collect());
    }
    if plugins.is_empty() {
        return format!("no plugin is loaded; --load-pass-plugin LIBRARY or {PATH} loads some\n");
    }
    let mut table = Table::new(&["plugin", "version", "passes", "kinds of terms", "library"]);
    for plugin in plugins {
        let passes: Vec<&str> = plugin.passes.iter().map(|p| p.name).collect();
        let kinds: Vec<&str> = plugin.kinds.iter().map(|k| k.0.as_str()).collect();
        table.row([
            plugin.name.to_owned(),
            plugin.version.clone(),
            passes.join(", "),
            kinds.join(", "),
            plugin.path.display().to_string(),
        ]);
    }
    table.render()
}

fn info(plugin: &Plugin) -> String {
    let (major, minor) = plugin.abi;
    let mut text = format!(
        "{} {}\nlibrary: {}\nplugin interface: {major}.{minor}\n",
        plugin.name,
        plugin.version,
        plugin.path.display()
    );
    for (name, summary) in &plugin.kinds {
        text.push_str(&format!("\nterm {name}: {summary}\n"));
    }
    for pass in &plugin.passes {
        text.push_str(&format!("\npass {}", passes::describe(pass)));
    }
    text
}
