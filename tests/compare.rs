//! `hlrc-opt compare` from outside: every way within the same bytes, told as a table, JSON and a plot.

mod common;

use std::path::Path;
use std::process::Command;

const STORIES: &str = "tests/fixtures/stories260K";

fn text(path: &Path, seed: usize) {
    let words = ["little", "girl", "found", "a", "red", "ball", "and", "sun"];
    let word = |i: usize| words[(i * i * (7 + seed) + i / 5) % words.len()];
    let all: Vec<&str> = (0..40_000).map(word).collect();
    std::fs::write(path, all.join(" ")).expect("written");
}

#[test]
fn ways_keep_to_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a folder");
    let (calib, data) = (dir.path().join("a.txt"), dir.path().join("b.txt"));
    text(&calib, 0);
    text(&data, 4);
    let (markdown, plot) = (dir.path().join("t.md"), dir.path().join("p.svg"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.env("XDG_CACHE_HOME", dir.path());
    command.args(["compare", "-q", STORIES, "--json", "--target-bpw", "2.0,5"]);
    command.args(["--ways", "int,lowrank-int,trellis,mixed"]);
    command.args(["--windows", "2", "--ctx", "128"]);
    command.arg("--calib").arg(&calib).arg("--data").arg(&data);
    command.arg("--markdown").arg(&markdown);
    command.arg("--plot").arg(&plot);
    let told = common::succeed(&mut command);
    let json: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 8);
    for row in rows {
        let target = if row["target"] == "5 bits" { 5.0 } else { 2.0 };
        if row["refused"].is_null() {
            assert!(row["bits_per_weight"].as_f64() <= Some(target), "{row}");
            assert!(row["quality"]["kl"].as_f64() > Some(0.0), "{row}");
        }
    }
    // Low rank in front of integers needs more than two bits, which is said.
    assert!(
        rows[1]["refused"]
            .as_str()
            .is_some_and(|why| why.contains("is the least"))
    );
    let kl = |at: usize| rows[at]["quality"]["kl"].as_f64().expect("KL");
    let difference = rows[6]["quality"]["against_first"]["difference"].as_f64();
    assert!((difference.expect("paired") - (kl(6) - kl(4))).abs() < 1e-9);
    let table = std::fs::read_to_string(markdown).expect("written");
    assert!(table.contains("| 5 bits | mixed |"), "{table}");
    let drawn = std::fs::read_to_string(plot).expect("written");
    assert!(drawn.starts_with("<svg xmlns=") && drawn.contains("mixed"));
}

/// Bytes of a folder's files.
fn on_disk(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").flatten();
    entries.map(|e| e.metadata().expect("a file").len()).sum()
}

#[test]
fn a_target_of_bytes_counts_all_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    text(&at("a.txt"), 0);
    text(&at("b.txt"), 4);
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.env("XDG_CACHE_HOME", dir.path());
    command.args(["compare", "-q", STORIES, "--json", "--ways", "int,trellis"]);
    command.args(["--target-size", "480000", "-p", "trellis,embeddings(int8)"]);
    command.args(["--windows", "2", "--ctx", "128", "--calib"]);
    command.arg(at("a.txt")).arg("--data").arg(at("b.txt"));
    command.arg("--keep").arg(at("kept"));
    command.arg("--markdown").arg(at("t.md"));
    let told = common::succeed(&mut command);
    let json: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let table = std::fs::read_to_string(at("t.md")).expect("written");
    assert!(table.contains("Bytes: all files."), "{table}");
    for way in ["int", "trellis"] {
        let rows = json["rows"].as_array().expect("rows");
        let row = rows.iter().find(|row| row["way"] == way).expect("a row");
        let bytes = on_disk(&at("kept").join(format!("{way}-480000.hlrc")));
        assert_eq!(row["bytes_on_disk"].as_u64(), Some(bytes), "{row}");
        assert!(bytes <= 480_000 && bytes > 320_000, "{way}: {bytes}");
        assert!(row["bytes"].as_u64() < Some(bytes), "{row}");
        assert!(table.contains(&format!("| {bytes} |")), "{table}");
    }
}

/// An encoder with a tokenizer of words, and texts of lines.
fn encoder(dir: &Path) {
    let files = std::fs::read_dir("tests/fixtures/families/bert").expect("a model");
    for entry in files.flatten() {
        std::fs::copy(entry.path(), dir.join(entry.file_name())).expect("copied");
    }
    let vocabulary: Vec<String> = (0..96).map(|id| format!("\"w{id}\": {id}")).collect();
    let vocabulary = vocabulary.join(", ");
    let json = format!(
        r#"{{"version": "1.0", "added_tokens": [], "pre_tokenizer": {{"type": "Whitespace"}},
        "model": {{"type": "WordLevel", "vocab": {{{vocabulary}}}, "unk_token": "w0"}}}}"#
    );
    std::fs::write(dir.join("tokenizer.json"), json).expect("written");
    let lines = |count: usize, seed: usize| -> String {
        let word = |i: usize, k: usize| format!("w{} ", (i * i * (7 + seed) + k * k * 5 + i) % 96);
        let line = |i| (0..12).map(|k| word(i, k)).collect::<String>() + "\n";
        (0..count).map(line).collect()
    };
    std::fs::write(dir.join("a.txt"), lines(600, 0)).expect("written");
    std::fs::write(dir.join("b.txt"), lines(9, 4)).expect("written");
}

#[test]
fn encoders_are_paired_line_by_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    encoder(dir.path());
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.env("XDG_CACHE_HOME", dir.path());
    command.args(["compare", "-q", "--json", "--ways", "int,trellis"]);
    command.args(["--target-bpw", "4.75", "--calib"]);
    command.arg(at("a.txt")).arg("--data").arg(at("b.txt"));
    command.arg("--markdown").arg(at("t.md")).arg(dir.path());
    let told = common::succeed(&mut command);
    let json: serde_json::Value = serde_json::from_str(&told).expect("JSON");
    let of = |row: usize, key: &str| json["rows"][row]["quality"][key].as_f64();
    let (int, trellis) = (of(0, "relative_error"), of(1, "relative_error"));
    let paired = &json["rows"][1]["quality"]["against_first"];
    assert_eq!(paired["windows"], 9, "{json:#}");
    let difference = paired["difference"].as_f64().expect("a difference");
    let expected = trellis.expect("an error") - int.expect("an error");
    assert!((difference - expected).abs() < 1e-9, "{json:#}");
    assert!(of(1, "relative_error_standard_error") > Some(0.0));
    assert!(json["rows"][0]["quality"]["against_first"].is_null());
    let table = std::fs::read_to_string(at("t.md")).expect("written");
    assert!(table.contains(&format!("{difference:+.4} (")), "{table}");
    assert!(table.contains("± standard error over runs"), "{table}");
}

#[test]
fn text_of_choices_is_not_judged_on() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.args(["compare", STORIES, "--target-bpw", "4"]);
    command.args(["--calib", "Cargo.toml", "--data", "Cargo.toml"]);
    let output = command.output().expect("started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("both --calib and --data"), "{errors}");
}

#[test]
fn text_of_statistics_is_not_judged_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    text(&at("a.txt"), 0);
    std::fs::copy(at("a.txt"), at("b.txt")).expect("copied");
    let tool = || Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    let mut command = tool();
    command.args(["calibrate", "-q", STORIES, "--windows", "2", "--ctx", "64"]);
    command.arg("--data").arg(at("a.txt"));
    common::succeed(command.arg("-o").arg(at("stats")));
    for (calib, data) in [("stats", "a.txt"), ("stats", "b.txt"), ("a.txt", "b.txt")] {
        let mut command = tool();
        command.args(["compare", STORIES, "--target-bpw", "4"]);
        command.arg("--calib").arg(at(calib));
        let output = command.arg("--data").arg(at(data)).output();
        let output = output.expect("started");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains("both --calib and --data"), "{errors}");
    }
}

#[test]
fn where_no_way_is_small_enough_nothing_was_compared() {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    text(&at("a.txt"), 0);
    text(&at("b.txt"), 4);
    let compare = |markdown: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
        command.env("XDG_CACHE_HOME", dir.path());
        command.args(["compare", STORIES, "--target-bpw", "0.3", "--ways", "int"]);
        command.args(["--windows", "2", "--ctx", "128", "--calib"]);
        command.arg(at("a.txt")).arg("--data").arg(at("b.txt"));
        command.arg("--markdown").arg(markdown);
        command.arg("--plot").arg(at("p.svg"));
        command.output().expect("started")
    };
    let output = compare(&at("t.md"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("nothing is drawn"), "{errors}");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        told.contains("is the least") && told.contains("nothing was judged"),
        "{told}"
    );
    assert!(at("t.md").is_file() && !at("p.svg").exists());
    // A place that can't be written to is refused before the work.
    let output = compare(&at("no/such/t.md"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("no/such/t.md") && !errors.contains("Importing"),
        "{errors}"
    );
}
