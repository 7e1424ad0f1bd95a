//! Runs that end early: the message has the step, the tensor and what is left.

use std::path::Path;

use serde_json::Value;

use crate::{STORIES, arguments, coded, run, tool};

/// What a run says that ends with exit code 1.
fn said(model: &Path, out: &Path, more: &[&str]) -> String {
    let args = arguments(model, out, more);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = run(&args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!out.exists(), "nothing has the output's name");
    text
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn a_loss_that_is_no_number_is_traced_to_a_tensor() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int4");
    let out = folder.path().join("out.hlrc");
    let wild = ["--params", "norms", "--lr", "1e38", "--clip", "0"];
    let text = said(
        &model,
        &out,
        &[&wild[..], &["--checkpoint-every", "1"]].concat(),
    );
    has(
        &text,
        &[
            "step 2: the loss",
            "goes into model.layers.0",
            "is of step 1: ",
            "train.safetensors",
        ],
    );
    let text = said(&model, &out, &[&wild[..], &["-f"]].concat());
    has(
        &text,
        &["step 2: the loss", "no checkpoint was written before"],
    );
}

#[test]
fn a_block_that_comes_to_no_number_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int4");
    let out = folder.path().join("out.hlrc");
    let wild = [
        "--mode",
        "blocks",
        "--teacher",
        STORIES,
        "--params",
        "norms",
    ];
    let text = said(
        &model,
        &out,
        &[&wild[..], &["--lr", "1e38", "--clip", "0"]].concat(),
    );
    has(
        &text,
        &[
            "step 2: the loss",
            "in layer 0; no part was finished before",
        ],
    );
}

#[test]
fn values_beyond_their_format_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "lowrank{rank=4 factors=f16},int4");
    let out = folder.path().join("out.hlrc");
    let wild = ["--lr", "1e7", "--lr-unit", "absolute", "--clip", "0"];
    let text = said(
        &model,
        &out,
        &[&["--params", "lowrank"], &wild[..]].concat(),
    );
    has(
        &text,
        &[
            "step 1: model.layers.0.",
            ".u: ",
            "65504",
            "no checkpoint was written",
        ],
    );
    let text = said(
        &model,
        &out,
        &[&["--params", "scales", "-f"], &wild[..]].concat(),
    );
    has(
        &text,
        &["step 1: model.layers.0.", ".scales: ", "beyond f16"],
    );
}

#[test]
fn the_best_state_before_a_failure_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "lowrank{rank=4 factors=f16},int2");
    let out = folder.path().join("out.hlrc");
    // The first rates of the warm-up do good, later ones blow the factors up.
    let more = [
        "--teacher",
        STORIES,
        "--params",
        "lowrank",
        "--lr",
        "2",
        "--decay",
        "2",
        "--warmup",
        "1",
        "--steps",
        "400",
        "--judge-every",
        "1",
        "--patience",
        "400",
        "--ctx",
        "16",
        "--batch",
        "1",
        "--val",
        "4",
    ];
    let args = arguments(&model, &out, &more);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = run(&args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    has(&text, &["out.hlrc has the best state before that"]);
    let report = std::fs::read_to_string(out.join("report.json")).expect("a report");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert!(report["training"]["kept"].as_u64() > Some(0));
    assert!(
        tool()
            .arg("verify")
            .arg(&out)
            .status()
            .expect("started")
            .success()
    );
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int4");
    let out = folder.path().join("out.hlrc");
    let wild = ["--params", "norms", "--lr", "1e38", "--clip", "0"];
    let more = [&wild[..], &["--checkpoint-every", "1"]].concat();
    said(&model, &out, &more);
    let path = folder.path().join("out.hlrc.partial/train.safetensors");
    let whole = std::fs::read(&path).expect("a checkpoint");
    let resumed = || {
        let args = arguments(&model, &out, &[&more[..], &["--resume"]].concat());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = run(&args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        text
    };
    // Cut short, and with a header that is none.
    for damaged in [&whole[..whole.len() - 100], &whole[..4], &[0xff; 64]] {
        std::fs::write(&path, damaged).expect("written");
        let text = resumed();
        has(
            &text,
            &[
                "train.safetensors: is damaged: ",
                "start anew without --resume",
            ],
        );
    }
    // A tensor shorter than the model's: the header says so itself.
    let head = u64::from_le_bytes(whole[..8].try_into().expect("a length")) as usize;
    let mut header: Value = serde_json::from_slice(&whole[8..8 + head]).expect("JSON");
    let one = header["0.mean"].as_object_mut().expect("a tensor");
    let (from, to) = (
        one["data_offsets"][0].as_u64().expect("an offset"),
        one["data_offsets"][1].as_u64().expect("an offset"),
    );
    let extra = serde_json::json!({"dtype": "F32", "shape": [1], "data_offsets": [to - 4, to]});
    one.insert("shape".into(), serde_json::json!([(to - from) / 4 - 1]));
    one.insert("data_offsets".into(), serde_json::json!([from, to - 4]));
    header["extra"] = extra;
    let header = serde_json::to_vec(&header).expect("JSON");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(&header);
    file.extend(&whole[8 + head..]);
    std::fs::write(&path, file).expect("written");
    has(&resumed(), &["the checkpoint is damaged", "other lengths"]);
}

#[test]
fn a_teacher_that_changed_is_another_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int4");
    let teacher = folder.path().join("teacher");
    std::fs::create_dir(&teacher).expect("made");
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(Path::new(STORIES).join(name), teacher.join(name)).expect("copied");
    }
    let out = folder.path().join("out.hlrc");
    let place = teacher.display().to_string();
    let wild = [
        "--teacher",
        &place,
        "--params",
        "norms",
        "--lr",
        "1e38",
        "--clip",
        "0",
    ];
    let more = [&wild[..], &["--checkpoint-every", "1"]].concat();
    said(&model, &out, &more);
    let file = std::fs::File::options()
        .append(true)
        .open(teacher.join("model.safetensors"));
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    file.expect("opened").set_modified(later).expect("touched");
    let args = arguments(&model, &out, &[&more[..], &["--resume"]].concat());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = run(&args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    has(&text, &["other settings, data or model"]);
}
