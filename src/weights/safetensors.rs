//! Strict reader of safetensors headers.
//!
//! Layout: a little-endian u64 header length, that many bytes of JSON
//! `{name: {dtype, shape, data_offsets: [begin, end]}}` padded with spaces, then
//! the data, in C order and little-endian, without holes. Offsets count from the
//! end of the header. Elements need not be aligned to their size.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::{DType, Defect, MappedFile, Result, WeightsError};

/// Longest header that the format allows, in bytes.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One tensor of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique in the file.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<u64>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes of data.
    pub bytes: u64,
}

/// What the header of a safetensors file says, verified.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Tensors in the order of their data.
    pub tensors: Vec<TensorInfo>,
    /// Entries of `__metadata__`, in file order.
    pub metadata: Vec<(String, String)>,
    /// First byte of the data, from the start of the file.
    pub data_start: u64,
}

impl Header {
    /// Reads and verifies the header of a mapped file; touches no data.
    ///
    /// # Errors
    /// [`WeightsError::Format`] naming the tensor and the [`Defect`], or the
    /// errors of [`MappedFile::slice`].
    pub fn read(file: &MappedFile) -> Result<Header> {
        let start = file.slice(0, file.len().min(8 + MAX_HEADER_BYTES))?;
        let header = Header::parse(file.path(), start, file.len());
        file.release(0, start.len() as u64);
        header
    }

    /// Verifies the header in `start`, the first bytes of a file of `file_len`.
    ///
    /// `start` may hold data too; `path` is used for messages only. Memory is a
    /// small multiple of the header.
    ///
    /// # Errors
    /// [`WeightsError::Format`] naming the tensor and the [`Defect`].
    pub fn parse(path: &Path, start: &[u8], file_len: u64) -> Result<Header> {
        let json = header_json(start, file_len).map_err(|d| WeightsError::format(path, None, d))?;
        let data_start = 8 + json.len() as u64;
        let raw = parse_json(json).map_err(|(t, d)| WeightsError::format(path, t.as_deref(), d))?;
        // `file_len` covers the header: header_json has checked that.
        let available = file_len.saturating_sub(data_start);
        let mut tensors = Vec::with_capacity(raw.tensors.len());
        for (name, entry) in raw.tensors {
            match check_entry(entry, available) {
                Ok((dtype, shape, begin, end)) => tensors.push(TensorInfo {
                    name,
                    dtype,
                    shape,
                    offset: data_start + begin,
                    bytes: end - begin,
                }),
                Err(defect) => return Err(WeightsError::format(path, Some(&name), defect)),
            }
        }
        tensors.sort_by_key(|t| (t.offset, t.bytes));
        check_cover(&tensors, data_start, available)
            .map_err(|(t, d)| WeightsError::format(path, t, d))?;
        Ok(Header {
            tensors,
            metadata: raw.metadata,
            data_start,
        })
    }

    /// The tensor called `name`; linear in the number of tensors.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|t| t.name == name)
    }
}

/// The JSON bytes of the header.
fn header_json(start: &[u8], file_len: u64) -> Result<&[u8], Defect> {
    if let Some((what, hint)) = other_format(start) {
        return Err(Defect::OtherFormat { what, hint });
    }
    let Some((length, rest)) = start.split_first_chunk::<8>() else {
        return Err(Defect::NoHeader { size: file_len });
    };
    let claimed = u64::from_le_bytes(*length);
    if claimed > MAX_HEADER_BYTES {
        let limit = MAX_HEADER_BYTES;
        return Err(Defect::HeaderTooLong { claimed, limit });
    }
    let available = file_len.saturating_sub(8).min(rest.len() as u64);
    if claimed > available {
        return Err(Defect::HeaderTruncated { claimed, available });
    }
    Ok(rest.get(..claimed as usize).unwrap_or_default())
}

/// Recognises files that are often mistaken for safetensors.
fn other_format(start: &[u8]) -> Option<(&'static str, &'static str)> {
    const KNOWN: [(&[u8], &str, &str); 5] = [
        (
            b"version https://git-lfs",
            "a Git LFS pointer",
            "run `git lfs pull` to fetch the file",
        ),
        (
            b"GGUF",
            "a GGUF file",
            "start from the original safetensors checkpoint",
        ),
        (
            b"PK\x03\x04",
            "a zip or PyTorch file",
            "save it with the safetensors library",
        ),
        (
            b"<!DOCTYPE",
            "an HTML page",
            "the download failed; fetch the file itself",
        ),
        (
            b"\x80\x02",
            "a Python pickle",
            "save it with the safetensors library",
        ),
    ];
    let known = KNOWN.iter().find(|(magic, _, _)| start.starts_with(magic));
    // A header of 0x0280 bytes begins like a pickle: brace and length decide.
    let plausible = start.get(8) == Some(&b'{') && start.get(5..8) == Some(&[0; 3]);
    known
        .filter(|_| !plausible)
        .map(|&(_, what, hint)| (what, hint))
}

type Located<T, N> = Result<T, (Option<N>, Defect)>;

fn parse_json(json: &[u8]) -> Located<RawHeader, String> {
    let text = std::str::from_utf8(json).map_err(|e| {
        let at = e.valid_up_to();
        (None, Defect::NotUtf8 { at })
    })?;
    if !text.starts_with('{') {
        let message = "it doesn't begin with `{`".to_owned();
        return Err((None, Defect::Json { message }));
    }
    let current = RefCell::new(None);
    let mut parser = serde_json::Deserializer::from_str(text);
    let parsed = HeaderSeed(&current).deserialize(&mut parser);
    let raw = parsed.and_then(|raw| parser.end().map(|()| raw));
    let raw = raw.map_err(|e| {
        let message = e.to_string();
        (current.take(), Defect::Json { message })
    })?;
    match duplicate(raw.tensors.iter().map(|(name, _)| name.as_str())) {
        Some(name) => Err((Some(name.to_owned()), Defect::DuplicateName)),
        None => Ok(raw),
    }
}

/// (dtype, shape, begin, end) of an entry, offsets from the start of the data.
fn check_entry(entry: RawEntry, available: u64) -> Result<(DType, Vec<u64>, u64, u64), Defect> {
    let RawEntry {
        dtype,
        shape,
        data_offsets: (begin, end),
    } = entry;
    let Some(dtype) = DType::from_safetensors(&dtype) else {
        return Err(Defect::UnknownDType(dtype.chars().take(40).collect()));
    };
    let elements = shape.iter().try_fold(1_u64, |n, &dim| n.checked_mul(dim));
    let sized = elements.and_then(|n| Some((n, dtype.bytes_for(n)?)));
    let Some((elements, expected)) = sized else {
        return Err(Defect::ShapeOverflow(shape));
    };
    if u128::from(elements) * u128::from(dtype.bits()) != u128::from(expected) * 8 {
        return Err(Defect::PartialByte { dtype, elements });
    }
    if begin > end {
        return Err(Defect::ReversedOffsets { begin, end });
    }
    if end - begin != expected {
        let actual = end - begin;
        return Err(Defect::SizeMismatch {
            dtype,
            shape,
            expected,
            actual,
        });
    }
    if end > available {
        return Err(Defect::DataTruncated { end, available });
    }
    Ok((dtype, shape, begin, end))
}

/// Checks that sorted tensors cover the data exactly once.
fn check_cover(tensors: &[TensorInfo], data_start: u64, available: u64) -> Located<(), &str> {
    let mut covered = 0;
    let mut before = "";
    for tensor in tensors {
        let begin = tensor.offset - data_start;
        let end = begin + tensor.bytes;
        if begin > covered {
            let (begin, end) = (covered, begin);
            return Err((None, Defect::Hole { begin, end }));
        }
        if begin < covered {
            let other = before.to_owned();
            let end = end.min(covered);
            return Err((Some(&tensor.name), Defect::Overlap { other, begin, end }));
        }
        covered = end;
        before = &tensor.name;
    }
    if covered < available {
        let (begin, end) = (covered, available);
        return Err((None, Defect::Hole { begin, end }));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: Vec<(String, String)>,
}

/// Reads the header object and notes the entry it is at, for messages.
struct HeaderSeed<'a>(&'a RefCell<Option<String>>);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = RawHeader;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut raw = RawHeader::default();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if metadata.is_some() {
                    return Err(A::Error::custom("__metadata__ occurs twice"));
                }
                metadata = Some(map.next_value_seed(StringPairs)?);
                continue;
            }
            self.0.replace(Some(name.clone()));
            let entry = map.next_value()?;
            self.0.replace(None);
            raw.tensors.push((name, entry));
        }
        raw.metadata = metadata.unwrap_or_default();
        Ok(raw)
    }
}

/// An object whose values are strings, in order, without duplicate keys.
pub(super) struct StringPairs;

impl<'de> DeserializeSeed<'de> for StringPairs {
    type Value = Vec<(String, String)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for StringPairs {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        if let Some(key) = duplicate(pairs.iter().map(|(key, _)| key.as_str())) {
            let short: String = key.chars().take(120).collect();
            return Err(A::Error::custom(format_args!("`{short}` occurs twice")));
        }
        Ok(pairs)
    }
}

/// A name that occurs more than once.
pub(super) fn duplicate<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Sorting needs no second copy of the names.
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    let mut pairs = names.iter().zip(names.iter().skip(1));
    pairs.find(|(a, b)| a == b).map(|(&name, _)| name)
}

#[cfg(test)]
mod tests;
