//! Sparse terms: single entries or whole columns, values in `f16`.
//!
//! A selector ([`select_by_magnitude`], [`select_by_sigma`],
//! [`select_by_saving`], [`select_columns`]) names entries; [`Sparse::take`] and
//! [`Sparse::take_columns`] move them out of the residual. What rounding to
//! `f16` leaves stays in the residual.

mod saving;
mod select;

pub use saving::{column_savings, select_by_saving};
pub(crate) use select::largest;
pub use select::{
    column_energies, density_count, select_above, select_by_magnitude, select_by_sigma,
    select_columns,
};

use super::matrix::{ShapeError, check_shape};
use half::f16;
use std::ops::Range;

/// Column numbers, as narrow as the matrix allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnIndex {
    /// Up to 65536 columns.
    U16(Vec<u16>),
    /// More.
    U32(Vec<u32>),
}

impl ColumnIndex {
    fn for_width(cols: usize, indices: impl Iterator<Item = usize>) -> Self {
        // Indices are below `cols`, so the casts keep them.
        if cols <= 65536 {
            ColumnIndex::U16(indices.map(|c| c as u16).collect())
        } else {
            ColumnIndex::U32(indices.map(|c| c as u32).collect())
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        match self {
            ColumnIndex::U16(columns) => columns.len(),
            ColumnIndex::U32(columns) => columns.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Column of entry `i`.
    pub fn get(&self, i: usize) -> usize {
        match self {
            ColumnIndex::U16(columns) => usize::from(columns[i]),
            ColumnIndex::U32(columns) => columns[i] as usize,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            ColumnIndex::U16(columns) => 2 * columns.len(),
            ColumnIndex::U32(columns) => 4 * columns.len(),
        }
    }
}

/// A sparse term of a `[rows, cols]` matrix.
#[derive(Clone, Debug, PartialEq)]
pub enum Sparse {
    /// Single entries, compressed by rows, columns ascending within a row.
    Csr {
        /// Rows (`out`).
        rows: usize,
        /// Columns (`in`).
        cols: usize,
        /// Values `[nnz]`.
        values: Vec<f16>,
        /// Columns `[nnz]`.
        columns: ColumnIndex,
        /// Start of each row, and the end: `[rows + 1]`.
        offsets: Vec<u32>,
    },
    /// Whole columns.
    Columns {
        /// Rows (`out`).
        rows: usize,
        /// Columns (`in`).
        cols: usize,
        /// Which columns, ascending.
        columns: Vec<u32>,
        /// Values `[rows, columns.len()]`.
        values: Vec<f16>,
    },
}

/// Why a sparse term can't be made or put together.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SparseError {
    /// A weight is NaN or infinite.
    #[error("weight [{row}, {col}] is not finite: only finite weights can be split")]
    NotFinite {
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
    },
    /// The weights aren't a matrix of the given shape.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Indices that aren't ascending, or outside of the matrix.
    #[error("sparse {what} {index} is out of order or outside of the {rows}x{cols} matrix")]
    Index {
        /// Entry, column or offset.
        what: &'static str,
        /// Its position in the list.
        index: usize,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// More entries than 32-bit offsets can count, or parts that don't fit.
    #[error("sparse {what}: {expected} were expected, {actual} given")]
    Length {
        /// Which part.
        what: &'static str,
        /// The length that fits (or the largest).
        expected: usize,
        /// The length given.
        actual: usize,
    },
    /// A parameter outside of its range.
    #[error("{what} is {value}: {expected}")]
    Parameter {
        /// Which parameter.
        what: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        expected: &'static str,
    },
}

impl Sparse {
    /// Moves entries out of `residual` `[rows, cols]`.
    ///
    /// `support` holds flat indices `row * cols + col`, ascending and different.
    pub fn take(
        residual: &mut [f32],
        rows: usize,
        cols: usize,
        support: &[usize],
    ) -> Result<Self, SparseError> {
        check_shape(rows, cols, residual.len())?;
        if u32::try_from(support.len()).is_err() {
            let (expected, actual) = (u32::MAX as usize, support.len());
            return Err(SparseError::Length {
                what: "entries",
                expected,
                actual,
            });
        }
        let unordered = |w: &[usize]| w[0] >= w[1];
        let outside = support.last().is_some_and(|&last| last >= residual.len());
        if let Some(index) = support
            .windows(2)
            .position(unordered)
            .or(outside.then_some(support.len()))
        {
            return Err(SparseError::Index {
                what: "entry",
                index,
                rows,
                cols,
            });
        }
        let mut values = Vec::with_capacity(support.len());
        for &at in support {
            values.push(split_off(&mut residual[at]).ok_or(SparseError::NotFinite {
                row: at / cols,
                col: at % cols,
            })?);
        }
        let columns = ColumnIndex::for_width(cols, support.iter().map(|at| at % cols));
        let mut offsets = Vec::with_capacity(rows + 1);
        let mut next = 0;
        for row in 0..=rows {
            while next < support.len() && support[next] / cols < row {
                next += 1;
            }
            offsets.push(next as u32);
        }
        Ok(Sparse::Csr {
            rows,
            cols,
            values,
            columns,
            offsets,
        })
    }

    /// Moves whole columns out of `residual` `[rows, cols]`.
    ///
    /// `columns` are ascending and different.
    pub fn take_columns(
        residual: &mut [f32],
        rows: usize,
        cols: usize,
        columns: &[u32],
    ) -> Result<Self, SparseError> {
        check_shape(rows, cols, residual.len())?;
        check_columns(columns, rows, cols)?;
        let mut values = Vec::with_capacity(rows * columns.len());
        if cols > 0 {
            for (row, weights) in residual.chunks_mut(cols).enumerate() {
                for &col in columns {
                    let col = col as usize;
                    values.push(
                        split_off(&mut weights[col]).ok_or(SparseError::NotFinite { row, col })?,
                    );
                }
            }
        }
        Ok(Sparse::Columns {
            rows,
            cols,
            columns: columns.to_vec(),
            values,
        })
    }

    /// Checks lengths, order and bounds of parts that were stored.
    pub fn check(&self) -> Result<(), SparseError> {
        match self {
            Sparse::Csr {
                rows,
                cols,
                values,
                columns,
                offsets,
            } => {
                check_length("columns", values.len(), columns.len())?;
                check_rows(columns, offsets, *rows, *cols)
            }
            Sparse::Columns {
                rows,
                cols,
                columns,
                values,
            } => {
                check_length("values", rows.saturating_mul(columns.len()), values.len())?;
                check_columns(columns, *rows, *cols)
            }
        }
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        match self {
            Sparse::Csr { rows, .. } | Sparse::Columns { rows, .. } => *rows,
        }
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        match self {
            Sparse::Csr { cols, .. } | Sparse::Columns { cols, .. } => *cols,
        }
    }

    /// Number of stored values.
    pub fn nnz(&self) -> usize {
        match self {
            Sparse::Csr { values, .. } | Sparse::Columns { values, .. } => values.len(),
        }
    }

    /// Bytes of values, indices and offsets.
    pub fn bytes(&self) -> usize {
        match self {
            Sparse::Csr {
                values,
                columns,
                offsets,
                ..
            } => 2 * values.len() + columns.bytes() + 4 * offsets.len(),
            Sparse::Columns {
                columns, values, ..
            } => 4 * columns.len() + 2 * values.len(),
        }
    }

    /// Floating-point operations per token (a multiply-add is 2).
    pub fn flops_per_token(&self) -> usize {
        2 * self.nnz()
    }

    /// Adds rows `range` to `out` `[range.len(), cols]`.
    ///
    /// # Panics
    /// If the rows lie outside or `out` has another length.
    pub fn add_rows(&self, range: Range<usize>, out: &mut [f32]) {
        self.each_entry(range, out, |o, w| *o += w);
    }

    /// Subtracts rows `range` from `out` `[range.len(), cols]`; panics likewise.
    pub fn subtract_rows(&self, range: Range<usize>, out: &mut [f32]) {
        self.each_entry(range, out, |o, w| *o -= w);
    }

    /// The whole term as a dense matrix.
    pub fn decode(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows() * self.cols()];
        self.add_rows(0..self.rows(), &mut out);
        out
    }

    fn each_entry(&self, range: Range<usize>, out: &mut [f32], put: impl Fn(&mut f32, f32)) {
        let (rows, cols) = (self.rows(), self.cols());
        assert!(
            range.start <= range.end && range.end <= rows,
            "rows {range:?} of {rows}"
        );
        assert_eq!(out.len(), range.len() * cols, "length of the output");
        if cols == 0 {
            return;
        }
        for (row, out) in range.zip(out.chunks_mut(cols)) {
            match self {
                Sparse::Csr {
                    values,
                    columns,
                    offsets,
                    ..
                } => {
                    for i in offsets[row] as usize..offsets[row + 1] as usize {
                        put(&mut out[columns.get(i)], values[i].to_f32());
                    }
                }
                Sparse::Columns {
                    columns, values, ..
                } => {
                    let values = &values[row * columns.len()..][..columns.len()];
                    for (&col, value) in columns.iter().zip(values) {
                        put(&mut out[col as usize], value.to_f32());
                    }
                }
            }
        }
    }
}

fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<(), SparseError> {
    if expected == actual {
        return Ok(());
    }
    Err(SparseError::Length {
        what,
        expected,
        actual,
    })
}

/// Checks that offsets ascend and cover all entries, and columns within rows.
fn check_rows(
    columns: &ColumnIndex,
    offsets: &[u32],
    rows: usize,
    cols: usize,
) -> Result<(), SparseError> {
    check_length("offsets", rows.saturating_add(1), offsets.len())?;
    let at = |offset: Option<&u32>| offset.map_or(0, |&offset| offset as usize);
    check_length("first offset", 0, at(offsets.first()))?;
    check_length("last offset", columns.len(), at(offsets.last()))?;
    if let Some(index) = offsets.windows(2).position(|w| w[0] > w[1]) {
        return Err(SparseError::Index {
            what: "offset",
            index,
            rows,
            cols,
        });
    }
    for row in offsets.windows(2) {
        let mut before = None;
        for index in row[0] as usize..row[1] as usize {
            let col = columns.get(index);
            if col >= cols || before.is_some_and(|before| before >= col) {
                return Err(SparseError::Index {
                    what: "column",
                    index,
                    rows,
                    cols,
                });
            }
            before = Some(col);
        }
    }
    Ok(())
}

fn check_columns(columns: &[u32], rows: usize, cols: usize) -> Result<(), SparseError> {
    let outside = columns.last().is_some_and(|&last| last as usize >= cols);
    match columns
        .windows(2)
        .position(|w| w[0] >= w[1])
        .or(outside.then_some(columns.len()))
    {
        Some(index) => Err(SparseError::Index {
            what: "column",
            index,
            rows,
            cols,
        }),
        None => Ok(()),
    }
}

/// Rounds a weight to `f16`, at most the largest, and leaves the remainder.
fn split_off(weight: &mut f32) -> Option<f16> {
    if !weight.is_finite() {
        return None;
    }
    let value = f16::from_f32(weight.clamp(-65504.0, 65504.0));
    *weight -= value.to_f32();
    Some(value)
}

#[cfg(test)]
mod tests;
