//! `--device`: what happens without a GPU, and the same text with one.

use std::process::{Command, Output};

const MODEL: &str = "tests/fixtures/stories260K";

fn hlrc(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.args(args).output().expect("started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that needs a GPU; its output, or `None` where there is none, which must be said.
fn on_gpu(args: &[&str]) -> Option<String> {
    let output = hlrc(args);
    let error = text(&output.stderr);
    if output.status.success() {
        return Some(text(&output.stdout));
    }
    assert_eq!(output.status.code(), Some(1), "{args:?}\n{error}");
    assert!(error.contains("no GPU can be used: "), "{args:?}\n{error}");
    eprintln!("skipped: {}", error.lines().next().unwrap_or_default());
    None
}

#[test]
fn the_same_text_as_on_the_processor() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model.hlrc");
    let model = model.to_str().expect("a path");
    let made = hlrc(&["-q", MODEL, "-p", "lowrank,outlier,int4", "-o", model]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let run = ["run", "-q", model, "-p", "Once upon a time", "-n", "40"];
    let Some(have) = on_gpu(&[&run[..], &["--device", "cuda:0"]].concat()) else {
        return;
    };
    let want = text(&hlrc(&run).stdout);
    assert_eq!(have, want);
}

#[test]
fn a_gpu_judges_as_the_processor_does() {
    let data = "tests/fixtures/stories260K/README.md";
    let data = if std::path::Path::new(data).exists() {
        data
    } else {
        "README.md"
    };
    let eval = [
        "eval",
        "-q",
        MODEL,
        "--ref",
        MODEL,
        "-d",
        data,
        "--ctx",
        "64",
        "--windows",
        "2",
        "--no-cache",
        "--json",
    ];
    let Some(report) = on_gpu(&[&eval[..], &["--device", "cuda:0"]].concat()) else {
        return;
    };
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let kl = &report["models"][0]["against"]["kl"]["mean"];
    assert!(kl.as_f64().is_some_and(|kl| kl < 1e-4), "{report:#}");
}

#[test]
fn a_plan_is_timed() {
    let Some(report) = on_gpu(&["bench", "-q", MODEL, "--device", "cuda:0", "--json"]) else {
        return;
    };
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let steps = report["decode"]["steps"].as_array().expect("steps");
    assert!(
        steps
            .iter()
            .all(|s| s["measured_us"].as_f64().is_some_and(|us| us > 0.0)),
        "{report:#}"
    );
}

#[test]
fn what_has_no_effect_is_refused() {
    let cases: [(&[&str], &str); 5] = [
        (
            &["run", MODEL, "-p", "x", "--device", "gpu"],
            "device `gpu` is not known: there are `cpu` and `cuda:0`",
        ),
        (
            &["run", MODEL, "-p", "x", "--kv", "q8"],
            "--kv has no effect on the processor",
        ),
        (
            &[
                "run",
                MODEL,
                "-p",
                "x",
                "--device",
                "cuda:0",
                "--threads",
                "2",
            ],
            "--threads has no effect on a GPU",
        ),
        (
            &["bench", MODEL],
            "bench times the launches of a plan, and the processor has none",
        ),
        (
            &["eval", MODEL, "-d", "README.md", "--kv", "q8"],
            "--kv has no effect on the processor",
        ),
    ];
    for (args, message) in cases {
        let output = hlrc(args);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}\n{error}");
        assert!(error.contains(message), "{args:?}\n{error}");
    }
}
