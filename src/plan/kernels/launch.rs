//! Launch rules: blocks and shared memory of the linear kernels.

use crate::plan::{Target, Variant};

/// A launch's dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
}

/// Columns of activations that a block keeps at a time.
const COLUMNS: u64 = 4096;

/// A launch of `fused_linear`, and what blocks need to work together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FusedLaunch {
    /// Its dimensions.
    pub launch: Launch,
    /// Floats of the `partial` workspace.
    pub partial_floats: u64,
    /// Words of `counter`.
    pub counters: u32,
}

/// A decode product of `tiles` row tiles (of one expert) and `cols` columns. No more blocks than run at
/// once, since they wait for each other: for inner activations of a low-rank term, and for the sums of a
/// row tile that several of them share.
pub fn fused_linear(
    variant: &Variant,
    target: &Target,
    tiles: u64,
    cols: u64,
    rank: u64,
    slots: u64,
) -> FusedLaunch {
    let m = u64::try_from(variant.define("M")).unwrap_or(1).max(1);
    let cols = cols.next_multiple_of(64).min(COLUMNS);
    // Codes and their scales and sums, or f32; partial sums of 8 warps; inner activations.
    let each = match variant.define("ACT") {
        0 => cols + cols / 32 * 8,
        _ => 4 * cols,
    };
    let shared = m * each + m * 8 * 16 * 4 * 2 + m * rank.min(1024) * 4 + 1024;
    let blocks = u64::from(target.sms) * 2;
    let work = match variant.define("EXPERTS") {
        1 => tiles.saturating_mul(slots),
        _ => tiles,
    };
    FusedLaunch {
        launch: Launch {
            grid: [u32::try_from(work.min(blocks).max(1)).unwrap_or(u32::MAX), 1, 1],
            block: 256,
            shared_bytes: u32::try_from(shared).unwrap_or(u32::MAX),
        },
        partial_floats: 0,
        counters: 1,
    }
}

/// A product of many tokens: a block makes 64 rows of 64 tokens.
pub fn linear_prefill(tokens: u64, tiles: u64) -> Launch {
    let part = |n: u64, by: u64| u32::try_from(n.div_ceil(by).max(1)).unwrap_or(u32::MAX);
    Launch {
        grid: [part(tiles, 4), part(tokens, 64), 1],
        block: 256,
        shared_bytes: 49152,
    }
}
