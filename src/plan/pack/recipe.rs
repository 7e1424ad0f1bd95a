//! What a packed weight is made from.

use crate::ir::WeightId;
use crate::plan::lower::macros::Part;
use crate::plan::lower::terms::Base;

/// How the sections of a weight are made. Recipes are in the order of the plan's weights.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Recipe {
    /// Matrices in tiles.
    Matrix(Stack),
    /// A table multiplied out to f16, for a lookup of rows.
    Dense(Part),
    /// Constant vectors: section and weight; `gain` may have one added.
    Vectors {
        /// Section, tensor, whether one is added, rows padded to.
        parts: Vec<(String, WeightId, bool)>,
        /// Length of each.
        width: u64,
    },
    /// Numbers that the plan computes: bits of f32, or words.
    Inline {
        /// Section.
        section: String,
        /// `f32` or `u32`.
        dtype: String,
        /// The elements' bits.
        words: Vec<u32>,
    },
}

/// Rows of matrices in the order of a launch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Stack {
    /// Parts of each expert; one list where there are no experts.
    pub(crate) experts: Vec<Vec<PartTerms>>,
    /// Row tiles of two parts alternate.
    pub(crate) interleaved: bool,
    /// Columns.
    pub(crate) cols: u64,
    /// How the bases are coded; absent with low-rank and sparse terms alone.
    pub(crate) base: Option<Base>,
    /// Formats of V and U.
    pub(crate) factors: Option<(i64, i64)>,
    /// Whether there are sparse entries.
    pub(crate) sparse: bool,
    /// Whether a bias is packed.
    pub(crate) bias: bool,
    /// Bits of the factor on the product: the kernel multiplies behind the bias, which is divided by it.
    pub(crate) scale_bits: u32,
}

/// Which terms of a part a launch takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PartTerms {
    /// Rows of which matrix.
    pub(crate) part: Part,
    /// Index of the base term.
    pub(crate) base: Option<usize>,
    /// Indices of low-rank terms.
    pub(crate) low_rank: Vec<usize>,
    /// Indices of sparse terms.
    pub(crate) sparse: Vec<usize>,
    /// Bias of the linear, if it is added here.
    pub(crate) bias: Option<WeightId>,
}

/// A tile of 16 rows of a part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    /// Index of the part.
    pub(crate) part: usize,
    /// First row in its matrix.
    pub(crate) row: u64,
    /// Rows that there are, at most 16.
    pub(crate) count: u64,
}

impl Stack {
    /// Row tiles of one expert, in the order of the launch.
    pub(crate) fn tiles(&self, parts: &[PartTerms]) -> Vec<Tile> {
        let of = |(index, part): (usize, &PartTerms)| -> Vec<Tile> {
            let rows = &part.part.rows;
            let each = rows.clone().step_by(16);
            each.map(|row| Tile {
                part: index,
                row,
                count: (rows.end - row).min(16),
            })
            .collect()
        };
        let lists: Vec<Vec<Tile>> = parts.iter().enumerate().map(of).collect();
        match (self.interleaved, lists.as_slice()) {
            (true, [a, b]) => a.iter().zip(b).flat_map(|(a, b)| [*a, *b]).collect(),
            _ => lists.concat(),
        }
    }

    /// Rows of one expert, padding included.
    pub(crate) fn rows(&self) -> u64 {
        let parts = self.experts.first();
        parts.map_or(0, |parts| parts.iter().map(|p| p.part.padded()).sum())
    }
}
