//! Plugins that do what they must not: the program survives, the model stays as it is, the message names
//! plugin and op.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::common::{HEADER, c_library, fails, library, program, small, text, works};

/// Runs `pipeline`, which must fail and leave nothing.
fn fails_cleanly(
    folder: &Path,
    plugin: &str,
    pipeline: &str,
    isolated: bool,
    says: &[&str],
) -> String {
    let mut arguments = vec![
        "m.hlir",
        "-p",
        pipeline,
        "-o",
        "out.hlrc",
        "--load-pass-plugin",
        plugin,
    ];
    arguments.extend(["--crash-reproducer", "crash.hlir"]);
    if isolated {
        arguments.push("--isolate-plugins");
    }
    let said = fails(folder, &arguments, 1, says);
    assert!(!folder.join("out.hlrc").exists(), "nothing half-written");
    said
}

#[test]
fn panics_and_lies_of_rust_plugins() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let input = small(here);
    let before = std::fs::read(&input).expect("a file");
    let plugin = library("misbehave");
    let plugin = plugin.to_str().expect("utf-8");
    for isolated in [false, true] {
        let says: [(&str, &[&str]); 6] = [
            (
                "panic-cost",
                &["panicked: no bill today", "misbehave.rs:", "8x8"],
            ),
            (
                "panic-peel",
                &["panicked", "index out of bounds", "misbehave.rs:"],
            ),
            ("lie", &["is not the matrix minus its term"]),
            ("nan", &["not"]),
            ("shape", &["8x8"]),
            ("well", &[]),
        ];
        for (how, says) in says {
            let pipeline = format!("misbehave{{how={how}}}");
            if how == "well" {
                works(
                    here,
                    &[
                        "m.hlir",
                        "-p",
                        &pipeline,
                        "-S",
                        "-q",
                        "--load-pass-plugin",
                        plugin,
                    ],
                );
                continue;
            }
            let named = ["plugin misbehave 0.1.0", "pass misbehave", "q"];
            let says: Vec<&str> = named.iter().chain(says).copied().collect();
            fails_cleanly(here, plugin, &pipeline, isolated, &says);
        }
        let module = ["plugin misbehave 0.1.0", "pass misbehave-module"];
        let panic: Vec<&str> = module
            .iter()
            .copied()
            .chain(["in a module of 1 graphs"])
            .collect();
        fails_cleanly(here, plugin, "misbehave-module{panic}", isolated, &panic);
        fails_cleanly(here, plugin, "misbehave-module", isolated, &module);
    }
    assert_eq!(std::fs::read(&input).expect("a file"), before);
    // A panic while it is built is a mistake of the command line's options.
    let built = [
        "m.hlir",
        "-p",
        "misbehave{how=panic-build}",
        "-S",
        "--load-pass-plugin",
        plugin,
    ];
    fails(
        here,
        &built,
        2,
        &["plugin misbehave 0.1.0", "panicked", "built"],
    );
    // What a pass did before it was dropped counts.
    let dropped = [
        "m.hlir",
        "-p",
        "misbehave{how=panic-drop}",
        "-S",
        "-q",
        "--load-pass-plugin",
        plugin,
    ];
    let output = super::common::hlrc(here, &dropped);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("plugin misbehave") && said.contains("pass misbehave panicked"),
        "{said}"
    );
}

#[test]
fn mistakes_of_c_plugins() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    small(here);
    let cases: [(u32, &str); 27] = [
        (2, "no term has the handle 12345"),
        (3, "status 3"),
        (4, "whose callback had returned"),
        (5, "takes 256 bytes, 4 are given"),
        (6, "null pointer"),
        (7, "no UTF-8"),
        (8, "only a module pass"),
        (9, "no term has the handle 1"),
        (10, "status 42"),
        (
            11,
            "no loaded plugin defines terms of the kind `evil.unknown`",
        ),
        (12, "4000 is no element type"),
        (13, "no UTF-8"),
        (14, "rotated 8x8 in blocks of 3 and 8"),
        (15, "does not fit 8x8"),
        (17, "the cost of a matrix of 8x8: no idea"),
        (18, "the cost of a matrix of 8x8: -1 nanoseconds"),
        (19, "the cost of a matrix of 8x8: inf nanoseconds"),
        (20, "graph 7 has no op 7"),
        (21, "no weight 12345"),
        (22, "has no value 4321"),
        (23, "is not new"),
        (24, "expected"),
        (26, "changed my mind"),
        (25, "plugin evil 1"),
        (29, "it is not well"),
        (43, "nobody had asked it to"),
        (44, "it returned status 1, without a message"),
    ];
    for (how, says) in cases {
        let Some(plugin) = c_library("evil.c", HEADER, &[("HOW", how)], here) else {
            return;
        };
        let plugin = plugin.to_str().expect("utf-8");
        let says = ["evil", "plugin evil 1", says];
        fails_cleanly(here, plugin, "evil", false, &says);
        if how == 17 {
            fails_cleanly(here, plugin, "evil", true, &says);
            let plan = ["m.hlir", "-p", "evil", "--dry-run"];
            let load = ["--load-pass-plugin", plugin];
            fails(here, &[&plan[..], &load].concat(), 1, &says);
        }
    }
    // What is wrong with stored rows is no reason to try another way in silence.
    works(here, &["m.hlir", "-o", "dense.hlrc", "-q"]);
    let stored = c_library("evil.c", HEADER, &[("HOW", 40)], here).expect("built");
    let stored = stored.to_str().expect("utf-8");
    for isolated in [&[][..], &["--isolate-plugins"]] {
        let run = ["dense.hlrc", "-p", "evil", "-S", "-q"];
        let load = ["--load-pass-plugin", stored];
        let says = [
            "plugin evil 1: pass evil",
            "pass evil on q",
            "not to my taste",
        ];
        fails(here, &[&run[..], &load, isolated].concat(), 1, &says);
    }
    // The process ends with an error also where no callback with a context is at work.
    let ends = c_library("evil.c", HEADER, &[("HOW", 45)], here).expect("built");
    let run = ["m.hlir", "-p", "evil", "-S", "-q", "--load-pass-plugin"];
    let says = ["plugin evil 1 ended the process", "--isolate-plugins"];
    let arguments = [&run[..], &[ends.to_str().expect("utf-8")]].concat();
    fails(here, &arguments, 1, &says);
    let traits = c_library("evil.c", HEADER, &[("HOW", 1)], here).expect("built");
    let arguments = [
        "m.hlir",
        "-p",
        "evil",
        "-S",
        "--load-pass-plugin",
        traits.to_str().expect("utf-8"),
    ];
    fails(
        here,
        &arguments,
        2,
        &["plugin evil 1: pass evil: an access of number 77"],
    );
    // A callback that the host is called from is busy: asking by it is refused, and nothing waits for ever.
    let busy = c_library("evil.c", HEADER, &[("HOW", 16)], here).expect("built");
    let busy = busy.to_str().expect("utf-8");
    let arguments = [
        "m.hlir",
        "-p",
        "evil",
        "-S",
        "-q",
        "--load-pass-plugin",
        busy,
    ];
    assert!(works(here, &arguments).contains("evil.own(weight=@"));
    let well = c_library("evil.c", HEADER, &[("HOW", 27)], here).expect("built");
    let out = works(
        here,
        &[
            "m.hlir",
            "-p",
            "evil",
            "-S",
            "-q",
            "--load-pass-plugin",
            well.to_str().expect("utf-8"),
        ],
    );
    assert!(out.contains("name(\"renamed\")"), "{out}");
}

#[test]
fn crashes_in_a_process_of_their_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    small(here);
    let plugin = library("misbehave");
    let plugin = plugin.to_str().expect("utf-8");
    let named = ["plugin misbehave 0.1.0", "pass misbehave", "q"];
    let says = |more: &'static str| named.iter().copied().chain([more]).collect::<Vec<_>>();
    let crash = says("crashed: its process ended with signal 11");
    fails_cleanly(here, plugin, "misbehave{how=crash}", true, &crash);
    fails_cleanly(
        here,
        plugin,
        "misbehave{how=exit}",
        true,
        &says("its process ended with exit status: 0"),
    );
    // Without one it takes the program with it, but not as if all had gone well.
    fails_cleanly(
        here,
        plugin,
        "misbehave{how=exit}",
        false,
        &[
            "plugin misbehave 0.1.0, at q, ended the process",
            "--isolate-plugins",
        ],
    );
    let print = [
        "m.hlir",
        "-p",
        "misbehave{how=print}",
        "-S",
        "-q",
        "--load-pass-plugin",
        plugin,
    ];
    let out = works(here, &[&print[..], &["--isolate-plugins"]].concat());
    assert!(
        out.starts_with("hlir 1"),
        "what a plugin prints is kept out of the protocol: {out}"
    );
}

/// Interrupts a run; its code, what it said, and how long it took to end.
#[cfg(unix)]
fn interrupted(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, Duration) {
    let mut command = Command::new(program());
    command
        .current_dir(folder)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let child = command.spawn().expect("it runs");
    std::thread::sleep(Duration::from_millis(1500));
    let began = Instant::now();
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.expect("kill runs").success());
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), text(&output.stderr), began.elapsed())
}

#[cfg(unix)]
#[test]
fn a_loop_ends_with_an_interrupt() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    small(here);
    let plugin = library("misbehave");
    let plugin = plugin.to_str().expect("utf-8");
    let run = |how: &str, isolated: bool| {
        let pipeline = format!("misbehave{{how={how}}}");
        let mut arguments = vec![
            "m.hlir",
            "-p",
            &pipeline,
            "-o",
            "out.hlrc",
            "--load-pass-plugin",
            plugin,
        ];
        if isolated {
            arguments.push("--isolate-plugins");
        }
        let (code, said, took) = interrupted(here, &arguments);
        assert_eq!(code, Some(130), "{said}");
        assert!(!here.join("out.hlrc").exists());
        assert!(took < Duration::from_secs(30), "{took:?}");
        let _ = std::fs::remove_dir_all(here.join("out.hlrc.partial"));
    };
    run("loop", false);
    run("loop", true);
    // One that does not look is ended with its process.
    run("deaf", true);
}

#[cfg(unix)]
#[test]
fn one_that_is_never_made_ends_with_an_interrupt() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    small(here);
    // In the entry, and where the pass is made: that is no mistake of the command line.
    for how in [34, 46] {
        let Some(plugin) = c_library("evil.c", HEADER, &[("HOW", how)], here) else {
            return;
        };
        let run = ["m.hlir", "-p", "evil", "-S", "-q", "--isolate-plugins"];
        let load = ["--load-pass-plugin", plugin.to_str().expect("utf-8")];
        let (code, said, took) = interrupted(here, &[&run[..], &load].concat());
        assert_eq!(code, Some(130), "{said}");
        assert!(said.contains("error: interrupted: "), "{said}");
        assert!(took < Duration::from_secs(30), "{took:?}");
    }
}

#[test]
fn valgrind_finds_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    small(here);
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: there is no valgrind");
        return;
    }
    let mut runs = vec![
        (library("row-scale"), "row-scale", 0),
        (library("misbehave"), "misbehave{how=panic-peel}", 1),
    ];
    for (how, code) in [(2, 1), (4, 1), (9, 1), (27, 0)] {
        let Some(plugin) = c_library("evil.c", HEADER, &[("HOW", how)], here) else {
            return;
        };
        runs.push((plugin, "evil", code));
    }
    let Some(rewrite) = c_library("rewrite.c", HEADER, &[], here) else {
        return;
    };
    runs.push((rewrite, "chain", 0));
    runs.push((library("kmeans4"), "kmeans4", 0));
    runs.push((library("misbehave"), "listen-in-rust", 0));
    for (plugin, pipeline, code) in runs {
        let output = Command::new("valgrind")
            .args([
                "-q",
                "--error-exitcode=99",
                "--undef-value-errors=yes",
                "--leak-check=no",
            ])
            .arg(program())
            .args([
                "m.hlir",
                "-p",
                pipeline,
                "-S",
                "-q",
                "--threads",
                "1",
                "--crash-reproducer",
                "c.hlir",
            ])
            .arg("--load-pass-plugin")
            .arg(&plugin)
            .current_dir(here)
            .output()
            .expect("valgrind runs");
        let said = text(&output.stderr);
        if said.contains("unhandled instruction") || said.contains("Unrecognised instruction") {
            println!("skipped: this valgrind does not know the processor's instructions");
            return;
        }
        assert_eq!(
            output.status.code(),
            Some(code),
            "{pipeline} of {}: {said}",
            plugin.display()
        );
    }
}
