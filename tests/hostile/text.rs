//! Text IR and earlier outputs with something wrong in them.

use super::files::{floats, text, write};
use super::{Case, args, fixture};
use std::path::Path;
use std::process::Command;

fn hlir(dir: &Path, content: &str) -> Vec<String> {
    args(&[
        write(dir, "bad.hlir", content.as_bytes()).as_str(),
        "-p",
        "int4",
    ])
}

/// A one-linear module with this weight line and body.
fn module(dir: &Path, weight: &str, body: &str) -> Vec<String> {
    write(dir, "w.bin", &floats());
    let graph = format!("  graph @main(%0: f32[1,64]) -> (%1) {{\n{body}\n  }}");
    hlir(
        dir,
        &format!("hlir 1\nmodule \"m\" {{\n{weight}\n{graph}\n}}\n"),
    )
}

/// Runs the tool on the fixture; its output folder is then damaged by the case.
fn output(dir: &Path) -> String {
    let out = text(dir.join("made.hlrc"));
    let status = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
        .args([
            text(fixture("stories260K.onnx")).as_str(),
            "-q",
            "-p",
            "int4",
            "-o",
            &out,
        ])
        .status()
        .expect("runs");
    assert!(status.success(), "the fixture is converted");
    out
}

fn damaged(dir: &Path, ends: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> Vec<String> {
    let out = output(dir);
    let mut changed = 0;
    for entry in std::fs::read_dir(&out).expect("a folder").flatten() {
        if entry.file_name().to_string_lossy().ends_with(ends) {
            let content = std::fs::read(entry.path()).expect("readable");
            std::fs::write(entry.path(), change(content)).expect("writable");
            changed += 1;
        }
    }
    assert!(changed > 0, "there is a {ends} in the output");
    args(&["verify", &out])
}

macro_rules! cases {
    ($($name:literal $make:expr, $exit:literal $says:expr;)*) => {
        &[$(Case { name: $name, make: $make, exit: $exit, says: &$says }),*]
    };
}

pub const CASES: &[Case] = cases! {
    "text: empty" |d| hlir(d, ""), 3 ["bad.hlir"];
    "text: noise" |d| hlir(d, "}{)(%%%@@@\"\"\""), 3 ["bad.hlir"];
    "text: not UTF-8" |d| args(&[write(d, "bad.hlir", &[0xff, 0xfe, 0x00]).as_str()]), 3 ["bad.hlir"];
    "text: another version" |d| hlir(d, "hlir 999\nmodule \"m\" {\n}\n"), 3 ["bad.hlir", "999"];
    "text: not closed" |d| hlir(d, "hlir 1\nmodule \"m\" {\n"), 3 ["bad.hlir"];
    "text: nested without end" |d| hlir(d, &format!("hlir 1\nmodule \"m\" {{ {}", "graph @g() -> () { ".repeat(50_000))), 3 ["bad.hlir"];
    "text: undefined value" |d| module(d, "", "    %1 = onnx.Relu(%7) : f32[1,64]"), 3 ["bad.hlir"];
    "text: undefined weight" |d| module(d, "", "    %1 = linear %0 [64,64] { dense(@w) } : f32[1,64]"), 3 ["bad.hlir", "w"];
    "text: weight's file missing" |d| module(d, "  weight @w : f32[64,64] = file(\"gone.bin\", 0x0, 16384)", "    %1 = linear %0 [64,64] { dense(@w) } : f32[1,64]"), 3 ["gone.bin"];
    "text: weight's file too short" |d| module(d, "  weight @w : f32[64,64] = file(\"w.bin\", 0x1000, 16384)", "    %1 = linear %0 [64,64] { dense(@w) } : f32[1,64]"), 3 ["w.bin"];
    "text: empty standard input" |_| args(&["-", "-p", "int4"]), 3 ["hlir"];
    "output: manifest missing" |d| { let out = output(d); std::fs::remove_file(Path::new(&out).join("manifest.json")).expect("there"); args(&["verify", &out]) }, 3 ["manifest.json"];
    "output: manifest is no JSON" |d| damaged(d, "manifest.json", |_| b"{".to_vec()), 3 ["manifest.json"];
    "output: a bit flipped" |d| damaged(d, ".safetensors", |mut c| { let last = c.len() - 1; c[last] ^= 1; c }), 1 ["safetensors", "sha256"];
    "output: shard truncated" |d| damaged(d, ".safetensors", |c| c[..c.len() - 64].to_vec()), 3 ["safetensors"];
    "output: module cut off" |d| damaged(d, ".hlir", |c| c[..c.len() / 2].to_vec()), 3 ["module.hlir"];
};
