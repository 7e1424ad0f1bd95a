//! `TensorProto` ↔ [`Weight`], `SparseTensorProto` ↔ a dictionary of two.
//!
//! Metadata of a weight: `name` where the tensor's own differs from the
//! weight's, `field` where the data isn't `raw_data`, `strings`, and the rest
//! of the message by name.

use std::sync::Arc;

use super::{ImportError, Sources, generic, layout_of, types, with_layout};
use crate::ir::{Attr, Attrs, Encoding, Storage, Weight};
use crate::onnx::external::ExternalData;
use crate::onnx::message::{Blob, Message, Value};
use crate::onnx::schema::{self, Kind, tensor};
use crate::weights::DType;

/// Varint lists above this size stay in the file, smaller ones are decoded.
const INLINE_VARINTS: u64 = 4096;

/// Fields that the mapping looks into; the rest go into the metadata whole.
const MAPPED: [u32; 10] = [
    tensor::DIMS,
    tensor::DATA_TYPE,
    tensor::FLOAT_DATA,
    tensor::INT32_DATA,
    tensor::STRING_DATA,
    tensor::INT64_DATA,
    tensor::NAME,
    tensor::RAW_DATA,
    tensor::DOUBLE_DATA,
    tensor::UINT64_DATA,
];

/// Where tensors of one model come from.
pub struct Origin<'a> {
    /// The mapped model file.
    pub file: &'a [u8],
    /// The model file as weights name it.
    pub path: Arc<str>,
    /// Size of an external file, checked to lie below the model's directory.
    pub external_size: &'a mut dyn FnMut(&str) -> Result<u64, ImportError>,
}

/// The weight that a tensor is, called `name`.
///
/// # Errors
/// Unknown element type, negative dimension, data that isn't as long as dtype
/// and shape say or lies outside its file.
pub fn from_message(
    message: &Message,
    name: String,
    origin: &mut Origin<'_>,
    place: &dyn Fn() -> String,
) -> Result<Weight, ImportError> {
    let fail = |what: String| ImportError::Tensor {
        place: place(),
        what,
    };
    let number = message.int(tensor::DATA_TYPE).unwrap_or(0);
    let dtype = types::dtype(number).ok_or_else(|| {
        fail(format!(
            "data_type {number} is no element type of ONNX 1.23"
        ))
    })?;
    let dims = message.ints(tensor::DIMS).into_iter().map(u64::try_from);
    let dims: Vec<u64> = dims
        .collect::<Result<_, _>>()
        .map_err(|_| fail("a dimension is negative".into()))?;
    let mut meta = generic::to_attrs(message, &MAPPED, origin.file);
    let own = message.text_or_empty(tensor::NAME);
    if own != name {
        meta.set("name", Attr::str(own));
    }
    let weight = Weight {
        name,
        dtype,
        dims,
        storage: Storage::Absent,
        sha256: None,
        meta,
    };
    let mut weight = with_data(weight, message, origin, place)?;
    let mut sources = Sources::new(Arc::clone(&origin.path));
    let rebuilt = to_message(&weight, &mut sources);
    layout_of(&mut weight.meta, message, &rebuilt, &[], origin.file);
    Ok(weight)
}

/// Finds the data of `message` in whichever field or file it is.
fn with_data(
    mut weight: Weight,
    message: &Message,
    origin: &mut Origin<'_>,
    place: &dyn Fn() -> String,
) -> Result<Weight, ImportError> {
    let fail = |what: String| ImportError::Tensor {
        place: place(),
        what,
    };
    let elements = weight
        .elements()
        .ok_or_else(|| fail("its shape overflows".into()))?;
    let external = ExternalData::of(message).map_err(|source| ImportError::External {
        place: place(),
        source,
    })?;
    if weight.dtype == DType::String {
        let strings: Vec<Vec<u8>> = message
            .byte_strings(tensor::STRING_DATA)
            .map(<[u8]>::to_vec)
            .collect();
        if strings.len() as u64 != elements || external.is_some() {
            return Err(fail(format!(
                "{} strings for {elements} elements",
                strings.len()
            )));
        }
        weight.meta.set("strings", Attr::Strs(strings));
        weight.storage = Storage::Inline(Vec::new());
        return Ok(weight);
    }
    let needed = weight
        .dtype
        .bytes_for(elements)
        .ok_or_else(|| fail("its size overflows".into()))?;
    let wrong = |have: u64| {
        fail(format!(
            "{}{:?} needs {needed} bytes, has {have}",
            weight.dtype, weight.dims
        ))
    };
    if let Some(external) = external {
        let size = (origin.external_size)(&external.location)?;
        external
            .check(needed, size)
            .map_err(|source| ImportError::External {
                place: place(),
                source,
            })?;
        let len = external.length.unwrap_or(needed);
        if len != needed {
            return Err(wrong(len));
        }
        weight.storage = raw(external.location.as_str().into(), external.offset, len);
        return Ok(weight);
    }
    if let Some(blob) = message.blob(tensor::RAW_DATA) {
        if blob.len() != needed {
            return Err(wrong(blob.len()));
        }
        weight.storage = match blob {
            Blob::At { offset, len, .. } => raw(Arc::clone(&origin.path), *offset, *len),
            Blob::Owned(bytes) => Storage::Inline(bytes.to_vec()),
        };
        return Ok(weight);
    }
    let Some(field) = typed_field(weight.dtype).filter(|field| message.has(*field)) else {
        if needed > 0 {
            return Err(wrong(0));
        }
        weight.meta.set("field", Attr::str("none"));
        weight.storage = Storage::Inline(Vec::new());
        return Ok(weight);
    };
    let name = message.schema.field(field).map_or("", |spec| spec.name);
    let storage = typed(message, field, weight.dtype, elements, origin).ok_or_else(|| {
        fail(format!(
            "{name} is broken or has another length than the shape"
        ))
    })?;
    if let Storage::Inline(bytes) = &storage
        && bytes.len() as u64 != needed
    {
        return Err(wrong(bytes.len() as u64));
    }
    if let Storage::File {
        len,
        encoding: Encoding::Raw,
        ..
    } = &storage
        && *len != needed
    {
        return Err(wrong(*len));
    }
    weight.meta.set("field", Attr::str(name));
    weight.storage = storage;
    Ok(weight)
}

fn raw(path: Arc<str>, offset: u64, len: u64) -> Storage {
    Storage::File {
        path,
        offset,
        len,
        encoding: Encoding::Raw,
    }
}

/// The typed field that holds elements of `dtype` (ONNX, `TensorProto`).
fn typed_field(dtype: DType) -> Option<u32> {
    Some(match dtype {
        DType::F32 | DType::C64 => tensor::FLOAT_DATA,
        DType::F64 | DType::C128 => tensor::DOUBLE_DATA,
        DType::I64 => tensor::INT64_DATA,
        DType::U64 | DType::U32 => tensor::UINT64_DATA,
        DType::String => return None,
        _ => tensor::INT32_DATA,
    })
}

/// Data of a typed field: its range where that is the elements' own bytes or
/// a long list of varints, decoded otherwise.
fn typed(
    message: &Message,
    field: u32,
    dtype: DType,
    elements: u64,
    origin: &Origin<'_>,
) -> Option<Storage> {
    let kind = message.schema.field(field)?.kind;
    let mut values = message.all(field);
    if let (Some(Value::Packed(Blob::At { offset, len, .. })), None) =
        (values.next(), values.next())
    {
        let path = Arc::clone(&origin.path);
        if !matches!(kind, Kind::Int) {
            return Some(raw(path, *offset, *len));
        }
        if *len > INLINE_VARINTS && dtype.bits() >= 8 {
            // Counted here, since readers rely on it.
            let bits = message.elements(field, origin.file)?;
            let encoding = Encoding::Varint;
            return (bits.len() as u64 == elements).then_some(Storage::File {
                path,
                offset: *offset,
                len: *len,
                encoding,
            });
        }
    }
    let bits = message.elements(field, origin.file)?;
    let width = element_width(kind, dtype);
    let bytes = bits
        .iter()
        .flat_map(|bits| bits.to_le_bytes().into_iter().take(width));
    Some(Storage::Inline(bytes.collect()))
}

/// Bytes that one entry of a typed field stands for.
fn element_width(kind: Kind, dtype: DType) -> usize {
    match kind {
        Kind::Float => 4,
        Kind::Double => 8,
        // Narrow types come as packed bytes, one per entry.
        _ => (dtype.bits() as usize / 8).max(1),
    }
}

/// The tensor that a weight is, in the form that its metadata tells.
pub fn to_message(weight: &Weight, sources: &mut Sources) -> Message {
    let mut message = Message::new(&schema::TENSOR);
    let dims: Vec<i64> = weight.dims.iter().map(|&dim| dim as i64).collect();
    message.put_ints(tensor::DIMS, &dims);
    message.put_int(tensor::DATA_TYPE, i64::from(weight.dtype.onnx_number()));
    let name = weight
        .meta
        .get("name")
        .and_then(Attr::as_str)
        .unwrap_or(&weight.name);
    message.put_text_if(tensor::NAME, name);
    generic::put_attrs(&mut message, &without(&weight.meta, "name"));
    let external = weight.meta.get("external_data").is_some();
    let field = weight.meta.get("field").and_then(Attr::as_str);
    if let Some(Attr::Strs(strings)) = weight.meta.get("strings") {
        for string in strings {
            message.put_bytes(tensor::STRING_DATA, string);
        }
    } else if !external && field != Some("none") {
        put_data(&mut message, weight, field, sources);
    }
    with_layout(message.canonical(), &weight.meta)
}

fn without(meta: &Attrs, name: &str) -> Attrs {
    let mut meta = meta.clone();
    meta.remove(name);
    meta
}

fn put_data(message: &mut Message, weight: &Weight, field: Option<&str>, sources: &mut Sources) {
    let spec = field.and_then(|name| schema::TENSOR.fields.iter().find(|spec| spec.name == name));
    let blob = match &weight.storage {
        Storage::Inline(bytes) => {
            if let Some(spec) = spec {
                let bits = typed_bits(bytes, spec.kind, weight.dtype);
                message.put_elements(spec.number, &bits);
                return;
            }
            Blob::Owned(bytes.as_slice().into())
        }
        Storage::File {
            path, offset, len, ..
        } => Blob::At {
            source: sources.index(path),
            offset: *offset,
            len: *len,
        },
        Storage::Synthetic(_) | Storage::Concat(_) | Storage::Rotated(_) | Storage::Absent => {
            let source = sources.generated(&weight.name);
            Blob::At {
                source,
                offset: 0,
                len: weight.bytes(),
            }
        }
    };
    match spec {
        Some(spec) => message.put(spec.number, Value::Packed(blob)),
        None => message.put(tensor::RAW_DATA, Value::Bytes(blob)),
    };
}

fn typed_bits(bytes: &[u8], kind: Kind, dtype: DType) -> Vec<u64> {
    let width = element_width(kind, dtype);
    let signed = matches!(dtype, DType::I32 | DType::I16 | DType::I8);
    bytes
        .chunks(width)
        .map(|chunk| {
            let bits = chunk
                .iter()
                .rev()
                .fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
            let shift = 64 - 8 * width as u32;
            if signed {
                ((bits << shift) as i64 >> shift) as u64
            } else {
                bits
            }
        })
        .collect()
}
