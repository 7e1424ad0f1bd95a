//! Messages to bytes: one pass for sizes, one that writes.
//!
//! Payloads go straight from where they lie to the writer; the only buffer is
//! one size per message. Nesting is that of the tree, which decoding bounds.

use std::io::{self, Write};

use super::message::{Blob, Field, Message, Value};
use super::wire::{self, WireType};

/// Resolves [`Blob::At`] while a model is written.
pub trait Payloads {
    /// Writes `len` bytes at `offset` of `source` to `out`.
    ///
    /// # Errors
    /// The source can't be read or `out` can't be written.
    fn copy(&self, source: u32, offset: u64, len: u64, out: &mut dyn Write) -> io::Result<()>;
}

/// A mapped file as source 0.
impl Payloads for [u8] {
    fn copy(&self, source: u32, offset: u64, len: u64, out: &mut dyn Write) -> io::Result<()> {
        let blob = Blob::At {
            source,
            offset,
            len,
        };
        match blob.bytes(self) {
            Some(bytes) => out.write_all(bytes),
            None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("payload {offset}+{len} of source {source} is outside the mapped file"),
            )),
        }
    }
}

/// Bytes that `message` takes, without a tag or length of its own.
pub fn encoded_len(message: &Message) -> u64 {
    Sizes::new(message).of(0)
}

/// Writes `message` in the order and widths that it has.
///
/// # Errors
/// From `payloads` or `out`. Cost: eight bytes of memory per message.
pub fn encode(
    message: &Message,
    payloads: &(impl Payloads + ?Sized),
    out: &mut dyn Write,
) -> io::Result<()> {
    let sizes = Sizes::new(message);
    let mut next = 1;
    write_fields(message, &sizes, &mut next, payloads, out)
}

/// Writes to memory, for small messages without mapped payloads.
pub fn encode_to_vec(message: &Message, file: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    encode(message, file, &mut out)?;
    Ok(out)
}

/// Sizes of all messages of a tree in the order in which they are entered.
struct Sizes(Vec<u64>);

impl Sizes {
    fn new(root: &Message) -> Self {
        let mut sizes = Self(Vec::new());
        sizes.measure(root);
        sizes
    }

    fn of(&self, index: usize) -> u64 {
        self.0.get(index).copied().unwrap_or(0)
    }

    fn measure(&mut self, message: &Message) -> u64 {
        let slot = self.0.len();
        self.0.push(0);
        let mut total = 0u64;
        for field in &message.fields {
            let payload = match &field.value {
                Value::Run(blob) | Value::Unknown(blob) => {
                    total = total.saturating_add(blob.len());
                    continue;
                }
                Value::Varint(bits) => wire::varint_len(*bits, field.width),
                Value::Fixed32(_) => 4,
                Value::Fixed64(_) => 8,
                Value::Text(text) => prefixed(text.len() as u64, field),
                Value::Bytes(blob) | Value::Packed(blob) => prefixed(blob.len(), field),
                Value::Message(inner) => {
                    let len = self.measure(inner);
                    prefixed(len, field)
                }
            };
            let tag = wire::tag_len(field.number, field.tag_width);
            total = total.saturating_add(tag).saturating_add(payload);
        }
        if let Some(size) = self.0.get_mut(slot) {
            *size = total;
        }
        total
    }
}

fn prefixed(len: u64, field: &Field) -> u64 {
    len.saturating_add(wire::varint_len(len, field.width))
}

fn write_blob(
    blob: &Blob,
    payloads: &(impl Payloads + ?Sized),
    out: &mut dyn Write,
) -> io::Result<()> {
    match blob {
        Blob::Owned(bytes) => out.write_all(bytes),
        Blob::At {
            source,
            offset,
            len,
        } => payloads.copy(*source, *offset, *len, out),
    }
}

fn write_fields(
    message: &Message,
    sizes: &Sizes,
    next: &mut usize,
    payloads: &(impl Payloads + ?Sized),
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut head = Vec::with_capacity(20);
    for field in &message.fields {
        head.clear();
        let wire = field.value.wire();
        wire::put_tag(&mut head, field.number, wire, field.tag_width);
        match &field.value {
            Value::Run(blob) | Value::Unknown(blob) => {
                write_blob(blob, payloads, out)?;
                continue;
            }
            Value::Varint(bits) => wire::put_varint(&mut head, *bits, field.width),
            Value::Fixed32(bits) => head.extend_from_slice(&bits.to_le_bytes()),
            Value::Fixed64(bits) => head.extend_from_slice(&bits.to_le_bytes()),
            Value::Text(text) => {
                wire::put_varint(&mut head, text.len() as u64, field.width);
                head.extend_from_slice(text.as_bytes());
            }
            Value::Bytes(blob) | Value::Packed(blob) => {
                wire::put_varint(&mut head, blob.len(), field.width);
                out.write_all(&head)?;
                write_blob(blob, payloads, out)?;
                continue;
            }
            Value::Message(inner) => {
                debug_assert_eq!(wire, WireType::Len);
                wire::put_varint(&mut head, sizes.of(*next), field.width);
                *next += 1;
                out.write_all(&head)?;
                write_fields(inner, sizes, next, payloads, out)?;
                continue;
            }
        }
        out.write_all(&head)?;
    }
    Ok(())
}
