//! From weights to codes.

use super::column::column_params;
use super::kernel::{RowOut, encode_columns, encode_row};
use super::pack::{pack_row, packed_len};
use super::scale::{Fault, Grid, scale_to_f16};
use super::{Group, QuantError, QuantMatrix, ScaleMethod, Scheme};
use crate::numeric::float::{Float, decode_into};
use crate::numeric::matrix::{ShapeError, check_shape};
use crate::numeric::simd::Level;
use half::f16;

/// Sums of squares, in `f64` and in a fixed order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SumsOfSquares {
    /// Of the weights given.
    pub weight: f64,
    /// Of what is left after subtracting what the codes decode to.
    pub residual: f64,
}

impl SumsOfSquares {
    /// Relative Frobenius error, `‖residual‖ / ‖weight‖`; 0 for zero weights.
    pub fn relative_error(&self) -> f64 {
        if self.weight > 0.0 {
            (self.residual / self.weight).sqrt()
        } else {
            0.0
        }
    }
}

impl std::ops::AddAssign for SumsOfSquares {
    fn add_assign(&mut self, other: Self) {
        self.weight += other.weight;
        self.residual += other.residual;
    }
}

/// A quantized matrix and what quantizing cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Codes, scales and zero points.
    pub matrix: QuantMatrix,
    /// Sums of squares of the weights and of the residual.
    pub sums: SumsOfSquares,
}

/// Weights as they lie in memory or in a mapped file.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Decoded values.
    F32(&'a [f32]),
    /// Little-endian bytes of any dtype, aligned or not.
    Bytes(Float, &'a [u8]),
}

impl Source<'_> {
    /// Checks that the source holds a `[rows, cols]` matrix.
    fn check(&self, rows: usize, cols: usize) -> Result<(), ShapeError> {
        let (expected, len) = match self {
            Source::F32(values) => (rows.checked_mul(cols), values.len()),
            Source::Bytes(float, bytes) => {
                let bits = rows
                    .checked_mul(cols)
                    .and_then(|n| n.checked_mul(float.bits()));
                (bits.map(|bits| bits.div_ceil(8)), bytes.len())
            }
        };
        if expected == Some(len) {
            return Ok(());
        }
        let len = if let Source::Bytes(float, bytes) = self {
            float.count(bytes.len())
        } else {
            len
        };
        Err(ShapeError { rows, cols, len })
    }

    /// Whether rows of `cols` values start within a byte.
    fn splits_bytes(&self, cols: usize) -> bool {
        matches!(self, Source::Bytes(float, _) if !(cols * float.bits()).is_multiple_of(8))
    }

    /// Decodes values `start..start + out.len()`.
    fn read(&self, start: usize, out: &mut [f32]) {
        match self {
            Source::F32(values) => out.copy_from_slice(&values[start..][..out.len()]),
            Source::Bytes(float, bytes) => {
                let end = (start + out.len()) * float.bits();
                decode_into(
                    *float,
                    &bytes[start * float.bits() / 8..end.div_ceil(8)],
                    out,
                );
            }
        }
    }
}

/// Quantizes `residual` `[rows, cols]` and subtracts what the codes decode to.
///
/// # Errors
/// NaN or infinite weights, groups above the range of `f16` scales, a slice of
/// the wrong length. `residual` is then partly changed.
///
/// # Cost
/// One pass under [`ScaleMethod::AbsMax`]; column groups take two.
pub fn quantize(
    residual: &mut [f32],
    rows: usize,
    cols: usize,
    scheme: Scheme,
    group: Group,
    method: ScaleMethod,
) -> Result<Quantized, QuantError> {
    quantize_at(Level::detect(), residual, rows, cols, scheme, group, method)
}

/// [`quantize`] at a given SIMD level.
pub(super) fn quantize_at(
    level: Level,
    residual: &mut [f32],
    rows: usize,
    cols: usize,
    scheme: Scheme,
    group: Group,
    method: ScaleMethod,
) -> Result<Quantized, QuantError> {
    check_shape(rows, cols, residual.len())?;
    let mut encoder = Encoder::new(level, rows, cols, scheme, group, method)?;
    if group == Group::Column {
        return encoder.columns(residual);
    }
    for r in 0..rows {
        encoder.row(r, &mut residual[r * cols..][..cols])?;
    }
    Ok(encoder.finish())
}

/// Quantizes weights of any dtype without writing the residual anywhere.
///
/// Reads `source` once; nothing but a row is decoded at a time (column groups
/// decode the whole matrix). Gives the same codes and sums as [`quantize`] on
/// the decoded values.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_source(
    source: Source,
    rows: usize,
    cols: usize,
    scheme: Scheme,
    group: Group,
    method: ScaleMethod,
) -> Result<Quantized, QuantError> {
    quantize_source_at(Level::detect(), source, rows, cols, scheme, group, method)
}

/// [`quantize_source`] at a given SIMD level.
pub(super) fn quantize_source_at(
    level: Level,
    source: Source,
    rows: usize,
    cols: usize,
    scheme: Scheme,
    group: Group,
    method: ScaleMethod,
) -> Result<Quantized, QuantError> {
    source.check(rows, cols)?;
    if group == Group::Column || source.splits_bytes(cols) {
        let mut all = vec![0f32; rows * cols];
        source.read(0, &mut all);
        return quantize_at(level, &mut all, rows, cols, scheme, group, method);
    }
    let mut encoder = Encoder::new(level, rows, cols, scheme, group, method)?;
    let mut scratch = vec![0f32; cols];
    for r in 0..rows {
        source.read(r * cols, &mut scratch);
        encoder
            .row(r, &mut scratch)
            .map_err(|error| relocate(error, &source, r, cols))?;
    }
    Ok(encoder.finish())
}

/// [`quantize_source`] on little-endian `bf16` bytes.
pub fn quantize_bf16(
    bytes: &[u8],
    rows: usize,
    cols: usize,
    scheme: Scheme,
    group: Group,
    method: ScaleMethod,
) -> Result<Quantized, QuantError> {
    quantize_source(
        Source::Bytes(Float::Bf16, bytes),
        rows,
        cols,
        scheme,
        group,
        method,
    )
}

/// [`quantize_source`] on little-endian `f16` bytes.
pub fn quantize_f16(
    bytes: &[u8],
    rows: usize,
    cols: usize,
    scheme: Scheme,
    group: Group,
    method: ScaleMethod,
) -> Result<Quantized, QuantError> {
    quantize_source(
        Source::Bytes(Float::F16, bytes),
        rows,
        cols,
        scheme,
        group,
        method,
    )
}

/// Finds a weight that isn't finite in the source, since scratch is overwritten.
fn relocate(error: QuantError, source: &Source, row: usize, cols: usize) -> QuantError {
    if !matches!(error, QuantError::NotFinite { .. }) {
        return error;
    }
    let mut scratch = vec![0f32; cols];
    source.read(row * cols, &mut scratch);
    match scratch.iter().position(|x| !x.is_finite()) {
        Some(col) => QuantError::NotFinite {
            row,
            col,
            value: scratch[col],
        },
        None => error,
    }
}

/// Output buffers of a matrix that is being encoded row by row.
struct Encoder {
    level: Level,
    grid: Grid,
    /// Group width, and groups per row.
    width: usize,
    per_row: usize,
    out: QuantMatrix,
    /// Unpacked codes and zero points of a row.
    codes: Vec<u8>,
    row_zeros: Vec<u8>,
    sums: SumsOfSquares,
}

impl Encoder {
    fn new(
        level: Level,
        rows: usize,
        cols: usize,
        scheme: Scheme,
        group: Group,
        method: ScaleMethod,
    ) -> Result<Self, QuantError> {
        scheme.check()?;
        if group == Group::Size(0) {
            return Err(QuantError::EmptyGroup);
        }
        let per_row = group.per_row(cols);
        let too_large = QuantError::Shape(ShapeError { rows, cols, len: 0 });
        let code_bytes = rows
            .checked_mul(packed_len(scheme.bits, cols))
            .ok_or(too_large)?;
        let zeros =
            (!scheme.symmetric).then(|| vec![0; super::zero_bytes(scheme.bits, group, rows, cols)]);
        Ok(Encoder {
            level,
            grid: Grid::new(scheme, method),
            width: group.width(cols).unwrap_or(1),
            per_row,
            out: QuantMatrix {
                rows,
                cols,
                scheme,
                group,
                codes: vec![0; code_bytes],
                scales: vec![f16::ZERO; group.count(rows, cols)],
                zeros,
            },
            codes: vec![0; cols],
            row_zeros: vec![0; if scheme.symmetric { 0 } else { per_row }],
            sums: SumsOfSquares::default(),
        })
    }

    /// Encodes row `r` and leaves its residual in `w`.
    fn row(&mut self, r: usize, w: &mut [f32]) -> Result<(), QuantError> {
        let row_bytes = self.out.row_bytes();
        let mut out = RowOut {
            scales: &mut self.out.scales[r * self.per_row..][..self.per_row],
            zeros: &mut self.row_zeros,
            codes: &mut self.codes,
            packed: &mut self.out.codes[r * row_bytes..][..row_bytes],
        };
        let done = encode_row(self.level, w, self.width, &mut out, self.level, &self.grid);
        let (weight, residual) = done.map_err(|(group, fault)| match fault {
            Fault::Overflow(scale) => QuantError::ScaleOverflow {
                row: r,
                group,
                scale,
            },
            Fault::NotFinite => {
                // Groups before the one at fault are finite.
                let col = w.iter().position(|x| !x.is_finite()).unwrap_or(0);
                QuantError::NotFinite {
                    row: r,
                    col,
                    value: w.get(col).copied().unwrap_or(f32::NAN),
                }
            }
        })?;
        self.sums += SumsOfSquares { weight, residual };
        if let Some(zeros) = &mut self.out.zeros {
            let bytes = packed_len(self.grid.bits, self.per_row);
            pack_row(
                self.grid.bits,
                &self.row_zeros,
                &mut zeros[r * bytes..][..bytes],
            );
        }
        Ok(())
    }

    /// Encodes all of `w` under one scale per column.
    fn columns(mut self, w: &mut [f32]) -> Result<Quantized, QuantError> {
        let (rows, cols) = (self.out.rows, self.out.cols);
        let params = column_params(w, rows, cols, &self.grid, self.level)?;
        let row_bytes = self.out.row_bytes();
        for r in 0..rows {
            let packed = &mut self.out.codes[r * row_bytes..][..row_bytes];
            let row = &mut w[r * cols..][..cols];
            let (weight, residual) = encode_columns(
                self.level,
                row,
                &params,
                &mut self.codes,
                packed,
                self.level,
                &self.grid,
            );
            self.sums += SumsOfSquares { weight, residual };
        }
        for (stored, &scale) in self.out.scales.iter_mut().zip(&params.scale) {
            *stored = scale_to_f16(scale);
        }
        if let Some(zeros) = &mut self.out.zeros {
            let unpacked: Vec<u8> = params.zero[..cols].iter().map(|&z| z as u8).collect();
            pack_row(self.grid.bits, &unpacked, zeros);
        }
        Ok(self.finish())
    }

    fn finish(self) -> Quantized {
        Quantized {
            matrix: self.out,
            sums: self.sums,
        }
    }
}
