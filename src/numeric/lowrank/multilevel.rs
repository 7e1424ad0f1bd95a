//! Multilevel low rank: a sum over levels of block-diagonal low rank.
//!
//! Level `l` cuts the matrix into `2^l` diagonal blocks (Parshakova, Hastie,
//! Darve and Boyd, "Factor fitting, rank allocation, and partitioning in
//! multilevel low rank matrices", 2023). Levels are fitted from coarse to fine,
//! each to the residual of those before. Ranks are shared out greedily: every
//! singular triplet of this level's and the finer levels' blocks of the current
//! residual is an offer of energy for bytes; the best offers fill the budget,
//! and those of this level are taken. Then each block is fitted again to what all
//! the others leave. Fewer levels are tried too, down to the whole matrix alone, and
//! the best is kept.
//!
//! Where a share of the energy is asked for instead, offers are taken, best
//! first, until they hold it. Those of different levels overlap, so that levels
//! together may hold less than they promise; what is missing then comes from
//! the whole matrix, whose triplets are orthogonal.

use super::fit::{Left, Offers, Plain, block_bytes, sweep};
use super::svd::{Options, Rank};
use super::{Block, Decomposition, FactorFormat, LowRank, LowRankError};

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

/// Levels `0..=depth` of blocks, and what they may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Levels {
    /// The finest level.
    pub depth: usize,
    /// What all of them may cost.
    pub budget: Budget,
    /// Largest rank of a block.
    pub max_rank: usize,
    /// How factors are stored.
    pub format: FactorFormat,
}

/// How often all blocks are fitted again; more gain less than a thousandth.
const SWEEPS: usize = 2;

/// Decomposes `a` `[rows, cols]` into levels. Blocks of rank 0 are left out.
///
/// # Errors
/// As [`truncated`](super::svd::truncated), and factors that don't fit the format.
///
/// # Cost
/// For three levels about twelve flat decompositions of the largest rank.
pub fn decompose(
    a: &[f32],
    rows: usize,
    cols: usize,
    levels: &Levels,
    options: &Options,
) -> Result<Decomposition, LowRankError> {
    let left = Plain::new(a, rows, cols)?;
    let total = left.energy();
    let taken = fit(&left, (rows, cols), levels, options)?;
    Ok(Decomposition {
        low_rank: taken.low_rank,
        total,
        kept: total - taken.left,
        reached: taken.reached,
    })
}

/// What levels take out of what is left of a matrix.
pub(crate) struct Taken {
    /// The term of all blocks.
    pub(crate) low_rank: LowRank,
    /// The energy that it leaves.
    pub(crate) left: f64,
    /// Whether it holds the energy that was asked for.
    pub(crate) reached: bool,
}

/// Takes levels out of what is left of a `[rows, cols]` matrix.
///
/// What blocks of one level offer is in what those of another do, so that many levels may hold less
/// than few: every finest level is tried, and the one that leaves least (or takes the fewest bytes for
/// the energy asked for) is kept.
pub(crate) fn fit<L: Left + Clone>(
    left: &L,
    (rows, cols): (usize, usize),
    levels: &Levels,
    options: &Options,
) -> Result<Taken, L::Error> {
    let mut best: Option<Taken> = None;
    for depth in 0..=finest(rows, cols, levels.depth) {
        let mut left = left.clone();
        let taken = fit_to(&mut left, (rows, cols), depth, levels, options)?;
        let better = best.as_ref().is_none_or(|best| match levels.budget {
            Budget::Energy(_) => {
                let order = |t: &Taken| (!t.reached, t.low_rank.bytes());
                order(&taken) < order(best)
            }
            _ => taken.left < best.left,
        });
        if better {
            best = Some(taken);
        }
    }
    // There is at least one level.
    best.ok_or_else(|| LowRankError::NoConvergence { rows, cols }.into())
}

/// [`fit`] of levels down to `depth`.
fn fit_to<L: Left>(
    left: &mut L,
    (rows, cols): (usize, usize),
    depth: usize,
    levels: &Levels,
    options: &Options,
) -> Result<Taken, L::Error> {
    let total = left.energy();
    let (bytes, goal) = match levels.budget {
        Budget::Bytes(bytes) => (bytes, None),
        Budget::Rank(rank) => {
            let rank = rank.min(rows.saturating_add(cols));
            let whole = Block {
                row0: 0,
                rows,
                col0: 0,
                cols,
                rank,
            };
            (block_bytes(&whole, levels.format), None)
        }
        Budget::Energy(share) => (usize::MAX, Some(share * total)),
    };
    let mut fit = Fit {
        left,
        side: (rows, cols),
        total,
        bytes,
        goal,
        reached: true,
        depth,
        levels,
        options,
        terms: Vec::new(),
    };
    for level in 0..=depth {
        fit.level(level)?;
    }
    if !fit.reached && depth > 0 {
        fit.depth = 0;
        fit.level(0)?;
    }
    let (mut terms, reached) = (fit.terms, fit.reached);
    for _ in 0..SWEEPS {
        if terms.len() < 2 || !sweep(left, &mut terms, levels.format, options)? {
            break;
        }
    }
    Ok(Taken {
        low_rank: LowRank::join(rows, cols, terms, levels.format)?,
        left: left.energy(),
        reached,
    })
}

/// The finest of `depth` levels whose blocks have rows and columns.
pub(crate) fn finest(rows: usize, cols: usize, depth: usize) -> usize {
    depth.min(rows.min(cols).max(1).ilog2() as usize)
}

/// A fit in progress: what is left of the matrix and of the budget.
struct Fit<'a, L> {
    left: &'a mut L,
    side: (usize, usize),
    total: f64,
    bytes: usize,
    /// Energy to be held.
    goal: Option<f64>,
    /// Whether the levels so far hold it, rounding of factors apart.
    reached: bool,
    depth: usize,
    levels: &'a Levels,
    options: &'a Options,
    terms: Vec<LowRank>,
}

impl<L: Left> Fit<'_, L> {
    /// Takes the best triplets of a level and subtracts them.
    fn level(&mut self, level: usize) -> Result<(), L::Error> {
        let (rows, cols) = self.side;
        let format = self.levels.format;
        let mut offers = Offers::new(format);
        let mut here = Vec::new();
        for finer in level..=self.depth {
            for (index, block) in diagonal(rows, cols, finer).into_iter().enumerate() {
                let seed = (finer << 32 | index) as u64;
                let options = Options {
                    seed: self.options.seed.wrapping_add(seed),
                    ..*self.options
                };
                let rank = Rank::Fixed(self.levels.max_rank);
                let triplets = self.left.triplets(&block, rank, &options)?;
                offers.add(block, &triplets);
                if finer == level {
                    here.push(triplets);
                }
            }
        }
        let missing = self
            .goal
            .map(|goal| goal - (self.total - self.left.energy()));
        let (best, held) = offers.best(self.bytes, missing.unwrap_or(f64::INFINITY));
        let finest = level == self.depth;
        self.reached = missing.is_none_or(|missing| finest && held >= missing);
        // This level's blocks came first.
        for (block, mut triplets) in best.into_iter().zip(here) {
            if block.rank == 0 {
                continue;
            }
            triplets.truncate(block.rank, block.cols);
            let term = self.left.store(block, triplets, format)?;
            self.bytes = self.bytes.saturating_sub(term.bytes());
            // Later levels see what rounding leaves.
            self.left.add(&term, -1.0);
            self.terms.push(term);
        }
        Ok(())
    }
}

/// The `2^level` diagonal blocks of a level.
pub(crate) fn diagonal(rows: usize, cols: usize, level: usize) -> Vec<Block> {
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
