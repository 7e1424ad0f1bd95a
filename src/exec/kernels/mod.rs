//! Kernels on plain slices: activations are f32, row-major `[tokens, width]`.
//!
//! Each kernel cuts its work into parts that do not depend on the number of threads, and sums in a
//! fixed order, so that results are bit-identical for any pool.

pub mod activation;
pub mod attention;
pub mod elementwise;
pub mod float;
pub mod grad;
pub mod gram;
pub mod hadamard;
pub mod low_rank;
pub mod norm;
pub mod quant;
pub mod rope;
pub mod sparse;
pub mod trellis;

pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod scratch;
pub(crate) mod vector;

/// What a kernel does with what stands in its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Replaces it.
    Overwrite,
    /// Adds to it.
    Add,
}

impl Write {
    /// Writes one value.
    #[inline]
    pub(crate) fn put(self, out: &mut f32, value: f32) {
        match self {
            Write::Overwrite => *out = value,
            Write::Add => *out += value,
        }
    }
}

/// The instruction set whose kernels run on this processor: sums of others may differ in their last bits.
pub fn instruction_set() -> String {
    let (floats, codes) = (vector::Isa::detect().kind(), quant::level());
    format!("{floats:?}/{codes}")
}
