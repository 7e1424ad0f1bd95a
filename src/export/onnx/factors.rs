//! Low-rank terms → pairs of products.
//!
//! A block is `slice(x) · Vᵀ · Uᵀ`. Blocks over the same rows are added up;
//! row ranges that tile the output are put side by side; ranges that overlap
//! (levels of a multilevel term) are added up layer by layer.

use std::collections::BTreeMap;

use super::ExportError;
use super::lower::{Lowerer, Site};
use super::recipe::{Form, Piece};
use super::terms::{Coded, Part};
use crate::ir::{Attr, FactorRef, LowRankTerm, Matrix, Operand};
use crate::numeric::{Block, FactorFormat, Side};
use crate::weights::DType;

/// Blocks over one range of rows.
struct Range {
    row0: usize,
    rows: usize,
    blocks: Vec<usize>,
    /// Zero rows that fill gaps before and behind.
    before: usize,
    after: usize,
}

impl Lowerer<'_> {
    /// A low-rank term times `x`; nothing if all ranks are zero.
    pub(super) fn low_rank(
        &mut self,
        site: &mut Site,
        x: Operand,
        matrix: &Matrix,
        term: usize,
        low_rank: &LowRankTerm,
    ) -> Result<Option<Operand>, ExportError> {
        let mut slices: BTreeMap<(usize, usize), Operand> = BTreeMap::new();
        slices.insert((0, matrix.in_features as usize), x);
        let mut layers = Vec::new();
        for layer in layers_of(&low_rank.blocks, matrix.out_features as usize) {
            let mut ranges = Vec::new();
            for range in layer {
                let mut parts = Vec::new();
                for &index in &range.blocks {
                    let Some(block) = low_rank.blocks.get(index) else {
                        continue;
                    };
                    let input = self.slice(site, x, block, &mut slices);
                    parts.push(self.block(site, input, (term, index), block, low_rank, &range)?);
                }
                ranges.extend(self.sum(site, &parts));
            }
            layers.push(match ranges.as_slice() {
                [one] => *one,
                _ => self.standard(site, "Concat", ranges, vec![("axis", Attr::Int(-1))]),
            });
        }
        Ok(self.sum(site, &layers))
    }

    /// The columns that a block reads.
    fn slice(
        &mut self,
        site: &mut Site,
        x: Operand,
        block: &Block,
        slices: &mut BTreeMap<(usize, usize), Operand>,
    ) -> Operand {
        if let Some(&slice) = slices.get(&(block.col0, block.cols)) {
            return slice;
        }
        self.opset = self.opset.max(11);
        let starts = self.ints(site, "starts", &[block.col0 as i64]);
        let ends = self.ints(site, "ends", &[(block.col0 + block.cols) as i64]);
        let axes = self.ints(site, "axes", &[-1]);
        let slice = self.standard(site, "Slice", vec![x, starts, ends, axes], Vec::new());
        slices.insert((block.col0, block.cols), slice);
        slice
    }

    fn block(
        &mut self,
        site: &mut Site,
        x: Operand,
        (term, index): (usize, usize),
        block: &Block,
        low_rank: &LowRankTerm,
        range: &Range,
    ) -> Result<Operand, ExportError> {
        let tag = if low_rank.blocks.len() > 1 {
            format!("{index}")
        } else {
            String::new()
        };
        let v = Part {
            term,
            piece: Piece::V { block: index },
        };
        let shape = (block.rank, block.cols);
        let inner = self.factor(site, x, &low_rank.v, Side::V, shape, v, &format!("v{tag}"))?;
        let piece = Piece::U {
            block: index,
            before: range.before,
            after: range.after,
        };
        let shape = (range.before + block.rows + range.after, block.rank);
        let u = Part { term, piece };
        self.factor(
            site,
            inner,
            &low_rank.u,
            Side::U,
            shape,
            u,
            &format!("u{tag}"),
        )
    }

    #[allow(clippy::too_many_arguments)]
    fn factor(
        &mut self,
        site: &mut Site,
        x: Operand,
        factor: &FactorRef,
        side: Side,
        (rows, cols): (usize, usize),
        part: Part,
        suffix: &str,
    ) -> Result<Operand, ExportError> {
        if let (Some(scheme), Some(group)) = (factor.format.scheme(), factor.format.group(side)) {
            let coded = Coded {
                rows,
                cols,
                scheme,
                group,
            };
            return self.coded(site, x, coded, part, suffix);
        }
        let dtype = plain_dtype(factor.format);
        let form = Form::Floats {
            dtype,
            transposed: true,
        };
        let weight = self.made(site, suffix, dtype, &[cols, rows], part.recipe(site, form));
        let weight = self.cast(site, Operand::Weight(weight), dtype);
        Ok(self.standard(site, "MatMul", vec![x, weight], Vec::new()))
    }
}

/// Element type that holds a factor's values without loss.
pub(super) fn plain_dtype(format: FactorFormat) -> DType {
    match format {
        FactorFormat::F16 => DType::F16,
        // Codes times scales have more digits than f16.
        FactorFormat::F32 | FactorFormat::Int8 | FactorFormat::Int4 => DType::F32,
    }
}

/// Ranges of rows, in layers that each cover all rows once.
fn layers_of(blocks: &[Block], out_features: usize) -> Vec<Vec<Range>> {
    let mut by_rows: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (index, block) in blocks.iter().enumerate() {
        if block.rank > 0 && block.rows > 0 {
            by_rows
                .entry((block.row0, block.rows))
                .or_default()
                .push(index);
        }
    }
    let mut layers: Vec<(usize, Vec<Range>)> = Vec::new();
    for ((row0, rows), blocks) in by_rows {
        let free = layers.iter().position(|(end, _)| *end <= row0);
        let free = free.unwrap_or_else(|| {
            layers.push((0, Vec::new()));
            layers.len() - 1
        });
        if let Some((end, ranges)) = layers.get_mut(free) {
            ranges.push(Range {
                row0,
                rows,
                blocks,
                before: row0 - *end,
                after: 0,
            });
            *end = row0 + rows;
        }
    }
    for (end, ranges) in &mut layers {
        if let Some(last) = ranges.last_mut() {
            debug_assert_eq!(last.row0 + last.rows, *end);
            last.after = out_features.saturating_sub(*end);
        }
    }
    layers.into_iter().map(|(_, ranges)| ranges).collect()
}
