//! Writers of small files, right and wrong ones alike.

use std::path::{Path, PathBuf};

/// Writes a file; returns its path as text.
pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> String {
    let path = dir.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).expect("a folder can be made");
    }
    std::fs::write(&path, bytes).expect("a file can be written");
    text(path)
}

/// A path as text.
pub fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().expect("utf-8")
}

/// A safetensors file with this header, written as it stands.
pub fn safetensors(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header);
    out.extend_from_slice(data);
    out
}

/// A protobuf message under construction.
#[derive(Default, Clone)]
pub struct Message(Vec<u8>);

impl Message {
    pub fn new() -> Self {
        Self::default()
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub fn int(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value as u64);
        self
    }

    pub fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    pub fn message(self, field: u64, value: Self) -> Self {
        self.bytes(field, &value.0)
    }

    /// Appends bytes as they stand.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn build(self) -> Vec<u8> {
        self.0
    }
}

/// A ModelProto around a graph.
pub fn model(graph: Message) -> Vec<u8> {
    Message::new()
        .int(1, 8)
        .message(7, graph)
        .message(8, Message::new().text(1, "").int(2, 17))
        .build()
}

/// A NodeProto.
pub fn node(op: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> Message {
    let mut out = Message::new();
    for input in inputs {
        out = out.text(1, input);
    }
    for output in outputs {
        out = out.text(2, output);
    }
    out.text(3, name).text(4, op)
}

/// A ValueInfoProto of f32.
pub fn value(name: &str, dims: &[i64]) -> Message {
    let mut shape = Message::new();
    for &dim in dims {
        shape = shape.message(1, Message::new().int(1, dim));
    }
    let tensor = Message::new().int(1, 1).message(2, shape);
    Message::new()
        .text(1, name)
        .message(2, Message::new().message(1, tensor))
}

/// A TensorProto's head: name, type and dims.
pub fn tensor(name: &str, data_type: i64, dims: &[i64]) -> Message {
    let mut out = Message::new();
    for &dim in dims {
        out = out.int(1, dim);
    }
    out.int(2, data_type).text(8, name)
}

/// A graph `y = MatMul(x, w)` with this initializer `w`.
pub fn matmul(w: Message) -> Message {
    Message::new()
        .message(1, node("MatMul", "project", &["x", "w"], &["y"]))
        .text(2, "g")
        .message(5, w)
        .message(11, value("x", &[1, 64]))
        .message(12, value("y", &[1, 64]))
}

/// The bytes of a matrix `[64, 64]` of small floats.
pub fn floats() -> Vec<u8> {
    (0..64 * 64)
        .flat_map(|i| ((i % 13) as f32 / 13.0 - 0.5).to_le_bytes())
        .collect()
}
