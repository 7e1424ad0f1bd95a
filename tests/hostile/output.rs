//! Places that can't be written, or must not be.

use super::files::{text, write};
use super::{Case, args, fixture};
use std::path::Path;

fn to(out: &str) -> Vec<String> {
    args(&[
        text(fixture("stories260K.onnx")).as_str(),
        "-p",
        "int4",
        "-o",
        out,
    ])
}

fn occupied(dir: &Path) -> Vec<String> {
    write(dir, "there.hlrc/precious.txt", b"mine");
    to("there.hlrc")
}

fn forced(dir: &Path) -> Vec<String> {
    let mut line = occupied(dir);
    line.push("--force".into());
    line
}

/// `-o` names the folder that the input lies in.
fn around_input(dir: &Path) -> Vec<String> {
    let bytes = std::fs::read(fixture("stories260K.onnx")).expect("fixture");
    let model = write(dir, "model/m.onnx", &bytes);
    args(&[model.as_str(), "-p", "int4", "-o", "model", "--force"])
}

fn beside_text(dir: &Path) -> Vec<String> {
    write(dir, "x.weights", b"mine");
    let model = text(fixture("stories260K.onnx"));
    args(&[model.as_str(), "-p", "int4", "-S", "-o", "x.hlir"])
}

macro_rules! cases {
    ($($name:literal $make:expr, $exit:literal $says:expr;)*) => {
        &[$(Case { name: $name, make: $make, exit: $exit, says: &$says }),*]
    };
}

pub const CASES: &[Case] = cases! {
    "write: folder is occupied" occupied, 1 ["there.hlrc", "--force"];
    "write: --force and a folder of other files" forced, 1 ["there.hlrc", "no output of hlrc-opt"];
    "write: --force and the input's folder" around_input, 1 ["model", "holds the input"];
    "write: weights of text over another file" beside_text, 1 ["x.weights", "is there already"];
    "write: file is occupied" |d| { write(d, "there.onnx", b"mine"); to("there.onnx") }, 1 ["there.onnx", "--force"];
    "write: report beside ONNX over another file" |d| { write(d, "x.report.json", b"mine"); to("x.onnx") }, 1 ["x.report.json", "--force"];
    "write: parent missing" |_| to("no/such/folder/x.hlrc"), 1 ["no/such/folder"];
    "write: parent is a file" |d| { write(d, "file", b""); to("file/x.hlrc") }, 1 ["file"];
    "write: read-only place" |_| to("/proc/x.hlrc"), 1 ["/proc/x.hlrc"];
    "write: read-only place for ONNX" |_| to("/proc/x.onnx"), 1 ["/proc/x.onnx"];
    "write: over its own input" |d| { let copy = write(d, "in.onnx", &std::fs::read(fixture("stories260K.onnx")).expect("fixture")); args(&[copy.as_str(), "-p", "int4", "-o", &copy]) }, 1 ["in.onnx"];
    "write: unknown kind of file" |_| to("x.gguf"), 2 ["x.gguf"];
    "write: text to a full disk" |_| args(&[text(fixture("stories260K.onnx")).as_str(), "-S", "-o", "/dev/full"]), 1 ["/dev/full"];
    "write: remarks into no folder" |_| args(&[text(fixture("stories260K.onnx")).as_str(), "-p", "int4", "-o", "x.hlrc", "--remarks-output", "gone/r.yaml"]), 1 ["gone/r.yaml"];
    "write: nothing to resume from another run" |d| { write(d, "x.hlrc.partial/journal.jsonl", b"garbage\n"); let mut a = to("x.hlrc"); a.push("--resume".into()); a }, 1 ["x.hlrc"];
};
