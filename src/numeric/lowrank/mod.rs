//! Low-rank terms: a list of blocks `U_b · V_b` that add up in place.
//!
//! One structure covers a plain truncated SVD (one block), a hierarchy whose
//! leaves tile the matrix ([`hierarchy`]) and sums over levels of
//! block-diagonal terms ([`multilevel`]). `U_b` `[rows, rank]` has orthonormal
//! columns (up to the rounding of its format), `V_b` `[rank, cols]` carries the
//! singular values.

mod factor;
pub(crate) mod fit;
mod gemm;
pub mod hierarchy;
pub mod multilevel;
pub mod svd;

pub use factor::{Factor, FactorFormat, Side, coded_group};
pub use svd::{Method, Options, Rank, Svd};

use super::matrix::ShapeError;
use super::quant::QuantError;
use std::ops::Range;

/// Where a pair of factors lies in the matrix, and its rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    /// First row.
    pub row0: usize,
    /// Rows.
    pub rows: usize,
    /// First column.
    pub col0: usize,
    /// Columns.
    pub cols: usize,
    /// Rank; 0 stands for a block of zeros.
    pub rank: usize,
}

impl Block {
    /// Values in both factors: `rank * (rows + cols)`.
    pub fn params(&self) -> usize {
        self.rank * (self.rows + self.cols)
    }
}

/// A low-rank term of a `[rows, cols]` matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// Rows (`out`).
    pub rows: usize,
    /// Columns (`in`).
    pub cols: usize,
    /// The blocks; they may overlap.
    pub blocks: Vec<Block>,
    /// All `U_b` `[rows, rank]`, row-major, block after block.
    pub u: Factor,
    /// All `V_b` `[rank, cols]`, row-major, block after block.
    pub v: Factor,
}

/// Why a low-rank term can't be made or put together.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum LowRankError {
    /// A value is NaN or infinite.
    #[error("weight [{row}, {col}] is not finite: only finite weights can be decomposed")]
    NotFinite {
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
    },
    /// The weights aren't a matrix of the given shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A block that lies outside of the matrix.
    #[error("block {index} ({block:?}) lies outside of the {rows}x{cols} matrix")]
    Outside {
        /// Index of the block.
        index: usize,
        /// The block.
        block: Block,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// A factor whose length doesn't fit the blocks.
    #[error("{what} of factor {side:?}: {expected} were expected, {actual} given")]
    Length {
        /// Which part.
        what: &'static str,
        /// Which factor.
        side: Side,
        /// The length that fits.
        expected: usize,
        /// The length given.
        actual: usize,
    },
    /// A factor that is above the range of its format.
    #[error(
        "factor {side:?} holds {value:e}, which its format can't: rescale the weights, or use f32 factors (f16 ends at 65504)"
    )]
    Range {
        /// Which factor.
        side: Side,
        /// The value.
        value: f32,
    },
    /// A factor can't be quantized.
    #[error("factor {side:?} of block {block}: {source}")]
    Quant {
        /// Which factor.
        side: Side,
        /// Index of the block.
        block: usize,
        /// The reason.
        source: QuantError,
    },
    /// The iteration of the singular value decomposition didn't converge.
    #[error("the singular value decomposition of a {rows}x{cols} block didn't converge")]
    NoConvergence {
        /// Rows of the block.
        rows: usize,
        /// Columns of the block.
        cols: usize,
    },
    /// An energy that isn't a fraction.
    #[error("energy {energy} isn't between 0 and 1")]
    Energy {
        /// The energy asked for.
        energy: f64,
    },
}

/// A low-rank term and how much of the matrix it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Decomposition {
    /// The term, factors rounded to their format.
    pub low_rank: LowRank,
    /// Sum of squares of the matrix.
    pub total: f64,
    /// Sum of squares that the term takes out (but for rounding, in a hierarchy).
    pub kept: f64,
    /// Whether every block reached the energy asked for (true for fixed ranks).
    pub reached: bool,
}

impl LowRank {
    /// Puts a term together from stored parts, checking blocks and lengths.
    pub fn new(
        rows: usize,
        cols: usize,
        blocks: Vec<Block>,
        u: Factor,
        v: Factor,
    ) -> Result<Self, LowRankError> {
        for (index, &block) in blocks.iter().enumerate() {
            let inside = |start: usize, len: usize, end: usize| {
                start.checked_add(len).is_some_and(|stop| stop <= end)
            };
            let fits = inside(block.row0, block.rows, rows)
                && inside(block.col0, block.cols, cols)
                && block
                    .rank
                    .checked_mul(block.rows.saturating_add(block.cols))
                    .is_some();
            if !fits {
                return Err(LowRankError::Outside {
                    index,
                    block,
                    rows,
                    cols,
                });
            }
        }
        u.check(Side::U, &blocks)?;
        v.check(Side::V, &blocks)?;
        Ok(LowRank {
            rows,
            cols,
            blocks,
            u,
            v,
        })
    }

    /// Rounds factors to `format`; `u` and `v` are flat, as in [`LowRank`].
    pub fn encode(
        rows: usize,
        cols: usize,
        blocks: Vec<Block>,
        u: Vec<f32>,
        v: Vec<f32>,
        format: FactorFormat,
    ) -> Result<Self, LowRankError> {
        let u = Factor::encode(Side::U, &blocks, u, format)?;
        let v = Factor::encode(Side::V, &blocks, v, format)?;
        LowRank::new(rows, cols, blocks, u, v)
    }

    /// One term of those of single blocks, in their order.
    pub(crate) fn join(
        rows: usize,
        cols: usize,
        terms: Vec<LowRank>,
        format: FactorFormat,
    ) -> Result<Self, LowRankError> {
        let blocks = terms.iter().flat_map(|term| term.blocks.clone()).collect();
        let (mut u, mut v) = (Factor::empty(format), Factor::empty(format));
        for term in terms {
            u.append(term.u);
            v.append(term.v);
        }
        LowRank::new(rows, cols, blocks, u, v)
    }

    /// Bytes of both factors, scales included.
    pub fn bytes(&self) -> usize {
        self.u.bytes() + self.v.bytes()
    }

    /// Values in both factors.
    pub fn params(&self) -> usize {
        self.blocks.iter().map(Block::params).sum()
    }

    /// Floating-point operations per token through the factors (a multiply-add is 2).
    pub fn flops_per_token(&self) -> usize {
        2 * self.params()
    }

    /// The largest rank of a block.
    pub fn max_rank(&self) -> usize {
        self.blocks
            .iter()
            .map(|block| block.rank)
            .max()
            .unwrap_or(0)
    }

    /// All `U_b` and all `V_b` as flat `f32`.
    pub fn decode_factors(&self) -> (Vec<f32>, Vec<f32>) {
        (
            self.u.decode(Side::U, &self.blocks),
            self.v.decode(Side::V, &self.blocks),
        )
    }

    /// The whole term as a dense `[rows, cols]` matrix.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.accumulate(0..self.rows, &mut out, 1.0, 1);
        out
    }

    /// Adds the term to `out` `[rows, cols]`.
    pub fn add_to(&self, out: &mut [f32]) {
        self.accumulate(0..self.rows, out, 1.0, 1);
    }

    /// Subtracts the term from `out` `[rows, cols]`.
    pub fn subtract_from(&self, out: &mut [f32]) {
        self.accumulate(0..self.rows, out, -1.0, 1);
    }

    /// [`Self::subtract_from`] on the current rayon pool if `threads > 1`.
    pub fn subtract_from_threads(&self, out: &mut [f32], threads: usize) {
        self.accumulate(0..self.rows, out, -1.0, threads);
    }

    /// Adds rows `rows` of the term to `out` `[rows.len(), cols]`.
    ///
    /// Decodes the whole of `V`; for many tiles, work on fewer, larger ones.
    pub fn add_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        self.accumulate(rows, out, 1.0, 1);
    }

    /// Subtracts rows `rows` of the term from `out` `[rows.len(), cols]`.
    pub fn subtract_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        self.accumulate(rows, out, -1.0, 1);
    }

    /// Adds `factor` times rows `rows` of the term to `out` `[rows.len(), cols]`.
    pub(crate) fn accumulate(
        &self,
        rows: Range<usize>,
        out: &mut [f32],
        factor: f32,
        threads: usize,
    ) {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows {rows:?} of {}",
            self.rows
        );
        assert_eq!(out.len(), rows.len() * self.cols, "length of the output");
        let (u, v) = self.decode_factors();
        let (mut at_u, mut at_v) = (0, 0);
        for block in &self.blocks {
            let u_block = &u[at_u..][..block.rows * block.rank];
            let v_block = &v[at_v..][..block.rank * block.cols];
            at_u += u_block.len();
            at_v += v_block.len();
            let first = rows.start.max(block.row0);
            let last = rows.end.min(block.row0 + block.rows);
            if first >= last || block.rank == 0 || block.cols == 0 {
                continue;
            }
            let u_rows =
                &u_block[(first - block.row0) * block.rank..][..(last - first) * block.rank];
            let out = &mut out[(first - rows.start) * self.cols..][..(last - first) * self.cols];
            gemm::add_product(
                out, self.cols, block.col0, u_rows, v_block, block, factor, threads,
            );
        }
    }
}

#[cfg(test)]
mod tests;
