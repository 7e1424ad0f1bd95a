//! The command line as users meet it: help, listings, formats, exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/stories260K")
        .join(name);
    path.into_os_string().into_string().expect("utf-8")
}

fn run_in(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs")
}

fn run(args: &[&str]) -> Output {
    run_in(Path::new(env!("CARGO_MANIFEST_DIR")), args)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("utf-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs, expects success, and gives stdout.
fn ok(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

/// Runs, expects this exit code, and gives stderr.
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

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let path = dir.path().to_owned();
    (dir, path)
}

#[test]
fn help_shows_the_way() {
    let help = ok(&["--help"]);
    for part in [
        "Usage: hlrc-opt [opt]",
        "Examples:",
        "Exit codes:",
        "130",
        "lowrank,outlier,int4",
        "NO_COLOR",
    ] {
        assert!(help.contains(part), "{part}");
    }
    // MLIR's and LLVM's spellings work but don't crowd the page.
    assert!(!help.contains("mlir"));
    assert!(ok(&["-h"]).lines().count() < help.lines().count());
    assert!(ok(&["inspect", "--help"]).contains("--dot"));
    assert!(ok(&["--version"]).starts_with("hlrc-opt "));
    assert!(fails(2, &[]).contains("Usage"));
}

#[test]
fn every_pass_is_listed_and_described() {
    let list = ok(&["passes"]);
    for pass in hlrc::pass::passes() {
        assert!(
            list.contains(pass.name) && list.contains(pass.summary),
            "{}",
            pass.name
        );
        let page = ok(&["passes", pass.name]);
        let json: serde_json::Value =
            serde_json::from_str(&ok(&["passes", pass.name, "--json"])).expect("JSON");
        for option in json["options"].as_array().expect("a list") {
            let name = option["name"].as_str().expect("a name");
            assert!(
                page.contains(&format!("{name}=<")),
                "{} shows {name}",
                pass.name
            );
            assert!(
                !option["doc"].as_str().unwrap_or("").is_empty(),
                "{}: {name} is documented",
                pass.name
            );
        }
    }
    for preset in hlrc::pass::pipeline::preset::PRESETS {
        assert!(list.contains(&format!("@{}", preset.name)));
        let printed = ok(&["-p", &format!("@{}", preset.name), "--print-pipeline"]);
        assert!(printed.contains("{"), "{printed}");
    }
    let json: serde_json::Value = serde_json::from_str(&ok(&["passes", "--json"])).expect("JSON");
    assert_eq!(
        json["passes"].as_array().map(Vec::len),
        Some(hlrc::pass::passes().len())
    );
    assert_eq!(list, ok(&["-print-passes"]));
    assert!(fails(2, &["passes", "lowrnk"]).contains("`lowrank`"));
}

#[test]
fn completions_and_manual_are_made() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(ok(&["completions", shell]).contains("hlrc-opt"), "{shell}");
    }
    assert!(ok(&["man"]).contains(".TH hlrc-opt 1"));
    let (_keep, dir) = scratch();
    ok(&["man", "--dir", dir.to_str().expect("utf-8")]);
    assert!(dir.join("hlrc-opt-inspect.1").is_file());
}

#[test]
fn pipelines_are_printed_canonically() {
    let a = ok(&[
        "--print-pipeline",
        "-p",
        " lowrank { rank = 8 } , int4{group=64}",
    ]);
    assert!(a.starts_with("lowrank{rank=8"), "{a}");
    let b = ok(&[
        "-print-pipeline-passes",
        "-passes=builtin.module(linear(lowrank{rank=8},int4{group=64}))",
    ]);
    assert_eq!(a, b);
    // What is printed means the same again.
    assert_eq!(ok(&["--print-pipeline", "-p", a.trim()]), a);
    let with_override = ok(&[
        "--print-pipeline",
        "-p",
        "int4",
        "-t",
        "attn_v=int8",
        "-t",
        "re:down=none",
    ]);
    assert!(with_override.contains("-t attn_v=int8") && with_override.contains("-t re:down=none"));
}

#[test]
fn usage_errors_say_what_to_do() {
    for (args, part) in [
        (
            vec!["inspct", "x.onnx"],
            "did you mean the command `inspect`",
        ),
        (vec!["x.onnx", "-p", "a", "b"], "quote the pipeline"),
        (vec!["x.onnx", "--seeed", "1"], "--seed"),
        (vec!["x.onnx", "-p"], "--pipeline"),
        (vec!["x.onnx", "--mem-limit", "much"], "4GiB"),
        (vec!["x.onnx", "--resume", "--force"], "--force"),
    ] {
        let told = fails(2, &args);
        assert!(told.contains(part), "{args:?}: {told}");
    }
    assert!(fails(3, &["inspct"]).contains("hlrc-opt inspect"));
}

#[test]
fn inspect_speaks_to_people_and_programs() {
    let model = fixture("stories260K.onnx");
    let text = ok(&["inspect", &model]);
    assert!(
        text.contains("linear") && text.contains("[") | text.contains("dense f32"),
        "{text}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&ok(&["inspect", &model, "--json", "--tensors", "--graph"]))
            .expect("JSON");
    assert!(
        json["matrices"]
            .as_array()
            .is_some_and(|list| list.len() >= 35),
        "{}",
        json["matrices"]
    );
    assert!(
        json["weights"]
            .as_array()
            .is_some_and(|list| !list.is_empty())
    );
    assert!(
        json["graph"]
            .as_str()
            .is_some_and(|text| text.starts_with("hlir 1"))
    );
    let dot = ok(&["inspect", &model, "--dot"]);
    assert!(dot.starts_with("digraph") && dot.trim_end().ends_with('}'));
    assert!(ok(&["inspect", &model, "--tensors"]).contains("embed_tokens"));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
        .args(["inspect", "--json", "--graph", &fixture("stories260K.onnx")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn text_ir_goes_through_unchanged() {
    let (_keep, dir) = scratch();
    let model = fixture("stories260K.onnx");
    let first = ok(&[&model, "-q", "-S"]);
    assert_eq!(ok(&[&model, "-q", "-S", "-o", "-"]), first);
    let path = dir.join("m.hlir");
    let path = path.to_str().expect("utf-8");
    ok(&[&model, "-q", "-S", "-o", path]);
    // Written elsewhere, it still finds its weights, and says so from where it is printed.
    assert_eq!(ok(&[path, "-q", "-S"]), first);
    // It is there already: kept unless --force says otherwise.
    assert!(fails(1, &[&model, "-S", "-o", path]).contains("--force"));
    ok(&[&model, "-q", "-S", "-o", path, "--force"]);
}
