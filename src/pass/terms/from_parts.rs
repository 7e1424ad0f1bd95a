//! Terms from their structure and tensors, and what they decode to.

use std::ops::Range;

use half::f16;

use super::{CustomData, CustomTensor, TensorData, TermData, TermSpec, format_named, rotation_of};
use crate::ir::{Rotation, is_custom_kind};
use crate::numeric::float::decode_into;
use crate::numeric::sparse::ColumnIndex;
use crate::numeric::trellis::TrellisMatrix;
use crate::numeric::{Block, Factor, Group, LowRank, QuantMatrix, Scheme, Sparse};
use crate::pass::PassError;
use crate::weights::DType;

impl TermData {
    /// The term `[rows, cols]` of this structure and these tensors: [`TermData::into_parts`] taken back.
    ///
    /// # Errors
    /// Tensors that the structure does not have, of other types, sizes or sides.
    pub fn from_parts(
        spec: TermSpec,
        tensors: Vec<TensorData>,
        rows: usize,
        cols: usize,
    ) -> Result<Self, PassError> {
        if tensors.len() != spec.tensors() {
            let (need, have) = (spec.tensors(), tensors.len());
            return Err(PassError::new(format!(
                "{have} tensors where it has {need}"
            )));
        }
        for tensor in &tensors {
            let have: usize = tensor.pieces.iter().map(Vec::len).sum();
            let need = tensor.dtype.bytes_for_shape(&tensor.shape);
            if need != Some(have as u64) {
                let (name, shape) = (&tensor.suffix, &tensor.shape);
                return Err(PassError::new(format!(
                    "`{name}` is {}{shape:?} and has {have} bytes",
                    tensor.dtype
                )));
            }
        }
        let given: Vec<_> = tensors
            .iter()
            .map(|t| (t.suffix.clone(), t.shape.clone()))
            .collect();
        let mut left = Tensors(tensors.into_iter());
        let made = match spec {
            TermSpec::Dense => {
                let (dtype, bytes) = left.any()?;
                let entries = rows.checked_mul(cols).map(|n| n as u64);
                let need = entries.and_then(|n| dtype.bytes_for(n));
                if need != Some(bytes.len() as u64) || !dtype.is_float() {
                    return Err(PassError::new(format!(
                        "it is no dense {rows}x{cols} of {dtype}"
                    )));
                }
                TermData::Dense {
                    dtype,
                    bytes,
                    rows,
                    cols,
                }
            }
            TermSpec::Quant {
                bits,
                group,
                zeros,
                rotation,
            } => {
                let scheme = Scheme {
                    bits,
                    symmetric: !zeros,
                };
                let group = group.parse().map_err(PassError::new)?;
                let (codes, scales) = (left.bytes(DType::U8)?, left.halves()?);
                let zeros = if zeros {
                    Some(left.bytes(DType::U8)?)
                } else {
                    None
                };
                let quant =
                    QuantMatrix::from_parts(rows, cols, scheme, group, codes, scales, zeros);
                let quant = TermData::Quant(quant.map_err(PassError::new)?);
                rotated(rotation, quant)?
            }
            TermSpec::Trellis { states, rotation } => {
                let codes = left.bytes(DType::U8)?;
                let scales = left.halves()?;
                let trellis = TrellisMatrix {
                    rows,
                    cols,
                    states_log2: states,
                    codes,
                    scales,
                    bits: left.bytes(DType::U8)?,
                };
                trellis.check().map_err(PassError::new)?;
                rotated(rotation, TermData::Trellis(trellis))?
            }
            TermSpec::LowRank { blocks, format } => {
                let unknown = || PassError::new(format!("`{format}` is no factor format"));
                let format = format_named(&format).ok_or_else(unknown)?;
                let mut factor = || -> Result<Factor, PassError> {
                    Ok(match format.scheme() {
                        Some(scheme) => Factor::Coded {
                            scheme,
                            codes: left.bytes(DType::U8)?,
                            scales: left.halves()?,
                        },
                        None if format == crate::numeric::FactorFormat::F32 => {
                            let bytes = left.bytes(DType::F32)?;
                            Factor::F32(bytes.chunks_exact(4).map(single).collect())
                        }
                        None => Factor::F16(left.halves()?),
                    })
                };
                let (u, v) = (factor()?, factor()?);
                let block = |[row0, rows, col0, cols, rank]: [usize; 5]| Block {
                    row0,
                    rows,
                    col0,
                    cols,
                    rank,
                };
                let blocks = blocks.into_iter().map(block).collect();
                let low_rank = LowRank::new(rows, cols, blocks, u, v);
                TermData::LowRank(low_rank.map_err(PassError::new)?)
            }
            TermSpec::Sparse { .. } => {
                let values = left.halves()?;
                let columns = match cols > 65536 {
                    true => ColumnIndex::U32(left.words()?),
                    false => {
                        let bytes = left.bytes(DType::U16)?;
                        ColumnIndex::U16(bytes.chunks_exact(2).map(pair).collect())
                    }
                };
                checked(Sparse::Csr {
                    rows,
                    cols,
                    values,
                    columns,
                    offsets: left.words()?,
                })?
            }
            TermSpec::Columns { .. } => {
                let columns = left.words()?;
                checked(Sparse::Columns {
                    rows,
                    cols,
                    columns,
                    values: left.halves()?,
                })?
            }
            TermSpec::Custom { name, attrs, .. } => {
                if !is_custom_kind(&name) {
                    return Err(PassError::new(format!(
                        "`{name}` is no kind of term: a plugin's kinds are called plugin.kind"
                    )));
                }
                let tensor = |t: TensorData| CustomTensor {
                    name: t.suffix.into_owned(),
                    dtype: t.dtype,
                    shape: t.shape,
                    bytes: joined(t.pieces),
                };
                TermData::Custom(CustomData {
                    kind: name,
                    rows,
                    cols,
                    attrs,
                    tensors: left.0.map(tensor).collect(),
                })
            }
        };
        for ((name, shape), expected) in given.iter().zip(made.first_sides()) {
            // Bytes are as many as the shape takes, and as many as the term needs: the other side follows.
            if let ([first, other], Some(side)) = (shape.as_slice(), expected)
                && *first != side as u64
            {
                return Err(PassError::new(format!(
                    "`{name}` is [{first}, {other}]: its first side is {side} in a term of {rows}x{cols}"
                )));
            }
        }
        Ok(made)
    }

    /// First side of each tensor that is stored as a matrix, in the kind's order; none of others.
    fn first_sides(&self) -> Vec<Option<usize>> {
        match self {
            TermData::Dense { rows, .. } => vec![Some(*rows)],
            TermData::Quant(q) => match q.group {
                Group::Column => vec![Some(q.rows), None, None],
                _ => vec![Some(q.rows); 3],
            },
            TermData::Rotated(_, term) => term.first_sides(),
            TermData::LowRank(l) => match l.blocks.as_slice() {
                [b] => match l.u {
                    Factor::Coded { .. } => [b.rows, b.rows, b.rank, b.rank].map(Some).to_vec(),
                    _ => [b.rows, b.rank].map(Some).to_vec(),
                },
                _ => Vec::new(),
            },
            TermData::Sparse(Sparse::Columns { rows, .. }) => vec![None, Some(*rows)],
            TermData::Sparse(_) | TermData::Trellis(_) | TermData::Custom(_) => Vec::new(),
        }
    }

    /// Adds rows of the term to `[rows, cols]` values.
    ///
    /// # Errors
    /// A term of a plugin's kind that is not loaded, or that the plugin refuses.
    pub fn add_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), PassError> {
        match self {
            TermData::Quant(q) => q.add_rows(rows, out),
            TermData::Trellis(t) => t.add_rows(rows, out),
            TermData::Rotated(rotation, term) => {
                rotation.add_rows(term, rows, term.shape(), out)?;
            }
            TermData::LowRank(l) => l.add_rows(rows, out),
            TermData::Sparse(s) => s.add_rows(rows, out),
            TermData::Dense {
                bytes, cols, dtype, ..
            } => {
                let Some(float) = dtype.as_float() else {
                    return Err(PassError::new(format!("a dense term of {dtype}")));
                };
                let skip = rows.start * cols * dtype.bits() as usize / 8;
                let mut values = vec![0f32; out.len()];
                let bytes = bytes.get(skip..).unwrap_or(&[]);
                let bytes = bytes.get(..out.len() * dtype.bits() as usize / 8);
                decode_into(float, bytes.unwrap_or(&[]), &mut values);
                out.iter_mut().zip(values).for_each(|(o, v)| *o += v);
            }
            TermData::Custom(c) => c.add_rows(rows, out)?,
        }
        Ok(())
    }
}

/// Tensors that are left to be taken.
struct Tensors(std::vec::IntoIter<TensorData>);

impl Tensors {
    fn any(&mut self) -> Result<(DType, Vec<u8>), PassError> {
        let tensor = self.0.next();
        let tensor = tensor.ok_or_else(|| PassError::new("too few tensors"))?;
        Ok((tensor.dtype, joined(tensor.pieces)))
    }

    fn bytes(&mut self, dtype: DType) -> Result<Vec<u8>, PassError> {
        let (have, bytes) = self.any()?;
        if have != dtype {
            return Err(PassError::new(format!(
                "a tensor of {have} where {dtype} belongs"
            )));
        }
        Ok(bytes)
    }

    fn halves(&mut self) -> Result<Vec<f16>, PassError> {
        let bytes = self.bytes(DType::F16)?;
        let half = |b: &[u8]| f16::from_bits(pair(b));
        Ok(bytes.chunks_exact(2).map(half).collect())
    }

    fn words(&mut self) -> Result<Vec<u32>, PassError> {
        let bytes = self.bytes(DType::U32)?;
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(bytes.chunks_exact(4).map(word).collect())
    }
}

/// All pieces as one; a single one is not copied.
fn joined(mut pieces: Vec<Vec<u8>>) -> Vec<u8> {
    match pieces.len() {
        1 => pieces.swap_remove(0),
        _ => pieces.concat(),
    }
}

fn checked(sparse: Sparse) -> Result<TermData, PassError> {
    sparse.check().map_err(PassError::new)?;
    Ok(TermData::Sparse(sparse))
}

fn rotated(rotation: Option<[u64; 3]>, term: TermData) -> Result<TermData, PassError> {
    let Some(rotation) = rotation_of(&rotation) else {
        return Ok(term);
    };
    let (rows, cols) = term.shape();
    match rotation.fits(rows as u64, cols as u64) {
        true => Ok(TermData::Rotated(rotation, Box::new(term))),
        false => Err(PassError::new(format!(
            "a rotation in blocks of {} and {} does not fit {rows}x{cols}: blocks are powers of two up to {} \
             that divide the sides",
            rotation.out_block,
            rotation.in_block,
            Rotation::MAX_BLOCK
        ))),
    }
}

fn single(b: &[u8]) -> f32 {
    f32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

fn pair(b: &[u8]) -> u16 {
    u16::from_le_bytes([b[0], b[1]])
}
