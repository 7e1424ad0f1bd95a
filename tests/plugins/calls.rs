//! Every function of the host's table is called from C, well and badly.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::common::{HEADER, c_library, hlrc, program, text, works};

/// A linear, and an op without a matrix behind it.
const MODULE: &str = "hlir 1\nmodule \"m\" {\n  weight @q.weight : f32[8,8] = synthetic(seed=1, power=1.2, scale=0.02, outliers=0.0)\n  graph @main(%x : f32[B,8]) -> (%y) {\n    %h = linear %x [8,8] { dense(@q.weight) } name(\"q\") : f32[B,8]\n    %y = onnx.Relu(%h) name(\"r\") : f32[B,8]\n  }\n}\n";

/// The module and the plugin in a folder; none where there is no C compiler.
fn calls(here: &Path) -> Option<PathBuf> {
    std::fs::write(here.join("m.hlir"), MODULE).expect("written");
    c_library("calls.c", HEADER, &[], here)
}

#[test]
fn c_tests_call_every_function_of_the_header() {
    let header = std::fs::read_to_string(Path::new(HEADER).join("hlrc_pass.h")).expect("a header");
    let (_, rest) = header
        .split_once("typedef struct HlrcHost {")
        .expect("the table");
    let (table, _) = rest.split_once("} HlrcHost;").expect("its end");
    let functions: Vec<&str> = table
        .split("(*")
        .skip(1)
        .filter_map(|part| part.split_once(')').map(|(name, _)| name))
        .collect();
    assert!(functions.len() > 40, "{functions:?}");
    let source = std::fs::read_to_string("tests/plugins/c/calls.c").expect("the plugin");
    for name in functions {
        // By contexts that mean nothing, and where it means something.
        let calls = source.matches(&format!("host->{name}(")).count();
        assert!(calls > 1, "calls.c does not call `{name}` well and badly");
    }
}

#[test]
fn good_calls_give_what_they_say_and_bad_ones_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let Some(plugin) = calls(here) else {
        return;
    };
    for isolated in [&[][..], &["--isolate-plugins"]] {
        let load = ["--load-pass-plugin", plugin.to_str().expect("utf-8")];
        let run = |pipeline: &str, more: &[&str]| {
            let run = ["m.hlir", "-p", pipeline, "-q", "--threads", "1", "-f"];
            let about = [
                "--remarks-output",
                "remarks.yaml",
                "--crash-reproducer",
                "c.hlir",
            ];
            works(here, &[&run[..], more, &about, &load, isolated].concat())
        };
        let made = run("ask", &["-S"]);
        for part in [
            "%made = linear %x [8,8] { dense(@q.weight) } name(\"q\") : f32[B,8]",
            "%h = linear %made [8,8] { dense(@q.twos) } name(\"doubled\") : f32[B,8]",
            "-> (%y, %made)",
        ] {
            assert!(made.contains(part), "`{part}` in {made}");
        }
        // What was refused has left nothing.
        assert!(!made.contains("refused"), "{made}");
        let remarks = std::fs::read_to_string(here.join("remarks.yaml")).expect("remarks");
        assert!(remarks.contains("about the one at hand"), "{remarks}");
        let taken = run("outlier{density=10%},take", &["-S"]);
        assert!(taken.contains("calls.even(value=@q.value"), "{taken}");
        // The kind's ONNX form is asked for as it is written.
        run("outlier{density=10%},take", &["-o", "m.onnx"]);
        let nodes = std::fs::read(here.join("m.onnx")).expect("a model");
        assert!(nodes.windows(6).any(|w| w == b"Expand"));
    }
}

#[test]
fn progress_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let Some(plugin) = calls(here) else {
        return;
    };
    let load = ["--load-pass-plugin", plugin.to_str().expect("utf-8")];
    let run = ["m.hlir", "-p", "slow", "-S"];
    let started = [&[][..], &["--isolate-plugins"]].map(|isolated| {
        let mut command = Command::new(program());
        command.args(run).args(load).args(isolated);
        command
            .current_dir(here)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.spawn().expect("it runs")
    });
    for child in started {
        let output = child.wait_with_output().expect("it ends");
        let told = text(&output.stderr);
        assert!(output.status.success(), "{told}");
        // One line after three seconds, not one of each of forty calls.
        let lines: Vec<&str> = told.lines().filter(|l| l.contains("Progress")).collect();
        let [line] = lines.as_slice() else {
            panic!("{told}");
        };
        let (done, _) = line
            .strip_prefix("    Progress m: ")
            .and_then(|rest| rest.split_once(" of 40"))
            .expect(line);
        let done: u32 = done.parse().expect(line);
        assert!((10..=40).contains(&done), "{line}");
    }
    // Who wants to hear nothing hears nothing.
    let quiet = hlrc(here, &[&run[..], &["-q"], &load].concat());
    assert_eq!(text(&quiet.stderr), "");
}

/// On a terminal a bar may stand where the line goes: it is cleared first.
#[test]
fn progress_on_a_terminal_leaves_no_half_of_a_bar() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let Some(plugin) = calls(here) else {
        return;
    };
    let line = format!(
        "'{}' m.hlir -p slow -o out.hlrc --load-pass-plugin '{}'",
        program().display(),
        plugin.display()
    );
    let script = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .current_dir(here)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = script else {
        println!("skipped: there is no `script` that makes a terminal");
        return;
    };
    let told = text(&output.stdout);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("\r\x1b[K    Progress m: "), "{told:?}");
}
