//! Tensors beside the model.

use std::path::Path;

use crate::onnx::message::{Blob, Message, Value};
use crate::onnx::schema::{self, attribute, entry, graph, model, node, tensor};

/// Tensors below this size stay in the model: the entries would take as much.
const SMALLEST: u64 = 1024;

/// Offsets are multiples of this, so that readers can map tensors (ONNX,
/// "External Data").
pub(super) const ALIGNMENT: u64 = 4096;

/// Moves the data of initializers to a file called `location`.
///
/// Returns offset and data in order of offset, and the file's size.
pub(super) fn move_out(message: &mut Message, location: &str) -> (Vec<(u64, Blob)>, u64) {
    let mut moved = Moved { location, data: Vec::new(), end: 0 };
    for field in &mut message.fields {
        if let (model::GRAPH, Value::Message(graph)) = (field.number, &mut field.value) {
            moved.graph(graph);
        }
    }
    (moved.data, moved.end)
}

struct Moved<'a> {
    location: &'a str,
    data: Vec<(u64, Blob)>,
    end: u64,
}

impl Moved<'_> {
    fn graph(&mut self, message: &mut Message) {
        for field in &mut message.fields {
            match (field.number, &mut field.value) {
                (graph::INITIALIZER, Value::Message(tensor)) => self.tensor(tensor),
                (graph::NODE, Value::Message(node)) => self.node(node),
                _ => {}
            }
        }
    }

    fn node(&mut self, message: &mut Message) {
        let attributes = message.fields.iter_mut().filter(|field| field.number == node::ATTRIBUTE);
        for field in attributes {
            let Value::Message(attr) = &mut field.value else { continue };
            for field in &mut attr.fields {
                match (field.number, &mut field.value) {
                    (attribute::G | attribute::GRAPHS, Value::Message(inner)) => self.graph(inner),
                    _ => {}
                }
            }
        }
    }

    fn tensor(&mut self, message: &mut Message) {
        let raw = message.fields.iter().position(|field| field.number == tensor::RAW_DATA);
        let Some(at) = raw else { return };
        let Some(Value::Bytes(blob)) = message.fields.get(at).map(|field| field.value.clone()) else {
            return;
        };
        if blob.len() < SMALLEST {
            return;
        }
        message.fields.remove(at);
        let offset = self.end.next_multiple_of(ALIGNMENT);
        self.end = offset.saturating_add(blob.len());
        for (key, value) in [
            ("location", self.location.to_owned()),
            ("offset", offset.to_string()),
            ("length", blob.len().to_string()),
        ] {
            let mut pair = Message::new(&schema::ENTRY);
            pair.put_text(entry::KEY, key).put_text(entry::VALUE, &value);
            message.put_message(tensor::EXTERNAL_DATA, pair);
        }
        message.put_int(tensor::DATA_LOCATION, 1);
        message.fields.sort_by_key(|field| field.number);
        self.data.push((offset, blob));
    }
}

/// Files that the messages' tensors name, each once, in order.
pub(super) fn locations(message: &Message) -> Vec<String> {
    let mut found = Vec::new();
    let mut queue: Vec<&Message> = vec![message];
    while let Some(message) = queue.pop() {
        if std::ptr::eq(message.schema, &schema::TENSOR) {
            let pairs = message.messages(tensor::EXTERNAL_DATA);
            let stated = pairs.filter(|pair| pair.text(entry::KEY) == Some("location"));
            found.extend(stated.filter_map(|pair| Some(pair.text(entry::VALUE)?.to_owned())));
        }
        for field in &message.fields {
            if let Value::Message(inner) = &field.value {
                queue.push(inner);
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Are two folders the same one?
pub(super) fn same_folder(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        path.canonicalize().ok()
    };
    real(a).is_some_and(|a| Some(a) == real(b))
}
