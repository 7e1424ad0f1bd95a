//! Built-in passes compiled as a plugin, their sources unchanged: the same bytes.

use std::path::Path;

use super::common::{hlrc, library, text, works};

/// Content of the weight files of an output.
fn weights(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(folder).expect("an output").flatten();
    let shards = files.filter(|f| f.path().extension().is_some_and(|e| e == "safetensors"));
    let read = |f: std::fs::DirEntry| {
        let name = f.file_name().to_string_lossy().into_owned();
        (name, std::fs::read(f.path()).expect("a file"))
    };
    let mut all: Vec<_> = shards.map(read).collect();
    all.sort();
    all
}

#[test]
fn a_moved_pass_gives_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = std::fs::canonicalize("tests/fixtures/stories260K").expect("the fixture");
    let (model, plugin) = (model.to_str().expect("utf-8"), library("moved"));
    let plugin = plugin.to_str().expect("utf-8");
    for (built_in, moved) in [
        ("int4", "int4-moved"),
        (
            "outlier,int4{asymmetric group=64}",
            "outlier-moved,int4-moved{asymmetric group=64}",
        ),
        (
            "outlier{columns count=2},int4",
            "outlier-moved{columns count=2},int4-moved",
        ),
        ("int4,canonicalize", "int4,canonicalize-moved"),
    ] {
        let run = |pipeline: &str, out: &str| {
            let arguments = [
                model,
                "-p",
                pipeline,
                "-o",
                out,
                "-f",
                "-q",
                "--load-pass-plugin",
                plugin,
            ];
            works(folder.path(), &arguments);
            weights(&folder.path().join(out))
        };
        let (ours, theirs) = (run(built_in, "a.hlrc"), run(moved, "b.hlrc"));
        assert!(!ours.is_empty());
        assert!(ours == theirs, "{built_in} and {moved} give other bytes");
    }
}

#[test]
fn a_built_in_name_is_not_a_plugins() {
    let output = hlrc(Path::new("."), &["passes", "int4-moved"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}
