//! `train` on stories260K: it gets better, the same bytes come out whatever happens meanwhile, and
//! what cannot be done is said.

#[path = "../common/mod.rs"]
mod common;
mod ends;
mod judging;
mod lines;
mod pass;
mod ranks;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const STORIES: &str = "tests/fixtures/stories260K";
const TEXT: &str = "tests/fixtures/text/stories.txt";

fn tool() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.arg("-q");
    command
}

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.args(args).output().expect("started")
}

/// stories260K behind a pipeline.
fn coded(folder: &Path, pipeline: &str) -> PathBuf {
    let out = folder.join("coded.hlrc");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command
        .args([STORIES, "-q", "-p", pipeline, "-o"])
        .arg(&out);
    common::succeed(&mut command);
    out
}

/// The usual arguments, and others.
fn arguments(model: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let model = model.display().to_string();
    let out = out.display().to_string();
    let mut args = vec!["train", &model, "-o", &out];
    let usual = [
        ("--data", TEXT),
        ("--ctx", "64"),
        ("--batch", "2"),
        ("--steps", "24"),
        ("--judge-every", "6"),
    ];
    for (name, value) in usual {
        if !more.contains(&name) {
            args.extend([name, value]);
        }
    }
    args.extend(more);
    args.into_iter().map(str::to_string).collect()
}

fn trained(model: &Path, out: &Path, more: &[&str]) -> Value {
    let args = arguments(model, out, more);
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.args(&args).args(["--json", "-q"]);
    serde_json::from_str(&common::succeed(&mut command)).expect("JSON")
}

/// Names and hashes of the folder's weights.
fn hashes(out: &Path) -> Vec<(String, String)> {
    let manifest = std::fs::read_to_string(out.join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let outputs = manifest["outputs"].as_array().expect("outputs");
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let all = outputs
        .iter()
        .map(|o| (text(&o["file"]), text(&o["sha256"])));
    all.filter(|(file, _)| file.ends_with(".safetensors"))
        .collect()
}

fn judged(history: &Value, step: u64, what: &str) -> f64 {
    let records = history["end_to_end"].as_array().expect("records");
    let record = records
        .iter()
        .find(|r| r["step"] == step && !r["judged"].is_null());
    record.expect("a judgement")["judged"][what]
        .as_f64()
        .expect("a number")
}

#[test]
fn training_against_the_original_lowers_the_divergence() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "lowrank{rank=4},outlier,int2");
    let out = folder.path().join("trained.hlrc");
    let history = trained(&model, &out, &["--teacher", STORIES]);
    let kept = history["kept"].as_u64().expect("a step");
    let (before, after) = (judged(&history, 0, "kl"), judged(&history, kept, "kl"));
    assert!(kept > 0 && after < 0.8 * before, "{before} to {after}");
    // What was written is what was judged: the evaluator agrees with the direction.
    let mut eval = tool();
    eval.args(["eval"]).arg(&model).arg(&out);
    eval.args([
        "--ref",
        STORIES,
        "--data",
        TEXT,
        "--ctx",
        "64",
        "--windows",
        "8",
        "--json",
        "--no-cache",
    ]);
    let judged: Value = serde_json::from_str(&common::succeed(&mut eval)).expect("JSON");
    let models = judged["models"].as_array().expect("models");
    let kl = |i: usize| models[i]["against"]["kl"]["mean"].as_f64().expect("a mean");
    assert!(kl(1) < kl(0), "{} to {}", kl(0), kl(1));
    common::succeed(tool().arg("verify").arg(&out));
    common::succeed(
        tool()
            .arg("report")
            .arg(&out)
            .args(["-o"])
            .arg(folder.path().join("page.html")),
    );
    let page = std::fs::read_to_string(folder.path().join("page.html")).expect("a page");
    assert!(
        page.contains("Held-out KL divergence"),
        "the report has the curves"
    );
}

#[test]
fn the_same_bytes_come_out_for_any_number_of_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "lowrank{rank=4},int2");
    let out = |name: &str| folder.path().join(name);
    trained(
        &model,
        &out("one.hlrc"),
        &["--teacher", STORIES, "--threads", "1"],
    );
    trained(
        &model,
        &out("three.hlrc"),
        &["--teacher", STORIES, "--threads", "3", "--recompute"],
    );
    let first = hashes(&out("one.hlrc"));
    // Values that are made again are the same to the last bit.
    assert_eq!(first, hashes(&out("three.hlrc")));
    assert_ne!(first, hashes(&model));
}

#[test]
fn a_run_that_was_killed_goes_on_to_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "lowrank{rank=4},int2");
    let out = |name: &str| folder.path().join(name);
    let more = [
        "--teacher",
        STORIES,
        "--mode",
        "both",
        "--block-steps",
        "6",
        "--checkpoint-every",
        "4",
    ];
    trained(&model, &out("whole.hlrc"), &more);
    let args = arguments(&model, &out("killed.hlrc"), &more);
    let partial = out("killed.hlrc.partial");
    for wanted in ["train-block-2.safetensors", "train.safetensors"] {
        let mut command = tool();
        command
            .args(&args)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if partial.exists() {
            command.arg("--resume");
        }
        let mut child = command.spawn().expect("started");
        let begun = Instant::now();
        while !partial.join(wanted).exists() && begun.elapsed() < Duration::from_secs(120) {
            if child.try_wait().expect("its state").is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
    assert!(
        !out("killed.hlrc").exists(),
        "nothing half-written has the output's name"
    );
    let mut resumed = tool();
    resumed.args(&args).arg("--resume");
    common::succeed(&mut resumed);
    assert_eq!(hashes(&out("whole.hlrc")), hashes(&out("killed.hlrc")));
    assert!(!partial.exists());
    let left = std::fs::read_dir(out("killed.hlrc")).expect("a folder");
    let left = left.filter_map(|e| e.ok()?.file_name().into_string().ok());
    assert!(
        left.filter(|n| n.starts_with("train")).count() == 0,
        "no checkpoint stays"
    );
}

#[test]
fn blocks_learn_from_the_originals_layers() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int2");
    let out = folder.path().join("blocks.hlrc");
    let more = [
        "--teacher",
        STORIES,
        "--mode",
        "blocks",
        "--block-steps",
        "20",
    ];
    let history = trained(&model, &out, &more);
    let whole = |what: &str| {
        history[what]["kl"]
            .as_f64()
            .expect("a judgement of the whole")
    };
    assert!(whole("behind_blocks") < whole("untrained"));
    let blocks = history["blocks"].as_array().expect("blocks");
    assert!(blocks.len() >= 4, "{} blocks", blocks.len());
    for block in blocks {
        let records = block[1].as_array().expect("records");
        let errors = records.iter().filter_map(|r| r["judged"]["error"].as_f64());
        let errors: Vec<f64> = errors.collect();
        let best = errors.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(best < errors[0], "{}: {errors:?}", block[0]);
    }
    // What lives between layers may be on disk: nothing depends on it.
    let spilled = folder.path().join("spilled.hlrc");
    let more = [more.as_slice(), &["--hold", "1KiB"]].concat();
    trained(&model, &spilled, &more);
    assert_eq!(hashes(&out), hashes(&spilled));
}

#[test]
fn all_likeliest_tokens_are_all_logits() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int2");
    let out = |name: &str| folder.path().join(name);
    trained(&model, &out("all.hlrc"), &["--teacher", STORIES]);
    let most = ["--teacher", STORIES, "--teacher-top", "9999999999999"];
    trained(&model, &out("most.hlrc"), &most);
    assert_eq!(hashes(&out("all.hlrc")), hashes(&out("most.hlrc")));
    let some = trained(
        &model,
        &out("some.hlrc"),
        &["--teacher", STORIES, "--teacher-top", "511"],
    );
    let kept = some["kept"].as_u64().expect("a step");
    assert!(judged(&some, kept, "kl") < judged(&some, 0, "kl"));
}

#[test]
fn what_is_best_is_what_was_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int8");
    let out = folder.path().join("task.hlrc");
    // An 8-bit model is as near to its teacher as can be: cross entropy alone takes it away.
    let more = [
        "--teacher",
        STORIES,
        "--kl",
        "0",
        "--ce",
        "1",
        "--params",
        "norms,scales",
    ];
    let history = trained(&model, &out, &[&more[..], &["--lr", "1e-2"]].concat());
    let kept = history["kept"].as_u64().expect("a step");
    assert!(kept > 0, "{history}");
    let of = |what: &str| (judged(&history, 0, what), judged(&history, kept, what));
    let ((before, after), (near, far)) = (of("cross_entropy"), of("kl"));
    assert!(
        after < before && far > near,
        "{before} to {after}, KL {near} to {far}"
    );
    let refused = arguments(&model, &out, &["--teacher", STORIES, "--kl", "0", "-f"]);
    let refused: Vec<&str> = refused.iter().map(String::as_str).collect();
    let output = run(&refused);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && said.contains("nothing to learn"),
        "{said}"
    );
}

#[test]
fn codes_move_with_a_copy_of_their_matrix() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = |name: &str| folder.path().join(name);
    for (pipeline, share) in [("int2", 0.9), ("trellis{bits=2}", 0.8)] {
        let model = coded(folder.path(), pipeline);
        let more = [
            "--teacher",
            STORIES,
            "--params",
            "codes,scales",
            "--lr",
            "1e-2",
            "-f",
        ];
        let history = trained(&model, &out("codes.hlrc"), &more);
        let kept = history["kept"].as_u64().expect("a step");
        let (before, after) = (judged(&history, 0, "kl"), judged(&history, kept, "kl"));
        assert!(after < share * before, "{pipeline}: {before} to {after}");
        let more = [&more[..], &["--threads", "3"]].concat();
        trained(&model, &out("again.hlrc"), &more);
        assert_eq!(hashes(&out("codes.hlrc")), hashes(&out("again.hlrc")));
        std::fs::remove_dir_all(&model).expect("removed");
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int4");
    let out = folder.path().join("out.hlrc");
    let said = |more: &[&str]| {
        let args = arguments(&model, &out, more);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = run(&args);
        assert!(!out.exists(), "nothing is written");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, text) = said(&["--params", "lowrank"]);
    assert!(
        code == Some(2) && text.contains("it has codes, dense, norms, scales"),
        "{text}"
    );
    let (code, text) = said(&["--only", "nosuch"]);
    assert!(code == Some(2) && text.contains("nosuch"), "{text}");
    let (code, text) = said(&["--mode", "blocks"]);
    assert!(code == Some(2) && text.contains("--teacher"), "{text}");
    let (code, text) = said(&["--ctx", "100000"]);
    assert!(code == Some(4) || code == Some(2), "{text}");
}
