//! Low-rank terms: rows of V as they are stored, U in tiles of 16 rows and 16 ranks.

use std::collections::HashMap;

use half::f16;

use super::blob::Sections;
use super::recipe::{PartTerms, Tile};
use super::sizes::{self, u_scale_groups, u_step_bytes, v_row_bytes, v_row_scales};
use super::{ROWS, Result, Source};
use crate::ir::OpId;
use crate::numeric::lowrank::coded_group;
use crate::numeric::quant::{packed_len, unpack_row};
use crate::numeric::{Block, Factor, LowRank, Side};
use crate::pass::terms::TermData;
use crate::plan::PlanError;

/// Where the next parts go, over all experts.
#[derive(Default)]
pub(super) struct Packer {
    v_bytes: u64,
    v_scales: u64,
    v_tiles: u32,
    v_index: Vec<u32>,
    u_steps: u64,
    u_scales: u64,
    u_tiles: u32,
    u_index: Vec<u32>,
}

/// One factor of one block, decoded to its codes or entries.
struct Piece {
    /// `[rows, cols]`: signed codes as integers, or the entries.
    values: Vec<f32>,
    /// Scales `[rows, groups]` of codes.
    scales: Vec<f16>,
    cols: usize,
    groups: usize,
}

impl Packer {
    pub(super) fn expert(
        &mut self,
        source: &Source<'_>,
        parts: &[PartTerms],
        tiles: &[Tile],
        (v, u): (i64, i64),
        data: &HashMap<(OpId, usize), TermData>,
        out: &mut Sections<'_>,
    ) -> Result<()> {
        self.v_index.push(self.v_tiles);
        let blocks = sizes::expert_blocks(source.graph, parts)?;
        let mut places: HashMap<(OpId, usize, usize), (u64, Piece)> = HashMap::new();
        let mut h = 0u64;
        for (op, term, index, block) in &blocks {
            let Some(TermData::LowRank(low_rank)) = data.get(&(*op, *term)) else {
                return Err(PlanError::weight(
                    &op.to_string(),
                    "its low-rank term is missing",
                ));
            };
            self.v(low_rank, *index, block, h, v, out)?;
            let piece = piece(&low_rank.u, Side::U, &low_rank.blocks, *index);
            places.insert((*op, *term, *index), (h, piece));
            h += block.rank.next_multiple_of(16) as u64;
        }
        let of_parts: Result<Vec<_>> = parts
            .iter()
            .map(|p| sizes::blocks(source.graph, p))
            .collect();
        let of_parts = of_parts?;
        for tile in tiles {
            self.u_index.push(self.u_tiles);
            let (Some(part), Some(blocks)) = (parts.get(tile.part), of_parts.get(tile.part)) else {
                continue;
            };
            for (term, index, block) in blocks {
                let (first, end) = (block.row0 as u64, (block.row0 + block.rows) as u64);
                if first >= tile.row + tile.count || end <= tile.row {
                    continue;
                }
                if let Some((h, piece)) = places.get(&(part.part.op, *term, *index)) {
                    self.u(tile, block, piece, *h, u, out)?;
                }
            }
        }
        Ok(())
    }

    /// The tables that are known at the end.
    pub(super) fn end(&mut self, experts: usize, out: &mut Sections<'_>) -> Result<()> {
        self.u_index.push(self.u_tiles);
        out.words("u_index", &self.u_index)?;
        if experts > 1 {
            self.v_index.push(self.v_tiles);
            out.words("v_index", &self.v_index)?;
        }
        Ok(())
    }

    fn v(
        &mut self,
        low_rank: &LowRank,
        index: usize,
        block: &Block,
        h: u64,
        format: i64,
        out: &mut Sections<'_>,
    ) -> Result<()> {
        let piece = piece(&low_rank.v, Side::V, &low_rank.blocks, index);
        let entry = [
            h,
            block.rank as u64,
            block.col0 as u64,
            block.cols as u64,
            self.v_bytes / 16,
            self.v_scales,
        ];
        out.words("v_tiles", &entry.map(|n| n as u32))?;
        self.v_tiles += 1;
        let (cols, row_bytes) = (block.cols as u64, v_row_bytes(block.cols as u64, format));
        for row in piece.values.chunks(piece.cols.max(1)) {
            let mut bytes = encode(row, format);
            bytes.resize(row_bytes as usize, 0);
            out.put("v", &bytes)?;
            self.v_bytes += row_bytes;
        }
        if format <= 8 {
            out.halves("v_scales", &piece.scales)?;
            self.v_scales += block.rank as u64 * v_row_scales(cols, format);
        }
        Ok(())
    }

    /// The rows of U that a row tile has in a block.
    fn u(
        &mut self,
        tile: &Tile,
        block: &Block,
        piece: &Piece,
        h: u64,
        format: i64,
        out: &mut Sections<'_>,
    ) -> Result<()> {
        let steps = block.rank.div_ceil(16);
        let entry = [self.u_steps, h, steps as u64, self.u_scales];
        out.words("u_tiles", &entry.map(|n| n as u32))?;
        self.u_tiles += 1;
        self.u_steps += steps as u64;
        // Row of the block that row `r` of the tile is, if it is one.
        let row = |r: usize| {
            let row = (tile.row as usize + r).checked_sub(block.row0)?;
            ((r as u64) < tile.count && row < block.rows).then_some(row)
        };
        let at = |r: usize, k: usize| match row(r) {
            Some(row) if k < block.rank => piece.values.get(row * piece.cols + k).copied(),
            _ => None,
        };
        for step in 0..steps {
            let mut bytes = Vec::with_capacity(u_step_bytes(format) as usize);
            for lane in 0..32 {
                let (g, t) = (lane / 4, lane % 4);
                let four = |r: usize| -> Vec<f32> {
                    (0..4)
                        .map(|b| at(r, step * 16 + 4 * t + b).unwrap_or(0.0))
                        .collect()
                };
                let (low, high) = (four(g), four(g + 8));
                match format {
                    4 => {
                        let nibble = |x: f32| (x as i32 + 8) as u8;
                        bytes.extend(
                            low.iter()
                                .zip(&high)
                                .map(|(l, h)| nibble(*l) | nibble(*h) << 4),
                        );
                    }
                    _ => {
                        bytes.extend(encode(&low, format));
                        bytes.extend(encode(&high, format));
                    }
                }
            }
            out.put("u", &bytes)?;
        }
        let groups = u_scale_groups(block.rank as u64, format) as usize;
        for group in 0..groups {
            let mut scales = [f16::ZERO; ROWS];
            for r in 0..ROWS {
                let scale = row(r).and_then(|row| piece.scales.get(row * piece.groups + group));
                scales[2 * (r % 8) + r / 8] = scale.copied().unwrap_or(f16::ZERO);
            }
            out.halves("u_scales", &scales)?;
        }
        self.u_scales += 16 * groups as u64;
        Ok(())
    }
}

/// Values as stored: signed codes, two to a byte for 4 bits (code − 8, low nibble first), or floats.
fn encode(values: &[f32], format: i64) -> Vec<u8> {
    match format {
        32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        16 => values
            .iter()
            .flat_map(|v| f16::from_f32(*v).to_le_bytes())
            .collect(),
        8 => values.iter().map(|v| (*v as i32) as u8).collect(),
        _ => {
            let nibble = |v: &f32| (*v as i32 + 8) as u8 & 15;
            let pair = |p: &[f32]| p.first().map_or(8, nibble) | p.get(1).map_or(8, nibble) << 4;
            values.chunks(2).map(pair).collect()
        }
    }
}

/// One factor of block `index`.
fn piece(factor: &Factor, side: Side, blocks: &[Block], index: usize) -> Piece {
    let (rows, cols) = blocks.get(index).map_or((0, 0), |b| side.shape(b));
    let before = blocks.get(..index).unwrap_or_default();
    let skip: usize = before
        .iter()
        .map(|b| side.shape(b).0 * side.shape(b).1)
        .sum();
    let floats = |values: Vec<f32>| Piece {
        values,
        scales: Vec::new(),
        cols,
        groups: 0,
    };
    match factor {
        Factor::F32(all) => floats(
            all.get(skip..skip + rows * cols)
                .unwrap_or_default()
                .to_vec(),
        ),
        Factor::F16(all) => {
            let some = all.get(skip..skip + rows * cols).unwrap_or_default();
            floats(some.iter().map(|v| v.to_f32()).collect())
        }
        Factor::Coded {
            scheme,
            codes,
            scales,
        } => {
            let groups = |cols: usize| coded_group(side, *scheme).per_row(cols);
            let (mut first_code, mut first_scale) = (0, 0);
            for block in before {
                let (rows, cols) = side.shape(block);
                first_code += rows * packed_len(scheme.bits, cols);
                first_scale += rows * groups(cols);
            }
            let bytes = packed_len(scheme.bits, cols);
            let mut values = Vec::with_capacity(rows * cols);
            let mut row = vec![0u8; cols];
            let middle = i32::from(scheme.midpoint());
            for r in 0..rows {
                let packed = codes.get(first_code + r * bytes..first_code + (r + 1) * bytes);
                unpack_row(scheme.bits, packed.unwrap_or_default(), &mut row);
                values.extend(row.iter().map(|&q| (i32::from(q) - middle) as f32));
            }
            let count = rows * groups(cols);
            let scales = scales
                .get(first_scale..first_scale + count)
                .unwrap_or_default();
            Piece {
                values,
                scales: scales.to_vec(),
                cols,
                groups: groups(cols),
            }
        }
    }
}
