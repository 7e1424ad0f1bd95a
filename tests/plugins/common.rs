//! What the tests share: built libraries, runs of the program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The program.
pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_hlrc-opt"))
}

/// The library of a package of this workspace, built where it is not.
pub fn library(package: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let folder = program().parent().expect("a folder").to_path_buf();
        // `cargo test` builds no library that has no tests. All members at once, so that dependencies have
        // the features that they have in every other build.
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--offline", "--quiet"]);
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        let target = folder.parent().expect("a target folder");
        let built = cargo
            .env("CARGO_TARGET_DIR", target)
            .output()
            .expect("cargo runs");
        assert!(built.status.success(), "{}", text(&built.stderr));
        folder
    });
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    folder.join(format!("{prefix}{}{suffix}", package.replace('-', "_")))
}

/// A plugin in C from `tests/plugins/c`, compiled against a header; `None` where there is no compiler.
pub fn c_library(
    source: &str,
    include: &str,
    defines: &[(&str, u32)],
    folder: &Path,
) -> Option<PathBuf> {
    let name: String = defines.iter().map(|(_, n)| n.to_string()).collect();
    let path = folder.join(format!("lib{}{name}.so", source.trim_end_matches(".c")));
    let mut compiler = Command::new("cc");
    compiler.args([
        "-shared", "-fPIC", "-std=c11", "-g", "-Wall", "-Wextra", "-Werror", "-I", include,
    ]);
    for (key, value) in defines {
        compiler.arg(format!("-D{key}={value}"));
    }
    compiler
        .arg("-o")
        .arg(&path)
        .arg(Path::new("tests/plugins/c").join(source));
    let Ok(output) = compiler.output() else {
        println!("skipped: there is no C compiler `cc`");
        return None;
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
    Some(path)
}

/// Header of the current interface.
pub const HEADER: &str = "passes/sdk/include";

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the program in a folder.
pub fn hlrc(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command
        .current_dir(folder)
        .args(arguments)
        .env_remove("HLRC_PLUGIN_PATH");
    command.output().expect("it runs")
}

/// Runs it, and gives what it printed.
pub fn works(folder: &Path, arguments: &[&str]) -> String {
    let output = hlrc(folder, arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Runs it, which must fail with this code and say all of this.
pub fn fails(folder: &Path, arguments: &[&str], code: i32, says: &[&str]) -> String {
    let output = hlrc(folder, arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for part in says {
        assert!(
            said.contains(part),
            "{arguments:?} does not say `{part}`: {said}"
        );
    }
    said
}

/// A module of one 8 × 8 linear, in a file.
pub fn small(folder: &Path) -> PathBuf {
    let path = folder.join("m.hlir");
    let text = "hlir 1\nmodule \"m\" {\n  weight @q.weight : f32[8,8] = synthetic(seed=1, power=1.2, scale=0.02, outliers=0.0)\n  graph @main(%x : f32[B,8]) -> (%y) {\n    %y = linear %x [8,8] { dense(@q.weight) } name(\"q\") : f32[B,8]\n  }\n}\n";
    std::fs::write(&path, text).expect("written");
    path
}

/// Text without content hashes, which a processor's rounding may change.
pub fn without_hashes(text: &str) -> String {
    let line = |line: &str| match line.split_once(" sha256:") {
        Some((before, after)) => {
            let rest = after.trim_start_matches(|c: char| c.is_ascii_hexdigit());
            format!("{before}{rest}\n")
        }
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}
