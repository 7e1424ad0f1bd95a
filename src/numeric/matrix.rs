//! Dense row-major matrices and sums of squares in a fixed order.

use super::simd::{LANES, Level, Simd, multiversion, padded};
use std::ops::Range;

/// A dense row-major matrix `[rows, cols]` of `f32`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    /// Number of rows (`out`).
    pub rows: usize,
    /// Number of columns (`in`).
    pub cols: usize,
    /// `rows * cols` values, row after row.
    pub data: Vec<f32>,
}

/// A slice whose length isn't `rows * cols`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {rows}x{cols} matrix needs {rows}*{cols} values, but {len} were given")]
pub struct ShapeError {
    /// Rows asked for.
    pub rows: usize,
    /// Columns asked for.
    pub cols: usize,
    /// Values given.
    pub len: usize,
}

/// Checks that a slice of `len` values is a `[rows, cols]` matrix.
pub fn check_shape(rows: usize, cols: usize, len: usize) -> Result<(), ShapeError> {
    if rows.checked_mul(cols) == Some(len) {
        Ok(())
    } else {
        Err(ShapeError { rows, cols, len })
    }
}

impl Matrix {
    /// A matrix of zeros `[rows, cols]`.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Matrix {
            rows,
            cols,
            data: vec![0.0; rows * cols],
        }
    }

    /// Takes `data` as a `[rows, cols]` matrix.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Result<Self, ShapeError> {
        check_shape(rows, cols, data.len())?;
        Ok(Matrix { rows, cols, data })
    }

    /// A view of the whole matrix.
    pub fn view(&self) -> MatRef<'_> {
        MatRef {
            rows: self.rows,
            cols: self.cols,
            stride: self.cols,
            data: &self.data,
        }
    }

    /// The sum of squares (squared Frobenius norm).
    pub fn norm2(&self) -> f64 {
        norm2(&self.data)
    }
}

/// A borrowed row-major matrix, possibly a block of a wider one.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    rows: usize,
    cols: usize,
    stride: usize,
    data: &'a [f32],
}

impl<'a> MatRef<'a> {
    /// Views `data` as a contiguous `[rows, cols]` matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Result<Self, ShapeError> {
        check_shape(rows, cols, data.len())?;
        Ok(MatRef {
            rows,
            cols,
            stride: cols,
            data,
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values between the starts of two neighbouring rows.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The values, starting at `(0, 0)`; rows are `stride` apart.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// Row `r`.
    pub fn row(&self, r: usize) -> &'a [f32] {
        assert!(r < self.rows, "row {r} of {}", self.rows);
        if self.cols == 0 {
            return &[];
        }
        &self.data[r * self.stride..][..self.cols]
    }

    /// The block of the given rows and columns, which must lie inside.
    pub fn block(&self, rows: Range<usize>, cols: Range<usize>) -> MatRef<'a> {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows,
            "rows {rows:?} of {}",
            self.rows
        );
        assert!(
            cols.start <= cols.end && cols.end <= self.cols,
            "cols {cols:?} of {}",
            self.cols
        );
        let (m, n) = (rows.len(), cols.len());
        let data = if m == 0 || n == 0 {
            &[][..]
        } else {
            let start = rows.start * self.stride + cols.start;
            &self.data[start..start + (m - 1) * self.stride + n]
        };
        MatRef {
            rows: m,
            cols: n,
            stride: self.stride,
            data,
        }
    }

    /// The sum of squares, added up row by row.
    pub fn norm2(&self) -> f64 {
        if self.stride == self.cols {
            return norm2(self.data);
        }
        (0..self.rows).map(|r| norm2(self.row(r))).sum()
    }

    /// A contiguous copy.
    pub fn to_matrix(&self) -> Matrix {
        let mut data = Vec::with_capacity(self.rows * self.cols);
        for r in 0..self.rows {
            data.extend_from_slice(self.row(r));
        }
        Matrix {
            rows: self.rows,
            cols: self.cols,
            data,
        }
    }

    /// Row and column of the first value that is NaN or infinite.
    pub fn find_not_finite(&self) -> Option<(usize, usize)> {
        (0..self.rows).find_map(|r| {
            self.row(r)
                .iter()
                .position(|x| !x.is_finite())
                .map(|c| (r, c))
        })
    }
}

#[inline(always)]
fn norm2_body<S: Simd>(simd: S, x: &[f32]) -> f64 {
    let mut sums = simd.zero_sums();
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        sums = simd.add_squares(sums, simd.load(chunk));
    }
    sums = simd.add_squares(sums, simd.load(&padded(rest)));
    simd.total(sums)
}

multiversion! {
    fn norm2_at(x: &[f32]) -> f64 = norm2_body;
}

/// The sum of squares in `f64`, in a fixed order. One pass.
pub fn norm2(x: &[f32]) -> f64 {
    norm2_at(Level::detect(), x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numeric::simd::Scalar;

    #[test]
    fn norm2_is_the_same_at_every_level() {
        let x: Vec<f32> = (0..1003)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013)
            .collect();
        let want: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        for level in Level::available() {
            let got = norm2_at(level, &x);
            assert_eq!(got.to_bits(), norm2_body(Scalar, &x).to_bits());
            assert!((got - want).abs() < 1e-9 * want);
        }
        assert_eq!(norm2(&[]), 0.0);
        assert_eq!(norm2(&[3.0]), 9.0);
    }

    #[test]
    fn blocks_and_not_finite() {
        let mut m = Matrix::new(3, 4, (0..12).map(|i| i as f32).collect()).unwrap();
        let block = m.view().block(1..3, 1..3);
        assert_eq!(block.to_matrix().data, [5.0, 6.0, 9.0, 10.0]);
        assert_eq!(block.norm2(), 25.0 + 36.0 + 81.0 + 100.0);
        assert_eq!(m.view().find_not_finite(), None);
        m.data[6] = f32::NAN;
        assert_eq!(m.view().find_not_finite(), Some((1, 2)));
        assert!(Matrix::new(2, 2, vec![0.0; 3]).is_err());
        assert!(check_shape(usize::MAX, 2, 0).is_err());
    }
}
