//! Factors in the format that they are stored in.

use super::{Block, LowRankError};
use crate::numeric::quant::{
    Group, QuantError, QuantMatrix, ScaleMethod, Scheme, packed_len, quantize,
};
use half::f16;

/// The left (`U`) or the right (`V`) factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// `[rows, rank]`.
    U,
    /// `[rank, cols]`.
    V,
}

impl Side {
    /// Rows and columns of a block's factor.
    pub fn shape(self, block: &Block) -> (usize, usize) {
        match self {
            Side::U => (block.rows, block.rank),
            Side::V => (block.rank, block.cols),
        }
    }
}

/// How factors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FactorFormat {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// 8-bit codes: a scale per row of `U`, per 64 values of `V`.
    Int8,
    /// 4-bit codes, a scale per 32 values.
    Int4,
}

impl FactorFormat {
    /// The integer grid, if there is one.
    pub fn scheme(self) -> Option<Scheme> {
        match self {
            FactorFormat::F32 | FactorFormat::F16 => None,
            FactorFormat::Int8 => Some(Scheme::symmetric(8)),
            FactorFormat::Int4 => Some(Scheme::symmetric(4)),
        }
    }

    /// Which entries of a factor share a scale; `None` for plain formats.
    pub fn group(self, side: Side) -> Option<Group> {
        self.scheme().map(|scheme| coded_group(side, scheme))
    }

    /// Bytes of one side of a block.
    pub fn bytes(self, side: Side, block: &Block) -> usize {
        let (rows, cols) = side.shape(block);
        match self.scheme() {
            None => rows * cols * if self == FactorFormat::F32 { 4 } else { 2 },
            Some(scheme) => {
                let group = coded_group(side, scheme);
                rows * packed_len(scheme.bits, cols) + 2 * group.count(rows, cols)
            }
        }
    }
}

/// The groups of coded factors.
pub fn coded_group(side: Side, scheme: Scheme) -> Group {
    match (side, scheme.bits) {
        (Side::U, 8) => Group::Row,
        (Side::V, 8) => Group::Size(64),
        _ => Group::Size(32),
    }
}

/// All factors of one side, block after block.
#[derive(Clone, Debug, PartialEq)]
pub enum Factor {
    /// Single precision.
    F32(Vec<f32>),
    /// Half precision.
    F16(Vec<f16>),
    /// Codes: each block a row-major matrix of its own, packed by rows.
    Coded {
        /// The grid: symmetric, 8 or 4 bits.
        scheme: Scheme,
        /// Packed codes.
        codes: Vec<u8>,
        /// Scales `[rows, groups]` of each block.
        scales: Vec<f16>,
    },
}

impl Factor {
    /// The format.
    pub fn format(&self) -> FactorFormat {
        match self {
            Factor::F32(_) => FactorFormat::F32,
            Factor::F16(_) => FactorFormat::F16,
            Factor::Coded {
                scheme: Scheme { bits: 8, .. },
                ..
            } => FactorFormat::Int8,
            Factor::Coded { .. } => FactorFormat::Int4,
        }
    }

    /// Bytes of values, codes and scales.
    pub fn bytes(&self) -> usize {
        match self {
            Factor::F32(values) => 4 * values.len(),
            Factor::F16(values) => 2 * values.len(),
            Factor::Coded { codes, scales, .. } => codes.len() + 2 * scales.len(),
        }
    }

    /// A factor of no blocks.
    pub(super) fn empty(format: FactorFormat) -> Self {
        match (format, format.scheme()) {
            (_, Some(scheme)) => Factor::Coded {
                scheme,
                codes: Vec::new(),
                scales: Vec::new(),
            },
            (FactorFormat::F16, None) => Factor::F16(Vec::new()),
            (_, None) => Factor::F32(Vec::new()),
        }
    }

    /// Puts the blocks of another factor of the same format behind its own.
    pub(super) fn append(&mut self, more: Factor) {
        match (self, more) {
            (Factor::F32(all), Factor::F32(more)) => all.extend(more),
            (Factor::F16(all), Factor::F16(more)) => all.extend(more),
            (
                Factor::Coded { codes, scales, .. },
                Factor::Coded {
                    codes: more_codes,
                    scales: more_scales,
                    ..
                },
            ) => {
                codes.extend(more_codes);
                scales.extend(more_scales);
            }
            (all, more) => unreachable!("{:?} behind {:?}", more.format(), all.format()),
        }
    }

    /// Rounds flat values to a format.
    pub(crate) fn encode(
        side: Side,
        blocks: &[Block],
        mut values: Vec<f32>,
        format: FactorFormat,
    ) -> Result<Self, LowRankError> {
        let Some(scheme) = format.scheme() else {
            if format == FactorFormat::F32 {
                return match values.iter().find(|x| !x.is_finite()) {
                    Some(&value) => Err(LowRankError::Range { side, value }),
                    None => Ok(Factor::F32(values)),
                };
            }
            let rounded: Vec<f16> = values.iter().map(|&x| f16::from_f32(x)).collect();
            if let Some(at) = rounded.iter().position(|x| !x.is_finite()) {
                return Err(LowRankError::Range {
                    side,
                    value: values[at],
                });
            }
            return Ok(Factor::F16(rounded));
        };
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        let mut rest = &mut values[..];
        for (index, block) in blocks.iter().enumerate() {
            let (rows, cols) = side.shape(block);
            let (now, later) =
                rest.split_at_mut_checked(rows * cols)
                    .ok_or(LowRankError::Length {
                        what: "values",
                        side,
                        expected: rows * cols,
                        actual: 0,
                    })?;
            rest = later;
            let group = coded_group(side, scheme);
            let coded = quantize(now, rows, cols, scheme, group, ScaleMethod::AbsMax).map_err(
                |source| LowRankError::Quant {
                    side,
                    block: index,
                    source,
                },
            )?;
            codes.extend_from_slice(&coded.matrix.codes);
            scales.extend_from_slice(&coded.matrix.scales);
        }
        Ok(Factor::Coded {
            scheme,
            codes,
            scales,
        })
    }

    /// All values as flat `f32`; the lengths have been checked.
    pub(crate) fn decode(&self, side: Side, blocks: &[Block]) -> Vec<f32> {
        match self {
            Factor::F32(values) => values.clone(),
            Factor::F16(values) => values.iter().map(|x| x.to_f32()).collect(),
            Factor::Coded {
                scheme,
                codes,
                scales,
            } => {
                let mut out = Vec::new();
                let (mut at_code, mut at_scale) = (0, 0);
                for block in blocks {
                    let (rows, cols) = side.shape(block);
                    let group = coded_group(side, *scheme);
                    let bytes = rows * packed_len(scheme.bits, cols);
                    let count = group.count(rows, cols);
                    let matrix = QuantMatrix {
                        rows,
                        cols,
                        scheme: *scheme,
                        group,
                        codes: codes[at_code..at_code + bytes].to_vec(),
                        scales: scales[at_scale..at_scale + count].to_vec(),
                        zeros: None,
                    };
                    at_code += bytes;
                    at_scale += count;
                    out.extend_from_slice(&matrix.decode());
                }
                out
            }
        }
    }

    /// Checks lengths against the blocks.
    pub(super) fn check(&self, side: Side, blocks: &[Block]) -> Result<(), LowRankError> {
        let length = |what, expected: usize, actual: usize| {
            if expected == actual {
                Ok(())
            } else {
                Err(LowRankError::Length {
                    what,
                    side,
                    expected,
                    actual,
                })
            }
        };
        let shapes = || blocks.iter().map(|block| side.shape(block));
        let values = shapes().fold(0usize, |sum, (r, c)| {
            sum.saturating_add(r.saturating_mul(c))
        });
        match self {
            Factor::F32(given) => length("values", values, given.len()),
            Factor::F16(given) => length("values", values, given.len()),
            Factor::Coded {
                scheme,
                codes,
                scales,
            } => {
                if !scheme.symmetric || !matches!(scheme.bits, 4 | 8) {
                    let source = QuantError::Bits { bits: scheme.bits };
                    return Err(LowRankError::Quant {
                        side,
                        block: 0,
                        source,
                    });
                }
                let group = coded_group(side, *scheme);
                let bytes = shapes().fold(0usize, |sum, (r, c)| {
                    sum.saturating_add(r.saturating_mul(packed_len(scheme.bits, c)))
                });
                let count =
                    shapes().fold(0usize, |sum, (r, c)| sum.saturating_add(group.count(r, c)));
                length("code bytes", bytes, codes.len())?;
                length("scales", count, scales.len())
            }
        }
    }
}
