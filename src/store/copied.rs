//! How weights that no pass touched are stored.

use super::TensorOutline;
use crate::ir::{Encoding, Storage, Weight};
use crate::weights::DType;

/// Inline weights up to this many bytes stay in the text.
const INLINE_LIMIT: usize = 64;

/// How a weight that no pass touched is stored: name, element type, shape; `None` where it stays in
/// the text.
pub fn copied_as(weight: &Weight) -> Option<TensorOutline> {
    let len = match &weight.storage {
        // In the sink already: a pass made it.
        Storage::Absent => return None,
        Storage::Inline(bytes) if bytes.len() <= INLINE_LIMIT => return None,
        Storage::Inline(bytes) => bytes.len() as u64,
        Storage::File {
            len,
            encoding: Encoding::Raw,
            ..
        } => *len,
        _ => weight.bytes(),
    };
    let (dtype, shape) = (weight.dtype, weight.dims.clone());
    let fits = dtype.safetensors_name().is_some() && dtype.bytes_for_shape(&shape) == Some(len);
    match fits {
        true => Some((weight.name.clone(), dtype, shape)),
        // safetensors has no such type: the bytes as they are, which text and length explain.
        false => Some((weight.name.clone(), DType::U8, vec![len])),
    }
}
