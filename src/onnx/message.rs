//! A message as plain data: its table and its fields in written order.
//!
//! One generic tree instead of a struct per message. Presence, order, unknown
//! fields and odd varint widths are in the tree itself, so that encoding a
//! decoded tree gives the source's bytes without a second description of it.

use super::schema::{Kind, Schema};
use super::wire::{self, Cursor, Width, WireType};

/// Bytes that are held here, or a range of something that is mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blob {
    /// Small data, or data made here.
    Owned(Box<[u8]>),
    /// `len` bytes at `offset` of source `source`; 0 is the model file itself.
    At {
        /// Index that a [`super::encode::Payloads`] resolves.
        source: u32,
        /// Absolute byte offset in the source.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Blob {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Owned(bytes) => bytes.len() as u64,
            Self::At { len, .. } => *len,
        }
    }

    /// Is the length zero?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, if held here or in `file`, which stands for source 0.
    pub fn bytes<'a>(&'a self, file: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Self::Owned(bytes) => Some(bytes),
            Self::At {
                source: 0,
                offset,
                len,
            } => {
                let start = usize::try_from(*offset).ok()?;
                let end = start.checked_add(usize::try_from(*len).ok()?)?;
                file.get(start..end)
            }
            Self::At { .. } => None,
        }
    }

    fn owned(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::At { .. } => &[],
        }
    }
}

/// The value of one occurrence of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An integer or enum; negative ones are sign-extended to 64 bits.
    Varint(u64),
    /// The bits of a float.
    Fixed32(u32),
    /// The bits of a double.
    Fixed64(u64),
    /// A string.
    Text(Box<str>),
    /// Bytes.
    Bytes(Blob),
    /// A message.
    Message(Box<Message>),
    /// A packed list of numbers, without tag and length.
    Packed(Blob),
    /// Consecutive unpacked numbers of one field, tags included.
    Run(Blob),
    /// An occurrence that the table doesn't know, tag included.
    Unknown(Blob),
}

impl Value {
    /// The wire type that the value is written with.
    pub fn wire(&self) -> WireType {
        match self {
            Self::Varint(_) => WireType::Varint,
            Self::Fixed32(_) => WireType::Fixed32,
            Self::Fixed64(_) => WireType::Fixed64,
            _ => WireType::Len,
        }
    }
}

/// One occurrence of a field.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Field number; that of the tag for unknown fields too.
    pub number: u32,
    /// Written width of the tag, 0 if minimal.
    pub tag_width: Width,
    /// Written width of the varint or length, 0 if minimal.
    pub width: Width,
    /// The value.
    pub value: Value,
}

impl Field {
    /// A field in canonical widths.
    pub fn new(number: u32, value: Value) -> Self {
        Self {
            number,
            tag_width: 0,
            width: 0,
            value,
        }
    }
}

/// A message: a table and its fields in written order.
#[derive(Debug, Clone)]
pub struct Message {
    /// The table.
    pub schema: &'static Schema,
    /// Occurrences in written order.
    pub fields: Vec<Field>,
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.schema, other.schema) && self.fields == other.fields
    }
}

/// Reading. A singular field that occurs often has its last value (proto2).
impl Message {
    /// An empty message.
    pub fn new(schema: &'static Schema) -> Self {
        Self {
            schema,
            fields: Vec::new(),
        }
    }

    /// All occurrences of a known field.
    pub fn all(&self, number: u32) -> impl DoubleEndedIterator<Item = &Value> {
        self.fields
            .iter()
            .filter(move |field| field.number == number)
            .map(|field| &field.value)
            .filter(|value| !matches!(value, Value::Unknown(_)))
    }

    fn last(&self, number: u32) -> Option<&Value> {
        self.all(number).next_back()
    }

    /// Does the field occur?
    pub fn has(&self, number: u32) -> bool {
        self.last(number).is_some()
    }

    /// A string field.
    pub fn text(&self, number: u32) -> Option<&str> {
        match self.last(number) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// A string field, empty if absent.
    pub fn text_or_empty(&self, number: u32) -> &str {
        self.text(number).unwrap_or("")
    }

    /// A repeated string field.
    pub fn texts(&self, number: u32) -> impl Iterator<Item = &str> {
        self.all(number).filter_map(|value| match value {
            Value::Text(text) => Some(&**text),
            _ => None,
        })
    }

    /// An integer or enum field.
    pub fn int(&self, number: u32) -> Option<i64> {
        match self.last(number) {
            Some(Value::Varint(bits)) => Some(*bits as i64),
            _ => None,
        }
    }

    /// A float field.
    pub fn float(&self, number: u32) -> Option<f32> {
        match self.last(number) {
            Some(Value::Fixed32(bits)) => Some(f32::from_bits(*bits)),
            _ => None,
        }
    }

    /// A bytes field.
    pub fn blob(&self, number: u32) -> Option<&Blob> {
        match self.last(number) {
            Some(Value::Bytes(blob)) => Some(blob),
            _ => None,
        }
    }

    /// A repeated bytes field whose values are held here.
    pub fn byte_strings(&self, number: u32) -> impl Iterator<Item = &[u8]> {
        self.all(number).filter_map(|value| match value {
            Value::Bytes(blob) => Some(blob.owned()),
            _ => None,
        })
    }

    /// A message field.
    pub fn message(&self, number: u32) -> Option<&Message> {
        self.messages(number).last()
    }

    /// A repeated message field.
    pub fn messages(&self, number: u32) -> impl Iterator<Item = &Message> {
        self.all(number).filter_map(|value| match value {
            Value::Message(message) => Some(&**message),
            _ => None,
        })
    }

    /// A repeated integer field (not tensor data), in either encoding.
    pub fn ints(&self, number: u32) -> Vec<i64> {
        self.elements(number, &[])
            .unwrap_or_default()
            .into_iter()
            .map(|bits| bits as i64)
            .collect()
    }

    /// A repeated float field (not tensor data), in either encoding.
    pub fn floats(&self, number: u32) -> Vec<f32> {
        let bits = self.elements(number, &[]).unwrap_or_default();
        bits.into_iter()
            .map(|bits| f32::from_bits(bits as u32))
            .collect()
    }

    /// The bits of all elements of a repeated numeric field, either encoding.
    ///
    /// `None` if data isn't held here or in `file`, or has a broken varint.
    /// Cost: eight bytes per element.
    pub fn elements(&self, number: u32, file: &[u8]) -> Option<Vec<u64>> {
        let kind = self.schema.field(number)?.kind;
        let mut out = Vec::new();
        for value in self.all(number) {
            elements_of(value, kind, file, &mut out)?;
        }
        Some(out)
    }
}

/// Appends the element bits of one packed list or run.
pub(super) fn elements_of(
    value: &Value,
    kind: Kind,
    file: &[u8],
    out: &mut Vec<u64>,
) -> Option<()> {
    let (blob, tagged) = match value {
        Value::Packed(blob) => (blob, false),
        Value::Run(blob) => (blob, true),
        _ => return None,
    };
    let mut cursor = Cursor::new(blob.bytes(file)?);
    while !cursor.done() {
        if tagged {
            cursor.tag().ok()?;
        }
        out.push(element(&mut cursor, kind)?);
    }
    Some(())
}

fn element(cursor: &mut Cursor<'_>, kind: Kind) -> Option<u64> {
    match kind {
        Kind::Int => cursor.varint().ok().map(|(value, _)| value),
        Kind::Float => {
            let range = cursor.take(4).ok()?;
            Some(u64::from(u32::from_le_bytes(
                cursor.slice(range).try_into().ok()?,
            )))
        }
        Kind::Double => {
            let range = cursor.take(8).ok()?;
            Some(u64::from_le_bytes(cursor.slice(range).try_into().ok()?))
        }
        _ => None,
    }
}

/// Writes element bits as a packed list or as a run of tagged values.
pub(super) fn elements_value(number: u32, kind: Kind, packed: bool, bits: &[u64]) -> Value {
    let mut out = Vec::new();
    let wire = match kind {
        Kind::Float => WireType::Fixed32,
        Kind::Double => WireType::Fixed64,
        _ => WireType::Varint,
    };
    for &bits in bits {
        if !packed {
            wire::put_tag(&mut out, number, wire, 0);
        }
        match wire {
            WireType::Fixed32 => out.extend_from_slice(&(bits as u32).to_le_bytes()),
            WireType::Fixed64 => out.extend_from_slice(&bits.to_le_bytes()),
            _ => wire::put_varint(&mut out, bits, 0),
        }
    }
    let blob = Blob::Owned(out.into());
    if packed {
        Value::Packed(blob)
    } else {
        Value::Run(blob)
    }
}

/// Writing. Fields may be put in any order; [`Message::canonical`] sorts them.
impl Message {
    /// Appends an occurrence.
    pub fn put(&mut self, number: u32, value: Value) -> &mut Self {
        self.fields.push(Field::new(number, value));
        self
    }

    /// Appends a string.
    pub fn put_text(&mut self, number: u32, text: &str) -> &mut Self {
        self.put(number, Value::Text(text.into()))
    }

    /// Appends a string unless it is empty.
    pub fn put_text_if(&mut self, number: u32, text: &str) -> &mut Self {
        if text.is_empty() {
            self
        } else {
            self.put_text(number, text)
        }
    }

    /// Appends an integer or enum.
    pub fn put_int(&mut self, number: u32, value: i64) -> &mut Self {
        self.put(number, Value::Varint(value as u64))
    }

    /// Appends a float.
    pub fn put_float(&mut self, number: u32, value: f32) -> &mut Self {
        self.put(number, Value::Fixed32(value.to_bits()))
    }

    /// Appends bytes.
    pub fn put_bytes(&mut self, number: u32, bytes: &[u8]) -> &mut Self {
        self.put(number, Value::Bytes(Blob::Owned(bytes.into())))
    }

    /// Appends a message.
    pub fn put_message(&mut self, number: u32, message: Message) -> &mut Self {
        self.put(number, Value::Message(Box::new(message)))
    }

    /// Appends a list of numbers by their bits, in the field's canonical form.
    pub fn put_elements(&mut self, number: u32, bits: &[u64]) -> &mut Self {
        match self.schema.field(number) {
            Some(spec) if !bits.is_empty() => {
                let value = elements_value(number, spec.kind, spec.packed, bits);
                self.put(number, value)
            }
            _ => self,
        }
    }

    /// Appends a list of integers.
    pub fn put_ints(&mut self, number: u32, values: &[i64]) -> &mut Self {
        let bits: Vec<u64> = values.iter().map(|&value| value as u64).collect();
        self.put_elements(number, &bits)
    }

    /// Appends a list of floats.
    pub fn put_floats(&mut self, number: u32, values: &[f32]) -> &mut Self {
        let bits: Vec<u64> = values
            .iter()
            .map(|value| u64::from(value.to_bits()))
            .collect();
        self.put_elements(number, &bits)
    }

    /// Puts fields into ascending order of number, occurrences kept in order.
    pub fn canonical(mut self) -> Self {
        self.fields.sort_by_key(|field| field.number);
        self
    }
}
