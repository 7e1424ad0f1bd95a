//! Bytes to messages, driven by the tables of [`super::schema`].
//!
//! Tensor payloads stay ranges of the input. What a table doesn't know, or
//! knows with another wire type, is kept as unknown bytes, as protobuf does.

use super::message::{Blob, Field, Message, Value};
use super::schema::{FieldSpec, Kind, Schema};
use super::wire::{Cursor, Tag, WireError, WireErrorKind, WireType};

/// Bounds that keep hostile input from costing more than it should.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Nesting of messages and groups; protobuf's own default is 100.
    pub depth: u32,
    /// Field occurrences in all (some 40 bytes of memory each).
    pub fields: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            depth: 100,
            fields: 1 << 24,
        }
    }
}

/// Decodes all of `bytes` as one message of `schema`.
///
/// # Errors
/// Malformed input or a limit, with path and byte offset. Never panics.
/// Cost: one pass over everything but tensor payloads.
pub fn decode(bytes: &[u8], schema: &'static Schema, limits: Limits) -> Result<Message, WireError> {
    let mut decoder = Decoder { limits, fields: 0 };
    decoder.message(Cursor::new(bytes), schema, limits.depth)
}

struct Decoder {
    limits: Limits,
    fields: u64,
}

impl Decoder {
    fn message(
        &mut self,
        mut cursor: Cursor<'_>,
        schema: &'static Schema,
        depth: u32,
    ) -> Result<Message, WireError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(WireError::new(
                cursor.at(),
                WireErrorKind::Depth(self.limits.depth),
            ));
        };
        let mut message = Message::new(schema);
        while !cursor.done() {
            self.fields += 1;
            if self.fields > self.limits.fields {
                let kind = WireErrorKind::Fields(self.limits.fields);
                return Err(WireError::new(cursor.at(), kind));
            }
            let start = cursor.at();
            let tag = cursor.tag()?;
            let Some(spec) = schema.field(tag.number) else {
                message
                    .fields
                    .push(unknown(&mut cursor, start, tag, depth)?);
                continue;
            };
            let field = self.field(&mut cursor, start, tag, spec, depth);
            let field = field.map_err(|error| {
                let index = message
                    .fields
                    .iter()
                    .filter(|field| field.number == tag.number);
                error.within(spec.name, spec.repeated.then(|| index.count()))
            })?;
            let singular = matches!(field.value, Value::Message(_)) && !spec.repeated;
            if singular && message.has(tag.number) {
                let error = WireError::new(start, WireErrorKind::Duplicate);
                return Err(error.within(spec.name, None));
            }
            message.fields.push(field);
        }
        Ok(message)
    }

    fn field(
        &mut self,
        cursor: &mut Cursor<'_>,
        start: usize,
        tag: Tag,
        spec: &'static FieldSpec,
        depth: u32,
    ) -> Result<Field, WireError> {
        let numeric = numeric_wire(spec.kind);
        if numeric == Some(tag.wire) {
            return if spec.repeated {
                run(cursor, start, tag, spec)
            } else {
                scalar(cursor, tag)
            };
        }
        if tag.wire != WireType::Len || (numeric.is_some() && !spec.repeated) {
            return unknown(cursor, start, tag, depth);
        }
        let (range, width) = cursor.len_payload()?;
        let bytes = cursor.slice(range);
        let value = match spec.kind {
            Kind::Message(schema) => {
                Value::Message(Box::new(self.message(cursor.sub(range), schema, depth)?))
            }
            Kind::Text => {
                let text = std::str::from_utf8(bytes)
                    .map_err(|_| WireError::new(range.0, WireErrorKind::Utf8))?;
                Value::Text(text.into())
            }
            Kind::Bytes => Value::Bytes(blob(bytes, range, spec.payload)),
            Kind::Int | Kind::Float | Kind::Double => {
                check_packed(cursor, range, spec)?;
                Value::Packed(blob(bytes, range, spec.payload))
            }
        };
        Ok(Field {
            number: tag.number,
            tag_width: tag.width,
            width,
            value,
        })
    }
}

fn numeric_wire(kind: Kind) -> Option<WireType> {
    match kind {
        Kind::Int => Some(WireType::Varint),
        Kind::Float => Some(WireType::Fixed32),
        Kind::Double => Some(WireType::Fixed64),
        Kind::Text | Kind::Bytes | Kind::Message(_) => None,
    }
}

fn blob(bytes: &[u8], range: (usize, usize), stays: bool) -> Blob {
    if stays {
        Blob::At {
            source: 0,
            offset: range.0 as u64,
            len: (range.1 - range.0) as u64,
        }
    } else {
        Blob::Owned(bytes.into())
    }
}

fn unknown(
    cursor: &mut Cursor<'_>,
    start: usize,
    tag: Tag,
    depth: u32,
) -> Result<Field, WireError> {
    cursor
        .skip(tag, depth)
        .map_err(|error| error.within(&format!("field {}", tag.number), None))?;
    let range = (start, cursor.at());
    let value = blob(cursor.slice(range), range, false);
    Ok(Field::new(tag.number, Value::Unknown(value)))
}

fn scalar(cursor: &mut Cursor<'_>, tag: Tag) -> Result<Field, WireError> {
    let mut width = 0;
    let value = match tag.wire {
        WireType::Varint => {
            let (bits, written) = cursor.varint()?;
            width = written;
            Value::Varint(bits)
        }
        WireType::Fixed32 => Value::Fixed32(fixed(cursor, 4)? as u32),
        _ => Value::Fixed64(fixed(cursor, 8)?),
    };
    Ok(Field {
        number: tag.number,
        tag_width: tag.width,
        width,
        value,
    })
}

fn fixed(cursor: &mut Cursor<'_>, len: u64) -> Result<u64, WireError> {
    let range = cursor.take(len)?;
    let bytes = cursor.slice(range).iter().rev();
    Ok(bytes.fold(0, |bits, &byte| bits << 8 | u64::from(byte)))
}

/// Takes in all consecutive unpacked occurrences of one numeric field.
fn run(
    cursor: &mut Cursor<'_>,
    start: usize,
    tag: Tag,
    spec: &FieldSpec,
) -> Result<Field, WireError> {
    cursor.skip(tag, 0)?;
    loop {
        let mut ahead = cursor.clone();
        match ahead.tag() {
            Ok(next) if next.number == tag.number && next.wire == tag.wire => {
                ahead.skip(next, 0)?;
                *cursor = ahead;
            }
            // A broken tag is met again, and reported, by the caller.
            _ => break,
        }
    }
    let range = (start, cursor.at());
    let value = Value::Run(blob(cursor.slice(range), range, spec.payload));
    Ok(Field::new(tag.number, value))
}

/// Lists of fixed-size elements must divide; short varint lists must parse.
/// Tensor payloads of varints are checked when they are decoded.
fn check_packed(
    cursor: &Cursor<'_>,
    range: (usize, usize),
    spec: &FieldSpec,
) -> Result<(), WireError> {
    let len = (range.1 - range.0) as u64;
    let element = match spec.kind {
        Kind::Float => 4,
        Kind::Double => 8,
        _ if spec.payload => return Ok(()),
        _ => {
            let mut inner = cursor.sub(range);
            while !inner.done() {
                inner.varint()?;
            }
            return Ok(());
        }
    };
    if len.is_multiple_of(element) {
        Ok(())
    } else {
        Err(WireError::new(
            range.0,
            WireErrorKind::PackedLength { len, element },
        ))
    }
}
