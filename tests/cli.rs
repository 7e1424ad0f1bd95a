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

/// The main job from another folder, with relative outputs of every kind.
#[test]
fn the_main_job_writes_every_kind_of_output() {
    let (_keep, dir) = scratch();
    let model = fixture("stories260K.onnx");
    let run = |args: &[&str]| {
        let output = run_in(&dir, args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        (stdout(&output), stderr(&output))
    };
    let pipeline = "lowrank{rank=4},outlier,int4";
    let (table, told) = run(&[&model, "-p", pipeline]);
    assert!(table.contains("35 matrices rewritten"), "{table}");
    assert!(
        told.contains("[ 35/ 35]") && told.contains("peak RSS"),
        "{told}"
    );
    for file in ["manifest.json", "module.hlir", "report.json"] {
        assert!(dir.join("stories260K.hlrc").join(file).is_file(), "{file}");
    }
    run(&["verify", "stories260K.hlrc"]);
    let (told, _) = run(&["diff", &model, "stories260K.hlrc"]);
    assert!(told.contains("of 37 matrices are equal"), "{told}");
    // An output is an input: the head follows in a second run, and the manifest names both pipelines.
    run(&["stories260K.hlrc", "-p", "head(int8)", "-o", "more.hlrc"]);
    let manifest = std::fs::read_to_string(dir.join("more.hlrc/manifest.json")).expect("written");
    assert!(
        manifest.contains("lowrank{rank=4") && manifest.contains("head(int8)"),
        "{manifest}"
    );

    run(&[&model, "-p", pipeline, "-o", "small.onnx"]);
    assert!(dir.join("small.onnx").is_file() && dir.join("small.report.json").is_file());
    assert!(!dir.join("small.onnx.partial").exists());
    let before = std::fs::metadata(&model).expect("there").len();
    assert!(
        std::fs::metadata(dir.join("small.onnx"))
            .expect("there")
            .len()
            < before
    );

    let (told, _) = run(&["diff", &model, "small.onnx"]);
    let packed = "/m/model/layers.0/self_attn/q_proj/MatMul: a MatMulNBits in B";
    assert!(told.contains(packed), "{told}");
    // Codes alone are read back and compared.
    run(&[&model, "-p", "int8", "-o", "codes.onnx"]);
    run(&["diff", &model, "codes.onnx", "--max-error", "0.02"]);

    let streamed = run_in(&dir, &[&model, "-p", pipeline, "-o", "-"]);
    assert!(streamed.status.success(), "{}", stderr(&streamed));
    assert!(
        streamed.stdout == std::fs::read(dir.join("small.onnx")).expect("written"),
        "the same bytes"
    );

    run(&[&model, "-p", pipeline, "-S", "-o", "small.hlir"]);
    run(&["verify", "small.hlir"]);
    let (told, _) = run(&["diff", "stories260K.hlrc", "small.hlir"]);
    assert!(told.contains("37 of 37 matrices are equal"), "{told}");

    let (json, _) = run(&[&model, "-p", pipeline, "-o", "json.hlrc", "--json", "-q"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("one JSON object");
    assert_eq!(json["sites"].as_array().map(Vec::len), Some(35));
    assert_eq!(json["run"]["output"], "json.hlrc");
}

#[test]
fn what_is_looked_at_goes_to_stderr() {
    let model = fixture("stories260K.onnx");
    let base = [model.as_str(), "-p", "lowrank{rank=4},int4", "-S", "-q"];
    let run = |extra: &[&str]| {
        let output = run(&[&base[..], extra].concat());
        assert!(output.status.success(), "{extra:?}: {}", stderr(&output));
        (stdout(&output), stderr(&output))
    };
    let (plain, quiet) = run(&[]);
    assert_eq!(quiet, "");
    for (flags, parts) in [
        (&["--timing"][..], &["lowrank", "in passes"][..]),
        (&["--timing=json"], &["\"passes\":"]),
        (&["-time-passes"], &["in passes"]),
        (&["--stats"], &["terms made", "int4"]),
        (&["--stats=json"], &["\"term_bytes\":"]),
        (&["--remarks"], &["passed: lowrank:", "missed: pipeline:"]),
        (&["--remarks=missed"], &["missed: pipeline:"]),
        (
            &["--remarks", "--remarks-filter", "layers.4.*down_proj"],
            &["layers.4/mlp/down_proj"],
        ),
        (&["--print-ir-after=int4"], &["IR after int4", "quant("]),
        (
            &["-print-after-all"],
            &["IR after lowrank", "IR after int4"],
        ),
        (&["--print-ir-before=lowrank"], &["IR before lowrank"]),
        (&["--mlir-print-ir-after-change"], &["IR after lowrank"]),
    ] {
        let (text, told) = run(flags);
        assert_eq!(text, plain, "{flags:?} changes nothing on stdout");
        for part in parts {
            assert!(
                told.contains(part),
                "{flags:?} shows {part}: {}",
                &told[..told.len().min(2000)]
            );
        }
    }
    let (_, told) = run(&["--remarks=missed"]);
    assert!(!told.contains("passed:"));
    let (stopped, _) = run(&["--stop-after", "lowrank"]);
    assert!(stopped.contains("low_rank(") && !stopped.contains("quant("));
    let (bisected, told) = run(&["--opt-bisect-limit=3"]);
    assert!(
        told.contains("NOT running") && bisected.matches("quant(").count() < 35,
        "{told}"
    );
}

#[test]
fn dry_runs_read_headers_only_and_write_nothing() {
    let (_keep, dir) = scratch();
    let model = fixture("stories260K.onnx");
    let output = run_in(
        &dir,
        &[
            &model,
            "-p",
            "lowrank,int4",
            "-t",
            "q_proj=none",
            "--dry-run",
        ],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let told = stdout(&output);
    for part in [
        "lowrank,int4",
        "left as it is",
        "memory",
        "time",
        "bits/weight",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let json = stdout(&run_in(
        &dir,
        &[&model, "-p", "int4", "--dry-run", "--json"],
    ));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["sites"], 35);
    assert_eq!(std::fs::read_dir(&dir).expect("there").count(), 0);
}

#[test]
fn remarks_are_written_as_yaml() {
    let (_keep, dir) = scratch();
    let output = run_in(
        &dir,
        &[
            &fixture("stories260K.onnx"),
            "-p",
            "int4",
            "-S",
            "-q",
            "--remarks-output",
            "r.yaml",
        ],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    let text = std::fs::read_to_string(dir.join("r.yaml")).expect("written");
    assert!(
        text.starts_with("--- !") && text.contains("Pass: \"") && text.trim_end().ends_with("..."),
        "{text}"
    );
}

#[test]
fn diff_can_be_a_gate() {
    let (_keep, dir) = scratch();
    let model = fixture("stories260K.onnx");
    assert!(
        run_in(&dir, &[&model, "-p", "int8", "-o", "a.hlrc", "-q"])
            .status
            .success()
    );
    let gate = |limit: &str| {
        run_in(&dir, &["diff", &model, "a.hlrc", "--max-error", limit])
            .status
            .code()
    };
    assert_eq!(gate("0.1"), Some(0));
    assert_eq!(gate("1e-6"), Some(5));
}

#[test]
fn a_reproducer_runs_again() {
    let (_keep, dir) = scratch();
    let model = fixture("stories260K.onnx");
    let text = ok(&[&model, "-q", "-S"]);
    let head = "// hlrc-opt reproducer 1 (hlrc-opt 0.1.0)\n// failure: it broke\n\
                // arguments: [\"-p\",\"int4\",\"--seed\",\"0\"]\n";
    let base = format!("// base: {}\n", env!("CARGO_MANIFEST_DIR"));
    let path = dir.join("crash.hlir");
    std::fs::write(&path, format!("{head}{base}{text}")).expect("written");
    let output = run_in(&dir, &["run-reproducer", "crash.hlir"]);
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("it broke") && told.contains("did not happen again"),
        "{told}"
    );
    assert_eq!(std::fs::read_dir(&dir).expect("there").count(), 1);
    // A pipeline that can't be understood comes back with its own code.
    std::fs::write(
        &path,
        format!("{}{base}{text}", head.replace("int4", "int5")),
    )
    .expect("written");
    assert_eq!(
        run_in(&dir, &["run-reproducer", "crash.hlir"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn text_comes_on_standard_input_too() {
    let text = ok(&[&fixture("stories260K.onnx"), "-q", "-S"]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
        .args(["-", "-q", "-S", "-p", "int4"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut stdin = child.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, text.as_bytes()));
    let output = child.wait_with_output().expect("ends");
    writer.join().expect("joined").expect("taken");
    assert_eq!(stdout(&output).matches("quant(").count(), 35);
}

#[test]
fn of_no_embeddings_nothing_is_saved() {
    let (_guard, dir) = scratch();
    let module = "hlir 1\nmodule \"m\" {\n  weight @q.weight : f32[64,64] = synthetic(seed=1, power=1.2, scale=0.02, outliers=0.0)\n  graph @main(%x : f32[B,64]) -> (%y) {\n    %y = linear %x [64,64] { dense(@q.weight) } name(\"q\") : f32[B,64]\n  }\n}\n";
    std::fs::write(dir.join("m.hlir"), module).unwrap();
    let output = run_in(&dir, &["m.hlir", "-p", "int8", "-o", "m.hlrc"]);
    let told = stdout(&output);
    let ends = told.lines().find(|l| l.starts_with("embeddings, head"));
    let ends = ends.expect("a row of embeddings and head");
    assert!(ends.contains("0.00x") && ends.contains(" 0.0%  "), "{ends}");
}
