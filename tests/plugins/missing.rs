//! Models with terms of a plugin that is not loaded: what needs no values works, the rest says which plugin
//! to load and ends with code 6.

use std::path::Path;

use super::common::{fails, hlrc, library, text, works};
use super::compute::coded;

const SAYS: [&str; 3] = ["kmeans4.codebook", "plugin `kmeans4`", "--load-pass-plugin"];

fn data() -> String {
    let data = std::fs::canonicalize("tests/fixtures/text/stories.txt").expect("the fixture");
    data.to_str().expect("utf-8").to_string()
}

fn stories() -> String {
    let model = std::fs::canonicalize("tests/fixtures/stories260K").expect("the fixture");
    model.to_str().expect("utf-8").to_string()
}

#[test]
fn structure_can_be_seen_and_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    coded(here, "lowrank{rank=4},kmeans4", "kmeans4");
    for arguments in [
        &["inspect", "coded.hlrc"][..],
        &["inspect", "coded.hlrc", "--json"],
        &["coded.hlrc", "-p", "canonicalize", "-S", "-q"],
        &["diff", "coded.hlrc", "coded.hlrc", "--structure", "-v"],
    ] {
        let said = works(here, arguments);
        assert!(said.contains("kmeans4"), "{arguments:?}: {said}");
    }
    let checked = works(here, &["verify", "coded.hlrc", "-q"]);
    assert!(
        checked.contains("not checked: terms of the kind kmeans4.codebook"),
        "{checked}"
    );
    works(here, &["inspect", "coded.hlrc", "--dot"]);
    works(
        here,
        &["coded.hlrc", "-p", "canonicalize", "-o", "copy.hlrc", "-q"],
    );
    works(here, &["fit", "coded.hlrc", "--vram", "4GiB"]);
    works(here, &["report", "coded.hlrc", "-o", "page.html"]);
    // Another quantizer on what no pass has rewritten: terms of plugins stay as they are.
    works(
        here,
        &[
            "copy.hlrc",
            "-p",
            "embeddings(int8)",
            "-o",
            "more.hlrc",
            "-q",
        ],
    );
    let plugin = library("kmeans4");
    let load = ["--load-pass-plugin", plugin.to_str().expect("utf-8")];
    works(
        here,
        &[
            &["diff", "coded.hlrc", "copy.hlrc", "--max-error", "0", "-q"],
            &load[..],
        ]
        .concat(),
    );
    works(here, &[&["verify", "more.hlrc", "-q"], &load[..]].concat());
}

#[test]
fn values_take_the_plugin() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    coded(here, "lowrank{rank=4},kmeans4", "kmeans4");
    let (data, model) = (data(), stories());
    for arguments in [
        &["coded.hlrc", "-o", "x.onnx"][..],
        &["coded.hlrc", "-p", "canonicalize", "-o", "x.onnx"],
        &["run", "coded.hlrc", "-p", "Once", "-n", "2"],
        &[
            "eval",
            "coded.hlrc",
            "--data",
            &data,
            "--ctx",
            "64",
            "--windows",
            "2",
        ],
        &[
            "eval",
            &model,
            "--ref",
            "coded.hlrc",
            "--data",
            &data,
            "--ctx",
            "64",
            "--windows",
            "2",
        ],
        &["diff", "coded.hlrc", &model],
        &[
            "calibrate",
            "coded.hlrc",
            "--data",
            &data,
            "-o",
            "x.calibration",
        ],
        &[
            "coded.hlrc",
            "-p",
            "embeddings(int8)",
            "--eval",
            &data,
            "-o",
            "y.hlrc",
        ],
        &["train", "coded.hlrc", "--data", &data, "-o", "x.hlrc"],
        &[
            "train",
            &model,
            "--teacher",
            "coded.hlrc",
            "--data",
            &data,
            "--params",
            "norms",
            "-o",
            "x.hlrc",
        ],
        // Before the passes in front of it have run.
        &[
            model.as_str(),
            "-p",
            &format!("int8,train{{steps=1 data={data:?} teacher=coded.hlrc}}"),
            "-o",
            "x.hlrc",
        ],
    ] {
        fails(here, arguments, 6, &SAYS);
        for made in [
            "x.onnx",
            "x.onnx.data",
            "x.hlrc",
            "x.hlrc.partial",
            "x.hlrc.untrained",
            "x.calibration",
        ] {
            assert!(!here.join(made).exists(), "{arguments:?} leaves {made}");
        }
        let _ = std::fs::remove_dir_all(here.join("y.hlrc"));
    }
}

#[test]
fn what_no_plugin_can_do_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let here: &Path = folder.path();
    coded(here, "kmeans4", "kmeans4");
    let plugin = library("kmeans4");
    let load = ["--load-pass-plugin", plugin.to_str().expect("utf-8")];
    for more in [&[][..], &load] {
        let plan = [
            "coded.hlrc",
            "--emit",
            "plan",
            "--target",
            "sm_89",
            "-o",
            "plan",
        ];
        let said = hlrc(here, &[&plan[..], more].concat());
        let told = text(&said.stderr);
        assert_eq!(said.status.code(), Some(3), "{told}");
        assert!(
            told.contains("kmeans4.codebook") && told.contains("built-in"),
            "{told}"
        );
        assert!(!here.join("plan").exists());
        // Nothing is left that a quantizer could take up.
        let again = ["coded.hlrc", "-p", "int4", "-o", "again.hlrc"];
        let said = fails(
            here,
            &[&again[..], more].concat(),
            1,
            &["no dense term is left"],
        );
        assert!(!here.join("again.hlrc").exists(), "{said}");
    }
}
