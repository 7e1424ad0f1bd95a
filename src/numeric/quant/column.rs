//! Column groups: one scale per input, chosen over all rows.

use super::QuantError;
use super::kernel::{ColumnParams, group_params};
use super::scale::{Fault, Grid};
use crate::numeric::simd::Level;

/// Columns gathered at a time: whole cache lines of each row.
const TILE: usize = 16;

/// Chooses scale and zero point of every column of `w` `[rows, cols]`.
pub(super) fn column_params(
    w: &[f32],
    rows: usize,
    cols: usize,
    grid: &Grid,
    level: Level,
) -> Result<ColumnParams, QuantError> {
    let mut out = ColumnParams::default();
    let mut tile = vec![0f32; rows * TILE.min(cols)];
    for first in (0..cols).step_by(TILE) {
        let count = TILE.min(cols - first);
        for r in 0..rows {
            let row = &w[r * cols + first..][..count];
            for (i, &x) in row.iter().enumerate() {
                tile[i * rows + r] = x;
            }
        }
        for i in 0..count {
            let column = &tile[i * rows..][..rows];
            let params = group_params(level, column, level, grid);
            let col = first + i;
            let params = params.map_err(|fault| match fault {
                Fault::NotFinite => {
                    let row = column.iter().position(|x| !x.is_finite()).unwrap_or(0);
                    QuantError::NotFinite {
                        row,
                        col,
                        value: column[row],
                    }
                }
                Fault::Overflow(scale) => QuantError::ScaleOverflow {
                    row: 0,
                    group: col,
                    scale,
                },
            })?;
            out.push(params);
        }
    }
    out.finish(grid);
    Ok(out)
}
