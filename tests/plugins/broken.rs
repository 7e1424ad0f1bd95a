//! Kinds of terms whose functions do what they must not: the message names plugin, kind and tensor, nothing is
//! left behind, and `plugin check` finds out.

use std::path::Path;

use super::common::{fails, library, small, works};

const NAMED: [&str; 2] = ["plugin misbehave 0.1.0", "misbehave.broken"];

fn made(here: &Path, how: &str, out: &str) {
    let (plugin, pipeline) = (library("misbehave"), format!("broken-term{{how={how}}}"));
    let plugin = plugin.to_str().expect("utf-8");
    works(
        here,
        &[
            "m.hlir",
            "-p",
            &pipeline,
            "-o",
            out,
            "-q",
            "--load-pass-plugin",
            plugin,
        ],
    );
}

#[test]
fn mistakes_of_kinds_are_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    small(here);
    let plugin = library("misbehave");
    let plugin = plugin.to_str().expect("utf-8");
    for (how, says) in [
        ("panic-rows", "no rows today at"),
        ("error-rows", "rows are out"),
    ] {
        let out = format!("{how}.hlrc");
        made(here, how, &out);
        for isolated in [&[][..], &["--isolate-plugins"]] {
            let load = [&["--load-pass-plugin", plugin], isolated].concat();
            let says = [NAMED[0], NAMED[1], says];
            let diff = ["diff", "m.hlir", &out];
            fails(
                here,
                &[&diff[..], &load].concat(),
                1,
                &[&says[..], &["q"]].concat(),
            );
            let onnx = [&out, "-o", "x.onnx"];
            fails(here, &[&onnx[..], &load].concat(), 1, &says);
            assert!(!here.join("x.onnx").exists());
        }
    }
    // A term that its kind does not accept is never made.
    let load = ["--load-pass-plugin", plugin];
    let refused = [
        "m.hlir",
        "-p",
        "broken-term{how=panic-check}",
        "-o",
        "c.hlrc",
        "--crash-reproducer",
        "c.hlir",
    ];
    fails(
        here,
        &[&refused[..], &load].concat(),
        1,
        &[NAMED[0], NAMED[1], "checked at", "q"],
    );
    assert!(!here.join("c.hlrc").exists());
    // One that was edited by hand since is a damaged file.
    made(here, "well", "well.hlrc");
    let path = here.join("well.hlrc/module.hlir");
    let module = std::fs::read_to_string(&path).expect("a module");
    let edited = module.replacen("values=@", "worth=@", 1);
    assert_ne!(module, edited);
    std::fs::write(&path, edited).expect("written");
    let diff = ["diff", "m.hlir", "well.hlrc"];
    fails(
        here,
        &[&diff[..], &load].concat(),
        3,
        &[NAMED[1], "it has no tensor `values`"],
    );
    fails(
        here,
        &[&["verify", "well.hlrc"], &load[..]].concat(),
        1,
        &["it has no tensor `values`"],
    );
    // A form of ONNX that nothing makes.
    made(here, "wrong-onnx", "o.hlrc");
    fails(
        here,
        &[&["o.hlrc", "-o", "o.onnx"], &load[..]].concat(),
        1,
        &[NAMED[1], "nothing makes the output `nothing`"],
    );
    assert!(!here.join("o.onnx").exists());
}

#[test]
fn mistakes_of_kernels_end_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let model = std::fs::canonicalize("tests/fixtures/stories260K").expect("the fixture");
    let plugin = library("misbehave");
    let load = ["--load-pass-plugin", plugin.to_str().expect("utf-8")];
    let data = std::fs::canonicalize("tests/fixtures/text/stories.txt").expect("the fixture");
    let data = data.to_str().expect("utf-8");
    for (how, says) in [
        ("panic-multiply", "no products today at"),
        ("uneven-backward", "gradient of `values`"),
        ("panic-backward", "no gradients today at"),
    ] {
        let (out, pipeline) = (format!("{how}.hlrc"), format!("broken-term{{how={how}}}"));
        let model = model.to_str().expect("utf-8");
        works(
            here,
            &[&[model, "-p", &pipeline, "-o", &out, "-q"], &load[..]].concat(),
        );
        let says = [NAMED[0], NAMED[1], says, ".values"];
        if how == "panic-multiply" {
            let run = ["run", &out, "-p", "Once", "-n", "2"];
            fails(here, &[&run[..], &load].concat(), 1, &says);
            let eval = [
                "eval",
                &out,
                "--data",
                data,
                "--ctx",
                "64",
                "--windows",
                "2",
            ];
            fails(here, &[&eval[..], &load].concat(), 1, &says);
        }
        let train = [
            "train", &out, "--data", data, "--ctx", "32", "--steps", "2", "-o", "t.hlrc",
        ];
        fails(here, &[&train[..], &load].concat(), 1, &says);
        assert!(!here.join("t.hlrc").exists());
        let _ = std::fs::remove_dir_all(here.join("t.hlrc.partial"));
    }
}

#[test]
fn the_check_finds_wrong_kernels() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    // `plugin check` takes defaults, so each mistake is a build of its own.
    for (how, says) in [
        (0, ""),
        (1, "its kernel gives"),
        (2, "says that a step changes the loss"),
        (3, "decoded as a whole it is"),
        (4, "reads `nothing`, which nothing makes"),
    ] {
        let Some(plugin) =
            super::common::c_library("halves.c", super::common::HEADER, &[("HOW", how)], here)
        else {
            return;
        };
        let check = ["plugin", "check", plugin.to_str().expect("utf-8")];
        match how {
            0 => {
                let said = works(here, &check);
                let says = "term halves.half: decodes by rows as a whole; its kernel multiplies by that; its gradients are slopes; its ONNX form is complete";
                assert!(said.contains(says), "{said}");
            }
            _ => {
                fails(here, &check, 1, &["plugin halves", "halves.half", says]);
            }
        }
    }
    let kmeans = library("kmeans4");
    let said = works(here, &["plugin", "check", kmeans.to_str().expect("utf-8")]);
    assert!(
        said.contains("its gradients are slopes; its ONNX form"),
        "{said}"
    );
}
