//! Sizes of sections, from shapes alone.

use std::collections::BTreeSet;

use super::recipe::{PartTerms, Recipe, Stack};
use crate::ir::{Graph, Module, Term};
use crate::numeric::Block;
use crate::plan::lower::terms::{format, matrix};
use crate::plan::{PlanError, Section};

/// Columns of a run of sparse entries.
pub(crate) const CHUNK: u64 = 4096;

/// Sections with their sizes; offsets are still 0.
///
/// # Errors
/// A matrix is not where the recipe says, or larger than can be addressed.
pub(crate) fn sections(
    module: &Module,
    graph: &Graph,
    recipe: &Recipe,
) -> Result<Vec<Section>, PlanError> {
    let section = |name: &str, dtype: &str, bytes: u64| Section {
        name: name.to_string(),
        dtype: dtype.to_string(),
        offset: 0,
        bytes,
        sha256: None,
    };
    Ok(match recipe {
        Recipe::Matrix(stack) => of_stack(module, graph, stack, section)?,
        Recipe::Dense(part) => {
            let (matrix, _) = matrix(graph, part.op)?;
            let columns = matrix.in_features.next_multiple_of(64);
            vec![section(
                "q",
                "u8",
                part.padded().saturating_mul(columns).saturating_mul(2),
            )]
        }
        Recipe::Vectors { parts, width } => {
            let each = parts
                .iter()
                .map(|(name, _, _)| section(name, "f32", width * 4));
            each.collect()
        }
        Recipe::Inline {
            section: name,
            dtype,
            words,
        } => vec![section(name, dtype, words.len() as u64 * 4)],
    })
}

fn of_stack(
    module: &Module,
    graph: &Graph,
    stack: &Stack,
    section: impl Fn(&str, &str, u64) -> Section,
) -> Result<Vec<Section>, PlanError> {
    let experts = stack.experts.len() as u64;
    let tiles = (stack.rows() / 16).saturating_mul(experts);
    let mut found = Vec::new();
    if let Some(base) = &stack.base {
        let bytes = match base.format {
            format::TRELLIS => trellis_bytes(module, graph, stack)?,
            _ => tiles.saturating_mul(row_tile_bytes(base.format, base.bits, stack.cols)),
        };
        found.push(section("q", "u8", bytes));
        let groups = groups(stack.cols, base.group);
        match base.format {
            format::CODES => {
                found.push(section(
                    "scales",
                    "f16",
                    tiles.saturating_mul(groups).saturating_mul(32),
                ));
                if base.zeros {
                    let each = if base.bits == 8 { 16 } else { 8 };
                    found.push(section(
                        "zeros",
                        "u8",
                        tiles.saturating_mul(groups).saturating_mul(each),
                    ));
                }
                if base.columns {
                    found.push(section(
                        "xscale",
                        "f32",
                        stack.cols.next_multiple_of(64) * 4,
                    ));
                }
            }
            format::TRELLIS => {
                found.push(section("scales", "f16", tiles.saturating_mul(2)));
                found.push(section("zeros", "u8", trellis_units(stack.cols) * 16));
            }
            _ => {}
        }
    }
    if let Some((v, u)) = stack.factors {
        let mut sum = LowRankSizes::default();
        for parts in &stack.experts {
            sum.add(graph, stack, parts, (v, u))?;
        }
        found.push(section("v", "u8", sum.v));
        if v <= 8 {
            found.push(section("v_scales", "f16", sum.v_scales * 2));
        }
        found.push(section("v_tiles", "u32", sum.v_tiles * 24));
        if experts > 1 {
            found.push(section("v_index", "u32", (experts + 1) * 4));
        }
        found.push(section("u", "u8", sum.u));
        if u <= 8 {
            found.push(section("u_scales", "f16", sum.u_scales * 2));
        }
        found.push(section("u_tiles", "u32", sum.u_tiles * 16));
        found.push(section("u_index", "u32", (tiles + 1) * 4));
    }
    if stack.sparse {
        let mut entries = 0u64;
        // Rows of one matrix may be several parts; how its entries spread over them is in the data.
        let mut counted = BTreeSet::new();
        for part in stack.experts.iter().flatten() {
            let (matrix, _) = matrix(graph, part.part.op)?;
            for &index in &part.sparse {
                let count = match matrix.terms.get(index) {
                    Some(Term::Sparse(s)) if counted.insert((part.part.op, index)) => s.nnz,
                    Some(Term::Columns(c)) => c
                        .count
                        .saturating_mul(part.part.rows.end - part.part.rows.start),
                    _ => 0,
                };
                entries = entries.saturating_add(count);
            }
        }
        let runs = tiles.saturating_mul(stack.cols.div_ceil(CHUNK));
        // At most: runs without entries take no room.
        let heads = runs.saturating_mul(32);
        found.push(section(
            "s",
            "u32",
            entries.saturating_mul(4).saturating_add(heads),
        ));
        found.push(section("s_offsets", "u32", (runs + 1) * 4));
    }
    if stack.bias {
        found.push(section("bias", "f32", tiles * 64));
    }
    Ok(found)
}

/// Bytes of 16 rows of codes or entries.
pub(crate) fn row_tile_bytes(format: i64, bits: i64, cols: u64) -> u64 {
    let (single, double) = (cols.div_ceil(64), cols.div_ceil(128));
    match (format, bits) {
        (format::CODES, 2) => 512 * double,
        (format::CODES, 3) => 768 * double,
        (format::CODES, 4) => 512 * single,
        (format::CODES, _) => 1024 * single,
        (format::F16 | format::BF16, _) => 2048 * single,
        (format::F32, _) => 4096 * single,
        _ => 0,
    }
}

/// Groups of a row.
pub(crate) fn groups(cols: u64, group: i64) -> u64 {
    match u64::try_from(group) {
        Ok(0) | Err(_) => 1,
        Ok(width) => cols.div_ceil(width),
    }
}

/// Units of 256 columns of trellis codes; the table of columns has 16 bytes of each.
pub(crate) fn trellis_units(cols: u64) -> u64 {
    cols.div_ceil(256)
}

fn trellis_bytes(module: &Module, graph: &Graph, stack: &Stack) -> Result<u64, PlanError> {
    let mut bytes = 0u64;
    for part in stack.experts.iter().flatten() {
        let (matrix, name) = matrix(graph, part.part.op)?;
        if part.part.rows != (0..matrix.out_features) {
            let problem = "some rows of trellis codes in a launch of their own have no kernel";
            return Err(PlanError::unsupported("linear", name, problem));
        }
        let codes = part.base.and_then(|index| match matrix.terms.get(index) {
            Some(Term::Trellis(t)) => module.weight(t.codes),
            _ => None,
        });
        bytes = bytes.saturating_add(codes.map_or(0, |w| w.bytes()));
    }
    Ok(bytes)
}

/// Blocks of a part's low-rank terms that its rows meet.
pub(crate) fn blocks(
    graph: &Graph,
    part: &PartTerms,
) -> Result<Vec<(usize, usize, Block)>, PlanError> {
    let (matrix, _) = matrix(graph, part.part.op)?;
    let rows = &part.part.rows;
    let mut found = Vec::new();
    for &term in &part.low_rank {
        let Some(Term::LowRank(l)) = matrix.terms.get(term) else {
            continue;
        };
        for (index, block) in l.blocks.iter().enumerate() {
            let (first, end) = (block.row0 as u64, (block.row0 + block.rows) as u64);
            if block.rank > 0 && block.cols > 0 && first < rows.end && end > rows.start {
                found.push((term, index, *block));
            }
        }
    }
    Ok(found)
}

/// Blocks of one expert, once each, in the order of h: the op, its term, the block's index and the block.
pub(crate) fn expert_blocks(
    graph: &Graph,
    parts: &[PartTerms],
) -> Result<Vec<(crate::ir::OpId, usize, usize, Block)>, PlanError> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for part in parts {
        for (term, index, block) in blocks(graph, part)? {
            if seen.insert((part.part.op, term, index)) {
                found.push((part.part.op, term, index, block));
            }
        }
    }
    Ok(found)
}

/// Sum of padded ranks: the width of h.
pub(crate) fn rank(graph: &Graph, stack: &Stack) -> Result<u64, PlanError> {
    let mut most = 0;
    for parts in &stack.experts {
        let blocks = expert_blocks(graph, parts)?;
        let sum: u64 = blocks
            .iter()
            .map(|b| b.3.rank.next_multiple_of(16) as u64)
            .sum();
        most = most.max(sum);
    }
    Ok(most)
}

/// Bytes of a row of V.
pub(crate) fn v_row_bytes(cols: u64, format: i64) -> u64 {
    let bits = u64::try_from(format).unwrap_or(0);
    (cols * bits).div_ceil(8).next_multiple_of(16)
}

/// Scales of a row of V.
pub(crate) fn v_row_scales(cols: u64, format: i64) -> u64 {
    match format {
        8 => cols.div_ceil(64),
        4 => cols.div_ceil(32),
        _ => 0,
    }
}

/// Bytes of 16 rows and 16 ranks of U.
pub(crate) fn u_step_bytes(format: i64) -> u64 {
    u64::try_from(format).unwrap_or(0) * 32
}

/// Groups of 16 scales that a tile's rows have in a block.
pub(crate) fn u_scale_groups(rank: u64, format: i64) -> u64 {
    match format {
        8 => 1,
        4 => rank.div_ceil(32),
        _ => 0,
    }
}

#[derive(Default)]
struct LowRankSizes {
    v: u64,
    v_scales: u64,
    v_tiles: u64,
    u: u64,
    u_scales: u64,
    u_tiles: u64,
}

impl LowRankSizes {
    fn add(
        &mut self,
        graph: &Graph,
        stack: &Stack,
        parts: &[PartTerms],
        (v, u): (i64, i64),
    ) -> Result<(), PlanError> {
        for (_, _, _, block) in expert_blocks(graph, parts)? {
            let (rank, cols) = (block.rank as u64, block.cols as u64);
            self.v += rank * v_row_bytes(cols, v);
            self.v_scales += rank * v_row_scales(cols, v);
            self.v_tiles += 1;
        }
        let of_parts: Result<Vec<_>, _> = parts.iter().map(|p| blocks(graph, p)).collect();
        let of_parts = of_parts?;
        for tile in stack.tiles(parts) {
            let Some(blocks) = of_parts.get(tile.part) else {
                continue;
            };
            for (_, _, block) in blocks {
                let (first, end) = (block.row0 as u64, (block.row0 + block.rows) as u64);
                if first < tile.row + tile.count && end > tile.row {
                    let rank = block.rank as u64;
                    self.u += rank.div_ceil(16) * u_step_bytes(u);
                    self.u_scales += 16 * u_scale_groups(rank, u);
                    self.u_tiles += 1;
                }
            }
        }
        Ok(())
    }
}
