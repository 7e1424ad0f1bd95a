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
    /// `rotated(file("m", 0x0, 64), bf16, rows(block=8, seed=1), …)`: a float tensor that is turned when
    /// it is read.
    Rotated(Box<Rotated>),
    /// `none`: the bytes were not kept (text printed without its weights).
    Absent,
}

impl Storage {
    /// What the bytes are made from: itself, unless it is a concatenation, or turned when it is read.
    pub fn parts(&self) -> &[Storage] {
        match self {
            Storage::Concat(parts) => parts,
            Storage::Rotated(rotated) => &rotated.parts,
            whole => std::slice::from_ref(whole),
        }
    }

    /// [`Self::parts`], to be changed.
    pub fn parts_mut(&mut self) -> &mut [Storage] {
        match self {
            Storage::Concat(parts) => parts,
            Storage::Rotated(rotated) => &mut rotated.parts,
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
        if matches!(self, Storage::Rotated(_)) {
            return None;
        }
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

/// A tensor `[…, columns]` in other coordinates: `R_rows · W · diag(gain) · R_columnsᵀ`, or with the gain
/// along its rows `R_rows · diag(gain) · W · R_columnsᵀ`. A tensor of one axis is a column.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotated {
    /// The tensor of the weight's shape; behind it the gain, where there is one. Neither is itself
    /// put together or turned.
    pub parts: Vec<Storage>,
    /// Element type of the tensor.
    pub dtype: DType,
    /// What turns its columns, as `R x`.
    pub rows: Option<Turn>,
    /// What turns its rows.
    pub columns: Option<Turn>,
    /// How the gain is applied, before the rotation.
    pub gain: Option<Gain>,
}

/// A block Hadamard rotation of one side, as [`crate::numeric::hadamard::Rotation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Turn {
    /// Size of the blocks.
    pub block: u64,
    /// Where the signs come from.
    pub seed: u64,
    /// Signs start anew after so many entries: the width of a head.
    pub repeat: Option<u64>,
}

/// A norm's gain, taken up by a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gain {
    /// Its element type.
    pub dtype: DType,
    /// It is along the tensor's rows (a matrix stored as `[in, out]`), not along its columns.
    pub along_rows: bool,
    /// What is stored is gain − 1.
    pub unit_offset: bool,
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

    /// The tensor as a matrix: the last dimension is its columns, a tensor of one is a column itself.
    pub fn sides(&self) -> (u64, u64) {
        match self.dims.as_slice() {
            [] => (1, 1),
            [n] => (*n, 1),
            [rest @ .., last] => (rest.iter().fold(1, |n: u64, &d| n.saturating_mul(d)), *last),
        }
    }

    /// Bytes of the elements in memory; 0 for strings, whose size is not known from the shape.
    pub fn bytes(&self) -> u64 {
        self.elements()
            .and_then(|n| self.dtype.bytes_for(n))
            .unwrap_or(0)
    }
}
