//! Small constants in files, for shape inference.

use super::Reader;
use crate::ir::shapes::{MAX_CONSTANT_BYTES, Shapes, Trust, infer_with};
use crate::ir::{Module, Storage};
use crate::weights::FileCache;

/// Types and shapes of all values, as [`crate::ir::shapes`] infers them, small constants in files
/// read. A file that is not there leaves unknown what depends on it.
pub fn shapes(module: &Module) -> Shapes {
    let cache = FileCache::new();
    let reader = Reader::new(&cache);
    infer_with(module, Trust::Stated, &mut |weight| {
        // Varints take at least a byte each and at most ten.
        let stored = match &weight.storage {
            Storage::File { len, .. } => *len,
            _ => return None,
        };
        if stored > MAX_CONSTANT_BYTES * 10 {
            return None;
        }
        let located = reader.locate(module, weight).ok()?;
        Some(located.bytes().ok()?.to_vec())
    })
}
