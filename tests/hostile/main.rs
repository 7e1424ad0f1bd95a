//! Malformed and hostile inputs: each ends with a located message and the documented exit code, without
//! a panic, and leaves nothing behind.

mod files;
mod onnx;
mod output;
mod safetensors;
mod text;
mod usage;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One bad input.
pub struct Case {
    /// Name of the case.
    pub name: &'static str,
    /// Writes its files into an empty folder and gives the command's arguments.
    pub make: fn(&Path) -> Vec<String>,
    /// Exit code that must come back.
    pub exit: i32,
    /// Texts that the message must hold: the place, and the cause.
    pub says: &'static [&'static str],
}

/// The fixture that cases are made from.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/stories260K")
        .join(name)
}

/// The arguments as owned strings.
pub fn args<S: AsRef<str>>(list: &[S]) -> Vec<String> {
    list.iter().map(|s| s.as_ref().to_owned()).collect()
}

fn listing(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                open.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}

fn check(case: &Case) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let arguments = (case.make)(dir.path());
    let before = listing(dir.path());
    let output = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
        .args(&arguments)
        .current_dir(dir.path())
        .env("NO_COLOR", "1")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|e| e.to_string())?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let told = format!("{arguments:?}\n{stderr}");
    if output.status.code() != Some(case.exit) {
        return Err(format!(
            "exit {:?}, expected {}: {told}",
            output.status, case.exit
        ));
    }
    if stderr.contains("panicked") || stderr.contains("RUST_BACKTRACE") {
        return Err(format!("panicked: {told}"));
    }
    for text in case.says {
        if !stderr.contains(text) {
            return Err(format!("the message lacks {text:?}: {told}"));
        }
    }
    let mut left: Vec<PathBuf> = listing(dir.path()).difference(&before).cloned().collect();
    // The lock of an interrupted run's folder says nothing of an output.
    left.retain(|path| !path.ends_with("x.hlrc.partial/lock"));
    // A failing pass documents itself; that file is wanted.
    left.retain(|path| {
        !path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("hlrc-crash-"))
    });
    if left.is_empty() {
        Ok(())
    } else {
        Err(format!("left behind: {left:?}: {told}"))
    }
}

fn check_all(cases: &[Case]) {
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|case| check(case).err().map(|e| format!("== {}: {e}", case.name)))
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

#[test]
fn command_lines_and_pipelines() {
    check_all(usage::CASES);
}

#[test]
fn safetensors_files() {
    check_all(safetensors::CASES);
}

#[test]
fn onnx_files() {
    check_all(onnx::CASES);
}

#[test]
fn text_and_output_folders() {
    check_all(text::CASES);
}

#[test]
fn places_to_write() {
    check_all(output::CASES);
}

#[test]
fn the_corpus_is_large_enough() {
    let sets = [
        usage::CASES,
        safetensors::CASES,
        onnx::CASES,
        text::CASES,
        output::CASES,
    ];
    let names: BTreeSet<&str> = sets
        .iter()
        .flat_map(|set| set.iter().map(|case| case.name))
        .collect();
    assert_eq!(
        names.len(),
        sets.iter().map(|set| set.len()).sum::<usize>(),
        "names are unique"
    );
    assert!(names.len() >= 40, "{}", names.len());
}
