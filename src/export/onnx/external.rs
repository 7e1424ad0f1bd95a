//! Tensors beside the model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::ir::{Attr, Module, Storage};
use crate::onnx::external::check_location;
use crate::onnx::message::{Blob, Message, Value};
use crate::onnx::schema::{self, attribute, entry, graph, model, node, tensor};
use crate::store::file_path;

/// Tensors below this size stay in the model: the entries would take as much.
const SMALLEST: u64 = 1024;

/// Offsets are multiples of this, so that readers can map tensors (ONNX,
/// "External Data").
pub(super) const ALIGNMENT: u64 = 4096;

/// Moves the data of initializers to a file called `location`.
///
/// Returns offset and data in order of offset, and the file's size.
pub(super) fn move_out(message: &mut Message, location: &str) -> (Vec<(u64, Blob)>, u64) {
    let mut moved = Moved {
        location,
        data: Vec::new(),
        end: 0,
    };
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
        let attributes = message
            .fields
            .iter_mut()
            .filter(|field| field.number == node::ATTRIBUTE);
        for field in attributes {
            let Value::Message(attr) = &mut field.value else {
                continue;
            };
            for field in &mut attr.fields {
                if let (attribute::G | attribute::GRAPHS, Value::Message(inner)) =
                    (field.number, &mut field.value)
                {
                    self.graph(inner)
                }
            }
        }
    }

    fn tensor(&mut self, message: &mut Message) {
        let raw = message
            .fields
            .iter()
            .position(|field| field.number == tensor::RAW_DATA);
        let Some(at) = raw else { return };
        let Some(Value::Bytes(blob)) = message.fields.get(at).map(|field| field.value.clone())
        else {
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
            pair.put_text(entry::KEY, key)
                .put_text(entry::VALUE, &value);
            message.put_message(tensor::EXTERNAL_DATA, pair);
        }
        message.put_int(tensor::DATA_LOCATION, 1);
        message.fields.sort_by_key(|field| field.number);
        self.data.push((offset, blob));
    }
}

/// Files of external data as the source names them, with where they are.
///
/// Names that could leave the output's folder are left out: an import refuses
/// them, text IR that was edited may have them.
pub(super) fn locations(module: &Module) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for weight in &module.weights {
        let (Some(Attr::Dict(entries)), Storage::File { path, .. }) =
            (weight.meta.get("external_data"), &weight.storage)
        else {
            continue;
        };
        let location = entries.get("location").and_then(Attr::as_str).unwrap_or("");
        if check_location(location).is_ok() {
            found.insert(location.to_owned(), file_path(module, path));
        }
    }
    found
}

/// Do two paths lead to one file?
pub(super) fn same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    real(a).is_some_and(|a| Some(a) == real(b))
}
