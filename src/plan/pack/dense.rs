//! Dense matrices in tiles.

use half::{bf16, f16};
use rayon::prelude::*;

use super::blob::Sections;
use super::recipe::{PartTerms, Tile};
use super::{ROWS, Result, Source, TILE};
use crate::ir::Term;
use crate::plan::PlanError;
use crate::plan::lower::terms::format;
use crate::weights::MatrixView;

/// Row tiles that are packed at once.
const AT_ONCE: usize = 64;

/// Packs the tiles of some dense matrices.
pub(super) fn pack(
    source: &Source<'_>,
    format: i64,
    parts: &[PartTerms],
    tiles: &[Tile],
    out: &mut Sections<'_>,
) -> Result<()> {
    let mut views: Vec<(MatrixView, &str)> = Vec::with_capacity(parts.len());
    for part in parts {
        let (matrix, name) = source.matrix(part.part.op)?;
        let term = part.base.and_then(|index| matrix.terms.get(index));
        let Some(Term::Dense(view)) = term else {
            return Err(PlanError::weight(name, "its dense term is missing"));
        };
        views.push((source.reader.view(source.module, matrix, view)?, name));
    }
    for some in tiles.chunks(AT_ONCE) {
        let packed: Vec<Result<Vec<u8>>> = some
            .par_iter()
            .map(|t| {
                let Some((view, name)) = views.get(t.part) else {
                    return Ok(Vec::new());
                };
                let rows = t.row as usize..(t.row + t.count) as usize;
                let mut values = vec![0f32; rows.len() * view.cols()];
                let read = view.read_rows_f32(rows, &mut values);
                read.map_err(|e| PlanError::weight(name, e.to_string()))?;
                Ok(tile(format, &values, view.cols()))
            })
            .collect();
        for bytes in packed {
            out.put("q", &bytes?)?;
        }
        for (part, (view, _)) in views.iter().enumerate() {
            let mut rows = some.iter().filter(|t| t.part == part);
            if let (Some(first), Some(last)) = (rows.clone().next(), rows.next_back()) {
                view.release_rows(first.row as usize..(last.row + last.count) as usize);
            }
        }
    }
    Ok(())
}

/// Rows `[up to 16, cols]` of a row tile, in the order of lanes.
pub(super) fn tile(format: i64, values: &[f32], cols: usize) -> Vec<u8> {
    let padded = cols.next_multiple_of(TILE);
    let at = |row: usize, k: usize| match k < cols {
        true => values.get(row * cols + k).copied().unwrap_or(0.0),
        false => 0.0,
    };
    let mut out = Vec::with_capacity(ROWS * padded * 4);
    for c in (0..padded).step_by(TILE) {
        for i in 0..4 {
            if format == format::F32 {
                for half in [0, 8] {
                    for lane in 0..32 {
                        let (g, t) = (lane / 4 + half, lane % 4);
                        let four = (0..4).map(|b| at(g, c + 16 * i + 4 * t + b));
                        out.extend(four.flat_map(f32::to_le_bytes));
                    }
                }
                continue;
            }
            for lane in 0..32 {
                let (g, t) = (lane / 4, lane % 4);
                for row in [g, g + 8] {
                    for b in 0..4 {
                        let value = at(row, c + 16 * i + 4 * t + b);
                        out.extend(match format {
                            format::BF16 => bf16::from_f32(value).to_le_bytes(),
                            _ => f16::from_f32(value).to_le_bytes(),
                        });
                    }
                }
            }
        }
    }
    out
}
