//! Runs that end early: the message has the step, the tensor and what is left.

use std::path::Path;

use crate::{STORIES, arguments, coded, run};

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
