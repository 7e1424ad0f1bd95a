//! `--emit plan` as it is typed.

use std::path::Path;
use std::process::{Command, Output};

use super::model::{STORIES, family};
use hlrc::plan::folder;

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.args(args).output().expect("started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn done(args: &[&str]) -> String {
    let output = run(args);
    assert!(
        output.status.success(),
        "{args:?}\n{}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn refused(args: &[&str], code: i32, told: &str) {
    let output = run(args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{stderr}");
    assert!(
        stderr.contains(told),
        "{args:?}: `{told}` is not told:\n{stderr}"
    );
}

#[test]
fn a_folder_has_all_that_a_runtime_needs() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("plan");
    let place = out.to_str().expect("UTF-8");
    let args = [
        STORIES,
        "-p",
        "int4",
        "--emit",
        "plan",
        "--target",
        "sm_86",
        "-o",
        place,
        "--ctx",
        "64",
        "--summary",
    ];
    let summary = done(&args);
    for part in ["RTX 3090", "bytes per token", "launches", "fused:"] {
        assert!(summary.contains(part), "{part} is not in\n{summary}");
    }
    let opened = folder::open(&out).unwrap_or_else(|e| panic!("{e}"));
    let blob = opened.blob.expect("weights");
    assert_eq!(Some(blob.len()), opened.plan.blob.as_ref().map(|b| b.bytes));
    assert!(out.join("plan.txt").is_file() && out.join("kernels").is_dir());
    assert!(!dir.path().join("plan.model").exists() && !dir.path().join("plan.partial").exists());
    // Every section is what its hash says.
    for section in opened.plan.weights.iter().flat_map(|w| &w.sections) {
        let bytes = blob
            .slice(section.offset, section.bytes)
            .unwrap_or_else(|e| panic!("{e}"));
        let hash = hlrc::weights::Digest::of(bytes).to_hex();
        assert_eq!(
            section.sha256.as_deref(),
            Some(hash.as_str()),
            "{}",
            section.name
        );
    }
    refused(&args, 1, "is there already");
    done(&[&args[..], &["--force"]].concat());
    // Damage is told.
    std::fs::OpenOptions::new()
        .write(true)
        .open(out.join("weights.bin"))
        .and_then(|f| f.set_len(1000))
        .expect("cut");
    assert!(folder::open(&out).is_err());
    let json = std::fs::read_to_string(out.join("plan.json")).expect("a plan");
    std::fs::write(out.join("plan.json"), &json[..json.len() / 2]).expect("written");
    assert!(folder::open(&out).is_err());
}

#[test]
fn the_same_plan_for_any_number_of_threads() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut all = Vec::new();
    for threads in ["1", "2"] {
        let out = dir.path().join(threads);
        let place = out.to_str().expect("UTF-8");
        done(&[
            STORIES,
            "-p",
            "lowrank,outlier,int4",
            "--emit",
            "plan",
            "--threads",
            threads,
            "-o",
            place,
            "--ctx",
            "64",
        ]);
        all.push(["plan.json", "weights.bin"].map(|f| std::fs::read(out.join(f)).expect("a file")));
    }
    assert_eq!(all[0][1], all[1][1], "the blob");
}

#[test]
fn a_configuration_alone_is_enough() {
    let folder = "../shared/models/configs/llama-3.1-70b";
    if !Path::new(folder).is_dir() {
        eprintln!("skipped: {folder} is not there");
        return;
    }
    let json = done(&[
        folder,
        "-p",
        "int3{group=128}",
        "--emit",
        "plan",
        "--dry-run",
        "--json",
        "--ctx",
        "4096",
    ]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let bytes = json["weight_bytes"].as_u64().expect("bytes");
    // 70.6 B weights: 68.5 B at 3.156 bits, the table and the head in bf16.
    assert!((29_000_000_000..33_000_000_000).contains(&bytes), "{bytes}");
    let launches = &json["programs"][0]["launches_per_layer"][0];
    assert!(
        launches["launches"].as_u64().expect("a number") <= 7,
        "{json}"
    );
    assert_eq!(launches["layers"], 80);
    let tight = [
        folder, "-p", "int4", "--emit", "plan", "-S", "--vram", "24GiB", "--ctx", "4096",
    ];
    refused(&tight, 4, "what would fit");
}

#[test]
fn mistakes_are_told() {
    refused(
        &[STORIES, "--emit", "plan", "--target", "sm_99", "-S"],
        2,
        "sm_89",
    );
    refused(
        &[STORIES, "--emit", "plan", "--batch", "9", "-S"],
        2,
        "at most 8",
    );
    refused(&[STORIES, "--emit", "plan", "--kv", "q4", "-S"], 2, "q8");
    refused(
        &[STORIES, "--emit", "plan", "--ctx", "100000", "-S"],
        3,
        "512 tokens",
    );
    refused(
        &[
            STORIES,
            "--emit",
            "plan",
            "--placement",
            "experts=host",
            "-S",
        ],
        2,
        "no weight",
    );
    refused(
        &[STORIES, "--emit", "plan", "--placement", "experts", "-S"],
        2,
        "no place",
    );
    refused(&[STORIES, "--emit", "plan", "-o", "-"], 2, "-S");
    refused(&[STORIES, "--summary"], 2, "--emit");
    refused(&[STORIES, "-p", "int4", "--ctx", "64"], 2, "--vram");
    let bert = family("bert");
    refused(
        &[bert.to_str().expect("UTF-8"), "--emit", "plan", "-S"],
        3,
        "KV cache",
    );
    refused(
        &[
            STORIES,
            "--emit",
            "plan",
            "-S",
            "--vram",
            "1MB",
            "--reserve",
            "0",
        ],
        4,
        "what would fit",
    );
}
