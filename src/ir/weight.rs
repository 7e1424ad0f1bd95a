//! Weights: constant tensors, by reference.

use std::sync::Arc;

use super::Attrs;
use crate::weights::DType;

/// A constant tensor of the module. Its bytes stay where they are until someone reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Unique in the module; the source's name wherever that is unique.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape; a linear's weight is `[out, in]` unless its view says `transposed`.
    pub dims: Vec<u64>,
    /// Where the bytes are.
    pub storage: Storage,
    /// Lower-case hex of the content's SHA-256, where known.
    pub sha256: Option<String>,
    /// What the source said besides (docs, encoding, external location).
    pub meta: Attrs,
}

/// Where a weight's bytes are.
#[derive(Clone, Debug, PartialEq)]
pub enum Storage {
    /// `file("model.onnx", 0x40, 128)`: little-endian, row-major bytes of a file.
    File {
        /// Path as the module's text has it: relative ones start at the module's base folder.
        path: Arc<str>,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// How the bytes encode the elements.
        encoding: Encoding,
    },
    /// `hex"0a0b"`: the bytes themselves, for small tensors.
    Inline(Vec<u8>),
    /// `synthetic(seed=7, power=1.0, scale=0.02, outliers=0.0)`: a seeded random matrix for tests.
    Synthetic(Synthetic),
    /// `concat(file("a", 0x0, 64), file("b", 0x0, 64))`: the bytes of these files' parts or inline
    /// bytes, one after the other.
    Concat(Vec<Storage>),
    /// `none`: the bytes were not kept (text printed without its weights).
    Absent,
}

impl Storage {
    /// What the bytes are put together from: itself, unless it is a concatenation.
    pub fn parts(&self) -> &[Storage] {
        match self {
            Storage::Concat(parts) => parts,
            whole => std::slice::from_ref(whole),
        }
    }

    /// [`Self::parts`], to be changed.
    pub fn parts_mut(&mut self) -> &mut [Storage] {
        match self {
            Storage::Concat(parts) => parts,
            whole => std::slice::from_mut(whole),
        }
    }

    /// Bytes stored, where they are the elements as they are in memory.
    pub fn raw_bytes(&self) -> Option<u64> {
        let of = |part: &Storage| match part {
            Storage::File {
                len,
                encoding: Encoding::Raw,
                ..
            } => Some(*len),
            Storage::Inline(bytes) => Some(bytes.len() as u64),
            _ => None,
        };
        let parts = self.parts().iter().map(of);
        parts
            .into_iter()
            .try_fold(0u64, |sum, n| sum.checked_add(n?))
    }
}

/// How a file's bytes encode a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Elements as they are in memory, little-endian.
    Raw,
    /// Protobuf varints, one per element (ONNX `int32_data`, `int64_data`, `uint64_data`).
    Varint,
}

/// A random matrix with a chosen spectrum: Σ_k k^-power · g_k h_kᵀ over `rank` Gaussian pairs, plus
/// Gaussian noise of a tenth of its size, scaled; of rank 0, Gaussian noise alone, as a model is
/// initialised. `outliers` is the share of entries made 20× larger.
#[derive(Clone, Debug, PartialEq)]
pub struct Synthetic {
    /// Seed of the generator.
    pub seed: u64,
    /// Decay of the singular values.
    pub power: f64,
    /// Number of pairs; text leaves out the usual 32.
    pub rank: u32,
    /// Standard deviation of an entry, roughly.
    pub scale: f64,
    /// Share of entries multiplied by 20.
    pub outliers: f64,
}

impl Weight {
    /// Number of elements; `None` where it exceeds `u64`.
    pub fn elements(&self) -> Option<u64> {
        self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d))
    }

    /// Bytes of the elements in memory; 0 for strings, whose size is not known from the shape.
    pub fn bytes(&self) -> u64 {
        self.elements()
            .and_then(|n| self.dtype.bytes_for(n))
            .unwrap_or(0)
    }
}
