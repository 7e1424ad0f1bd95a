//! Sparse entries and outlier columns: runs of a row tile and 4096 columns. A run begins with the end of
//! each row's entries in it, 16 bits each.

use std::collections::HashMap;

use half::f16;

use super::Result;
use super::blob::Sections;
use super::recipe::{PartTerms, Tile};
use super::sizes::CHUNK;
use crate::ir::OpId;
use crate::numeric::Sparse;
use crate::pass::terms::TermData;
use crate::plan::PlanError;

/// Where the next run goes, over all experts.
#[derive(Default)]
pub(super) struct Packer {
    words: u32,
    offsets: Vec<u32>,
}

impl Packer {
    pub(super) fn expert(
        &mut self,
        cols: u64,
        parts: &[PartTerms],
        tiles: &[Tile],
        data: &HashMap<(OpId, usize), TermData>,
        out: &mut Sections<'_>,
    ) -> Result<()> {
        let chunks = cols.div_ceil(CHUNK) as usize;
        for tile in tiles {
            let mut runs: Vec<Vec<u32>> = vec![Vec::new(); chunks];
            let terms = parts.get(tile.part).into_iter().flat_map(|part| {
                part.sparse
                    .iter()
                    .filter_map(|&term| match data.get(&(part.part.op, term)) {
                        Some(TermData::Sparse(sparse)) => Some(sparse),
                        _ => None,
                    })
            });
            for sparse in terms {
                for r in 0..tile.count as usize {
                    entries(sparse, tile.row as usize + r, |col, value| {
                        let (chunk, at) = (col / CHUNK as usize, (col % CHUNK as usize) as u32);
                        if let Some(run) = runs.get_mut(chunk) {
                            run.push(u32::from(value.to_bits()) << 16 | (r as u32) << 12 | at);
                        }
                    });
                }
            }
            for run in &mut runs {
                self.offsets.push(self.words);
                if run.is_empty() {
                    continue;
                }
                // By row, then column.
                run.sort_by_key(|entry| entry & 0xffff);
                if run.len() > usize::from(u16::MAX) {
                    let problem = "more than 65535 sparse entries in 16 rows and 4096 columns have no kernel; keep fewer outliers";
                    return Err(PlanError::weight(&parts[tile.part].part.name, problem));
                }
                let end = |row: u32| run.iter().filter(|e| (*e >> 12 & 15) <= row).count() as u32;
                let ends: Vec<u32> = (0..8).map(|i| end(2 * i) | end(2 * i + 1) << 16).collect();
                self.words += 8 + run.len() as u32;
                out.words("s", &ends)?;
                out.words("s", run)?;
            }
        }
        Ok(())
    }

    pub(super) fn end(&mut self, out: &mut Sections<'_>) -> Result<()> {
        self.offsets.push(self.words);
        out.words("s_offsets", &self.offsets)
    }
}

/// Calls `each` with column and value of the entries of a row.
fn entries(sparse: &Sparse, row: usize, mut each: impl FnMut(usize, f16)) {
    match sparse {
        Sparse::Csr {
            values,
            columns,
            offsets,
            ..
        } => {
            let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
            let values = values.iter().enumerate().take(end).skip(start);
            values.for_each(|(i, value)| each(columns.get(i), *value));
        }
        Sparse::Columns {
            columns, values, ..
        } => {
            let count = columns.len();
            for (i, &col) in columns.iter().enumerate() {
                each(col as usize, values[row * count + i]);
            }
        }
    }
}
