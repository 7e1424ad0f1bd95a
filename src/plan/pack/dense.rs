//! Dense matrices in tiles.

use half::{bf16, f16};
use rayon::prelude::*;

use super::blob::Sections;
use super::recipe::{PartTerms, Tile};
use super::{ROWS, Result, Source, TILE};
use crate::ir::{OpId, Term};
use crate::pass::terms::TermData;
use crate::plan::PlanError;
use crate::plan::lower::terms::{Base, format};
use crate::weights::MatrixView;
use std::ops::Range;

/// Row tiles that are packed at once.
const AT_ONCE: usize = 64;

/// All terms of a matrix, to be multiplied out by rows.
pub(super) struct Merged {
    name: String,
    views: Vec<MatrixView>,
    terms: Vec<TermData>,
}

impl Merged {
    pub(super) fn read(source: &Source<'_>, op: OpId) -> Result<Self> {
        let (matrix, name) = source.matrix(op)?;
        let mut merged = Self {
            name: name.to_string(),
            views: Vec::new(),
            terms: Vec::new(),
        };
        for term in &matrix.terms {
            match term {
                Term::Dense(view) => {
                    let view = source.reader.view(source.module, matrix, view)?;
                    merged.views.push(view);
                }
                term => merged
                    .terms
                    .push(source.reader.term(source.module, matrix, term)?),
            }
        }
        Ok(merged)
    }

    /// Rows `[rows, cols]`.
    pub(super) fn rows(&self, rows: Range<usize>, cols: usize) -> Result<Vec<f32>> {
        let fault = |problem: String| PlanError::weight(&self.name, problem);
        let mut values = vec![0f32; rows.len() * cols];
        let mut one = vec![0f32; values.len()];
        for view in &self.views {
            let read = view.read_rows_f32(rows.clone(), &mut one);
            read.map_err(|e| fault(e.to_string()))?;
            values.iter_mut().zip(&one).for_each(|(v, o)| *v += o);
        }
        for term in &self.terms {
            let added = term.add_rows(rows.clone(), &mut values);
            added.map_err(|e| fault(e.to_string()))?;
        }
        Ok(values)
    }
}

/// Packs the tiles of some matrices that are multiplied out.
fn merged(
    source: &Source<'_>,
    parts: &[PartTerms],
    tiles: &[Tile],
    out: &mut Sections<'_>,
) -> Result<()> {
    let mut all = Vec::with_capacity(parts.len());
    for part in parts {
        let (matrix, _) = source.matrix(part.part.op)?;
        let cols = usize::try_from(matrix.in_features).unwrap_or(0);
        all.push((Merged::read(source, part.part.op)?, cols));
    }
    for some in tiles.chunks(AT_ONCE) {
        let one = |t: &Tile| -> Result<Vec<u8>> {
            let Some((merged, cols)) = all.get(t.part) else {
                return Ok(Vec::new());
            };
            let rows = t.row as usize..(t.row + t.count) as usize;
            Ok(tile(format::F16, &merged.rows(rows, *cols)?, *cols))
        };
        let packed: Vec<Result<Vec<u8>>> = some.par_iter().map(one).collect();
        for bytes in packed {
            out.put("q", &bytes?)?;
        }
    }
    Ok(())
}

/// Packs the tiles of some dense matrices.
pub(super) fn pack(
    source: &Source<'_>,
    base: &Base,
    parts: &[PartTerms],
    tiles: &[Tile],
    out: &mut Sections<'_>,
) -> Result<()> {
    if base.merged {
        return merged(source, parts, tiles, out);
    }
    let format = base.format;
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
