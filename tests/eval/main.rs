//! `eval` as users meet it: on the small trained model that the repository ships.

mod limits;
mod whole;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

const TEXT: &str = "tests/fixtures/text/stories.txt";
const MODEL: &str = "tests/fixtures/stories260K";

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("XDG_CACHE_HOME", MADE.0.path().join("cache"))
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn ok(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn fails(code: i32, args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{args:?}: {}",
        stderr(&output)
    );
    stderr(&output)
}

/// A scratch folder, and models in it.
static MADE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let path = dir.path().to_path_buf();
    for (pipeline, name) in [
        ("int4", "int4"),
        ("int2", "int2"),
        ("lowrank{rank=8},outlier,int3", "mixed"),
    ] {
        let made = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
            .args([MODEL, "-q", "-p", pipeline, "-o"])
            .arg(path.join(name))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("the binary runs");
        assert!(made.status.success(), "{}", stderr(&made));
    }
    (dir, path)
});

fn made(name: &str) -> String {
    MADE.1.join(name).to_string_lossy().into_owned()
}

fn json(args: &[&str]) -> Value {
    let args = [
        &["eval", "--json", "-q", "--ctx", "64", "--split", "---"],
        args,
    ]
    .concat();
    serde_json::from_str(&ok(&args)).expect("JSON")
}

fn number(value: &Value, pointer: &str) -> f64 {
    let found = value.pointer(pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("{pointer} in {value:#}"))
}

#[test]
fn a_model_is_itself() {
    let found = json(&[MODEL, "--ref", MODEL, "--data", TEXT, "--no-cache"]);
    assert_eq!(number(&found, "/models/0/against/kl/max"), 0.0);
    assert_eq!(number(&found, "/models/0/against/top1_agreement"), 1.0);
    assert_eq!(number(&found, "/models/0/against/perplexity_ratio"), 1.0);
    let perplexity = number(&found, "/reference/perplexity");
    assert_eq!(perplexity, number(&found, "/models/0/perplexity"));
    assert!((2.0..12.0).contains(&perplexity), "{perplexity}");
    // Every token but those that fill no window, with BOS in front of each.
    let windows = number(&found, "/windows");
    assert_eq!(number(&found, "/predictions"), windows * 63.0);
    assert_eq!(number(&found, "/protocol/bos"), 1.0);
}

#[test]
fn fewer_bits_are_worse() {
    let (int4, int2) = (made("int4"), made("int2"));
    let found = json(&[&int4, &int2, "--ref", MODEL, "--data", TEXT, "--no-cache"]);
    let kl = |i: usize| number(&found, &format!("/models/{i}/against/kl/mean"));
    let ratio = |i: usize| number(&found, &format!("/models/{i}/against/perplexity_ratio"));
    assert!(0.0 < kl(0) && 5.0 * kl(0) < kl(1), "{} {}", kl(0), kl(1));
    assert!(ratio(0) < ratio(1));
    assert_eq!(found["paired"][0]["second"], int2.as_str());
    assert!(number(&found, "/paired/0/kl/confidence/1") < 0.0);
    assert_eq!(number(&found, "/paired/0/kl/second_lower"), 0.0);
}

#[test]
fn terms_are_left_out() {
    let mixed = made("mixed");
    let found = json(&[
        &mixed,
        "--ref",
        MODEL,
        "--data",
        TEXT,
        "--ablate",
        "--windows",
        "4",
        "--no-cache",
    ]);
    let models = found["models"].as_array().expect("rows");
    let without: Vec<String> = models.iter().map(|m| m["without"].to_string()).collect();
    assert_eq!(
        without,
        [
            "[]",
            r#"["low_rank"]"#,
            r#"["sparse"]"#,
            r#"["low_rank","sparse"]"#
        ]
    );
    let kl: Vec<f64> = (0..4)
        .map(|i| number(&found, &format!("/models/{i}/against/kl/mean")))
        .collect();
    assert!(kl[0] < kl[1] && kl[0] < kl[2], "{kl:?}");
}

#[test]
fn gates_have_a_code_of_their_own() {
    let int2 = made("int2");
    let base = [
        "eval",
        &int2,
        "--ref",
        MODEL,
        "--data",
        TEXT,
        "--ctx",
        "64",
        "--windows",
        "3",
        "-q",
    ];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    let said = fails(5, &with(&["--max-kl", "0.001"]));
    assert!(
        said.contains("the mean KL divergence") && said.contains("is above --max-kl 0.001"),
        "{said}"
    );
    let said = fails(5, &with(&["--max-ppl-ratio", "1.0001"]));
    assert!(
        said.contains("the perplexity ratio") && said.contains("--max-ppl-ratio 1.0001"),
        "{said}"
    );
    ok(&with(&["--max-kl", "100", "--max-ppl-ratio", "100"]));
    let said = fails(2, &["eval", &int2, "--data", TEXT, "--max-kl", "1"]);
    assert!(said.contains("--ref"), "{said}");
}

/// The report without what may differ from run to run.
fn numbers(mut found: Value) -> Value {
    for name in ["seconds", "reference_logits"] {
        found.as_object_mut().expect("an object").remove(name);
    }
    found
}

#[test]
fn the_cache_changes_nothing_but_time() {
    let (int4, cache) = (made("int4"), made("own-cache"));
    let args = [
        &int4,
        "--ref",
        MODEL,
        "--data",
        TEXT,
        "--windows",
        "5",
        "--cache",
        &cache,
    ];
    let first = json(&args);
    let second = json(&args);
    assert_eq!(first["reference_logits"], "computed");
    assert_eq!(second["reference_logits"], "cached");
    assert_eq!(numbers(first.clone()), numbers(second));
    // Damage is found, and mended.
    let file = std::fs::read_dir(&cache)
        .expect("a folder")
        .next()
        .expect("a file")
        .expect("an entry")
        .path();
    let mut bytes = std::fs::read(&file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes).expect("written");
    let third = json(&args);
    assert_eq!(third["reference_logits"], "computed");
    assert_eq!(numbers(first.clone()), numbers(third));
    assert_eq!(json(&args)["reference_logits"], "cached");
    // What does not fit is not stored.
    let small = [&args[..], &["--cache-limit", "10KB"]].concat();
    assert_eq!(numbers(first), numbers(json(&small)));
}

#[test]
fn neither_threads_matter() {
    let int4 = made("int4");
    let with = |threads| {
        json(&[
            &int4,
            "--ref",
            MODEL,
            "--data",
            TEXT,
            "--threads",
            threads,
            "--no-cache",
        ])
    };
    assert_eq!(numbers(with("1")), numbers(with("2")));
}

#[test]
fn protocols() {
    let strided = json(&[MODEL, "--data", TEXT, "--stride", "16"]);
    let whole = json(&[MODEL, "--data", TEXT]);
    assert!(number(&strided, "/windows") > 3.0 * number(&whole, "/windows"));
    // More to predict from is never much worse.
    assert!(number(&strided, "/models/0/perplexity") < number(&whole, "/models/0/perplexity"));
    let bare = json(&[MODEL, "--data", TEXT, "--bos", "never"]);
    assert_eq!(bare["protocol"]["bos"], Value::Null);
    assert_eq!(
        number(&bare, "/predictions"),
        number(&bare, "/windows") * 63.0
    );
    let said = ok(&[
        "eval",
        MODEL,
        "--data",
        TEXT,
        "--ctx",
        "64",
        "--windows",
        "2",
        "-q",
    ]);
    assert!(
        said.starts_with(
            "context 64, the first 2 windows, not overlapping, BOS (token 1) in front of each"
        ),
        "{said}"
    );
    fails(
        2,
        &[
            "eval", MODEL, "--data", TEXT, "--ctx", "64", "--stride", "64",
        ],
    );
    let said = fails(4, &["eval", MODEL, "--data", TEXT, "--ctx", "4096"]);
    assert!(said.contains("512"), "{said}");
    fails(3, &["eval", MODEL, "--data", "nowhere.txt"]);
    fails(2, &["eval", MODEL]);
}

#[test]
fn onnx_is_its_safetensors_twin() {
    if !hlrc::pass::passes().iter().any(|pass| pass.name == "raise") {
        eprintln!("skipped: nothing raises ONNX to native ops yet");
        return;
    }
    let onnx = format!("{MODEL}/stories260K.onnx");
    let found = json(&[
        &onnx,
        "--ref",
        MODEL,
        "--data",
        TEXT,
        "--windows",
        "3",
        "--no-cache",
    ]);
    let kl = number(&found, "/models/0/against/kl/max");
    assert!(kl < 1e-6, "{kl}");
}

#[test]
fn outputs_on_arrays() {
    let path = MADE.1.join("two.npz");
    npz(&path, [2, 5], &[1, 403, 407, 261, 378, 1, 5, 17, 99, 300]);
    let inputs = path.to_string_lossy().into_owned();
    let int4 = made("int4");
    let found: Value = serde_json::from_str(&ok(&[
        "eval", &int4, MODEL, "--ref", MODEL, "--inputs", &inputs, "--json", "-q",
    ]))
    .expect("JSON");
    assert_eq!(found["kind"], "outputs");
    let of =
        |model: usize, what: &str| number(&found, &format!("/models/{model}/outputs/0/{what}"));
    assert_eq!(
        (
            of(0, "vectors"),
            of(1, "cosine_worst"),
            of(1, "relative_error_worst")
        ),
        (10.0, 1.0, 0.0)
    );
    assert!((0.9..1.0).contains(&of(0, "cosine_mean")));
    assert!(of(0, "relative_error_worst") > 0.0);
    let table = ok(&["eval", &int4, "--ref", MODEL, "--inputs", &inputs, "-q"]);
    assert!(table.contains("cosine"), "{table}");
}

#[test]
fn opt_ends_with_an_evaluation() {
    let out = made("judged");
    let said = ok(&[MODEL, "-p", "int4", "-o", &out, "--eval", TEXT]);
    assert!(said.contains("KL to the original"), "{said}");
    let report = std::fs::read(Path::new(&out).join("report.json")).expect("a report");
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    assert!(number(&report, "/evaluation/models/0/against/kl/mean") > 0.0);
    assert_eq!(number(&report, "/evaluation/protocol/context"), 512.0);
    assert!(report["sites"].is_array());
    ok(&["verify", &out]);
    fails(2, &[MODEL, "-p", "int4", "-S", "--eval", TEXT]);
}

#[test]
fn what_has_no_effect_is_refused() {
    let int4 = made("int4");
    let said = fails(
        2,
        &["eval", &int4, "--ref", MODEL, "--data", TEXT, "--ablate"],
    );
    assert!(said.contains("--ablate has no effect"), "{said}");
    let arrays = MADE.1.join("ids.npz");
    npz(&arrays, [1, 3], &[1, 2, 3]);
    let arrays = arrays.to_string_lossy().into_owned();
    for flags in [
        ["--stride", "8"],
        ["--bos", "never"],
        ["--split", "-"],
        ["--windows", "1"],
    ] {
        let args = [
            &["eval", &*int4, "--ref", MODEL, "--inputs", &arrays],
            &flags[..],
        ]
        .concat();
        let said = fails(2, &args);
        assert!(
            said.contains(flags[0]) && said.contains("no effect"),
            "{said}"
        );
    }
}

#[test]
fn nothing_to_predict_is_an_error() {
    let empty = MADE.1.join("empty.txt");
    std::fs::write(&empty, "").expect("written");
    let empty = empty.to_string_lossy().into_owned();
    fails(3, &["eval", MODEL, "--data", &empty]);
    for flags in [
        ["--ctx", "0"],
        ["--ctx", "1"],
        ["--windows", "0"],
        ["--stride", "0"],
    ] {
        fails(2, &[&["eval", MODEL, "--data", TEXT], &flags[..]].concat());
    }
    fails(4, &["eval", MODEL, "--data", TEXT, "--ctx", "100000"]);
}

#[test]
fn one_window_has_no_deviation() {
    let args = [
        "eval",
        "-q",
        "--ctx",
        "32",
        "--split",
        "---",
        "--windows",
        "1",
    ];
    let said = ok(&[&args[..], &[MODEL, "--data", TEXT]].concat());
    assert!(said.contains("the first 1 window,"), "{said}");
    assert!(said.contains("documents apart at lines \"---\""), "{said}");
    assert!(!said.contains("NaN"), "{said}");
}

/// An archive of one int64 array `input_ids`, as numpy's savez writes it.
fn npz(path: &Path, shape: [u64; 2], ids: &[i64]) {
    use npyz::WriterBuilder;
    let mut npy = Vec::new();
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&shape)
        .writer(&mut npy)
        .begin_nd()
        .expect("begun");
    writer.extend(ids.iter().copied()).expect("written");
    writer.finish().expect("finished");
    let file = std::fs::File::create(path).expect("created");
    let mut archive = zip::ZipWriter::new(file);
    let options = zip::write::SimpleFileOptions::default();
    archive.start_file("input_ids.npy", options).expect("begun");
    std::io::Write::write_all(&mut archive, &npy).expect("written");
    archive.finish().expect("finished");
}
