//! Fitting terms of blocks to what is left of a matrix, in any metric.

use super::svd::{Options, Rank, truncated};
use super::{Block, FactorFormat, LowRank, LowRankError, Side};
use crate::numeric::matrix::{MatRef, Matrix, check_shape, norm2};
use std::borrow::Cow;

/// What a term in a block could take, best first.
pub(crate) struct Triplets {
    /// `[rows, rank]` of the block, row-major; orthonormal columns.
    pub(crate) u: Vec<f32>,
    /// `[rank, cols]` of the block, row-major; carries the singular values.
    pub(crate) v: Vec<f32>,
    /// What each takes off the sum of squares, falling.
    pub(crate) energies: Vec<f64>,
    /// Sum of squares of what they are the triplets of.
    pub(crate) total: f64,
    /// Whether the energy asked for was reached (true for fixed ranks).
    pub(crate) reached: bool,
    /// What they are the triplets of, where rounding needs it.
    pub(crate) target: Matrix,
}

impl Triplets {
    /// How many there are.
    pub(crate) fn rank(&self) -> usize {
        self.energies.len()
    }

    /// Keeps the first `rank` of a block of `cols` columns.
    pub(crate) fn truncate(&mut self, rank: usize, cols: usize) {
        let all = self.rank();
        if rank >= all {
            return;
        }
        let rows = self.u.chunks(all);
        self.u = rows.flat_map(|row| row[..rank].iter().copied()).collect();
        self.v.truncate(rank * cols);
        self.energies.truncate(rank);
    }
}

/// What is left of a matrix, in some metric.
pub(crate) trait Left: Sync {
    /// What can go wrong.
    type Error: From<LowRankError> + Send;

    /// The triplets that take most off the sum of squares of all that is left.
    fn triplets(
        &self,
        block: &Block,
        rank: Rank,
        options: &Options,
    ) -> Result<Triplets, Self::Error>;

    /// Those of the block as if there were nothing beside it.
    fn alone(&self, block: &Block, rank: Rank, options: &Options) -> Result<Triplets, Self::Error> {
        self.triplets(block, rank, options)
    }

    /// A term of all triplets, rounded; the rank of `block` is theirs.
    fn store(
        &self,
        block: Block,
        triplets: Triplets,
        format: FactorFormat,
    ) -> Result<LowRank, Self::Error>;

    /// Adds `sign` times a term of one block.
    fn add(&mut self, term: &LowRank, sign: f32);

    /// The sum of squares in the metric.
    fn energy(&self) -> f64;
}

/// What is left of a matrix, each weight as important as any other. Copied once it changes.
#[derive(Clone)]
pub(crate) struct Plain<'a> {
    rows: usize,
    cols: usize,
    data: Cow<'a, [f32]>,
}

impl<'a> Plain<'a> {
    /// All of a `[rows, cols]` matrix.
    pub(crate) fn new(a: &'a [f32], rows: usize, cols: usize) -> Result<Self, LowRankError> {
        check_shape(rows, cols, a.len())?;
        let data = Cow::Borrowed(a);
        Ok(Plain { rows, cols, data })
    }
}

impl Left for Plain<'_> {
    type Error = LowRankError;

    fn triplets(
        &self,
        block: &Block,
        rank: Rank,
        options: &Options,
    ) -> Result<Triplets, LowRankError> {
        let all = MatRef::new(&self.data, self.rows, self.cols)?;
        let part = all.block(
            block.row0..block.row0 + block.rows,
            block.col0..block.col0 + block.cols,
        );
        let svd = truncated(part, rank, options).map_err(|error| shift(error, block))?;
        let energies = svd.s.iter().map(|&s| f64::from(s) * f64::from(s)).collect();
        let (total, reached) = (svd.total, svd.reached);
        let (u, v) = svd.into_factors();
        Ok(Triplets {
            u,
            v,
            energies,
            total,
            reached,
            target: Matrix::default(),
        })
    }

    fn store(
        &self,
        block: Block,
        triplets: Triplets,
        format: FactorFormat,
    ) -> Result<LowRank, LowRankError> {
        let Triplets { u, v, .. } = triplets;
        LowRank::encode(self.rows, self.cols, vec![block], u, v, format)
    }

    fn add(&mut self, term: &LowRank, sign: f32) {
        term.accumulate(0..self.rows, self.data.to_mut(), sign, 1);
    }

    fn energy(&self) -> f64 {
        norm2(&self.data)
    }
}

/// Fits each term again, at its rank, to what all the others leave; one that gets no better stays.
///
/// Block coordinate descent: the sum of squares never rises. Says whether it fell.
pub(crate) fn sweep<L: Left>(
    left: &mut L,
    terms: &mut [LowRank],
    format: FactorFormat,
    options: &Options,
) -> Result<bool, L::Error> {
    let mut falls = false;
    for (index, term) in terms.iter_mut().enumerate() {
        let Some(&block) = term.blocks.first().filter(|block| block.rank > 0) else {
            continue;
        };
        let before = left.energy();
        left.add(term, 1.0);
        let options = Options {
            seed: options.seed.wrapping_add(index as u64),
            ..*options
        };
        let triplets = left.triplets(&block, Rank::Fixed(block.rank), &options)?;
        let again = left.store(block, triplets, format)?;
        left.add(&again, -1.0);
        if left.energy() < before {
            (*term, falls) = (again, true);
        } else {
            left.add(&again, 1.0);
            left.add(term, -1.0);
        }
    }
    Ok(falls)
}

/// Singular triplets of many blocks, each energy for bytes.
pub(crate) struct Offers {
    format: FactorFormat,
    blocks: Vec<Block>,
    /// Energy per byte of one more rank, the energy, and the index of the block.
    triplets: Vec<(f64, f64, usize)>,
}

impl Offers {
    pub(crate) fn new(format: FactorFormat) -> Self {
        Offers {
            format,
            blocks: Vec::new(),
            triplets: Vec::new(),
        }
    }

    /// Adds the triplets of a block.
    pub(crate) fn add(&mut self, block: Block, triplets: &Triplets) {
        let bytes = triplet_bytes(&block, self.format).max(1) as f64;
        let index = self.blocks.len();
        let energies = triplets.energies.iter().filter(|&&energy| energy > 0.0);
        self.triplets
            .extend(energies.map(|&energy| (energy / bytes, energy, index)));
        self.blocks.push(Block { rank: 0, ..block });
    }

    /// The blocks with the ranks that fill a budget best, or hold the energy that is missing for the
    /// fewest bytes; and the energy that they hold.
    pub(crate) fn best(mut self, mut left: usize, missing: f64) -> (Vec<Block>, f64) {
        // Stable: on a tie the coarser level and the earlier block come first.
        self.triplets.sort_by(|x, y| y.0.total_cmp(&x.0));
        let mut full = vec![false; self.blocks.len()];
        let mut held = 0.0;
        for &(_, energy, index) in &self.triplets {
            if held >= missing {
                break;
            }
            let block = &mut self.blocks[index];
            let more = Block {
                rank: block.rank + 1,
                ..*block
            };
            let price = block_bytes(&more, self.format) - block_bytes(block, self.format);
            // A later triplet of a block can't be had without this one.
            full[index] |= price > left;
            if !full[index] {
                left -= price;
                held += energy;
                *block = more;
            }
        }
        (self.blocks, held)
    }
}

/// Bytes of both factors of a block; none at rank 0.
pub(crate) fn block_bytes(block: &Block, format: FactorFormat) -> usize {
    if block.rank == 0 {
        return 0;
    }
    format.bytes(Side::U, block) + format.bytes(Side::V, block)
}

/// Bytes of one more rank of a block, on average.
fn triplet_bytes(block: &Block, format: FactorFormat) -> usize {
    const MANY: usize = 64;
    block_bytes(
        &Block {
            rank: MANY,
            ..*block
        },
        format,
    )
    .div_ceil(MANY)
}

/// Places an error inside a block in the whole matrix.
fn shift(error: LowRankError, block: &Block) -> LowRankError {
    match error {
        LowRankError::NotFinite { row, col } => LowRankError::NotFinite {
            row: row + block.row0,
            col: col + block.col0,
        },
        other => other,
    }
}
