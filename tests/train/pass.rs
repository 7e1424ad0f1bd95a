//! `train` as the last pass of a pipeline.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{STORIES, TEXT, common, hashes, tool};

const TERMS: &str = "lowrank{rank=4},int2";
/// The options of `train` that the tests give, as a pipeline and as a command line have them.
const OPTIONS: &str = "params=lowrank,scales ctx=64 batch=2 steps=12 judge-every=6 val=25% lr=4e-3 checkpoint-every=4";

fn pipeline(model: &str, out: &Path, pipeline: &str, more: &[&str]) -> Command {
    let mut command = tool();
    command
        .args([model, "-p", pipeline])
        .args(more)
        .arg("-o")
        .arg(out);
    command
}

fn with_data() -> String {
    format!("{TERMS},train{{{OPTIONS} data={TEXT}}}")
}

fn refused(model: &str, out: &Path, text: &str) -> (Option<i32>, String) {
    let output: Output = pipeline(model, out, text, &[]).output().expect("started");
    assert!(!out.exists(), "nothing is written");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn the_pass_does_what_the_command_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    common::succeed(&mut pipeline(
        STORIES,
        &at("pass.hlrc"),
        &with_data(),
        &["--seed", "5"],
    ));
    assert!(
        !at("pass.hlrc.untrained").exists(),
        "what lay between is gone"
    );
    common::succeed(&mut pipeline(
        STORIES,
        &at("terms.hlrc"),
        TERMS,
        &["--seed", "5"],
    ));
    let mut command = tool();
    command
        .arg("train")
        .arg(at("terms.hlrc"))
        .args(["--teacher", STORIES, "--data", TEXT]);
    command.args([
        "--params",
        "lowrank,scales",
        "--ctx",
        "64",
        "--batch",
        "2",
        "--steps",
        "12",
    ]);
    command.args([
        "--judge-every",
        "6",
        "--val",
        "25%",
        "--lr",
        "4e-3",
        "--seed",
        "5",
        "-o",
    ]);
    common::succeed(command.arg(at("command.hlrc")));
    assert_eq!(hashes(&at("pass.hlrc")), hashes(&at("command.hlrc")));
    let manifest = std::fs::read_to_string(at("pass.hlrc").join("manifest.json")).expect("read");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    let pipelines = manifest["pipelines"].as_array().expect("pipelines");
    let [whole] = pipelines.as_slice() else {
        panic!("{pipelines:?}")
    };
    let whole = whole.as_str().expect("text");
    assert!(
        whole.starts_with("lowrank{rank=4 ") && whole.contains("train{params=\"lowrank,scales\""),
        "{whole}"
    );
    let report = std::fs::read_to_string(at("pass.hlrc").join("report.json")).expect("read");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert!(report["training"]["kept"].as_u64() > Some(0));
    assert!(
        report["sites"]
            .as_array()
            .is_some_and(|sites| !sites.is_empty())
    );
}

#[test]
fn the_text_of_a_calibration_serves_and_onnx_comes_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let text = format!("{TERMS},train{{{OPTIONS}}}");
    common::succeed(&mut pipeline(
        STORIES,
        &at("a.hlrc"),
        &text,
        &["--calib", TEXT],
    ));
    common::succeed(&mut pipeline(
        STORIES,
        &at("b.onnx"),
        &text,
        &["--calib", TEXT],
    ));
    let left = std::fs::read_dir(folder.path()).expect("a folder");
    let mut left: Vec<String> = left
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with("b."))
        .collect();
    left.sort();
    assert_eq!(left, ["a.hlrc"]);
    // The ONNX file has the weights of the folder: their outputs differ by rounding.
    let mut eval = tool();
    eval.arg("eval")
        .arg(at("b.onnx"))
        .arg("--ref")
        .arg(at("a.hlrc"));
    eval.args([
        "--data",
        TEXT,
        "--ctx",
        "64",
        "--windows",
        "4",
        "--json",
        "--no-cache",
    ]);
    eval.args(["--tokenizer", STORIES]);
    let judged: Value = serde_json::from_str(&common::succeed(&mut eval)).expect("JSON");
    let kl = judged["models"][0]["against"]["kl"]["mean"]
        .as_f64()
        .expect("a mean");
    assert!(kl.abs() < 1e-5, "{kl}");
}

#[test]
fn a_pipeline_that_was_killed_goes_on_in_either_part() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    common::succeed(&mut pipeline(STORIES, &at("whole.hlrc"), &with_data(), &[]));
    let out = at("killed.hlrc");
    let awaited = [
        at("killed.hlrc.untrained.partial").join("journal.jsonl"),
        at("killed.hlrc.partial").join("train.safetensors"),
    ];
    for (number, wanted) in awaited.iter().enumerate() {
        let more: &[&str] = if number == 0 { &[] } else { &["--resume"] };
        let mut command = pipeline(STORIES, &out, &with_data(), more);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("started");
        let begun = Instant::now();
        while !wanted.exists() && begun.elapsed() < Duration::from_secs(120) {
            if child.try_wait().expect("its state").is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(!out.exists(), "nothing half-written has the output's name");
    }
    let other = format!("int2,train{{{OPTIONS} data={TEXT}}}");
    let refused = pipeline(STORIES, &out, &other, &["--resume"])
        .output()
        .expect("started");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("another command"),
        "{said}"
    );
    common::succeed(&mut pipeline(STORIES, &out, &with_data(), &["--resume"]));
    assert_eq!(hashes(&at("whole.hlrc")), hashes(&out));
    assert!(!at("killed.hlrc.untrained").exists() && !at("killed.hlrc.partial").exists());
}

#[test]
fn what_a_pipeline_cannot_do_is_said_before_it_begins() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.hlrc");
    for (text, parts) in [
        ("int4,train{steps=2}", ["needs text", "--calib"]),
        ("int4,train{data=no.txt}", ["no.txt", "No such file"]),
        (
            "train{data=random},int4",
            ["another pass stands behind it", "move it to the end"],
        ),
        ("layers[0](train)", ["works on the whole module", "scope"]),
        (
            "int4,train{params=scales,factors data=random}",
            ["factors", "lowrank"],
        ),
        (
            "int4,train{data=random steps=0}",
            ["`steps` takes", "from 1"],
        ),
        (
            "int4,train{data=random kl=0}",
            ["nothing to learn from", "`ce`"],
        ),
    ] {
        let (code, said) = refused(STORIES, &out, text);
        assert!(
            code == Some(2) || code == Some(3),
            "{text}: {code:?} {said}"
        );
        parts
            .iter()
            .for_each(|part| assert!(said.contains(part), "{text}: {said}"));
        assert!(!folder.path().join("out.hlrc.untrained").exists(), "{text}");
    }
    let (code, said) = refused(STORIES, &folder.path().join("out.hlir"), &with_data());
    assert!(code == Some(2) && said.contains(".onnx"), "{said}");
    let mut plan = pipeline(STORIES, &out, &with_data(), &["--emit", "plan"]);
    let said = plan.output().expect("started").stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("no effect on a plan"), "{said}");
    // Stopped before it, the pipeline is what it was without.
    let mut stopped = pipeline(STORIES, &out, &with_data(), &["--stop-after", "int2"]);
    common::succeed(&mut stopped);
    let plain = folder.path().join("plain.hlrc");
    common::succeed(&mut pipeline(STORIES, &plain, TERMS, &[]));
    assert_eq!(hashes(&out), hashes(&plain));
}
