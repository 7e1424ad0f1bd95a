//! Group-wise integer codes with one `f16` scale per group.
//!
//! A weight is stored as an unsigned `b`-bit code `q` and decodes to
//! `(q - z) * s`. The zero point `z` is `2^(b-1)` for symmetric schemes and is
//! stored per group for asymmetric ones. A scale has at most 8 significant
//! bits and lies in the range of `f16`, so that it is exact in `f16`, `bf16`
//! and `f32`; it is rounded **before** codes are chosen.
//!
//! Codes lie along `in` as a little-endian bit stream, each row padded to a
//! byte. The scale of a symmetric group under [`ScaleMethod::AbsMax`] is
//! `absmax / ((qmax - qmin) / 2)`, the rule of compressed-tensors: no weight is
//! then more than about half a step away from its code, while the whole range
//! of codes is in use.

mod column;
mod decode;
mod encode;
mod kernel;
mod pack;
mod panel;
mod scale;
mod search;
mod weighted;

pub use encode::{
    Quantized, Source, SumsOfSquares, quantize, quantize_bf16, quantize_f16, quantize_source,
};
pub(crate) use kernel::{group_error, group_residual};
pub use pack::{pack_row, packed_len, unpack_row};
pub(crate) use panel::{Column, PanelGrid, PanelParams, PanelSpan};
pub use scale::nearest_scale;
pub(crate) use weighted::{stored_scale, weighted_error, weighted_params};

use half::f16;

/// The integer grid: bits per code and where zero lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scheme {
    /// Bits per code: 2, 3, 4 or 8.
    pub bits: u8,
    /// Zero point fixed at `2^(bits-1)` (true) or stored per group (false).
    pub symmetric: bool,
}

impl Scheme {
    /// A symmetric scheme of 2, 3, 4 or 8 bits.
    pub fn symmetric(bits: u8) -> Self {
        Scheme {
            bits,
            symmetric: true,
        }
    }

    /// An asymmetric scheme of 2, 3, 4 or 8 bits.
    pub fn asymmetric(bits: u8) -> Self {
        Scheme {
            bits,
            symmetric: false,
        }
    }

    /// Largest code.
    pub fn max_code(self) -> u8 {
        if self.bits >= 8 {
            u8::MAX
        } else {
            (1u8 << self.bits) - 1
        }
    }

    /// The zero point of a symmetric scheme, `2^(bits-1)`.
    pub fn midpoint(self) -> u8 {
        1u8 << (self.bits.clamp(1, 8) - 1)
    }

    /// Smallest and largest `q - z` of a symmetric scheme.
    ///
    /// 8-bit codes leave out 0, so that the range is -127..=127.
    pub(crate) fn symmetric_range(self) -> (i32, i32) {
        let half = i32::from(self.midpoint());
        if self.bits == 8 {
            (1 - half, half - 1)
        } else {
            (-half, half - 1)
        }
    }

    fn check(self) -> Result<(), QuantError> {
        match self.bits {
            2 | 3 | 4 | 8 => Ok(()),
            bits => Err(QuantError::Bits { bits }),
        }
    }
}

/// Which weights share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// This many neighbours along `in`; the last group of a row may be shorter.
    Size(u32),
    /// A whole row: one scale per output.
    Row,
    /// A whole column: one scale per input.
    Column,
}

impl Group {
    /// Weights along `in` that share a scale; `None` for column groups.
    pub fn width(self, cols: usize) -> Option<usize> {
        match self {
            Group::Size(size) => Some(size as usize),
            Group::Row => Some(cols.max(1)),
            Group::Column => None,
        }
    }

    /// Scales per row (row-wise groups) or in all (column groups).
    pub fn per_row(self, cols: usize) -> usize {
        match self.width(cols) {
            Some(width) => cols.div_ceil(width.max(1)),
            None => cols,
        }
    }

    /// Scales of a `[rows, cols]` matrix.
    pub fn count(self, rows: usize, cols: usize) -> usize {
        match self {
            Group::Column => cols,
            _ => rows.saturating_mul(self.per_row(cols)),
        }
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Group::Size(size) => size.fmt(f),
            Group::Row => f.write_str("row"),
            Group::Column => f.write_str("column"),
        }
    }
}

/// Text that names no group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a group is a number of weights, `row` or `column`")]
pub struct BadGroup;

impl std::str::FromStr for Group {
    type Err = BadGroup;

    fn from_str(text: &str) -> Result<Self, BadGroup> {
        match text {
            "row" => Ok(Group::Row),
            "column" => Ok(Group::Column),
            size => size.parse().map(Group::Size).map_err(|_| BadGroup),
        }
    }
}

/// How a group's scale (and zero point) is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleMethod {
    /// From the largest magnitude (symmetric) or from the range (asymmetric).
    AbsMax,
    /// Least squared error: a grid of scales, then a closed-form refinement.
    ///
    /// Never worse than [`ScaleMethod::AbsMax`]; about 20 to 30 times its cost.
    Lsq,
}

/// A quantized `[rows, cols]` matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantMatrix {
    /// Rows (`out`).
    pub rows: usize,
    /// Columns (`in`).
    pub cols: usize,
    /// The grid.
    pub scheme: Scheme,
    /// Which weights share a scale.
    pub group: Group,
    /// Packed codes: `rows` times [`packed_len`]`(bits, cols)` bytes.
    pub codes: Vec<u8>,
    /// Scales `[rows, groups]`, or `[cols]` for column groups.
    pub scales: Vec<f16>,
    /// Packed zero points, each row padded to a byte; `None` if symmetric.
    pub zeros: Option<Vec<u8>>,
}

/// Why a matrix can't be quantized or its parts don't fit together.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum QuantError {
    /// A weight is NaN or infinite.
    #[error("weight [{row}, {col}] is {value}: only finite weights can be quantized")]
    NotFinite {
        /// Row of the weight.
        row: usize,
        /// Column of the weight.
        col: usize,
        /// The weight.
        value: f32,
    },
    /// A group is too large for the `f16` range of scales.
    #[error(
        "the scale of row {row}, group {group} would be {scale:e}, above the largest f16 (65504): rescale the weights or leave them dense"
    )]
    ScaleOverflow {
        /// Row of the group (0 for column groups).
        row: usize,
        /// Group within the row.
        group: usize,
        /// The scale that was needed.
        scale: f32,
    },
    /// Bits that no scheme has.
    #[error("{bits} bits per code: only 2, 3, 4 and 8 are supported")]
    Bits {
        /// The bits asked for.
        bits: u8,
    },
    /// A group of no weights.
    #[error("a group size of 0: use 32, 64, 128, a row or a column")]
    EmptyGroup,
    /// The weights aren't a matrix of the given shape.
    #[error(transparent)]
    Shape(#[from] crate::numeric::matrix::ShapeError),
    /// Codes, scales or zero points of the wrong length.
    #[error("{what} of a {rows}x{cols} matrix: {expected} were expected, {actual} given")]
    Length {
        /// Which part.
        what: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// The length that fits.
        expected: usize,
        /// The length given.
        actual: usize,
    },
    /// Row tiles that can't be put together.
    #[error("row tiles differ in columns, scheme or group, or have column groups")]
    Concat,
}

impl QuantMatrix {
    /// Puts a matrix together from stored parts, checking every length.
    pub fn from_parts(
        rows: usize,
        cols: usize,
        scheme: Scheme,
        group: Group,
        codes: Vec<u8>,
        scales: Vec<f16>,
        zeros: Option<Vec<u8>>,
    ) -> Result<Self, QuantError> {
        scheme.check()?;
        if group == Group::Size(0) {
            return Err(QuantError::EmptyGroup);
        }
        let length = |what, expected: usize, actual: usize| {
            if expected == actual {
                Ok(())
            } else {
                Err(QuantError::Length {
                    what,
                    rows,
                    cols,
                    expected,
                    actual,
                })
            }
        };
        length(
            "code bytes",
            rows.saturating_mul(packed_len(scheme.bits, cols)),
            codes.len(),
        )?;
        length("scales", group.count(rows, cols), scales.len())?;
        let zero_bytes = if scheme.symmetric {
            0
        } else {
            zero_bytes(scheme.bits, group, rows, cols)
        };
        length(
            "zero point bytes",
            zero_bytes,
            zeros.as_ref().map_or(0, Vec::len),
        )?;
        let zeros = if scheme.symmetric {
            None
        } else {
            Some(zeros.unwrap_or_default())
        };
        Ok(QuantMatrix {
            rows,
            cols,
            scheme,
            group,
            codes,
            scales,
            zeros,
        })
    }

    /// Bytes of codes, scales and zero points.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 2 * self.scales.len() + self.zeros.as_ref().map_or(0, Vec::len)
    }

    /// Bytes of a row of packed codes.
    pub fn row_bytes(&self) -> usize {
        packed_len(self.scheme.bits, self.cols)
    }

    /// Stacks row tiles into one matrix. Row-wise groups only.
    pub fn concat_rows(parts: Vec<QuantMatrix>) -> Result<QuantMatrix, QuantError> {
        let mut parts = parts.into_iter();
        let Some(mut all) = parts.next() else {
            return Err(QuantError::Concat);
        };
        for part in parts {
            if all.group == Group::Column
                || (part.cols, part.scheme, part.group) != (all.cols, all.scheme, all.group)
            {
                return Err(QuantError::Concat);
            }
            all.rows += part.rows;
            all.codes.extend_from_slice(&part.codes);
            all.scales.extend_from_slice(&part.scales);
            if let (Some(zeros), Some(more)) = (&mut all.zeros, &part.zeros) {
                zeros.extend_from_slice(more);
            }
        }
        Ok(all)
    }
}

/// Bytes that a quantized `[rows, cols]` matrix takes, without making it.
///
/// Agrees with [`QuantMatrix::bytes`]: codes, scales and zero points.
pub fn quantized_bytes(rows: usize, cols: usize, scheme: Scheme, group: Group) -> usize {
    let zeros = if scheme.symmetric {
        0
    } else {
        zero_bytes(scheme.bits, group, rows, cols)
    };
    rows * packed_len(scheme.bits, cols) + 2 * group.count(rows, cols) + zeros
}

/// Bytes of packed zero points.
fn zero_bytes(bits: u8, group: Group, rows: usize, cols: usize) -> usize {
    let row = packed_len(bits, group.per_row(cols));
    if group == Group::Column {
        row
    } else {
        rows.saturating_mul(row)
    }
}

#[cfg(test)]
mod tests;
