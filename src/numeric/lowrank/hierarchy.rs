//! Flat and hierarchical low rank: recursive bisection, ranks of leaves by energy per byte.

use super::fit::{Left, Offers, Plain, Triplets, block_bytes, sweep};
use super::svd::{Options, Rank};
use super::{Block, Decomposition, FactorFormat, LowRank, LowRankError};
use rayon::prelude::*;

/// How ranks are given to leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ranks {
    /// To where they hold most energy per byte, for the bytes of even ones; none above twice the
    /// even rank. A share of the energy is one of the whole matrix.
    #[default]
    ByEnergy,
    /// The same to every leaf. A share of the energy is one of each leaf.
    Even,
}

/// A bisection, and what its leaves hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hierarchy {
    /// How often the matrix is bisected.
    pub depth: usize,
    /// Rank of a leaf, on average or each.
    pub rank: Rank,
    /// Which of both.
    pub ranks: Ranks,
    /// How factors are stored.
    pub format: FactorFormat,
}

/// How often leaves are fitted again where they share outputs; more gain less than a thousandth.
const SWEEPS: usize = 2;

/// Decomposes `a` `[rows, cols]` into the leaves of a bisection.
///
/// The longer side is halved (rows on a tie) down to `depth` levels, or until
/// a side is at most twice the largest rank, as in the original HLRC. Depth 0 is a plain truncated
/// SVD. Leaves tile the matrix, in order of recursion, those of rank 0 included.
///
/// # Errors
/// As [`truncated`](super::svd::truncated), and factors that don't fit the format.
///
/// # Cost
/// That of [`truncated`](super::svd::truncated) per leaf, at twice the rank where it is not the same
/// for all.
pub fn decompose(
    a: &[f32],
    rows: usize,
    cols: usize,
    hierarchy: &Hierarchy,
    options: &Options,
) -> Result<Decomposition, LowRankError> {
    // What is left does not change: leaves have nothing in common.
    let left = Plain::new(a, rows, cols)?;
    let blocks = leaves(rows, cols, hierarchy.depth, hierarchy.rank.max());
    let (taken, reached) = take(&left, blocks, hierarchy, options)?;
    let (mut terms, mut total, mut kept) = (Vec::new(), 0.0, 0.0);
    for (block, triplets) in taken {
        total += triplets.total;
        kept += triplets.energies.iter().sum::<f64>();
        terms.push(left.store(block, triplets, hierarchy.format)?);
    }
    Ok(Decomposition {
        low_rank: LowRank::join(rows, cols, terms, hierarchy.format)?,
        total,
        kept,
        reached,
    })
}

/// Takes leaves out of what is left of a matrix where they share outputs, and fits them again.
pub(crate) fn fit<L: Left>(
    left: &mut L,
    (rows, cols): (usize, usize),
    blocks: Vec<Block>,
    hierarchy: &Hierarchy,
    options: &Options,
) -> Result<(LowRank, bool), L::Error> {
    let (taken, reached) = take(left, blocks, hierarchy, options)?;
    let format = hierarchy.format;
    let mut terms = Vec::new();
    for (block, triplets) in taken {
        let term = left.store(block, triplets, format)?;
        left.add(&term, -1.0);
        terms.push(term);
    }
    for _ in 0..SWEEPS {
        if !sweep(left, &mut terms, format, options)? {
            break;
        }
    }
    Ok((LowRank::join(rows, cols, terms, format)?, reached))
}

/// What each leaf takes, its rank set; and whether the energy asked for is reached.
#[allow(clippy::type_complexity)]
fn take<L: Left>(
    left: &L,
    blocks: Vec<Block>,
    hierarchy: &Hierarchy,
    options: &Options,
) -> Result<(Vec<(Block, Triplets)>, bool), L::Error> {
    let (rank, format) = (hierarchy.rank, hierarchy.format);
    let by_energy = hierarchy.ranks == Ranks::ByEnergy && blocks.len() > 1;
    let most = match (by_energy, rank) {
        (false, rank) => rank,
        (true, Rank::Fixed(rank)) => Rank::Fixed(rank.saturating_mul(2)),
        (true, Rank::Energy { energy, max_rank }) => {
            if !(0.0..=1.0).contains(&energy) {
                return Err(LowRankError::Energy { energy }.into());
            }
            Rank::Fixed(max_rank)
        }
    };
    let leaf = |(index, block): (usize, &Block)| {
        // Leaves get sketches of their own; products inside a leaf may still use threads.
        let options = Options {
            seed: options.seed.wrapping_add(index as u64),
            ..*options
        };
        left.alone(block, most, &options)
    };
    let found: Result<Vec<_>, L::Error> = if options.threads > 1 {
        blocks.par_iter().enumerate().map(leaf).collect()
    } else {
        blocks.iter().enumerate().map(leaf).collect()
    };
    let mut taken: Vec<(Block, Triplets)> = blocks.into_iter().zip(found?).collect();
    let mut reached = taken.iter().all(|(_, triplets)| triplets.reached);
    if by_energy {
        let mut offers = Offers::new(format);
        for (block, triplets) in &taken {
            offers.add(*block, triplets);
        }
        let even = |rank| {
            let of_leaf = |(block, _): &(Block, Triplets)| {
                let rank = block.rows.min(block.cols).min(rank);
                block_bytes(&Block { rank, ..*block }, format)
            };
            taken.iter().map(of_leaf).sum()
        };
        let total: f64 = taken.iter().map(|(_, triplets)| triplets.total).sum();
        let (bytes, missing) = match rank {
            Rank::Fixed(rank) => (even(rank), f64::INFINITY),
            Rank::Energy { energy, .. } => (usize::MAX, energy * total),
        };
        let (best, held) = offers.best(bytes, missing);
        reached = matches!(rank, Rank::Fixed(_)) || held >= missing * (1.0 - 1e-6);
        for ((_, triplets), block) in taken.iter_mut().zip(best) {
            triplets.truncate(block.rank, block.cols);
        }
    }
    for (block, triplets) in &mut taken {
        block.rank = triplets.rank();
    }
    Ok((taken, reached))
}

/// The leaves of the bisection, ranks 0.
pub fn leaves(rows: usize, cols: usize, depth: usize, max_rank: usize) -> Vec<Block> {
    let mut out = Vec::new();
    split(
        Block {
            row0: 0,
            rows,
            col0: 0,
            cols,
            rank: 0,
        },
        depth,
        max_rank,
        &mut out,
    );
    out
}

fn split(block: Block, depth: usize, max_rank: usize, out: &mut Vec<Block>) {
    let smallest = max_rank.saturating_mul(2).max(1);
    if depth == 0 || block.rows <= smallest || block.cols <= smallest {
        out.push(block);
        return;
    }
    let (first, second) = if block.rows >= block.cols {
        let half = block.rows / 2;
        (
            Block {
                rows: half,
                ..block
            },
            Block {
                row0: block.row0 + half,
                rows: block.rows - half,
                ..block
            },
        )
    } else {
        let half = block.cols / 2;
        (
            Block {
                cols: half,
                ..block
            },
            Block {
                col0: block.col0 + half,
                cols: block.cols - half,
                ..block
            },
        )
    };
    split(first, depth - 1, max_rank, out);
    split(second, depth - 1, max_rank, out);
}
