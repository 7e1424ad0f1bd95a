//! Tables of the first version on either side: what later ones added is missing, and nothing reads it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::common::{HEADER, c_library, library, program, small, text};

/// Runs the program with `inner` behind tables that are cut to version 1.0.
fn cut(here: &Path, shim: &Path, inner: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(arguments).arg("--load-pass-plugin").arg(shim);
    command.current_dir(here).env("INNER", inner);
    command.output().expect("it runs")
}

fn shim(here: &Path) -> Option<PathBuf> {
    c_library("cut.c", HEADER, &[], here)
}

#[test]
fn rust_plugins_work_with_tables_of_the_first_version() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let Some(shim) = shim(here) else { return };
    let kmeans = library("kmeans4");
    let golden = "passes/examples/kmeans4/golden/default.hlir";
    std::fs::copy(golden, here.join("m.hlir")).expect("copied");
    let run = ["m.hlir", "-p", "outlier,kmeans4", "-S", "-q"];
    let old = cut(here, &shim, &kmeans, &run);
    assert!(old.status.success(), "{}", text(&old.stderr));
    let new = super::common::works(
        here,
        &[
            &run[..],
            &["--load-pass-plugin", kmeans.to_str().expect("utf-8")],
        ]
        .concat(),
    );
    assert_eq!(text(&old.stdout), new);
    assert!(new.contains("kmeans4.codebook("), "{new}");
    // Kinds have no backward rule then, and are checked all the same.
    let checked = Command::new(program())
        .args(["plugin", "check"])
        .arg(&shim)
        .env("INNER", &kmeans)
        .current_dir(here)
        .output()
        .expect("it runs");
    let said = text(&checked.stdout);
    assert!(checked.status.success(), "{said}{}", text(&checked.stderr));
    assert!(said.contains("kmeans4.codebook"), "{said}");
}

#[test]
fn what_a_host_of_the_first_version_lacks_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let Some(shim) = shim(here) else { return };
    small(here);
    let run = [
        "m.hlir",
        "-p",
        "listen-in-rust",
        "-S",
        "-q",
        "--seed",
        "7",
        "--remarks-output",
        "remarks.yaml",
    ];
    let old = cut(here, &shim, &library("misbehave"), &run);
    assert!(old.status.success(), "{}", text(&old.stderr));
    let remarks = std::fs::read_to_string(here.join("remarks.yaml")).expect("remarks");
    for part in ["seed=0 ", "no statistics"] {
        assert!(remarks.contains(part), "{remarks}");
    }
}
