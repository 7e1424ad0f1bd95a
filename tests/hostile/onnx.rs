//! ONNX files with something wrong in them.

use super::files::{Message, floats, matmul, model, node, tensor, text, value, write};
use super::{Case, args, fixture};
use std::path::Path;

fn bytes(dir: &Path, content: &[u8]) -> Vec<String> {
    args(&[write(dir, "bad.onnx", content).as_str(), "-p", "int4"])
}

fn graph(dir: &Path, graph: Message) -> Vec<String> {
    bytes(dir, &model(graph))
}

fn weight(dir: &Path, w: Message) -> Vec<String> {
    graph(dir, matmul(w))
}

fn external(dir: &Path, location: &str, offset: &str, length: &str) -> Vec<String> {
    write(dir, "weights.bin", &floats());
    let entry = |key: &str, value: &str| Message::new().text(1, key).text(2, value);
    let mut w = tensor("w", 1, &[64, 64]).message(13, entry("location", location));
    for (key, value) in [("offset", offset), ("length", length)] {
        if !value.is_empty() {
            w = w.message(13, entry(key, value));
        }
    }
    weight(dir, w.int(14, 1))
}

fn truncated(dir: &Path, keep: usize) -> Vec<String> {
    let whole = std::fs::read(fixture("stories260K.onnx")).expect("the fixture is there");
    bytes(dir, &whole[..keep.min(whole.len() - 1)])
}

/// If inside If inside If …
fn nested(dir: &Path, depth: usize) -> Vec<String> {
    let mut inner = Message::new().text(2, "g");
    for _ in 0..depth {
        let branch = Message::new()
            .text(1, "then_branch")
            .message(6, inner)
            .int(20, 5);
        inner = Message::new()
            .message(1, node("If", "i", &["c"], &["y"]).message(5, branch))
            .text(2, "g");
    }
    graph(dir, inner)
}

/// A tensor that is one number repeated a hundred billion times, which nothing needs.
fn repeated(dir: &Path) -> Vec<String> {
    let long = |name: &str, value: i64| tensor(name, 7, &[1]).bytes(9, &value.to_le_bytes());
    let nodes = Message::new()
        .message(1, node("Relu", "a", &["x"], &["y"]))
        .message(1, node("Tile", "b", &["one", "times"], &["t"]))
        .message(1, node("ConstantOfShape", "c", &["times"], &["u"]))
        .message(1, node("Expand", "d", &["one", "times"], &["v"]));
    let weights = io(nodes)
        .message(5, long("one", 1))
        .message(5, long("times", 100_000_000_000));
    let mut told = graph(dir, weights);
    told.truncate(1);
    [args(&["run"]), told, args(&["--prompt", "x"])].concat()
}

fn good() -> Message {
    tensor("w", 1, &[64, 64]).bytes(9, &floats())
}

fn io(graph: Message) -> Message {
    graph
        .text(2, "g")
        .message(11, value("x", &[1, 64]))
        .message(12, value("y", &[1, 64]))
}

macro_rules! cases {
    ($($name:literal $make:expr, $exit:literal $says:expr;)*) => {
        &[$(Case { name: $name, make: $make, exit: $exit, says: &$says }),*]
    };
}

pub const CASES: &[Case] = cases! {
    "onnx: no such file" |_| args(&["none.onnx", "-p", "int4"]), 3 ["none.onnx"];
    "onnx: empty file" |d| bytes(d, b""), 3 ["bad.onnx"];
    "onnx: noise" |d| bytes(d, &(0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>()), 3 ["bad.onnx"];
    "onnx: all ones" |d| bytes(d, &[0xff; 4096]), 3 ["bad.onnx"];
    "onnx: a safetensors file" |d| args(&[write(d, "bad.onnx", &std::fs::read(fixture("model.safetensors")).expect("fixture")).as_str(), "-p", "int4"]), 3 ["bad.onnx"];
    "onnx: a folder" |d| { std::fs::create_dir(d.join("bad.onnx")).expect("a folder"); args(&["bad.onnx", "-p", "int4"]) }, 3 ["bad.onnx"];
    "onnx: truncated at 100" |d| truncated(d, 100), 3 ["bad.onnx"];
    "onnx: truncated in the middle" |d| truncated(d, 500_000), 3 ["bad.onnx"];
    "onnx: last byte missing" |d| truncated(d, usize::MAX), 3 ["bad.onnx"];
    "onnx: length beyond the file" |d| bytes(d, &Message::new().int(1, 8).raw(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f]).build()), 3 ["bad.onnx"];
    "onnx: endless varint" |d| bytes(d, &[&[0x08][..], &[0x80; 40]].concat()), 3 ["bad.onnx"];
    "onnx: no graph" |d| bytes(d, &Message::new().int(1, 8).build()), 3 ["bad.onnx", "graph"];
    "onnx: missing initializer" |d| graph(d, io(Message::new().message(1, node("MatMul", "project", &["x", "gone"], &["y"])))), 3 ["gone"];
    "onnx: cycle" |d| graph(d, io(Message::new().message(1, node("Add", "a", &["x", "q"], &["p"])).message(1, node("Add", "b", &["p", "x"], &["q"])).message(1, node("Add", "c", &["q", "x"], &["y"])))), 3 ["q"];
    "onnx: node that feeds itself" |d| graph(d, io(Message::new().message(1, node("Add", "a", &["x", "y"], &["y"])))), 3 ["y"];
    "onnx: value defined twice" |d| graph(d, io(Message::new().message(1, node("Relu", "a", &["x"], &["y"])).message(1, node("Relu", "b", &["x"], &["y"])))), 3 ["y"];
    "onnx: output that nothing makes" |d| graph(d, io(Message::new().message(1, node("Relu", "a", &["x"], &["z"])))), 3 ["y"];
    "onnx: nested without end" |d| nested(d, 3000), 3 ["bad.onnx"];
    "onnx: weight too short" |d| weight(d, tensor("w", 1, &[64, 64]).bytes(9, &[0; 100])), 3 ["\"w\""];
    "onnx: weight too long" |d| weight(d, tensor("w", 1, &[64, 63]).bytes(9, &floats())), 3 ["\"w\""];
    "onnx: weight of negative size" |d| weight(d, tensor("w", 1, &[-64, 64]).bytes(9, &floats())), 3 ["\"w\""];
    "onnx: weight of too many bytes" |d| weight(d, tensor("w", 1, &[i64::MAX, i64::MAX]).bytes(9, &floats())), 3 ["\"w\""];
    "onnx: unknown element type" |d| weight(d, tensor("w", 99, &[64, 64]).bytes(9, &floats())), 3 ["\"w\"", "99"];
    "onnx: weight without data" |d| weight(d, tensor("w", 1, &[64, 64])), 3 ["\"w\""];
    "onnx: weight name twice" |d| graph(d, matmul(good()).message(5, good())), 3 ["\"w\""];
    "onnx: weight with NaN" |d| weight(d, tensor("w", 1, &[64, 64]).bytes(9, &[&f32::NAN.to_le_bytes()[..], &floats()[4..]].concat())), 1 ["project", "NaN"];
    "onnx: external data leaves the folder" |d| external(d, "../../../../../../etc/passwd", "", ""), 3 ["passwd", "\"w\""];
    "onnx: external data at an absolute path" |d| external(d, "/etc/passwd", "", ""), 3 ["passwd", "\"w\""];
    "onnx: external data through a link" |d| { std::os::unix::fs::symlink("/etc", d.join("sub")).expect("a link"); external(d, "sub/passwd", "", "") }, 3 ["passwd"];
    "onnx: external data missing" |d| external(d, "gone.bin", "", ""), 3 ["gone.bin"];
    "onnx: external data too short" |d| external(d, "weights.bin", "4096", "16384"), 3 ["weights.bin", "\"w\""];
    "onnx: external offset overflows" |d| external(d, "weights.bin", "18446744073709551615", "16384"), 3 ["\"w\""];
    "onnx: external length does not fit" |d| external(d, "weights.bin", "0", "100"), 3 ["\"w\""];
    "onnx: external offset is text" |d| external(d, "weights.bin", "zero", ""), 3 ["\"w\"", "zero"];
    "onnx: external without location" |d| external(d, "", "", ""), 3 ["\"w\""];
    "onnx: repeated without end" repeated, 3 ["bad.onnx", "\"x\" besides token ids"];
    "onnx: link to itself" |d| { std::os::unix::fs::symlink("bad.onnx", d.join("bad.onnx")).expect("a link"); vec![text(d.join("bad.onnx"))] }, 3 ["bad.onnx"];
};
