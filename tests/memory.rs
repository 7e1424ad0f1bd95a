//! `--dry-run` promises an upper bound of memory, and `--mem-limit` keeps or refuses it: real runs on a
//! real model stay below.
//!
//! The model is smollm2-135m, `model.safetensors` with its `config.json`, in `$HLRC_MODELS`
//! (default: `target/models`); without it there is nothing to measure.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use common::model;

const MODEL: &str = "smollm2-135m";

fn run(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.current_dir(dir).args(args).args(["--json", "-q"]);
    command.output().expect("runs")
}

fn json(output: &Output) -> serde_json::Value {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Runs for real what a dry run has estimated.
fn check(dir: &Path, name: &str, args: &[&str]) {
    let planned = json(&run(dir, &[args, &["--dry-run"]].concat()));
    let bound = planned["peak_memory_bytes_at_most"].as_u64();
    let bound = bound.expect("a bound");
    let done = json(&run(dir, args));
    let peak = done["run"]["peak_rss_bytes"].as_u64().expect("a peak");
    println!("{name}: peak {} MiB, bound {} MiB", peak >> 20, bound >> 20);
    assert!(peak <= bound, "{name}: {peak} bytes, at most {bound} told");
    let limit = (peak / 2).to_string();
    let refused = run(dir, &[args, &["--mem-limit", &limit, "--force"]].concat());
    assert_eq!(refused.status.code(), Some(4), "{name}: {limit} bytes");
}

#[test]
fn runs_stay_below_their_estimates() {
    let Some(model) = model(MODEL) else {
        return;
    };
    let model = model.canonicalize().expect("it is there");
    let dir = tempfile::tempdir().expect("a folder");
    let (dir, model) = (dir.path(), model.to_str().expect("a path in UTF-8"));
    let fast = "int4{scale=absmax}";
    let kept = "re:layers.[0-4].*(lowrank{rank=8 residual=keep})";
    let staged = "re:layers.[0-4].*mlp(lowrank{rank=8}),canonicalize,int4{scale=absmax}";
    let fused = "fuse-siblings,int4{scale=absmax}";
    let text = "re:layers.[0-2].*mlp(lowrank{rank=8}),canonicalize,int4{scale=absmax}";
    check(dir, "folder", &[model, "-p", fast, "-o", "a.hlrc"]);
    check(dir, "ONNX", &[model, "-p", fast, "-o", "a.onnx"]);
    check(dir, "fused", &[model, "-p", fused, "-o", "f.hlrc"]);
    check(dir, "terms kept", &[model, "-p", kept, "-o", "k.hlrc"]);
    check(dir, "second run", &["k.hlrc", "-p", fast, "-o", "s.hlrc"]);
    check(dir, "stages", &[model, "-p", staged, "-o", "m.hlrc"]);
    check(dir, "text", &[model, "-p", text, "-S", "-o", "-"]);
}
