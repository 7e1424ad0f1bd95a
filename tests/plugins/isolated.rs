//! Plugins in processes of their own give the same bytes.

use std::path::Path;

use super::common::{library, works};

const MODULE: &str = "hlir 1\nmodule \"m\" {\n  weight @a.weight : bf16[96,128] = synthetic(seed=1, power=1.2, scale=0.02, outliers=0.01)\n  weight @b.weight : f32[64,96] = synthetic(seed=2, power=1.2, scale=0.02, outliers=0.01)\n  graph @main(%x : f32[B,128]) -> (%z) {\n    %y = linear %x [96,128] { dense(@a.weight) } name(\"a\") : f32[B,96]\n    %z = linear %y [64,96] { dense(@b.weight) } name(\"b\") : f32[B,64]\n  }\n}\n";

#[test]
fn isolated_plugins_give_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    std::fs::write(here.join("m.hlir"), MODULE).expect("written");
    let (moved, kmeans) = (library("moved"), library("kmeans4"));
    let load = [
        "--load-pass-plugin",
        moved.to_str().expect("utf-8"),
        "--load-pass-plugin",
        kmeans.to_str().expect("utf-8"),
    ];
    for pipeline in [
        "int4-moved",
        "outlier-moved,int4-moved",
        "lowrank{rank=8},outlier-moved{density=1%},int4-moved,canonicalize-moved",
        "rotate,int4-moved",
        "outlier,kmeans4",
        "lowrank{rank=4},int4-moved,refine{iters=1}",
    ] {
        let run = |more: &[&str]| {
            let arguments = [&["m.hlir", "-p", pipeline, "-S", "-q"], &load[..], more].concat();
            works(here, &arguments)
        };
        let here = run(&[]);
        assert_eq!(here, run(&["--isolate-plugins"]), "{pipeline}");
        assert_eq!(
            here,
            run(&["--isolate-plugins", "--threads", "3"]),
            "{pipeline}"
        );
    }
}

#[test]
fn nothing_is_left_in_the_temporary_folder() {
    let (folder, scratch) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    std::fs::write(folder.path().join("m.hlir"), MODULE).expect("written");
    let plugin = library("kmeans4");
    let mut command = std::process::Command::new(super::common::program());
    command.args([
        "m.hlir",
        "-p",
        "kmeans4",
        "-S",
        "-q",
        "--isolate-plugins",
        "--load-pass-plugin",
    ]);
    command
        .arg(plugin)
        .current_dir(folder.path())
        .env("TMPDIR", scratch.path());
    assert!(command.output().expect("it runs").status.success());
    let left: Vec<_> = std::fs::read_dir(scratch.path() as &Path)
        .expect("a folder")
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
