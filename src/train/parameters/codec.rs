//! Stored formats: values out of them at the start, values into them at each step.

use std::collections::HashMap;

use bytes::Bytes;
use half::f16;

use super::paths::Paths;
use super::{Kind, kind as kind_of, term_of};
use crate::ir::{LowRankTerm, Matrix, Module, Op, Part, QuantTerm, Term, WeightId};
use crate::numeric::quant::{Group, Scheme, nearest_scale, pack_row, packed_len, unpack_row};
use crate::numeric::{Block, Factor, FactorFormat, Side};
use crate::pass::kind;
use crate::pass::terms::TermData;
use crate::store::{Reader, StoreError};
use crate::train::TrainError;
use crate::train::grad::{Parameter, What};
use crate::weights::DType;
use crate::weights::read::{decode_f32, encode_f32};

/// How the values of a trained tensor are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Codec {
    /// Numbers of their own.
    Float {
        /// The weight.
        name: String,
        /// F32, F16 or BF16.
        dtype: DType,
    },
    /// Scales of integer codes: f16 with 8 significant bits, as other formats need them.
    Scales {
        /// The weight.
        name: String,
    },
    /// A factor: numbers, or codes with scales that follow the values.
    Factor {
        /// U or V.
        side: Side,
        /// The term's blocks.
        blocks: Vec<Block>,
        /// Format of the entries.
        format: FactorFormat,
        /// The weight of entries or codes.
        data: String,
        /// That of the scales.
        scales: Option<String>,
    },
    /// Packed zero points, rounded.
    Zeros {
        /// The weight.
        name: String,
        /// Bits of one.
        bits: u8,
        /// Zero points of a row.
        per_row: usize,
    },
    /// Packed codes, rounded by the scales and zero points of the moment.
    Codes {
        /// The weight.
        name: String,
        /// Rows and columns.
        shape: (usize, usize),
        /// The grid.
        scheme: Scheme,
        /// What shares a scale.
        group: Group,
        /// Weight of the scales, and what they are at the start.
        scales: (String, Bytes),
        /// Weight of the zero points, and what they are at the start.
        zeros: Option<(String, Bytes)>,
    },
    /// Codes of trellises: the nearest paths by the scales of the moment.
    Paths(Paths),
}

/// The kind and the codec of an op's parameter; none where its format cannot be trained: matrices of
/// stacks, dense tensors of fewer than 16 bits.
pub(super) fn of(
    module: &Module,
    reader: &Reader<'_>,
    op: &Op,
    parameter: Parameter,
) -> Result<Option<(Kind, Codec)>, TrainError> {
    let kind = kind_of(op, parameter);
    let named = |id: WeightId| {
        module
            .weight(id)
            .map_or_else(String::new, |w| w.name.clone())
    };
    let dtype = module
        .weight(parameter.weight)
        .map_or(DType::F32, |w| w.dtype);
    let float = || {
        let trainable = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        (trainable && parameter.index.is_none()).then(|| Codec::Float {
            name: named(parameter.weight),
            dtype,
        })
    };
    let codec = match (parameter.what, term_of(op, parameter)) {
        (What::Part(part @ (Part::U | Part::V)), Some(Term::LowRank(l))) => {
            Some(factor(part, l, named))
        }
        (What::Part(Part::Scales), Some(Term::Quant(_))) if parameter.index.is_none() => {
            Some(Codec::Scales {
                name: named(parameter.weight),
            })
        }
        (What::Part(Part::Zeros), Some(Term::Quant(q))) => {
            let cols = op.kind.matrix().map_or(0, |m| m.in_features as usize);
            Some(Codec::Zeros {
                name: named(parameter.weight),
                bits: q.scheme.bits,
                per_row: q.group.per_row(cols),
            })
        }
        (What::Part(Part::Codes), Some(Term::Quant(q))) => match op.kind.matrix() {
            Some(matrix) => Some(codes(module, reader, matrix, q, named)?),
            None => None,
        },
        (What::Part(Part::Codes), Some(Term::Trellis(t))) => match op.kind.matrix() {
            Some(matrix) => Some(Codec::Paths(Paths::new(module, reader, matrix, t)?)),
            None => None,
        },
        (What::Part(Part::Tensor(_)), Some(term @ Term::Custom(_))) => match float() {
            Some(codec) if has_rule(module, reader, op, term)? => Some(codec),
            _ => None,
        },
        _ => float(),
    };
    Ok(codec.map(|codec| (kind, codec)))
}

/// Whether a plugin's term has gradients; its kind says so for one of zeros.
fn has_rule(
    module: &Module,
    reader: &Reader<'_>,
    op: &Op,
    term: &Term,
) -> Result<bool, TrainError> {
    let Some(matrix) = op.kind.matrix() else {
        return Ok(false);
    };
    let TermData::Custom(custom) = reader.term(module, matrix, term)? else {
        return Ok(false);
    };
    let Some(kind) = kind::find(&custom.kind) else {
        return Ok(false);
    };
    let dw = vec![0f32; custom.rows.saturating_mul(custom.cols)];
    Ok(kind.backward(&custom.view(), &dw).is_some())
}

fn factor(part: Part, l: &LowRankTerm, named: impl Fn(WeightId) -> String) -> Codec {
    let (side, factor) = match part {
        Part::U => (Side::U, &l.u),
        _ => (Side::V, &l.v),
    };
    Codec::Factor {
        side,
        blocks: l.blocks.clone(),
        format: factor.format,
        data: named(factor.data),
        scales: factor.scales.map(named),
    }
}

fn codes(
    module: &Module,
    reader: &Reader<'_>,
    matrix: &Matrix,
    q: &QuantTerm,
    named: impl Fn(WeightId) -> String,
) -> Result<Codec, TrainError> {
    let bytes = |id: WeightId| reader.bytes(module, id).map(Bytes::from);
    Ok(Codec::Codes {
        name: named(q.codes),
        shape: (matrix.out_features as usize, matrix.in_features as usize),
        scheme: q.scheme,
        group: q.group,
        scales: (named(q.scales), bytes(q.scales)?),
        zeros: match q.zeros {
            Some(id) => Some((named(id), bytes(id)?)),
            None => None,
        },
    })
}

impl Codec {
    /// The values as they are stored now.
    ///
    /// # Errors
    /// A weight cannot be read.
    pub fn start(
        &self,
        module: &Module,
        reader: &Reader<'_>,
        op: &Op,
        parameter: Parameter,
    ) -> Result<Vec<f32>, TrainError> {
        let stored = || reader.bytes(module, parameter.weight);
        let weight = module.weight(parameter.weight);
        let dtype = weight.map_or(DType::F32, |w| w.dtype);
        Ok(match self {
            Codec::Float { .. } | Codec::Scales { .. } => {
                let elements = weight.and_then(|w| w.elements());
                let mut values = vec![0f32; elements.unwrap_or(0) as usize];
                decode_f32(dtype, &stored()?, &mut values);
                values
            }
            Codec::Factor { side, blocks, .. } => {
                let (Some(matrix), Some(term)) = (op.kind.matrix(), term_of(op, parameter)) else {
                    return Ok(Vec::new());
                };
                match (reader.term(module, matrix, term)?, side) {
                    (TermData::LowRank(l), Side::U) => l.u.decode(*side, blocks),
                    (TermData::LowRank(l), Side::V) => l.v.decode(*side, blocks),
                    _ => Vec::new(),
                }
            }
            Codec::Zeros { bits, per_row, .. } => {
                let bytes = stored()?;
                let mut row = vec![0u8; *per_row];
                let rows = bytes.chunks_exact(packed_len(*bits, *per_row).max(1));
                let mut values = Vec::new();
                for packed in rows {
                    unpack_row(*bits, packed, &mut row);
                    values.extend(row.iter().map(|&z| f32::from(z)));
                }
                values
            }
            Codec::Codes { shape, .. } | Codec::Paths(Paths { shape, .. }) => {
                let (Some(matrix), Some(term)) = (op.kind.matrix(), term_of(op, parameter)) else {
                    return Ok(Vec::new());
                };
                let mut values = vec![0f32; shape.0 * shape.1];
                // In the term's own coordinates, where its codes are.
                let added = match reader.term(module, matrix, term)? {
                    TermData::Rotated(_, inner) => inner.add_rows(0..shape.0, &mut values),
                    plain => plain.add_rows(0..shape.0, &mut values),
                };
                added.map_err(|e| StoreError::Damaged {
                    weight: op.name.clone(),
                    problem: e.to_string(),
                })?;
                values
            }
        })
    }

    /// Values as they would be stored: weights and their bytes. `now` has what others were rounded to;
    /// the bytes are the same for any number of threads.
    ///
    /// # Errors
    /// Says which value the format cannot hold.
    pub fn encode(
        &self,
        values: &[f32],
        now: &HashMap<String, Bytes>,
        threads: usize,
    ) -> Result<Vec<(String, Bytes)>, String> {
        match self {
            Codec::Float { name, dtype } => {
                let bytes = encode_f32(*dtype, values)
                    .ok_or_else(|| format!("{name}: {dtype:?} cannot be trained"))?;
                let largest = values.iter().fold(0f32, |m, x| m.max(x.abs()));
                if *dtype == DType::F16 && !f16::from_f32(largest).is_finite() {
                    return Err(format!("{name}: {largest} is beyond f16"));
                }
                Ok(vec![(name.clone(), bytes.into())])
            }
            Codec::Scales { name } => {
                let mut bytes = Vec::with_capacity(2 * values.len());
                for &x in values {
                    let scale =
                        nearest_scale(x).ok_or_else(|| format!("{name}: {x} is beyond f16"))?;
                    bytes.extend(scale.to_le_bytes());
                }
                Ok(vec![(name.clone(), bytes.into())])
            }
            Codec::Factor {
                side,
                blocks,
                format,
                data,
                scales,
            } => {
                let factor = Factor::encode(*side, blocks, values.to_vec(), *format);
                let factor = factor.map_err(|error| format!("{data}: {error}"))?;
                Ok(factor_bytes(&factor, data, scales.as_deref()))
            }
            Codec::Zeros {
                name,
                bits,
                per_row,
            } => {
                let most = f32::from(((1u16 << bits) - 1) as u8);
                let rows = values.chunks(*per_row).map(|row| {
                    let codes: Vec<u8> = row
                        .iter()
                        .map(|z| z.round().clamp(0.0, most) as u8)
                        .collect();
                    let mut packed = vec![0u8; packed_len(*bits, *per_row)];
                    pack_row(*bits, &codes, &mut packed);
                    packed
                });
                let bytes: Vec<u8> = rows.flatten().collect();
                Ok(vec![(name.clone(), bytes.into())])
            }
            Codec::Codes {
                name,
                shape,
                scheme,
                group,
                scales,
                zeros,
            } => {
                let of = |(name, start): &(String, Bytes)| now.get(name).unwrap_or(start).clone();
                let grid = Grid::new(*shape, *scheme, *group, &of(scales), zeros.as_ref().map(of));
                Ok(vec![(name.clone(), grid.round(values).into())])
            }
            Codec::Paths(paths) => Ok(vec![paths.nearest(values, now, threads)?]),
        }
    }
}

fn factor_bytes(factor: &Factor, data: &str, scales: Option<&str>) -> Vec<(String, Bytes)> {
    let halves =
        |values: &[f16]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let (bytes, scale_bytes) = match factor {
        Factor::F32(values) => (values.iter().flat_map(|x| x.to_le_bytes()).collect(), None),
        Factor::F16(values) => (halves(values), None),
        Factor::Coded { codes, scales, .. } => (codes.clone(), Some(halves(scales))),
    };
    let scales = scales.zip(scale_bytes);
    let scales = scales.map(|(name, bytes)| (name.to_string(), bytes.into()));
    let data = (data.to_string(), Bytes::from(bytes));
    std::iter::once(data).chain(scales).collect()
}

/// Scales and zero points of a matrix of codes.
struct Grid {
    shape: (usize, usize),
    scheme: Scheme,
    group: Group,
    scales: Vec<f32>,
    zeros: Option<Vec<u8>>,
}

impl Grid {
    fn new(
        shape: (usize, usize),
        scheme: Scheme,
        group: Group,
        scales: &Bytes,
        zeros: Option<Bytes>,
    ) -> Self {
        let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
        let per_row = group.per_row(shape.1);
        let unpack = |packed: Bytes| -> Vec<u8> {
            let mut row = vec![0u8; per_row];
            let rows = packed.chunks_exact(packed_len(scheme.bits, per_row).max(1));
            let mut all = Vec::new();
            for packed in rows {
                unpack_row(scheme.bits, packed, &mut row);
                all.extend_from_slice(&row);
            }
            all
        };
        Self {
            shape,
            scheme,
            group,
            scales: scales.chunks_exact(2).map(half).collect(),
            zeros: zeros.map(unpack),
        }
    }

    /// Packed codes of the nearest points.
    fn round(&self, values: &[f32]) -> Vec<u8> {
        let (rows, cols) = self.shape;
        let per_row = self.group.per_row(cols);
        let most = f32::from(self.scheme.max_code());
        let mut out = Vec::with_capacity(rows * packed_len(self.scheme.bits, cols));
        let mut codes = vec![0u8; cols];
        for row in 0..rows {
            let first = match self.group {
                Group::Column => 0,
                _ => row * per_row,
            };
            for (col, code) in codes.iter_mut().enumerate() {
                let at = first
                    + match self.group {
                        Group::Size(size) => col / size as usize,
                        Group::Row => 0,
                        Group::Column => col,
                    };
                let scale = self.scales.get(at).copied().unwrap_or(0.0);
                let zero = self.zeros.as_ref().and_then(|z| z.get(at)).copied();
                let zero = f32::from(zero.unwrap_or(self.scheme.midpoint()));
                let place = if scale == 0.0 {
                    zero
                } else {
                    values[row * cols + col] / scale + zero
                };
                *code = place.round().clamp(0.0, most) as u8;
            }
            let start = out.len();
            out.resize(start + packed_len(self.scheme.bits, cols), 0);
            pack_row(self.scheme.bits, &codes, &mut out[start..]);
        }
        out
    }
}
