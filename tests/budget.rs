//! `--calib` and targets from outside: what is refused, what a target keeps, the same bytes for any threads.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stories260K");

/// In the folder: what a command writes by default may be there already beside the sources.
fn tool(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command
        .current_dir(dir)
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
    refused(dir, &small, 4, "alone take");
    // Tokenizer, configuration and embeddings fit, matrices don't.
    let small = ["--target-size", "190000", "--calib", text, "-o", output];
    refused(dir, &small, 4, "is the least");
    assert!(!Path::new(output).exists());
    let trellis = ["--target-bpw", "4", "--calib", text, "-o", "no.onnx"];
    refused(dir, &trellis, 2, "no ONNX form");
    let nothing = ["--target-bpw", "4", "--calib", text, "-t", "layers=int8"];
    refused(dir, &nothing, 2, "nothing to spread bits over");
    refused(dir, &["-p", "int4{damp=0.5}"], 2, "no effect without");
    refused(dir, &["-p", "int4{damp=7}"], 2, "use 0 to 1");
}

/// Bytes of a folder's files.
fn on_disk(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    entries.map(|e| e.metadata().expect("a file").len()).sum()
}

#[test]
fn a_target_of_bytes_counts_all_files_and_leaves_scopes_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let (dir, text) = (dir.path(), text(dir.path()));
    for size in [420_000u64, 520_000] {
        let output = dir.join(format!("{size}.hlrc"));
        let mut command = tool(dir);
        command.args(["--target-size", &size.to_string(), "--json", "-p"]);
        command.arg("trellis,embeddings(int8),layers[4](int8)");
        command.args(["-t", "re:layers.0.mlp=int8{group=32}", "--calib"]);
        let told = common::succeed(command.arg(&text).arg("-o").arg(&output));
        let report: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        let bytes = on_disk(&output);
        assert_eq!(report["run"]["bytes_on_disk"].as_u64(), Some(bytes));
        assert!(bytes <= size && bytes > size - 160_000, "{bytes} of {size}");
        for site in report["sites"].as_array().expect("sites") {
            let name = site["site"].as_str().or(site["name"].as_str());
            let name = name.expect("a name");
            let steps = site["steps"].as_array().expect("steps").iter();
            let passes: Vec<&str> = steps.filter_map(|s| s["pass"].as_str()).collect();
            let expected: &[&str] = match name {
                _ if name.contains("embed") || name.contains("lm_head") => &["int8"],
                _ if name.contains("layers.0.mlp") => &["int8"],
                _ if name.contains("layers.4.") => &["trellis", "int8"],
                _ => &["trellis"],
            };
            assert_eq!(passes, expected, "{name}");
        }
    }
}

#[test]
fn the_mean_counts_what_scopes_take() {
    let dir = tempfile::tempdir().expect("a folder");
    let (dir, text) = (dir.path(), text(dir.path()));
    let output = dir.join("mean.hlrc");
    let mut command = tool(dir);
    command.args(["--target-bpw", "4.5", "--json"]);
    command.args(["-t", "re:layers.0.mlp=int8{group=32}", "--calib"]);
    let told = common::succeed(command.arg(&text).arg("-o").arg(&output));
    let report: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let bits = report["rewritten_totals"]["bits_per_weight"].as_f64();
    assert!(
        (4.3..=4.5).contains(&bits.expect("bits per weight")),
        "{bits:?}"
    );
}

#[test]
fn integers_go_to_onnx() {
    let dir = tempfile::tempdir().expect("a folder");
    let (dir, text) = (dir.path(), text(dir.path()));
    let output = dir.join("small.onnx");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.env("XDG_CACHE_HOME", dir).args(["opt", "-q"]);
    command.arg(Path::new(STORIES).join("stories260K.onnx"));
    command.args(["--target-bpw", "5", "--candidates", "int", "--calib"]);
    common::succeed(command.arg(&text).arg("-o").arg(&output));
    assert!(output.is_file());
}

#[test]
fn text_that_the_calibration_has_seen_is_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let (dir, path) = (dir.path(), text(dir.path()));
    let all = std::fs::read_to_string(&path).expect("text");
    std::fs::write(&path, &all[..20_000]).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.env("XDG_CACHE_HOME", dir).env("TMPDIR", dir);
    command.args(["opt", STORIES, "--target-bpw", "4", "--calib"]);
    let output = dir.join("seen.hlrc");
    let output = command.arg(&path).arg("-o").arg(&output).output();
    let output = output.expect("started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("no text is left behind"), "{errors}");
    let left = std::fs::read_dir(dir).expect("a folder").flatten();
    let left = left.filter(|e| e.file_name().to_string_lossy().starts_with("hlrc-"));
    assert_eq!(left.count(), 1, "the cache alone");
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
