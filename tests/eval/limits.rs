//! What is refused, what is said of it, and what is one.

use super::*;

const BERT: &str = "tests/fixtures/families/bert";

/// A file of text in the scratch folder.
fn text(name: &str, content: &str) -> String {
    let path = MADE.1.join(name);
    std::fs::write(&path, content).expect("written");
    path.to_string_lossy().into_owned()
}

#[test]
fn options_without_effect_are_refused() {
    let encoder = [
        "eval",
        BERT,
        "--ref",
        BERT,
        "--tokenizer",
        MODEL,
        "--data",
        TEXT,
    ];
    for (option, value) in [
        ("--stride", "4"),
        ("--skip", "4"),
        ("--bos", "never"),
        ("--split", "---"),
        ("--cache", "x"),
    ] {
        let said = fails(2, &[&encoder[..], &[option, value]].concat());
        assert!(
            said.contains(option) && said.contains("no effect"),
            "{said}"
        );
    }
    let arrays = ["eval", BERT, "--ref", BERT, "--inputs", "x.npz"];
    for (option, value) in [("--ctx", "4"), ("--windows", "4"), ("--tokenizer", MODEL)] {
        let said = fails(2, &[&arrays[..], &[option, value]].concat());
        assert!(said.contains(option), "{said}");
    }
    // Nothing to leave out: of the only model, and of one of two.
    let (int4, mixed) = (made("int4"), made("mixed"));
    let more = ["--ref", MODEL, "--data", TEXT, "--ablate", "--windows", "1"];
    let said = fails(2, &[&["eval", &int4], &more[..]].concat());
    assert!(said.contains("low-rank or sparse terms"), "{said}");
    let found = json(&[&[&*int4, &*mixed], &more[..]].concat());
    let note = found["notes"][0].as_str().expect("a note");
    assert!(
        note.contains(&int4) && note.contains("no low-rank"),
        "{note}"
    );
    assert_eq!(found["models"].as_array().map(Vec::len), Some(5));
}

#[test]
fn nothing_to_measure_is_an_error() {
    let empty = text("empty.txt", " \n");
    for model in [MODEL, BERT] {
        let base = ["eval", model, "--ref", model, "--tokenizer", MODEL];
        let with = |more: &[&str]| fails_with(&[&base[..], more].concat());
        let said = with(&["--data", &empty]);
        assert!(
            said.0 == Some(3) && said.1.contains("empty.txt: there is no text"),
            "{said:?}"
        );
        for option in ["--ctx", "--windows"] {
            let said = with(&["--data", TEXT, option, "0"]);
            assert!(
                said.0 == Some(2) && said.1.contains("from 1 on"),
                "{said:?}"
            );
        }
        let said = with(&["--data", TEXT, "--ctx", "4096"]);
        assert!(
            said.0 == Some(4) && said.1.contains("positions"),
            "{said:?}"
        );
    }
}

#[test]
fn a_tokenizer_of_another_model_is_told_with_the_model() {
    let dir = MADE.1.join("other");
    std::fs::create_dir_all(&dir).expect("a folder");
    let json = std::fs::read(format!("{MODEL}/tokenizer.json")).expect("the fixture");
    let mut json: Value = serde_json::from_slice(&json).expect("JSON");
    let token = serde_json::json!({"id": 512, "content": "<new>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let added = json["added_tokens"].as_array_mut().expect("a list");
    added.push(token);
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).expect("written");
    let data = text("other.txt", "Once upon a time <new> there was");
    let other = dir.to_string_lossy();
    let said = fails(3, &["eval", MODEL, "--data", &data, "--tokenizer", &other]);
    assert!(
        said.contains(&format!("{MODEL}: the tokenizer gives token 512")),
        "{said}"
    );
}

fn fails_with(args: &[&str]) -> (Option<i32>, String) {
    let output = run(args);
    (output.status.code(), stderr(&output))
}

#[test]
fn the_protocol_says_how_text_was_split_and_one_is_one() {
    let found = json(&[MODEL, "--data", TEXT, "--windows", "2"]);
    let described = found["described"].as_str().expect("text");
    assert!(
        described.contains("documents apart at lines \"---\""),
        "{described}"
    );
    assert_eq!(found["split"], "---");
    let int4 = made("int4");
    let one = [
        "eval",
        &int4,
        "--ref",
        MODEL,
        "--data",
        TEXT,
        "--ctx",
        "2",
        "--windows",
        "1",
        "-q",
    ];
    let said = ok(&one);
    assert!(
        said.contains("1 window, ") && said.contains(" 1 prediction "),
        "{said}"
    );
    assert!(!said.contains("NaN"), "{said}");
    let parsed = ok(&[&one[..], &["--json"]].concat());
    let parsed: Value = serde_json::from_str(&parsed).expect("JSON");
    assert_eq!(
        parsed["models"][0]["perplexity_standard_error"],
        Value::Null
    );
}

/// The fixture with fewer positions than a usual window.
fn short() -> String {
    let dir = MADE.1.join("short");
    std::fs::create_dir_all(&dir).expect("a folder");
    for name in [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(Path::new(MODEL).join(name), dir.join(name)).expect("copied");
    }
    let config = std::fs::read_to_string(format!("{MODEL}/config.json")).expect("a file");
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    config["max_position_embeddings"] = 40.into();
    std::fs::write(dir.join("config.json"), config.to_string()).expect("written");
    dir.to_string_lossy().into_owned()
}

#[test]
fn usual_windows_are_as_short_as_the_model() {
    let (short, out) = (short(), made("short.hlrc"));
    let output = run(&[
        &short,
        "-p",
        "int4{method=gptq}",
        "--calib",
        TEXT,
        "--eval",
        TEXT,
        "-o",
        &out,
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("of 40 tokens"), "{said}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("context 40, "), "{said}");
    let statistics = made("short.calibration");
    let base = ["calibrate", &short, "--data", TEXT, "-o", &statistics];
    let said = fails(4, &[&base[..], &["--ctx", "512"]].concat());
    assert!(said.contains("40 positions"), "{said}");
    let said = fails(2, &[&base[..], &["--windows", "0"]].concat());
    assert!(said.contains("from 1 on"), "{said}");
}
