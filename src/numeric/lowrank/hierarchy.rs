//! Flat and hierarchical low rank: recursive bisection, a rank per leaf.

use super::svd::{Options, Rank, truncated, view};
use super::{Block, Decomposition, FactorFormat, LowRank, LowRankError};
use crate::numeric::matrix::MatRef;
use rayon::prelude::*;

/// Decomposes `a` `[rows, cols]` into the leaves of a bisection.
///
/// The longer side is halved (rows on a tie) down to `depth` levels, or until
/// a side is at most twice the largest rank, as in the original HLRC; each leaf
/// is cut by `rank` on its own. Depth 0 is a plain truncated SVD. Leaves tile
/// the matrix, in order of recursion, those of rank 0 included.
///
/// # Errors
/// As [`truncated`], and factors that don't fit `format`.
///
/// # Cost
/// That of [`truncated`] per leaf.
pub fn decompose(
    a: &[f32],
    rows: usize,
    cols: usize,
    depth: usize,
    rank: Rank,
    options: &Options,
    format: FactorFormat,
) -> Result<Decomposition, LowRankError> {
    let a = view(a, rows, cols)?;
    let mut blocks = leaves(rows, cols, depth, rank.max());
    let leaf = |(index, block): (usize, &Block)| {
        let part = part(&a, block);
        // Leaves get sketches of their own; products inside a leaf may still use threads.
        let options = Options {
            seed: options.seed.wrapping_add(index as u64),
            ..*options
        };
        truncated(part, rank, &options).map_err(|error| shift(error, block))
    };
    let parts: Result<Vec<_>, LowRankError> = if options.threads > 1 {
        blocks.par_iter().enumerate().map(leaf).collect()
    } else {
        blocks.iter().enumerate().map(leaf).collect()
    };
    let (mut u, mut v) = (Vec::new(), Vec::new());
    let (mut total, mut kept, mut reached) = (0.0, 0.0, true);
    for (block, part) in blocks.iter_mut().zip(parts?) {
        block.rank = part.rank();
        total += part.total;
        kept += part.kept;
        reached &= part.reached;
        let (part_u, part_v) = part.into_factors();
        u.extend_from_slice(&part_u);
        v.extend_from_slice(&part_v);
    }
    let low_rank = LowRank::encode(rows, cols, blocks, u, v, format)?;
    Ok(Decomposition {
        low_rank,
        total,
        kept,
        reached,
    })
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

/// Places an error inside a block in the whole matrix.
pub(super) fn shift(error: LowRankError, block: &Block) -> LowRankError {
    match error {
        LowRankError::NotFinite { row, col } => LowRankError::NotFinite {
            row: row + block.row0,
            col: col + block.col0,
        },
        other => other,
    }
}

/// Views a block of a matrix.
pub(super) fn part<'a>(a: &MatRef<'a>, block: &Block) -> MatRef<'a> {
    a.block(
        block.row0..block.row0 + block.rows,
        block.col0..block.col0 + block.cols,
    )
}
