//! The container of llama.cpp, as far as importance matrices need it.
//!
//! Layout (the GGUF specification, versions 2 and 3, little-endian): `GGUF`, version u32, counts of
//! tensors and of key-value pairs u64; the pairs; for each tensor its name, number of dimensions u32,
//! dimensions u64 (the innermost first), type u32, offset u64 from the start of the data, which is
//! aligned to `general.alignment`. A string is its length u64 and its bytes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::error::{CalibError, Result};
use crate::weights::MappedFile;

/// Deepest nesting of arrays that is read.
const DEEPEST: usize = 4;
/// The type number of f32.
const F32: u32 = 0;

/// A file's header.
#[derive(Debug)]
pub struct Gguf {
    file: Arc<MappedFile>,
    /// Scalars and lists of strings by key; other values are passed over.
    pub values: HashMap<String, Value>,
    tensors: HashMap<String, Tensor>,
}

/// What a key says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number without sign.
    Number(u64),
    /// Text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// Anything else.
    Other,
}

#[derive(Clone, Debug)]
struct Tensor {
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl Gguf {
    /// Reads the header.
    ///
    /// # Errors
    /// [`CalibError::Format`] naming the byte at which it is no GGUF; the file can't be read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let bytes = file.bytes()?;
        let parsed = parse(bytes);
        let (values, tensors) = parsed.map_err(|problem| CalibError::format(path, problem))?;
        Ok(Self {
            file,
            values,
            tensors,
        })
    }

    /// Names of the tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's dimensions, the innermost first.
    pub fn dims(&self, name: &str) -> Option<&[u64]> {
        self.tensors.get(name).map(|t| t.dims.as_slice())
    }

    /// Values `range` of an f32 tensor; `None` where there is no such tensor.
    ///
    /// # Errors
    /// It is of another type, or has no such values.
    pub fn floats(&self, name: &str, range: std::ops::Range<usize>) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.tensors.get(name) else {
            return Ok(None);
        };
        let fault =
            |what: &str| CalibError::format(self.file.path(), format!("tensor {name} {what}"));
        if tensor.kind != F32 {
            return Err(fault("is not f32"));
        }
        let count = tensor.dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let fits = count.is_some_and(|n| range.end as u64 <= n) && range.start <= range.end;
        if !fits {
            return Err(fault("is smaller than it should be"));
        }
        let bytes = |values: usize| (values as u64).checked_mul(4);
        let start = bytes(range.start).and_then(|skipped| tensor.offset.checked_add(skipped));
        let place = start.zip(bytes(range.len()));
        let (start, len) = place.ok_or_else(|| fault("lies beyond the file"))?;
        let bytes = self.file.slice(start, len)?;
        Ok(Some(
            bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
        ))
    }
}

type Parsed = (HashMap<String, Value>, HashMap<String, Tensor>);

/// Reads a header; the error says what is wrong and where.
fn parse(bytes: &[u8]) -> std::result::Result<Parsed, String> {
    let mut at = Cursor { bytes, at: 0 };
    if at.take(4)? != b"GGUF" {
        return Err("is no GGUF file".to_string());
    }
    let version = at.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("is GGUF of version {version}; 2 and 3 are known"));
    }
    let (tensors, pairs) = (at.u64()?, at.u64()?);
    let mut values = HashMap::new();
    for _ in 0..pairs {
        let key = at.text()?;
        let kind = at.u32()?;
        values.insert(key, at.value(kind, 0)?);
    }
    let mut found = HashMap::new();
    for _ in 0..tensors {
        let name = at.text()?;
        let rank = at.u32()?;
        if rank > 8 {
            return Err(format!("tensor {name} has {rank} dimensions"));
        }
        let dims: std::result::Result<Vec<u64>, String> = (0..rank).map(|_| at.u64()).collect();
        let tensor = Tensor {
            dims: dims?,
            kind: at.u32()?,
            offset: at.u64()?,
        };
        found.insert(name, tensor);
    }
    let alignment = match values.get("general.alignment") {
        Some(Value::Number(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n,
        None => 32,
        Some(_) => return Err("has an alignment that is no power of two".to_string()),
    };
    let start = (at.at as u64).next_multiple_of(alignment);
    for tensor in found.values_mut() {
        let absolute = tensor.offset.checked_add(start);
        tensor.offset = absolute.ok_or("has a tensor beyond any file")?;
    }
    Ok((values, found))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64) -> std::result::Result<&'a [u8], String> {
        let end = usize::try_from(count)
            .ok()
            .and_then(|n| self.at.checked_add(n));
        let piece = end.and_then(|end| self.bytes.get(self.at..end));
        let problem = || format!("ends inside its header, at byte {}", self.bytes.len());
        let piece = piece.ok_or_else(problem)?;
        self.at += piece.len();
        Ok(piece)
    }

    fn u32(&mut self) -> std::result::Result<u32, String> {
        let piece = self.take(4)?;
        Ok(u32::from_le_bytes(piece.try_into().unwrap_or_default()))
    }

    fn u64(&mut self) -> std::result::Result<u64, String> {
        let piece = self.take(8)?;
        Ok(u64::from_le_bytes(piece.try_into().unwrap_or_default()))
    }

    fn text(&mut self) -> std::result::Result<String, String> {
        let length = self.u64()?;
        let at = self.at;
        let piece = self.take(length)?.to_vec();
        String::from_utf8(piece).map_err(|_| format!("has text that is no UTF-8 at byte {at}"))
    }

    fn value(&mut self, kind: u32, depth: usize) -> std::result::Result<Value, String> {
        Ok(match kind {
            0 | 1 | 7 => Value::Number(u64::from(self.take(1)?.first().copied().unwrap_or(0))),
            2 | 3 => {
                let piece = self.take(2)?;
                Value::Number(u64::from(u16::from_le_bytes(
                    piece.try_into().unwrap_or_default(),
                )))
            }
            4 => Value::Number(u64::from(self.u32()?)),
            5 | 6 => {
                self.take(4)?;
                Value::Other
            }
            8 => Value::Text(self.text()?),
            9 => self.array(depth)?,
            10 => Value::Number(self.u64()?),
            11 | 12 => {
                self.take(8)?;
                Value::Other
            }
            other => {
                return Err(format!(
                    "has a value of unknown type {other} at byte {}",
                    self.at
                ));
            }
        })
    }

    fn array(&mut self, depth: usize) -> std::result::Result<Value, String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        if depth == DEEPEST {
            return Err(format!("has arrays nested too deeply at byte {}", self.at));
        }
        if kind != 8 {
            for _ in 0..count {
                self.value(kind, depth + 1)?;
            }
            return Ok(Value::Other);
        }
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(self.text()?);
        }
        Ok(Value::Texts(texts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixture() -> Vec<u8> {
        std::fs::read("tests/fixtures/imatrix/tiny.gguf").expect("the fixture")
    }

    #[test]
    fn an_importance_matrix_is_read() {
        let (values, tensors) = parse(&fixture()).expect("parses");
        assert_eq!(values["general.type"], Value::Text("imatrix".to_string()));
        assert_eq!(
            values["imatrix.datasets"],
            Value::Texts(vec!["text.txt".to_string()])
        );
        assert_eq!(tensors["blk.0.attn_q.weight.in_sum2"].dims, [64, 1]);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&[b"GGUF\x03\0\0\0".as_slice(), &bytes].concat());
        }

        #[test]
        fn damage_is_no_panic(at in 0usize..2000, value in any::<u8>(), cut in 0usize..2000) {
            let mut bytes = fixture();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = parse(&bytes);
            bytes.truncate(cut);
            let _ = parse(&bytes);
        }
    }
}
