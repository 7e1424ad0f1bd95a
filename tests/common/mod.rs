//! What tests need of the machine: peers in Python, larger models. What is absent is said.

// Each test program uses some of these.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// A Python that has the modules, by commas: `HLRC_PYTHON`, or the one that `.ci/run` makes.
pub(crate) fn python(modules: &str) -> Option<String> {
    let named = std::env::var("HLRC_PYTHON").ok();
    let found = named.unwrap_or_else(|| "target/venv/bin/python".to_string());
    let probe = Command::new(&found)
        .args(["-c", &format!("import {modules}")])
        .output();
    if probe.is_ok_and(|p| p.status.success()) {
        return Some(found);
    }
    eprintln!("skipped: {found} has no {modules} (set HLRC_PYTHON, or run .ci/run)");
    None
}

/// A model, file or folder, that `../shared/models/make.py` makes: in `HLRC_MODELS` or `target/models`.
pub(crate) fn model(name: &str) -> Option<PathBuf> {
    let folder = std::env::var("HLRC_MODELS").unwrap_or_else(|_| "target/models".to_string());
    let path = Path::new(&folder).join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!(
        "skipped: {} is not there (HLRC_MODELS names its folder)",
        path.display()
    );
    None
}

/// Runs a command that must succeed, and returns what it printed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("started");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{out}{err}");
    out
}
