//! The protobuf wire format: tags, varints, ranges, and errors with a place.
//!
//! Source: protobuf encoding guide, proto2 rules. Varints come from `prost`;
//! the rest is here because a lossless reader has to know where each byte of
//! a field came from and how wide its varints were written.

use std::fmt;

/// How many bytes a varint takes beyond need is told by its written width.
/// Zero stands for the minimal width, so that the usual case prints as nothing.
pub type Width = u8;

/// Largest field number that protobuf allows (2^29 - 1).
pub const MAX_FIELD_NUMBER: u32 = (1 << 29) - 1;

/// The encoding of one field on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireType {
    /// Base-128 integer.
    Varint,
    /// Eight bytes, little endian.
    Fixed64,
    /// Length, then that many bytes.
    Len,
    /// Start of a group (deprecated, met only in unknown fields).
    StartGroup,
    /// End of a group.
    EndGroup,
    /// Four bytes, little endian.
    Fixed32,
}

impl WireType {
    fn from_bits(bits: u64) -> Option<Self> {
        Some(match bits {
            0 => Self::Varint,
            1 => Self::Fixed64,
            2 => Self::Len,
            3 => Self::StartGroup,
            4 => Self::EndGroup,
            5 => Self::Fixed32,
            _ => return None,
        })
    }

    /// The three low bits of a tag.
    pub fn bits(self) -> u32 {
        match self {
            Self::Varint => 0,
            Self::Fixed64 => 1,
            Self::Len => 2,
            Self::StartGroup => 3,
            Self::EndGroup => 4,
            Self::Fixed32 => 5,
        }
    }
}

/// What is wrong with a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireErrorKind {
    /// A varint runs past its message, is over 10 bytes, or over 64 bits.
    #[error("broken varint; the file is truncated or not protobuf")]
    Varint,
    /// A field's payload runs past the end of the message that holds it.
    #[error(
        "needs {needed} bytes but its message has {left} left; the file is truncated or damaged"
    )]
    Truncated {
        /// Bytes that the field announces.
        needed: u64,
        /// Bytes that are there.
        left: u64,
    },
    /// Field number 0, or one above 2^29 - 1, or wire type 6 or 7.
    #[error("tag {0:#x} names no legal field; the file is damaged or not protobuf")]
    Tag(u64),
    /// A group that isn't closed, or is closed by another number.
    #[error("unbalanced group")]
    Group,
    /// Messages nested deeper than the limit.
    #[error("messages are nested deeper than {0}")]
    Depth(u32),
    /// More fields than the limit.
    #[error("more than {0} fields; refused to bound memory")]
    Fields(u64),
    /// A `string` field that isn't UTF-8.
    #[error("string is not UTF-8")]
    Utf8,
    /// A packed list of fixed-size elements with a broken length.
    #[error("packed list of {len} bytes is no multiple of {element}")]
    PackedLength {
        /// Bytes in the list.
        len: u64,
        /// Bytes per element.
        element: u64,
    },
    /// A singular message field that occurs twice.
    #[error("singular message field occurs twice; merging is not supported")]
    Duplicate,
}

/// A malformed message: what, the path of fields to it, and the byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireError {
    /// Absolute byte offset in the file.
    pub offset: u64,
    /// Path from the root, such as `graph.node[12].attribute[0].t`.
    pub path: String,
    /// What is wrong there.
    pub kind: WireErrorKind,
}

impl WireError {
    pub(super) fn new(offset: usize, kind: WireErrorKind) -> Self {
        Self {
            offset: offset as u64,
            path: String::new(),
            kind,
        }
    }

    /// Prepends one step; called while the error leaves a field.
    pub(super) fn within(mut self, name: &str, index: Option<usize>) -> Self {
        let mut step = name.to_owned();
        if let Some(index) = index {
            step.push_str(&format!("[{index}]"));
        }
        if !self.path.is_empty() {
            step.push('.');
            step.push_str(&self.path);
        }
        self.path = step;
        self
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() {
            "model"
        } else {
            &self.path
        };
        write!(f, "{path}, byte {}: {}", self.offset, self.kind)
    }
}

impl std::error::Error for WireError {}

/// A tag as read: field number, wire type and the width that it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// Field number, 1 to 2^29 - 1.
    pub number: u32,
    /// How the payload is written.
    pub wire: WireType,
    /// Width of the tag itself.
    pub width: Width,
}

/// A reader over `bytes[at..end]` that never leaves it.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Cursor<'a> {
    /// Reads all of `bytes`; offsets in errors and ranges count from its start.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            end: bytes.len(),
        }
    }

    /// A reader of a part found by [`Cursor::take`].
    pub fn sub(&self, range: (usize, usize)) -> Self {
        let end = range.1.min(self.bytes.len());
        Self {
            bytes: self.bytes,
            at: range.0.min(end),
            end,
        }
    }

    /// Where the next byte is read.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Is everything read?
    pub fn done(&self) -> bool {
        self.at >= self.end
    }

    /// The bytes of a range; empty if it isn't inside.
    pub fn slice(&self, range: (usize, usize)) -> &'a [u8] {
        self.bytes.get(range.0..range.1).unwrap_or(&[])
    }

    /// Reads one varint and its width (0 if minimal).
    ///
    /// # Errors
    /// Past the end, over 10 bytes, or over 64 bits.
    pub fn varint(&mut self) -> Result<(u64, Width), WireError> {
        let mut rest = self.slice((self.at, self.end));
        let before = rest.len();
        let broken = |_| WireError::new(self.at, WireErrorKind::Varint);
        let value = prost::encoding::decode_varint(&mut rest).map_err(broken)?;
        let used = before - rest.len();
        self.at += used;
        let minimal = prost::encoding::encoded_len_varint(value);
        Ok((value, if used == minimal { 0 } else { used as Width }))
    }

    /// Reads a tag.
    ///
    /// # Errors
    /// A broken varint, or a number or wire type that protobuf doesn't know.
    pub fn tag(&mut self) -> Result<Tag, WireError> {
        let start = self.at;
        let (bits, width) = self.varint()?;
        let bad = || WireError::new(start, WireErrorKind::Tag(bits));
        let number = u32::try_from(bits >> 3).map_err(|_| bad())?;
        if number == 0 || number > MAX_FIELD_NUMBER {
            return Err(bad());
        }
        let wire = WireType::from_bits(bits & 7).ok_or_else(bad)?;
        Ok(Tag {
            number,
            wire,
            width,
        })
    }

    /// Steps over `len` bytes and tells their range.
    ///
    /// # Errors
    /// Fewer bytes are left.
    pub fn take(&mut self, len: u64) -> Result<(usize, usize), WireError> {
        let left = (self.end - self.at) as u64;
        if len > left {
            let kind = WireErrorKind::Truncated { needed: len, left };
            return Err(WireError::new(self.at, kind));
        }
        let start = self.at;
        self.at += len as usize;
        Ok((start, self.at))
    }

    /// Reads a length and steps over the payload: its range and the width.
    ///
    /// # Errors
    /// As [`Cursor::varint`] and [`Cursor::take`].
    pub fn len_payload(&mut self) -> Result<((usize, usize), Width), WireError> {
        let (len, width) = self.varint()?;
        Ok((self.take(len)?, width))
    }

    /// Steps over the payload of `tag`, groups included.
    ///
    /// # Errors
    /// As the readers above; unbalanced groups; groups deeper than `depth`.
    pub fn skip(&mut self, tag: Tag, depth: u32) -> Result<(), WireError> {
        match tag.wire {
            WireType::Varint => self.varint().map(|_| ()),
            WireType::Fixed64 => self.take(8).map(|_| ()),
            WireType::Fixed32 => self.take(4).map(|_| ()),
            WireType::Len => self.len_payload().map(|_| ()),
            WireType::EndGroup => Err(WireError::new(self.at, WireErrorKind::Group)),
            WireType::StartGroup => {
                let Some(depth) = depth.checked_sub(1) else {
                    return Err(WireError::new(self.at, WireErrorKind::Group));
                };
                loop {
                    let inner = self.tag()?;
                    if inner.wire != WireType::EndGroup {
                        self.skip(inner, depth)?;
                    } else if inner.number == tag.number {
                        return Ok(());
                    } else {
                        return Err(WireError::new(self.at, WireErrorKind::Group));
                    }
                }
            }
        }
    }
}

/// Bytes that a varint takes at `width` (0: minimal).
pub fn varint_len(value: u64, width: Width) -> u64 {
    (prost::encoding::encoded_len_varint(value) as u64).max(u64::from(width))
}

/// Appends a varint at `width`; a width below the minimum is the minimum.
pub fn put_varint(out: &mut Vec<u8>, value: u64, width: Width) {
    let pad = varint_len(value, width) - varint_len(value, 0);
    prost::encoding::encode_varint(value, out);
    if pad > 0 {
        if let Some(last) = out.last_mut() {
            *last |= 0x80;
        }
        out.extend(std::iter::repeat_n(0x80, pad as usize - 1));
        out.push(0);
    }
}

/// Appends a tag at `width`.
pub fn put_tag(out: &mut Vec<u8>, number: u32, wire: WireType, width: Width) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire.bits()), width);
}

/// Bytes that a tag takes at `width`.
pub fn tag_len(number: u32, width: Width) -> u64 {
    varint_len(u64::from(number) << 3, width)
}
