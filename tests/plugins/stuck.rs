//! Children that stop listening: the program neither waits for them for ever nor takes their talk for answers.
#![cfg(unix)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::common::{HEADER, c_library, program, text};

/// A small matrix, on which the plugin is well, and one that is more than a pipe holds.
const MODULE: &str = "hlir 1\nmodule \"m\" {\n  weight @a.weight : f32[8,8] = synthetic(seed=1, power=1.2, scale=0.02, outliers=0.0)\n  weight @b.weight : f32[512,512] = synthetic(seed=2, power=1.2, scale=0.02, outliers=0.0)\n  graph @main(%x : f32[B,8], %z : f32[B,512]) -> (%y, %w) {\n    %y = linear %x [8,8] { dense(@a.weight) } name(\"a\") : f32[B,8]\n    %w = linear %z [512,512] { dense(@b.weight) } name(\"b\") : f32[B,512]\n  }\n}\n";

/// Longer than anything here may take.
const LIMIT: Duration = Duration::from_secs(40);

/// Runs the plugin isolated on stored weights; its code and what it said. An interrupt comes where asked for.
fn ends(how: u32, interrupt: bool) -> Option<(Option<i32>, String)> {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let plugin = c_library("stuck.c", HEADER, &[("HOW", how)], here)?;
    std::fs::write(here.join("m.hlir"), MODULE).expect("written");
    super::common::works(here, &["m.hlir", "-o", "dense.hlrc", "-q"]);
    let mut child = Command::new(program())
        .args(["dense.hlrc", "-p", "stuck", "-o", "out.hlrc", "-q"])
        .args(["--isolate-plugins", "--threads", "1"])
        .args(["--crash-reproducer", "crash.hlir", "--load-pass-plugin"])
        .arg(plugin)
        .current_dir(here)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    if interrupt {
        std::thread::sleep(Duration::from_millis(1500));
        assert!(child.try_wait().expect("a process").is_none(), "it waits");
        let kill = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status();
        assert!(kill.expect("kill runs").success());
    }
    let since = Instant::now();
    while child.try_wait().expect("a process").is_none() {
        if since.elapsed() > LIMIT {
            let _ = child.kill();
            panic!("it waits for ever for a child that does not listen");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output().expect("it ends");
    assert!(!here.join("out.hlrc").exists());
    Some((output.status.code(), text(&output.stderr)))
}

#[test]
fn a_child_that_does_not_listen_is_ended_with_an_interrupt() {
    if let Some((code, said)) = ends(1, true) {
        assert_eq!(code, Some(130), "{said}");
    }
}

#[test]
fn a_child_that_talks_while_it_is_asked_is_heard() {
    if let Some((code, said)) = ends(2, false) {
        assert_eq!(code, Some(1), "{said}");
        for part in ["plugin stuck 1", "pass stuck", "no answer"] {
            assert!(said.contains(part), "{said}");
        }
    }
}
