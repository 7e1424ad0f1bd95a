//! What can't be loaded: a located message, exit code 6.

use std::path::{Path, PathBuf};

use super::common::{HEADER, c_library, fails, library, small, text, works};

const CODE: i32 = 6;

fn refused(folder: &Path, plugin: &Path, says: &[&str]) {
    let plugin = plugin.to_str().expect("utf-8");
    let name = Path::new(plugin)
        .file_name()
        .and_then(|n| n.to_str())
        .expect("a name");
    let says: Vec<&str> = says.iter().copied().chain([name]).collect();
    fails(folder, &["plugin", "info", plugin], CODE, &says);
    // Before the pipeline is read: its mistakes are not what is told.
    fails(
        folder,
        &["m.hlir", "-p", "a{{", "--load-pass-plugin", plugin],
        CODE,
        &says,
    );
}

#[test]
fn files_that_are_no_plugins() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let put = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = here.join(name);
        std::fs::write(&path, bytes).expect("written");
        path
    };
    refused(here, &here.join("missing.so"), &["can't be read"]);
    refused(here, here, &["is no shared library", "folder"]);
    refused(here, &put("empty.so", b""), &["is no shared library"]);
    let pipe = here.join("pipe.so");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if made.is_ok_and(|status| status.success()) {
        refused(here, &pipe, &["is no shared library", "no file"]);
    }
    refused(
        here,
        &put("text.so", b"#!/bin/sh\necho\n"),
        &["is no shared library"],
    );
    let whole = std::fs::read(library("zero-small")).expect("a library");
    refused(here, &put("header.so", &whole[..40]), &["is cut off"]);
    for part in [2, 3, 10] {
        let cut = put("cut.so", &whole[..whole.len() / part * (part - 1)]);
        refused(here, &cut, &["is cut off", "has"]);
    }
    let mut other = whole.clone();
    let foreign = if cfg!(target_arch = "aarch64") {
        62u16
    } else {
        183
    };
    other[18..20].copy_from_slice(&foreign.to_le_bytes());
    refused(here, &put("other.so", &other), &["is a library for"]);
    for (at, says) in [(4, "with 32 bits"), (5, "with big-endian numbers")] {
        let mut form = whole.clone();
        form[at] = 3 - form[at];
        refused(here, &put("form.so", &form), &["is a library for", says]);
    }
    let mut object = whole.clone();
    object[16] = 1;
    refused(
        here,
        &put("object.so", &object),
        &["is no shared library", "another kind"],
    );
}

#[test]
fn libraries_that_are_no_plugins() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let build = |how: &[(&str, u32)]| c_library("evil.c", HEADER, how, here);
    let Some(newer) = build(&[("MAJOR", 2)]) else {
        return;
    };
    refused(
        here,
        &newer,
        &["major version 2", "this is 1", "newer hlrc-opt"],
    );
    let older = build(&[("MAJOR", 0)]).expect("built");
    refused(here, &older, &["major version 0", "build it anew"]);
    let minor = build(&[("MINOR", 99)]).expect("built");
    refused(here, &minor, &["needs version 1.99"]);
    let short = build(&[("HOW", 30)]).expect("built");
    refused(here, &short, &["its description has 24 bytes"]);
    let twice = build(&[("HOW", 31)]).expect("built");
    refused(here, &twice, &["registers the pass `evil` twice"]);
    let none = build(&[("HOW", 32)]).expect("built");
    refused(here, &none, &["gives no description"]);
    let ends = build(&[("HOW", 33)]).expect("built");
    refused(here, &ends, &["ended the process while it was loaded"]);
    let source = here.join("plain.c");
    std::fs::write(&source, "int nothing(void) { return 0; }\n").expect("written");
    let plain = here.join("plain.so");
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&plain, &source])
        .status()
        .expect("cc runs");
    assert!(built.success());
    refused(here, &plain, &["exports no symbol `hlrc_plugin`"]);
    if !cfg!(target_os = "linux") {
        return;
    }
    // A function that nobody has, called in the entry or much later, is missed at once.
    let source = here.join("lacks.c");
    let lacks = "int nowhere(void);\nconst void *hlrc_plugin(const void *host) { return nowhere() ? host : 0; }\n";
    std::fs::write(&source, lacks).expect("written");
    let lacking = here.join("lacks.so");
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-z,lazy", "-o"])
        .args([&lacking, &source])
        .status()
        .expect("cc runs");
    assert!(built.success());
    let says = ["can't be loaded", "undefined symbol: nowhere"];
    refused(here, &lacking, &says);
}

#[test]
fn two_plugins_of_one_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let plugin = library("zero-small");
    let copy = here.join("copy.so");
    std::fs::copy(&plugin, &copy).expect("copied");
    let (plugin, copy) = (
        plugin.to_str().expect("utf-8"),
        copy.to_str().expect("utf-8"),
    );
    let twice = [
        "plugin",
        "list",
        "--load-pass-plugin",
        plugin,
        "--load-pass-plugin",
        copy,
    ];
    fails(
        here,
        &twice,
        CODE,
        &["`zero-small` is loaded already", "copy.so"],
    );
    // The same file twice is one plugin.
    let same = [
        "plugin",
        "list",
        "--load-pass-plugin",
        plugin,
        "--load-pass-plugin",
        plugin,
    ];
    assert_eq!(works(here, &same).matches("libzero_small").count(), 1);
}

#[test]
fn the_environment_names_plugins() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let plugins = here.join("plugins");
    std::fs::create_dir(&plugins).expect("a folder");
    std::fs::write(plugins.join("README"), "not a library").expect("written");
    for name in ["zero-small", "row-scale"] {
        let library = library(name);
        let file = library.file_name().expect("a name");
        std::fs::copy(&library, plugins.join(file)).expect("copied");
    }
    // A library of somebody else's in the folder is passed over, and named.
    let source = here.join("plain.c");
    std::fs::write(&source, "int nothing(void) { return 0; }\n").expect("written");
    let plain = plugins.join("libplain.so");
    let mut compiler = std::process::Command::new("cc");
    let built = compiler
        .args(["-shared", "-fPIC", "-o"])
        .args([&plain, &source])
        .status();
    let has_plain = built.is_ok_and(|status| status.success());
    let list = |value: &Path| {
        let mut command = std::process::Command::new(super::common::program());
        command
            .args(["plugin", "list"])
            .env("HLRC_PLUGIN_PATH", value);
        command.output().expect("it runs")
    };
    let said = list(&plugins);
    let out = text(&said.stdout);
    assert!(
        out.contains("zero-small") && out.contains("row-scale"),
        "{out}{}",
        text(&said.stderr)
    );
    if has_plain {
        let told = text(&said.stderr);
        assert!(
            told.contains("HLRC_PLUGIN_PATH") && told.contains("libplain.so: is no plugin"),
            "{told}"
        );
        // Named by itself it is an error.
        assert_eq!(list(&plain).status.code(), Some(CODE));
    }
    let gone = list(&here.join("gone"));
    assert_eq!(gone.status.code(), Some(CODE));
    assert!(
        text(&gone.stderr).contains("HLRC_PLUGIN_PATH"),
        "{}",
        text(&gone.stderr)
    );
}

#[test]
fn a_plugin_of_the_first_version_loads() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    // Its header is a copy that never changes.
    let Some(plugin) = c_library("frozen.c", "passes/sdk/abi/frozen/1.0", &[], here) else {
        return;
    };
    small(here);
    let plugin = plugin.to_str().expect("utf-8");
    let out = works(
        here,
        &[
            "m.hlir",
            "-p",
            "frozen",
            "-S",
            "-q",
            "--load-pass-plugin",
            plugin,
        ],
    );
    assert!(
        out.contains("frozen.half(values=@q.values, {factor=2})"),
        "{out}"
    );
    let written = [
        "m.hlir",
        "-p",
        "frozen",
        "-o",
        "m.hlrc",
        "-q",
        "--load-pass-plugin",
        plugin,
    ];
    works(here, &written);
    let same = works(
        here,
        &[
            "diff",
            "m.hlir",
            "m.hlrc",
            "--max-error",
            "0.001",
            "--load-pass-plugin",
            plugin,
        ],
    );
    assert!(same.contains('q'), "{same}");
}
