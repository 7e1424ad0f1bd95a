//! `--calib` and targets from outside: what is refused, what a target keeps, the same bytes for any threads.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

const STORIES: &str = "tests/fixtures/stories260K";

fn tool(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command
        .env("XDG_CACHE_HOME", dir)
        .args(["opt", "-q", STORIES]);
    command
}

fn refused(dir: &Path, args: &[&str], code: i32, told: &str) {
    let output = tool(dir).args(args).output().expect("started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    assert!(errors.contains(told), "{args:?}: {errors}");
}

/// More tokens than 70 windows of 512 have.
fn text(dir: &Path) -> PathBuf {
    let path = dir.join("text.txt");
    let words = ["little", "girl", "found", "a", "red", "ball", "and", "sun"];
    let word = |i: usize| words[(i * i * 7 + i / 5) % words.len()];
    let all: Vec<&str> = (0..40_000).map(word).collect();
    std::fs::write(&path, all.join(" ")).expect("written");
    path
}

#[test]
fn what_has_no_effect_or_cannot_be_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let (dir, text) = (dir.path(), text(dir.path()));
    let text = text.to_str().expect("a path in UTF-8");
    refused(dir, &["-p", "int4{method=gptq}"], 2, "needs statistics");
    refused(dir, &["-p", "int4", "--calib", text], 2, "no effect");
    refused(dir, &["--target-bpw", "4"], 2, "needs text");
    refused(dir, &["-p", "int4", "--candidates", "int"], 2, "no effect");
    refused(
        dir,
        &["--target-bpw", "4", "-p", "int4", "--calib", text],
        2,
        "no such pass",
    );
    let output = dir.join("small.hlrc");
    let output = output.to_str().expect("a path in UTF-8");
    let small = ["--target-size", "1000", "--calib", text, "-o", output];
    refused(dir, &small, 4, "is the least");
    assert!(!Path::new(output).exists());
}

#[test]
fn a_target_is_met_whatever_the_threads() {
    let dir = tempfile::tempdir().expect("a folder");
    let (dir, text) = (dir.path(), text(dir.path()));
    let run = |threads: &str| -> (serde_json::Value, Vec<u8>) {
        let output = dir.join(threads);
        let output = output.with_extension("hlrc");
        let mut command = tool(dir);
        command.args([
            "--target-bpw",
            "4",
            "--threads",
            threads,
            "--json",
            "--calib",
        ]);
        let told = common::succeed(command.arg(&text).arg("-o").arg(&output));
        let weights = std::fs::read(output.join("model.safetensors"));
        let report = serde_json::from_str(&told).expect("JSON");
        (report, weights.unwrap_or_default())
    };
    let ((report, one), (_, two)) = (run("1"), run("2"));
    let bits = report["rewritten_totals"]["bits_per_weight"].as_f64();
    let bits = bits.expect("bits per weight");
    assert!((3.8..=4.0).contains(&bits), "{bits}");
    assert!(!one.is_empty() && one == two, "threads change the output");
}

#[test]
fn candidates_of_all_families_meet_a_target() {
    let dir = tempfile::tempdir().expect("a folder");
    let (dir, text) = (dir.path(), text(dir.path()));
    let output = dir.join("all.hlrc");
    let mut command = tool(dir);
    command.args(["--target-bpw", "5", "--json", "--candidates"]);
    command.args(["int,outlier-int,lowrank-int,lowrank-outlier-int", "--calib"]);
    let told = common::succeed(command.arg(&text).arg("-o").arg(&output));
    let report: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let bits = report["rewritten_totals"]["bits_per_weight"].as_f64();
    let bits = bits.expect("bits per weight");
    assert!((4.0..=5.0).contains(&bits), "{bits}");
    let pipeline = report["pipeline"].to_string();
    assert!(pipeline.contains("int"), "{pipeline}");
}
