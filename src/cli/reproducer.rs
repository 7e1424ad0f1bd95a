//! Crash reproducers: the module as it was imported, and the arguments, in one file of text IR.
//!
//! ```text
//! // hlrc-opt reproducer 1 (hlrc-opt 0.1.0)
//! // failure: lowrank: layers.3.q_proj: …
//! // base: /models/minilm
//! // input: /models/minilm/model.onnx
//! // arguments: ["-p","lowrank{rank=3}","--seed","0"]
//! // rerun: hlrc-opt run-reproducer hlrc-crash-1a2b3c4d.hlir
//! hlir 1
//! module "minilm" { … }
//! ```
//! Weights are references into the input's files. Where the input itself can't be imported, the module is
//! left out and the input is read again.

use super::args::OptArgs;
use super::{Exit, Failure, load};
use crate::ir::{Module, text};
use crate::weights::hash;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const MARK: &str = "// hlrc-opt reproducer 1";

/// What the last panic said, and where.
static PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Keeps panics quiet and remembers what they said; with RUST_BACKTRACE set they are printed too.
pub fn remember_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let said = info.payload();
        let text = said
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| said.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".into());
        let place = info
            .location()
            .map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
        if let Ok(mut last) = PANIC.lock() {
            *last = Some(format!("{text}{place}"));
        }
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            print(info);
        }
    }));
}

/// What the last panic said, if there was one.
pub fn last_panic() -> Option<String> {
    PANIC.lock().ok().and_then(|last| last.clone())
}

/// What a reproducer file holds.
#[derive(Debug)]
pub struct Reproducer {
    /// Arguments of `opt`, without input and output.
    pub arguments: Vec<String>,
    /// What went wrong.
    pub failure: String,
    /// The module as it was imported; none where that is what failed.
    pub module: Option<Module>,
    /// The input that the module came from.
    pub input: PathBuf,
}

/// The arguments that decide what a run computes.
pub fn arguments(args: &OptArgs) -> Vec<String> {
    let mut out = vec!["-p".to_owned(), args.pipeline.clone()];
    for text in &args.overrides {
        out.extend(["-t".to_owned(), text.clone()]);
    }
    out.extend(["--seed".to_owned(), args.seed.to_string()]);
    let mut number = |name: &str, value: Option<u64>| {
        if let Some(value) = value {
            out.extend([name.to_owned(), value.to_string()]);
        }
    };
    number("--bisect-limit", args.bisect_limit);
    number("--mem-limit", args.mem_limit);
    number("--threads", args.threads.map(u64::from));
    if let Some(pass) = &args.stop_after {
        out.extend(["--stop-after".to_owned(), pass.clone()]);
    }
    if args.debug.no_verify_each {
        out.push("--no-verify-each".to_owned());
    }
    out.extend(super::plugin::arguments());
    out
}

/// Writes a reproducer; returns its path.
///
/// # Errors
/// The system's, where the file can't be written.
pub fn write(args: &OptArgs, failure: &str) -> io::Result<PathBuf> {
    let input = args.input.clone().unwrap_or_default();
    let absolute = std::path::absolute(&input).unwrap_or_else(|_| input.clone());
    // The import may be what panics; then the file goes without a module.
    let import = || load::source(&load::Source::of(&input).ok()?).ok();
    let module = std::panic::catch_unwind(import)
        .ok()
        .flatten()
        .map(|loaded| loaded.module);
    let mut body = format!(
        "// failure: {}\n// input: {}\n// arguments: {}\n",
        failure.lines().collect::<Vec<_>>().join(" "),
        absolute.display(),
        serde_json::to_string(&arguments(args)).unwrap_or_default()
    );
    if let Some(module) = &module {
        let base =
            std::path::absolute(&module.base_dir).unwrap_or_else(|_| module.base_dir.clone());
        body.push_str(&format!("// base: {}\n", base.display()));
    }
    let digest = hash::Digest::of(body.as_bytes()).to_hex();
    let name = format!("hlrc-crash-{}.hlir", digest.get(..8).unwrap_or("0"));
    let path = args
        .debug
        .crash_reproducer
        .clone()
        .unwrap_or_else(|| PathBuf::from(name));
    let text = module.as_ref().map(text::print).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let shown = path.display();
    std::fs::write(
        &path,
        format!(
            "{MARK} (hlrc-opt {version})\n{body}// rerun: hlrc-opt run-reproducer {shown}\n{text}"
        ),
    )?;
    Ok(path)
}

/// Reads a reproducer.
///
/// # Errors
/// A [`Failure`], exit code 3, where the file is not one.
pub fn read(path: &Path) -> Result<Reproducer, Failure> {
    let bytes = std::fs::read(path).map_err(|error| Failure::read(path, &error))?;
    let content = String::from_utf8_lossy(&bytes);
    let bad = |what: String| {
        Failure::new(Exit::Input, format!("{}: {what}", path.display()))
            .help("reproducers are written by hlrc-opt when a pass fails")
    };
    if !content.starts_with(MARK) {
        return Err(bad(format!(
            "is no reproducer: its first line does not begin with `{MARK}`"
        )));
    }
    let field = |name: &str| {
        let comments = content.lines().take_while(|line| line.starts_with("//"));
        comments
            .filter_map(|line| {
                line.strip_prefix("// ")?
                    .strip_prefix(name)?
                    .strip_prefix(": ")
            })
            .next()
    };
    let arguments =
        field("arguments").ok_or_else(|| bad("has no line `// arguments: […]`".into()))?;
    let arguments = serde_json::from_str(arguments).map_err(|error| {
        bad(format!(
            "the line `// arguments:` is no JSON list of texts: {error}"
        ))
    })?;
    let has_module = content.lines().any(|line| line.starts_with("hlir "));
    let module = match has_module {
        false => None,
        true => {
            let mut module = text::parse(&content)
                .map_err(|error| bad(format!("the module can't be read: {error}")))?;
            module.base_dir = PathBuf::from(field("base").unwrap_or("."));
            Some(module)
        }
    };
    let input = PathBuf::from(field("input").unwrap_or_default());
    Ok(Reproducer {
        arguments,
        failure: field("failure").unwrap_or_default().into(),
        module,
        input,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;
    use clap::Parser;

    fn opt_args(words: &[&str]) -> OptArgs {
        Cli::try_parse_from([&["hlrc-opt"], words].concat())
            .expect("arguments")
            .opt
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let input = dir.path().join("m.hlir");
        let text = "hlir 1\nmodule \"m\" {\n  weight @w : f32[2,2] = hex\"00000000000000000000000000000000\"\n}\n";
        std::fs::write(&input, text).expect("written");
        let (input, output) = (
            input.to_str().expect("utf-8"),
            dir.path().join("crash.hlir"),
        );
        let place = output.to_str().expect("utf-8");
        let words = [
            "-p",
            "a{b=c},x(y)",
            "-t",
            "q=none",
            "--seed",
            "7",
            "--crash-reproducer",
            place,
            input,
        ];
        let args = opt_args(&words);
        let path = write(&args, "it broke\nbadly").expect("written");
        assert_eq!(path, output);
        let read = read(&path).expect("a reproducer");
        assert_eq!(read.failure, "it broke badly");
        assert_eq!(read.arguments, arguments(&args));
        assert_eq!(read.arguments[..4], ["-p", "a{b=c},x(y)", "-t", "q=none"]);
        assert_eq!(read.input, Path::new(input));
        let module = read.module.expect("the module is there");
        assert_eq!(module.weights.len(), 1);
        assert_eq!(module.base_dir, dir.path());
    }

    #[test]
    fn without_a_module_the_input_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = dir.path().join("crash.hlir");
        let words = [
            "gone.onnx",
            "--crash-reproducer",
            place.to_str().expect("utf-8"),
        ];
        let read = read(&write(&opt_args(&words), "no").expect("written")).expect("a reproducer");
        assert!(read.module.is_none() && read.input.ends_with("gone.onnx"));
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        for content in [
            "",
            "hlir 1",
            MARK,
            "// hlrc-opt reproducer 1\n// arguments: {}\n",
        ] {
            let path = dir.path().join("x");
            std::fs::write(&path, content).expect("written");
            assert_eq!(read(&path).expect_err("refused").exit, Exit::Input);
        }
    }
}
