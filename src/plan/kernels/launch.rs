//! Launch rules: blocks, shared memory and workspaces of the linear kernels.

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

/// A launch of `fused_linear`, and what blocks need to work together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FusedLaunch {
    /// Its dimensions.
    pub launch: Launch,
    /// Warps of a block: `WARPS`.
    pub warps: i64,
    /// Units that a warp has on their way: `STAGES`.
    pub stages: i64,
    /// Words of `counter`.
    pub counters: u64,
    /// Floats of `h`.
    pub inner_floats: u64,
}

/// Sizes of a decode product.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Row tiles, of one expert.
    pub tiles: u64,
    /// Columns.
    pub cols: u64,
    /// Width of h.
    pub rank: u64,
    /// Tokens; with experts those of all sequences.
    pub tokens: u64,
    /// Experts of each token; 0 without.
    pub top_k: u64,
}

/// Warps that a block of `fused_linear` may have, the most first.
const WARPS: [u64; 5] = [16, 12, 8, 6, 5];
/// Parts of a rank's sum in `h`.
const INNER_PARTS: u64 = 8;
/// Most bytes of the ring of units on their way; and beside both low-rank and sparse terms, whose loads take
/// the longer the more bytes are on their way (docs/kernel-notes.md, version 8).
const RING: u64 = 128 << 10;
const RING_BESIDE_TERMS: u64 = 64 << 10;
/// Most units that a warp has on their way: more were slower (docs/kernel-notes.md, version 4).
const STAGES: u64 = 4;

/// A decode product, as the header of `fused_linear.cu` says: one block for each multiprocessor, so that
/// blocks that wait for one another all run. `None` where shared memory does not hold the activations.
pub fn fused_linear(variant: &Variant, target: &Target, p: &Product) -> Option<FusedLaunch> {
    let is = |name: &str| variant.define(name) != 0;
    let pair = if is("GLU") { 2 } else { 1 };
    let experts = variant.define("EXPERTS");
    let y = match experts {
        1 => p.tokens * p.top_k,
        2 => p.tokens,
        _ => 1,
    };
    let sms = u64::from(target.sms);
    let together = is("LOWRANK");
    if together && y > sms {
        return None;
    }
    let most = if together { sms / y } else { sms };
    let x = (p.tiles / pair).clamp(1, most.max(1));
    let most_ring = match together && is("SPARSE") {
        true => RING_BESIDE_TERMS,
        false => RING,
    };
    let fits = |(warps, stages): &(u64, u64)| {
        let (ring, all) = fused_shared(variant, p, x, (*warps, *stages));
        all <= u64::from(target.shared_bytes) && (ring <= most_ring || *stages == 2)
    };
    let each = |warps: u64| (2..=STAGES).rev().map(move |stages| (warps, stages));
    // A trellis beside other terms, or of many tokens, takes more registers than 16 warps leave each thread.
    let crowded =
        variant.define("FORMAT") == 4 && (together || is("SPARSE") || variant.define("M") > 4);
    let allowed = WARPS.into_iter().filter(|&warps| !crowded || warps <= 12);
    let (warps, stages) = allowed.flat_map(each).find(fits)?;
    let (_, shared) = fused_shared(variant, p, x, (warps, stages));
    let rows_of_h = match experts {
        0 => p.tokens,
        _ => p.tokens * p.top_k,
    };
    Some(FusedLaunch {
        launch: Launch {
            grid: [u32::try_from(x).ok()?, u32::try_from(y).ok()?, 1],
            block: u32::try_from(32 * warps).ok()?,
            shared_bytes: u32::try_from(shared).ok()?,
        },
        warps: i64::try_from(warps).ok()?,
        stages: i64::try_from(stages).ok()?,
        counters: if together { (2 + x) * y } else { 0 },
        inner_floats: rows_of_h * INNER_PARTS * p.rank,
    })
}

/// Bytes of the ring, and of all dynamic shared memory.
fn fused_shared(
    variant: &Variant,
    p: &Product,
    grid: u64,
    (warps, stages): (u64, u64),
) -> (u64, u64) {
    let of = |name: &str| u64::try_from(variant.define(name)).unwrap_or(0);
    let is = |name: &str| of(name) != 0;
    let (format, bits, group, m) = (of("FORMAT"), of("BITS"), of("GROUP"), of("M").max(1));
    // Bits of a trellis differ from column to column, 8 at most; the kernel puts more units of fewer
    // bits into the same ring.
    let (codes, combine) = (matches!(format, 0 | 4), of("EXPERTS") == 2);
    let trellis = format == 4;
    // A chunk is the least that a lane loads at once; a unit, 256 columns of codes, a stage of the ring.
    let chunk_tiles = if format == 0 && bits < 4 { 2 } else { 1 };
    let unit_tiles = if codes || format == 5 { 4 } else { 1 };
    let chunk_bytes = match format {
        0 => chunk_tiles * 128 * bits,
        4 => 1024,
        5 => 0,
        // Of f32, half a tile.
        _ => 2048,
    };
    let unit_groups = if codes && group > 0 {
        unit_tiles * 64 / group
    } else {
        0
    };
    let zero_bytes = match (is("ZEROS"), bits) {
        (false, _) => 0,
        (true, 8) => 16,
        (true, _) => 8,
    };
    let unit_codes = unit_tiles / chunk_tiles * chunk_bytes;
    let unit_bytes = (unit_codes + unit_groups * (32 + zero_bytes)).next_multiple_of(16);
    let column_tiles = p.cols.div_ceil(64 * chunk_tiles) * chunk_tiles;
    let exact = of("ACT") == 1;
    let x_bytes = match (format, codes, exact) {
        (5, _, _) => 0,
        (_, false, _) => column_tiles * 256,
        // Codes of activations four times each.
        (4, _, false) => column_tiles * 256,
        (_, true, true) => column_tiles * 128,
        (_, true, false) => column_tiles * 64,
    };
    let padding = match (x_bytes, codes && !exact) {
        (0, _) => 0,
        _ if trellis => {
            if exact {
                32
            } else {
                64
            }
        }
        (_, true) => (column_tiles + 1) % 2 * 64,
        (_, false) => 16,
    };
    let table = match codes && !exact {
        true => column_tiles * (if m == 1 { 1 } else { m.next_multiple_of(2) }) * 16,
        false => 0,
    };
    let pair = if is("GLU") { 2 } else { 1 };
    let virtual_rows = if combine { m } else { 1 };
    let terms = is("LOWRANK") || is("SPARSE");
    // Four warps see to low-rank and sparse terms.
    let streaming = match (terms, format) {
        (false, _) => warps,
        (true, 5) => 1,
        (true, _) => warps - 4,
    };
    let slots = pair * virtual_rows * (p.tiles / pair).div_ceil(grid.max(1)) + warps;
    let ring = streaming * stages * unit_bytes;
    let sums = slots * 64 * m;
    let others = if terms {
        slots * 64 * (if combine { 1 } else { m })
    } else {
        0
    };
    let all = ring + m * (x_bytes + padding) + table + sums + others + 128 + 96 * m;
    (ring, all)
}

/// Row tiles that a block of `linear_prefill` makes.
pub const PREFILL_TILES: u64 = 8;

/// Tokens that a block of `linear_prefill` makes, by its defines.
pub fn prefill_tokens(variant: &Variant) -> u64 {
    let narrow = |name: &&str| variant.define(name) != 0;
    if ["SPARSE", "EXPERTS"].iter().any(narrow) {
        64
    } else {
        128
    }
}

/// A product of many tokens: a block makes 128 rows of `block_tokens` ([`prefill_tokens`]); of several
/// experts, all may go to one.
pub fn linear_prefill(tokens: u64, tiles: u64, experts: u64, block_tokens: u64) -> Launch {
    let part = |n: u64, by: u64| u32::try_from(n.div_ceil(by).max(1)).unwrap_or(u32::MAX);
    Launch {
        grid: [
            part(tiles, PREFILL_TILES),
            part(tokens, block_tokens),
            part(experts, 1),
        ],
        block: 256,
        shared_bytes: 0,
    }
}

/// Inner activations of many tokens: a block makes 16 of 16 tokens.
pub fn low_rank_inner(tokens: u64, rank: u64, experts: u64) -> Launch {
    let part = |n: u64, by: u64| u32::try_from(n.div_ceil(by).max(1)).unwrap_or(u32::MAX);
    Launch {
        grid: [part(rank, 16), part(tokens, 16), part(experts, 1)],
        block: 256,
        shared_bytes: 0,
    }
}
