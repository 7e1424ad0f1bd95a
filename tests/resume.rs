//! Interrupted runs: what is left, what `--resume` makes of it, and that nothing depends on when it was.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// A module of synthetic linears that keeps a core busy for a second or two.
fn module(dir: &Path) {
    let mut weights = String::new();
    let mut ops = String::new();
    for i in 0..12 {
        weights.push_str(&format!(
            "  weight @w{i} : f32[512,768] = synthetic(seed={i}, power=0.8, scale=0.02, outliers=0.001)\n"
        ));
        ops.push_str(&format!(
            "    %y{i} = linear %x [512,768] {{ dense(@w{i}) }} name(\"layers.{i}.up\") : f32[B,512]\n"
        ));
    }
    let text = format!(
        "hlir 1\nmodule \"m\" {{\n{weights}  graph @main(%x : f32[B,768]) -> (%y11) {{\n{ops}  }}\n}}\n"
    );
    std::fs::write(dir.join("m.hlir"), text).expect("written");
}

fn command(dir: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.current_dir(dir).arg("m.hlir").args(extra);
    if !extra.contains(&"-p") {
        command.args(["-p", "lowrank{rank=48},outlier,int4"]);
    }
    command
}

fn run(dir: &Path, extra: &[&str]) -> Output {
    command(dir, extra).output().expect("runs")
}

/// Every file of an output, by name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("an output").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        found.insert(name, std::fs::read(entry.path()).expect("readable"));
    }
    found
}

/// Starts a run and waits until so many tensors are done.
fn start(dir: &Path, extra: &[&str], tensors: usize) -> Child {
    let mut child = command(dir, extra)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped"));
    let mut line = String::new();
    let mut seen = 0;
    while seen < tensors && lines.read_line(&mut line).expect("readable") > 0 {
        seen += usize::from(line.starts_with('['));
        line.clear();
    }
    // The rest is read elsewhere, so that the run never waits for this test.
    std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
    child
}

#[test]
fn threads_and_interruptions_change_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    module(dir);
    assert!(
        run(dir, &["-o", "one.hlrc", "--threads", "1"])
            .status
            .success()
    );
    assert!(
        run(dir, &["-o", "two.hlrc", "--threads", "2"])
            .status
            .success()
    );
    let whole = files(&dir.join("one.hlrc"));
    assert_eq!(whole, files(&dir.join("two.hlrc")));
    for tensors in [0, 1, 5] {
        let mut child = start(dir, &["-o", "cut.hlrc", "--force"], tensors);
        child.kill().expect("killed");
        child.wait().expect("ended");
        // Killed very early, there may be nothing to resume from; late, the output may be complete.
        if dir.join("cut.hlrc.partial/journal.jsonl").is_file() {
            assert!(
                !dir.join("cut.hlrc").exists(),
                "an output appears whole or not at all"
            );
            let again = run(dir, &["-o", "cut.hlrc", "--resume"]);
            let told = String::from_utf8_lossy(&again.stderr).into_owned();
            assert!(
                again.status.success() || told.contains("journal is empty"),
                "{told}"
            );
        }
        if dir.join("cut.hlrc").exists() {
            assert!(!dir.join("cut.hlrc.partial").exists());
            assert_eq!(whole, files(&dir.join("cut.hlrc")), "cut after {tensors}");
            std::fs::remove_dir_all(dir.join("cut.hlrc")).expect("removed");
        }
    }
}

/// A module pass between matrix passes: the residual waits in a file that is no part of the output.
#[test]
fn stages_pass_residuals_on_and_resume() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    module(dir);
    let staged = ["-p", "lowrank{rank=48},canonicalize,int4"];
    let with = |extra: &[&'static str]| [&staged[..], extra].concat();
    assert!(run(dir, &with(&["-o", "whole.hlrc"])).status.success());
    let fused = ["-p", "lowrank{rank=48},int4", "-o", "fused.hlrc"];
    assert!(run(dir, &fused).status.success());
    let whole = files(&dir.join("whole.hlrc"));
    let names: Vec<_> = whole.keys().map(String::as_str).collect();
    let expected = [
        "manifest.json",
        "model.safetensors",
        "module.hlir",
        "report.json",
    ];
    assert_eq!(names, expected);
    let sum = |name: &str| {
        let report = std::fs::read(dir.join(name).join("report.json")).expect("a report");
        let json: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
        let all = ["params_before", "bytes_before", "bytes_after"];
        all.map(|key| json["rewritten_totals"][key].as_u64())
    };
    assert_eq!(sum("whole.hlrc"), sum("fused.hlrc"));
    for tensors in [3, 12, 17] {
        let mut child = start(dir, &with(&["-o", "cut.hlrc", "--threads", "1"]), tensors);
        child.kill().expect("killed");
        child.wait().expect("ended");
        if dir.join("cut.hlrc.partial/journal.jsonl").is_file() {
            let again = run(dir, &with(&["-o", "cut.hlrc", "--resume"]));
            let told = String::from_utf8_lossy(&again.stderr).into_owned();
            assert!(again.status.success(), "{told}");
        }
        assert_eq!(whole, files(&dir.join("cut.hlrc")), "cut after {tensors}");
        std::fs::remove_dir_all(dir.join("cut.hlrc")).expect("removed");
    }
}

#[test]
fn an_interrupt_ends_softly_and_is_resumable() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    module(dir);
    let mut child = start(dir, &["-o", "x.hlrc", "--threads", "1"], 2);
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .expect("kill runs");
    assert!(killed.success());
    let status = child.wait().expect("ends");
    if status.success() {
        return; // It was faster than the signal.
    }
    assert_eq!(status.code(), Some(130));
    assert!(!dir.join("x.hlrc").exists());
    // Another pipeline is another run.
    let other = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
        .current_dir(dir)
        .args(["m.hlir", "-p", "int4", "-o", "x.hlrc", "--resume"])
        .output()
        .expect("runs");
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("another one"));
    assert!(run(dir, &["-o", "x.hlrc", "--resume"]).status.success());
    assert!(run(dir, &["-o", "y.hlrc"]).status.success());
    assert_eq!(files(&dir.join("x.hlrc")), files(&dir.join("y.hlrc")));
}

#[test]
fn a_full_disk_is_told_and_can_be_gone_on_from() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    module(dir);
    // A limit on file sizes stands in for the disk's end: 1 MiB, in blocks of 512 or 1024 bytes.
    let script = format!(
        "ulimit -f 1024; exec {} m.hlir -p 'lowrank{{rank=48}},outlier,int4' -o x.hlrc",
        env!("CARGO_BIN_EXE_hlrc-opt")
    );
    let output = Command::new("sh")
        .current_dir(dir)
        .args(["-c", &script])
        .output()
        .expect("runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("x.hlrc.partial") && told.contains("--resume"),
        "{told}"
    );
    assert!(!dir.join("x.hlrc").exists());
    assert!(run(dir, &["-o", "x.hlrc", "--resume"]).status.success());
    assert!(run(dir, &["-o", "y.hlrc"]).status.success());
    assert_eq!(files(&dir.join("x.hlrc")), files(&dir.join("y.hlrc")));
}

#[test]
fn another_run_on_the_same_output_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    module(dir);
    let mut first = start(dir, &["-o", "x.hlrc", "--threads", "1"], 1);
    let second = run(dir, &["-o", "x.hlrc"]);
    let running = first.try_wait().expect("asked").is_none();
    if running {
        assert_eq!(second.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&second.stderr).contains("another run"));
    }
    assert!(first.wait().expect("ends").success());
    assert!(dir.join("x.hlrc/manifest.json").is_file());
}

/// What is judged larger at the end leaves nothing of its earlier stages behind.
#[test]
fn a_matrix_put_back_is_what_it_was() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let text = "hlir 1\nmodule \"m\" {\n  weight @w : bf16[64,64] = synthetic(seed=1, power=0.8, scale=0.02, \
                outliers=0.001)\n  weight @v : bf16[256,64] = synthetic(seed=2, power=0.8, scale=0.02, \
                outliers=0.001)\n  graph @main(%x : f32[B,64]) -> (%y) {\n    %h = linear %x [64,64] { \
                dense(@w) } name(\"small\") : f32[B,64]\n    %y = linear %h [256,64] { dense(@v) } \
                name(\"large\") : f32[B,256]\n  }\n}\n";
    std::fs::write(dir.join("m.hlir"), text).expect("written");
    let pipeline = "small(lowrank{rank=32 factors=f32}),large(lowrank{rank=4}),canonicalize,int8";
    let done = run(
        dir,
        &["-p", pipeline, "-o", "a.hlrc", "--print-ir-after=int8"],
    );
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{told}");
    assert!(told.contains("Finished 2 tensors"), "{told}");
    let shown = told.split("IR after int8").nth(1).expect("printed IR");
    assert!(shown.contains("{ dense(@w) }"), "{shown}");
    assert!(!shown.contains("dense(@v)"), "{shown}");
    let shard = std::fs::read(dir.join("a.hlrc/model.safetensors")).expect("a shard");
    let module = std::fs::read_to_string(dir.join("a.hlrc/module.hlir")).expect("a module");
    let header = shard.get(8..).expect("a header");
    let header = String::from_utf8_lossy(header.split(|&b| b == 0).next().unwrap_or_default());
    for gone in ["small.u", "small.v"] {
        assert!(!header.contains(gone) && !module.contains(gone), "{header}");
    }
    for there in ["large.u", "large.v", "large.codes", "\"w\""] {
        assert!(header.contains(there), "{there}: {header}");
    }
    assert!(module.contains("{ dense(@w) }"), "{module}");
}

/// An output that is replaced is there all the time.
#[test]
fn replacing_leaves_nothing_beside() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    module(dir);
    for pipeline in ["int8{scale=absmax}", "int4{scale=absmax}"] {
        let done = run(dir, &["-p", pipeline, "-o", "out.hlrc", "--force", "-q"]);
        assert!(done.status.success());
    }
    let manifest = std::fs::read_to_string(dir.join("out.hlrc/manifest.json")).expect("written");
    assert!(manifest.contains("int4"), "{manifest}");
    let mut names: Vec<String> = files_in(dir);
    names.sort();
    assert_eq!(names, ["m.hlir", "out.hlrc"]);
    assert!(!files_in(&dir.join("out.hlrc")).contains(&"lock".to_string()));
}

fn files_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a folder").flatten();
    entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}
