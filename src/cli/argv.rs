//! Argument spellings of LLVM's and MLIR's `opt`, brought into ours before clap sees them.

use std::ffi::{OsStr, OsString};

/// Long options that LLVM's tools take with a single dash.
const SINGLE_DASH: [&str; 21] = [
    "passes",
    "pass-pipeline",
    "verify-each",
    "no-verify-each",
    "time-passes",
    "print-after-all",
    "print-before-all",
    "print-after",
    "print-before",
    "print-changed",
    "print-passes",
    "print-pipeline-passes",
    "stats",
    "opt-bisect-limit",
    "stop-after",
    "run-reproducer",
    "load-pass-plugin",
    "pass-remarks-output",
    "help",
    "version",
    "threads",
];

/// The subcommands, as `args` defines them.
pub const COMMANDS: [&str; 19] = [
    "opt",
    "quantize",
    "run",
    "inspect",
    "fit",
    "diff",
    "verify",
    "eval",
    "bench",
    "calibrate",
    "compare",
    "train",
    "report",
    "passes",
    "run-reproducer",
    "new-pass",
    "plugin",
    "completions",
    "man",
];

/// The arguments in our spelling: single-dash long options get their second dash, and options that are
/// subcommands here (`--print-passes`, `--run-reproducer=F`) become them.
///
/// Everything after `--` is left alone. Where no subcommand comes first, `opt` is put there.
pub fn normalise(argv: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    let mut literal = false;
    for (index, argument) in argv.into_iter().enumerate() {
        literal |= argument == "--";
        match argument
            .to_str()
            .filter(|_| !literal && index > 0)
            .and_then(long_form)
        {
            Some(long) => out.push(long),
            None => out.push(argument),
        }
    }
    if let Some(command) = as_subcommand(&out) {
        return command;
    }
    with_command(out)
}

/// Puts the subcommand first: before `-q`, `-v`, `--color=…` and options about plugins that stand ahead of
/// it, or as `opt`.
fn with_command(mut argv: Vec<OsString>) -> Vec<OsString> {
    let talk = |a: &OsString| {
        let text = a.to_str().unwrap_or("");
        text.starts_with("--color=")
            || matches!(text, "-q" | "--quiet" | "--verbose" | "-v" | "-vv")
    };
    let mut ahead = 0;
    while let Some(argument) = argv.get(1 + ahead) {
        let text = argument.to_str().unwrap_or("");
        ahead += match text {
            "--load-pass-plugin" | "--load-plugin" => 2,
            "--isolate-plugins" => 1,
            _ if text.starts_with("--load-pass-plugin=") => 1,
            _ if talk(argument) => 1,
            _ => break,
        };
    }
    let Some(first) = argv.get(1 + ahead).and_then(|a| a.to_str().or(Some(""))) else {
        return argv;
    };
    if COMMANDS.contains(&first) {
        let command = argv.remove(1 + ahead);
        argv.insert(1, command);
    } else if !matches!(first, "-h" | "--help" | "-V" | "--version" | "help") {
        argv.insert(1, "opt".into());
    }
    argv
}

/// Whether the process was asked to say errors only.
pub fn quiet() -> bool {
    let flags = |text: &str| {
        let short = text.strip_prefix('-').unwrap_or("");
        short.contains('q') && short.bytes().all(|b| b"fqv".contains(&b))
    };
    let mut arguments = std::env::args_os()
        .skip(1)
        .take_while(|argument| argument != "--");
    arguments.any(|a| a == "--quiet" || a.to_str().is_some_and(flags))
}

fn long_form(argument: &str) -> Option<OsString> {
    let name = argument.strip_prefix('-')?;
    let bare = name.split('=').next().unwrap_or(name);
    SINGLE_DASH
        .contains(&bare)
        .then(|| OsString::from(format!("-{argument}")))
}

fn as_subcommand(argv: &[OsString]) -> Option<Vec<OsString>> {
    let program = argv.first()?.clone();
    let flags: Vec<&str> = argv
        .iter()
        .skip(1)
        .map_while(|a| (a != OsStr::new("--")).then(|| a.to_str().unwrap_or("")))
        .collect();
    if flags
        .iter()
        .any(|flag| matches!(*flag, "--print-passes" | "--list-passes"))
    {
        return Some(vec![program, "passes".into()]);
    }
    let at = flags
        .iter()
        .position(|flag| flag.starts_with("--run-reproducer"))?;
    let flag = flags.get(at)?;
    let file = match flag.strip_prefix("--run-reproducer")?.strip_prefix('=') {
        Some(file) => OsString::from(file),
        None => argv.get(at + 2)?.clone(),
    };
    Some(vec![program, "run-reproducer".into(), file])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(args: &[&str]) -> Vec<String> {
        let argv = std::iter::once("hlrc-opt")
            .chain(args.iter().copied())
            .map(OsString::from);
        normalise(argv)
            .into_iter()
            .skip(1)
            .map(|a| a.into_string().expect("utf-8"))
            .collect()
    }

    #[test]
    fn llvm_spellings() {
        assert_eq!(
            normal(&["-passes=a,b", "x.onnx", "-S"]),
            ["opt", "--passes=a,b", "x.onnx", "-S"]
        );
        assert_eq!(
            normal(&["-verify-each", "-p", "a"]),
            ["opt", "--verify-each", "-p", "a"]
        );
        assert_eq!(
            normal(&["-time-passes", "--", "-passes"]),
            ["opt", "--time-passes", "--", "-passes"]
        );
        assert_eq!(normal(&["-print-passes"]), ["passes"]);
        assert_eq!(normal(&["--run-reproducer=f"]), ["run-reproducer", "f"]);
        assert_eq!(normal(&["-run-reproducer", "f"]), ["run-reproducer", "f"]);
        assert_eq!(normal(&["-o", "-"]), ["opt", "-o", "-"]);
    }

    #[test]
    fn the_subcommand_comes_first() {
        assert_eq!(normal(&["-q", "inspect", "x"]), ["inspect", "-q", "x"]);
        assert_eq!(normal(&["-v", "x.onnx"]), ["opt", "-v", "x.onnx"]);
        assert_eq!(
            normal(&[
                "-load-pass-plugin",
                "a.so",
                "--isolate-plugins",
                "passes",
                "a"
            ]),
            [
                "passes",
                "--load-pass-plugin",
                "a.so",
                "--isolate-plugins",
                "a"
            ]
        );
        assert_eq!(
            normal(&["--load-pass-plugin=a.so", "x.onnx"]),
            ["opt", "--load-pass-plugin=a.so", "x.onnx"]
        );
        assert_eq!(normal(&["--help"]), ["--help"]);
        assert_eq!(normal(&["-V"]), ["-V"]);
        assert!(normal(&[]).is_empty());
        use clap::CommandFactory;
        let command = crate::cli::args::Cli::command();
        let defined: Vec<&str> = command.get_subcommands().map(|c| c.get_name()).collect();
        assert_eq!(defined, COMMANDS);
        command.debug_assert();
    }
}
