//! Multilevel low rank: a sum over levels of block-diagonal low rank.
//!
//! Level `l` cuts the matrix into `2^l` diagonal blocks (Parshakova, Hastie,
//! Darve and Boyd, "Factor fitting, rank allocation, and partitioning in
//! multilevel low rank matrices", 2023). Levels are fitted from coarse to fine,
//! each to the residual of those before. Ranks are shared out greedily: every
//! singular triplet of this level's and the finer levels' blocks of the current
//! residual is an offer of energy for bytes; the best offers fill the budget,
//! and those of this level are taken.

use super::hierarchy::{part, shift};
use super::svd::{Options, Rank, Svd, truncated, view};
use super::{Block, Decomposition, FactorFormat, LowRank, LowRankError, Side};

/// What the levels may cost together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Budget {
    /// Bytes of all factors in their format.
    Bytes(usize),
    /// As many bytes as a flat term of this rank takes.
    Rank(usize),
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
    let mut residual = a.to_matrix();
    let whole = Block {
        row0: 0,
        rows,
        col0: 0,
        cols,
        rank: 0,
    };
    let mut left = match budget {
        Budget::Bytes(bytes) => bytes,
        Budget::Rank(rank) => triplet_bytes(&whole, format).saturating_mul(rank),
    };
    let depth = depth.min(rows.min(cols).max(1).ilog2() as usize);
    let (mut blocks, mut u, mut v) = (Vec::new(), Vec::new(), Vec::new());
    for level in 0..=depth {
        let mut offers = Vec::new();
        let mut here = Vec::new();
        for finer in level..=depth {
            for (index, block) in diagonal(rows, cols, finer).into_iter().enumerate() {
                let seed = options.seed.wrapping_add((finer << 32 | index) as u64);
                let options = Options { seed, ..*options };
                let svd = truncated(
                    part(&residual.view(), &block),
                    Rank::Fixed(max_rank),
                    &options,
                )
                .map_err(|error| shift(error, &block))?;
                let slot = (finer == level).then_some(here.len());
                offers.extend(offers_of(&svd, &block, slot, format));
                if finer == level {
                    here.push((block, svd));
                }
            }
        }
        let ranks = share_out(offers, left, here.len());
        for ((mut block, svd), rank) in here.into_iter().zip(ranks) {
            if rank == 0 {
                continue;
            }
            block.rank = rank;
            let (block_u, block_v) = take(svd, rank);
            let term = LowRank::encode(
                rows,
                cols,
                vec![block],
                block_u.clone(),
                block_v.clone(),
                format,
            )?;
            left = left.saturating_sub(term.bytes());
            // Later levels see what rounding leaves.
            term.subtract_from(&mut residual.data);
            u.extend_from_slice(&block_u);
            v.extend_from_slice(&block_v);
            blocks.push(block);
        }
    }
    let kept = total - residual.norm2();
    let low_rank = LowRank::encode(rows, cols, blocks, u, v, format)?;
    Ok(Decomposition {
        low_rank,
        total,
        kept,
        reached: true,
    })
}

/// A singular triplet for sale.
struct Offer {
    energy_per_byte: f64,
    bytes: usize,
    /// The block of the current level, or none for finer levels.
    slot: Option<usize>,
}

fn offers_of(svd: &Svd, block: &Block, slot: Option<usize>, format: FactorFormat) -> Vec<Offer> {
    let bytes = triplet_bytes(block, format).max(1);
    svd.s
        .iter()
        .filter(|&&s| s > 0.0)
        .map(|&s| Offer {
            energy_per_byte: f64::from(s) * f64::from(s) / bytes as f64,
            bytes,
            slot,
        })
        .collect()
}

/// Bytes of one more rank of a block, on average.
fn triplet_bytes(block: &Block, format: FactorFormat) -> usize {
    const MANY: usize = 64;
    let block = Block {
        rank: MANY,
        ..*block
    };
    (format.bytes(Side::U, &block) + format.bytes(Side::V, &block)).div_ceil(MANY)
}

/// Fills a budget with the best offers; the rank of each block of this level.
fn share_out(mut offers: Vec<Offer>, mut left: usize, blocks: usize) -> Vec<usize> {
    // Stable: on a tie the coarser level and the earlier block come first.
    offers.sort_by(|x, y| y.energy_per_byte.total_cmp(&x.energy_per_byte));
    let mut ranks = vec![0; blocks];
    for offer in offers {
        if offer.bytes > left {
            break;
        }
        left -= offer.bytes;
        if let Some(rank) = offer.slot.and_then(|slot| ranks.get_mut(slot)) {
            *rank += 1;
        }
    }
    ranks
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
