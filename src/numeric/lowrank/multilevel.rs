//! Multilevel low rank: a sum over levels of block-diagonal low rank.
//!
//! Level `l` cuts the matrix into `2^l` diagonal blocks (Parshakova, Hastie,
//! Darve and Boyd, "Factor fitting, rank allocation, and partitioning in
//! multilevel low rank matrices", 2023). Levels are fitted from coarse to fine,
//! each to the residual of those before. Ranks are shared out greedily: every
//! singular triplet of this level's and the finer levels' blocks of the current
//! residual is an offer of energy for bytes; the best offers fill the budget,
//! and those of this level are taken.
//!
//! Where a share of the energy is asked for instead, offers are taken, best
//! first, until they hold it. Those of different levels overlap, so that levels
//! together may hold less than they promise; what is missing then comes from
//! the whole matrix, whose triplets are orthogonal.

use super::hierarchy::{part, shift};
use super::svd::{Options, Rank, Svd, truncated, view};
use super::{Block, Decomposition, FactorFormat, LowRank, LowRankError, Side};
use crate::numeric::matrix::Matrix;

/// What the levels may cost together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of all factors in their format.
    Bytes(usize),
    /// As many bytes as a flat term of this rank takes.
    Rank(usize),
    /// As few bytes as hold this share of the sum of squares.
    Energy(f64),
}

/// Decomposes `a` `[rows, cols]` into levels `0..=depth`.
///
/// No block gets a rank above `max_rank`. Blocks of rank 0 are left out.
///
/// # Errors
/// As [`truncated`], and factors that don't fit `format`.
///
/// # Cost
/// About four flat decompositions of rank `max_rank`, for any depth.
#[allow(clippy::too_many_arguments)]
pub fn decompose(
    a: &[f32],
    rows: usize,
    cols: usize,
    depth: usize,
    budget: Budget,
    max_rank: usize,
    options: &Options,
    format: FactorFormat,
) -> Result<Decomposition, LowRankError> {
    let a = view(a, rows, cols)?;
    let total = a.norm2();
    let whole = Block {
        row0: 0,
        rows,
        col0: 0,
        cols,
        rank: 0,
    };
    let (left, goal) = match budget {
        Budget::Bytes(bytes) => (bytes, None),
        Budget::Rank(rank) => {
            let rank = rank.min(rows.saturating_add(cols));
            (block_bytes(&Block { rank, ..whole }, format), None)
        }
        Budget::Energy(share) => (usize::MAX, Some(share * total)),
    };
    let depth = depth.min(rows.min(cols).max(1).ilog2() as usize);
    let residual = a.to_matrix();
    let (blocks, u, v) = (Vec::new(), Vec::new(), Vec::new());
    let mut fit = Fit {
        residual,
        total,
        left,
        goal,
        reached: true,
        depth,
        max_rank,
        options,
        format,
        blocks,
        u,
        v,
    };
    for level in 0..=depth {
        fit.level(level)?;
    }
    if !fit.reached && depth > 0 {
        fit.depth = 0;
        fit.level(0)?;
    }
    let kept = total - fit.residual.norm2();
    let (reached, blocks) = (fit.reached, fit.blocks);
    let low_rank = LowRank::encode(rows, cols, blocks, fit.u, fit.v, format)?;
    Ok(Decomposition {
        low_rank,
        total,
        kept,
        reached,
    })
}

/// A fit in progress: what is left of the matrix and of the budget.
struct Fit<'a> {
    residual: Matrix,
    total: f64,
    left: usize,
    /// Sum of squares to be held.
    goal: Option<f64>,
    /// Whether the levels so far hold it, rounding of factors apart.
    reached: bool,
    depth: usize,
    max_rank: usize,
    options: &'a Options,
    format: FactorFormat,
    blocks: Vec<Block>,
    u: Vec<f32>,
    v: Vec<f32>,
}

impl Fit<'_> {
    /// Takes the best triplets of a level and subtracts them.
    fn level(&mut self, level: usize) -> Result<(), LowRankError> {
        let (rows, cols, format) = (self.residual.rows, self.residual.cols, self.format);
        let mut offers = Offers::new(format);
        let mut here = Vec::new();
        for finer in level..=self.depth {
            for (index, block) in diagonal(rows, cols, finer).into_iter().enumerate() {
                let svd = self.block_svd(finer, index, &block)?;
                offers.add(block, &svd);
                if finer == level {
                    here.push(svd);
                }
            }
        }
        let missing = self
            .goal
            .map(|goal| goal - (self.total - self.residual.norm2()));
        let (best, held) = offers.best(self.left, missing.unwrap_or(f64::INFINITY));
        let finest = level == self.depth;
        self.reached = missing.is_none_or(|missing| finest && held >= missing);
        // This level's blocks came first.
        for (block, svd) in best.into_iter().zip(here) {
            if block.rank == 0 {
                continue;
            }
            let (u, v) = take(svd, block.rank);
            let term = LowRank::encode(rows, cols, vec![block], u.clone(), v.clone(), format)?;
            self.left = self.left.saturating_sub(term.bytes());
            // Later levels see what rounding leaves.
            term.subtract_from(&mut self.residual.data);
            self.u.extend_from_slice(&u);
            self.v.extend_from_slice(&v);
            self.blocks.push(block);
        }
        Ok(())
    }

    fn block_svd(&self, level: usize, index: usize, block: &Block) -> Result<Svd, LowRankError> {
        let seed = self.options.seed.wrapping_add((level << 32 | index) as u64);
        let options = Options {
            seed,
            ..*self.options
        };
        let part = part(&self.residual.view(), block);
        truncated(part, Rank::Fixed(self.max_rank), &options).map_err(|error| shift(error, block))
    }
}

/// Singular triplets of many blocks, each energy for bytes.
struct Offers {
    format: FactorFormat,
    blocks: Vec<Block>,
    /// Energy per byte of one more rank, the energy, and the index of the block.
    triplets: Vec<(f64, f64, usize)>,
}

impl Offers {
    fn new(format: FactorFormat) -> Self {
        Offers {
            format,
            blocks: Vec::new(),
            triplets: Vec::new(),
        }
    }

    fn add(&mut self, block: Block, svd: &Svd) {
        let bytes = triplet_bytes(&block, self.format).max(1) as f64;
        let index = self.blocks.len();
        let energies = svd
            .s
            .iter()
            .filter(|&&s| s > 0.0)
            .map(|&s| f64::from(s) * f64::from(s));
        self.triplets
            .extend(energies.map(|energy| (energy / bytes, energy, index)));
        self.blocks.push(block);
    }

    /// The blocks with the ranks that fill a budget best, or hold the energy that is missing for the
    /// fewest bytes; and the energy that they hold.
    fn best(mut self, mut left: usize, missing: f64) -> (Vec<Block>, f64) {
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
fn block_bytes(block: &Block, format: FactorFormat) -> usize {
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

/// The `2^level` diagonal blocks of a level.
fn diagonal(rows: usize, cols: usize, level: usize) -> Vec<Block> {
    let count = 1usize << level;
    let edge = |side: usize, i: usize| (side as u128 * i as u128 / count as u128) as usize;
    (0..count)
        .map(|i| {
            let (row0, col0) = (edge(rows, i), edge(cols, i));
            Block {
                row0,
                rows: edge(rows, i + 1) - row0,
                col0,
                cols: edge(cols, i + 1) - col0,
                rank: 0,
            }
        })
        .collect()
}

/// The factors of the first `rank` triplets.
fn take(svd: Svd, rank: usize) -> (Vec<f32>, Vec<f32>) {
    let (all, cols) = (svd.rank().max(1), svd.cols);
    let (u, mut v) = svd.into_factors();
    v.truncate(rank * cols);
    let u = u
        .chunks(all)
        .flat_map(|row| row[..rank].iter().copied())
        .collect();
    (u, v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diagonals_tile_the_diagonal() {
        let blocks = diagonal(7, 10, 2);
        assert_eq!(blocks.len(), 4);
        assert_eq!(blocks.iter().map(|b| b.rows).sum::<usize>(), 7);
        assert_eq!(blocks.iter().map(|b| b.cols).sum::<usize>(), 10);
        assert!(
            blocks
                .windows(2)
                .all(|w| w[0].row0 + w[0].rows == w[1].row0)
        );
    }
}
