//! Mapped pages of matrices, given back.

use super::{Factor, PreparedMatrix, PreparedTerm, Stored};

impl PreparedMatrix {
    /// Gives back the mapped pages of all terms, and what is kept of them; they are read again when they are used again.
    pub(in crate::exec) fn release(&self) {
        let give = |stored: &Stored| {
            let at = &stored.located;
            at.source.release(at.offset, at.len);
        };
        let factor = |factor: &Factor| {
            give(&factor.data);
            factor.scales.iter().for_each(give);
        };
        for term in &self.terms {
            match term {
                PreparedTerm::Dense { data, kept, .. } => {
                    give(data);
                    kept.release();
                }
                PreparedTerm::Quant {
                    codes,
                    scales,
                    zeros,
                    ..
                } => [codes, scales].into_iter().chain(zeros).for_each(give),
                PreparedTerm::Trellis { codes, scales, .. } => {
                    [codes, scales].into_iter().for_each(give);
                }
                PreparedTerm::LowRank { u, v, .. } => [u, v].into_iter().for_each(factor),
                PreparedTerm::Csr {
                    values,
                    columns,
                    offsets,
                } => [values, columns, offsets].into_iter().for_each(give),
                PreparedTerm::Columns { values, .. } => give(values),
                PreparedTerm::Custom(c) => c.tensors.iter().for_each(|t| give(&t.data)),
            }
        }
    }
}
