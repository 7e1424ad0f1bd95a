//! Messages as attribute dictionaries and back, by the tables alone.
//!
//! For what the IR keeps without looking into it: operator sets, metadata,
//! device configurations, annotations. Keys are the fields' names.

use crate::ir::{Attr, Attrs, Float};
use crate::onnx::message::{Blob, Message, Value};
use crate::onnx::schema::{ENTRY, FieldSpec, Kind, Schema, entry};

/// The fields of `message` but `skip`, by name, in the table's order.
///
/// `file` holds payloads, which are copied. Doubles are left out: only tensor
/// data has them.
pub fn to_attrs(message: &Message, skip: &[u32], file: &[u8]) -> Attrs {
    let mut attrs = Attrs::new();
    for spec in message.schema.fields {
        if !skip.contains(&spec.number)
            && message.has(spec.number)
            && let Some(attr) = field_attr(message, spec, file)
        {
            attrs.set(spec.name, attr);
        }
    }
    attrs
}

/// As [`to_attrs`] of all fields, with the layout where that loses something.
pub(super) fn to_entity(message: &Message, file: &[u8]) -> Attrs {
    let mut attrs = to_attrs(message, &[], file);
    let rebuilt = from_attrs(message.schema, &attrs);
    super::layout_of(&mut attrs, message, &rebuilt, &[], file);
    attrs
}

/// The message of [`to_entity`].
pub(super) fn from_entity(schema: &'static Schema, attrs: &Attrs) -> Message {
    super::with_layout(from_attrs(schema, attrs), attrs)
}

fn field_attr(message: &Message, spec: &FieldSpec, file: &[u8]) -> Option<Attr> {
    let number = spec.number;
    Some(match (spec.kind, spec.repeated) {
        (Kind::Text, false) => Attr::str(message.text(number)?),
        (Kind::Text, true) => Attr::Strs(
            message
                .texts(number)
                .map(|text| text.as_bytes().to_vec())
                .collect(),
        ),
        (Kind::Int, false) => Attr::Int(message.int(number)?),
        (Kind::Int, true) => {
            let bits = message.elements(number, file)?;
            Attr::Ints(bits.into_iter().map(|bits| bits as i64).collect())
        }
        (Kind::Float, false) => Attr::Float(Float(message.float(number)?)),
        (Kind::Float, true) => {
            let bits = message.elements(number, file)?;
            let float = |bits: u64| Float(f32::from_bits(bits as u32));
            Attr::Floats(bits.into_iter().map(float).collect())
        }
        (Kind::Bytes, false) => Attr::Str(message.blob(number)?.bytes(file)?.to_vec()),
        (Kind::Bytes, true) => {
            Attr::Strs(message.byte_strings(number).map(<[u8]>::to_vec).collect())
        }
        (Kind::Message(_), false) => Attr::Dict(to_attrs(message.message(number)?, &[], file)),
        (Kind::Message(schema), true) => {
            let short = std::ptr::eq(schema, &ENTRY)
                .then(|| entries(message, number))
                .flatten();
            short.unwrap_or_else(|| {
                let inner = message.messages(number);
                Attr::List(inner.map(|m| Attr::Dict(to_attrs(m, &[], file))).collect())
            })
        }
        (Kind::Double, _) => return None,
    })
}

/// Key-value entries as one dictionary, if every one has its own key.
fn entries(message: &Message, number: u32) -> Option<Attr> {
    let mut attrs = Attrs::new();
    for pair in message.messages(number) {
        let key = pair
            .text(entry::KEY)
            .filter(|key| attrs.get(key).is_none())?;
        attrs
            .0
            .push((key.to_owned(), Attr::str(pair.text(entry::VALUE)?)));
    }
    Some(Attr::Dict(attrs))
}

/// The message that `attrs` describe; names that the table lacks are ignored.
pub fn from_attrs(schema: &'static Schema, attrs: &Attrs) -> Message {
    let mut message = Message::new(schema);
    put_attrs(&mut message, attrs);
    message.canonical()
}

/// Adds the fields that `attrs` describe.
pub fn put_attrs(message: &mut Message, attrs: &Attrs) {
    for (name, attr) in attrs.iter() {
        if let Some(spec) = message.schema.fields.iter().find(|spec| spec.name == name) {
            put(message, spec, attr);
        }
    }
}

fn put(message: &mut Message, spec: &FieldSpec, attr: &Attr) {
    let number = spec.number;
    match (spec.kind, attr) {
        (Kind::Text, Attr::Str(bytes)) => {
            message.put_text(number, &String::from_utf8_lossy(bytes));
        }
        (Kind::Text, Attr::Strs(list)) => {
            for bytes in list {
                message.put_text(number, &String::from_utf8_lossy(bytes));
            }
        }
        (Kind::Bytes, Attr::Str(bytes)) => {
            message.put_bytes(number, bytes);
        }
        (Kind::Bytes, Attr::Strs(list)) => {
            for bytes in list {
                message.put(number, Value::Bytes(Blob::Owned(bytes.as_slice().into())));
            }
        }
        (Kind::Int, Attr::Int(value)) => {
            message.put_int(number, *value);
        }
        (Kind::Int, Attr::Ints(values)) => {
            message.put_ints(number, values);
        }
        (Kind::Float, Attr::Float(value)) => {
            message.put_float(number, value.0);
        }
        (Kind::Float, Attr::Floats(values)) => {
            let bits: Vec<u64> = values.iter().map(|v| u64::from(v.0.to_bits())).collect();
            message.put_elements(number, &bits);
        }
        (Kind::Message(schema), Attr::Dict(dict)) => {
            if spec.repeated && std::ptr::eq(schema, &ENTRY) {
                for (key, value) in dict.iter() {
                    let Attr::Str(value) = value else { continue };
                    let mut pair = Message::new(&ENTRY);
                    pair.put_text(entry::KEY, key);
                    pair.put_text(entry::VALUE, &String::from_utf8_lossy(value));
                    message.put_message(number, pair);
                }
            } else {
                message.put_message(number, from_attrs(schema, dict));
            }
        }
        (Kind::Message(schema), Attr::List(list)) => {
            for item in list {
                if let Attr::Dict(dict) = item {
                    message.put_message(number, from_attrs(schema, dict));
                }
            }
        }
        _ => {}
    }
}
