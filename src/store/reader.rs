//! From weight references to bytes, matrices and terms.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use half::f16;

use super::synthetic;
use crate::ir::{
    Encoding, FactorRef, Matrix, Module, Rotation, Storage, Term, Weight, WeightId, WeightView,
};
use crate::numeric::sparse::ColumnIndex;
use crate::numeric::trellis::TrellisMatrix;
use crate::numeric::{Factor, LowRank, QuantMatrix, Sparse};
use crate::pass::kind;
use crate::pass::terms::{CustomData, CustomTensor, TermData};
use crate::weights::read::Source;
use crate::weights::{DType, FileCache, MatrixView, WeightsError};

/// Why a weight's bytes cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file is missing, short or of a type that cannot be decoded.
    #[error("weight @{weight}: {source}")]
    Weights {
        /// The weight.
        weight: String,
        /// What is wrong.
        source: WeightsError,
    },
    /// The text was printed without its weights.
    #[error(
        "weight @{0} has no bytes: the text IR was printed without its weights; start from the model or the .hlrc directory"
    )]
    Absent(String),
    /// The stored parts of a term do not fit each other.
    #[error("weight @{weight}: {problem}; the file is damaged, or was edited by hand")]
    Damaged {
        /// The weight, or the term's first one.
        weight: String,
        /// What does not fit.
        problem: String,
    },
    /// A term of a kind that no loaded plugin defines.
    #[error("weight @{weight}: {problem}")]
    Kind {
        /// The term's first weight.
        weight: String,
        /// Which plugin is missing, and how to load it.
        problem: String,
    },
    /// The plugin of a term's kind can't compute it.
    #[error("weight @{weight}: {problem}")]
    Plugin {
        /// The term's first weight.
        weight: String,
        /// The plugin, and what it says.
        problem: String,
    },
    /// The matrix is too large for this machine's address space.
    #[error("weight @{0} is too large to address")]
    TooLarge(String),
}

type Result<T> = std::result::Result<T, StoreError>;

/// Reads the weights of modules. Files are opened once and mapped.
pub struct Reader<'a> {
    cache: &'a FileCache,
}

/// Bytes of a weight: where they start in their source, and how many there are.
pub struct Located {
    /// File or memory.
    pub source: Source,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Located {
    /// The bytes.
    ///
    /// # Errors
    /// The file is shorter than it was.
    pub fn bytes(&self) -> std::result::Result<&[u8], WeightsError> {
        self.source.slice(self.offset, self.len)
    }

    /// The bytes, without a look at the file's length; see [`crate::weights::MappedFile::mapped`].
    ///
    /// # Errors
    /// The mapping has no such bytes.
    pub fn mapped(&self) -> std::result::Result<&[u8], WeightsError> {
        self.source.mapped(self.offset, self.len)
    }
}

/// Path of a weight's file: relative ones start at the module's base folder.
pub fn file_path(module: &Module, path: &str) -> PathBuf {
    let path = Path::new(path);
    if path.is_absolute() || module.base_dir.as_os_str().is_empty() {
        path.to_path_buf()
    } else {
        module.base_dir.join(path)
    }
}

impl<'a> Reader<'a> {
    /// A reader that maps files through `cache`.
    pub fn new(cache: &'a FileCache) -> Self {
        Self { cache }
    }

    /// The files that weights are in.
    pub fn files(&self) -> &'a FileCache {
        self.cache
    }

    /// Where a weight's bytes are. Varint-coded, synthetic and concatenated weights are put into memory.
    ///
    /// # Errors
    /// The file is missing or too short, or the weight has no bytes.
    pub fn locate(&self, module: &Module, weight: &Weight) -> Result<Located> {
        let fault = |source| StoreError::Weights {
            weight: weight.name.clone(),
            source,
        };
        match &weight.storage {
            Storage::Synthetic(recipe) => {
                let (rows, cols) = synthetic_shape(weight)?;
                let bytes = synthetic::bytes(recipe, weight.dtype, rows, cols);
                Ok(in_memory(bytes))
            }
            Storage::Concat(parts) => {
                // Not more than the file can hold: the shape may be anyone's.
                let len = parts.iter().filter_map(Storage::raw_bytes).sum::<u64>();
                let room = usize::try_from(len.min(1 << 32)).unwrap_or(0);
                let mut all = Vec::with_capacity(room);
                for part in parts {
                    let located = self.piece(module, weight, part)?;
                    all.extend_from_slice(located.bytes().map_err(fault)?);
                    located.source.release(located.offset, located.len);
                }
                Ok(in_memory(all))
            }
            Storage::Rotated(recipe) => self.turned(module, weight, recipe),
            piece => self.piece(module, weight, piece),
        }
    }

    /// Part of a file, or inline bytes.
    pub(super) fn piece(
        &self,
        module: &Module,
        weight: &Weight,
        storage: &Storage,
    ) -> Result<Located> {
        let fault = |source| StoreError::Weights {
            weight: weight.name.clone(),
            source,
        };
        match storage {
            Storage::File {
                path,
                offset,
                len,
                encoding,
            } => {
                let file = self.cache.open(&file_path(module, path)).map_err(fault)?;
                file.check(*offset, *len).map_err(fault)?;
                match encoding {
                    Encoding::Raw => Ok(Located {
                        source: file.into(),
                        offset: *offset,
                        len: *len,
                    }),
                    Encoding::Varint => {
                        let bytes = file.slice(*offset, *len).map_err(fault)?;
                        let decoded = varints(weight, bytes)?;
                        Ok(in_memory(decoded))
                    }
                }
            }
            Storage::Inline(bytes) => Ok(in_memory(bytes.clone())),
            Storage::Synthetic(_) | Storage::Concat(_) | Storage::Rotated(_) | Storage::Absent => {
                Err(StoreError::Absent(weight.name.clone()))
            }
        }
    }

    /// A copy of a weight's bytes; for small tensors.
    ///
    /// # Errors
    /// As [`Self::locate`].
    pub fn bytes(&self, module: &Module, id: WeightId) -> Result<Vec<u8>> {
        let weight = self.weight(module, id)?;
        let located = self.locate(module, weight)?;
        let bytes = located.bytes().map_err(|source| StoreError::Weights {
            weight: weight.name.clone(),
            source,
        })?;
        let copy = bytes.to_vec();
        located.source.release(located.offset, located.len);
        Ok(copy)
    }

    pub(super) fn weight<'m>(&self, module: &'m Module, id: WeightId) -> Result<&'m Weight> {
        let missing = || StoreError::Absent(id.to_string());
        module.weight(id).ok_or_else(missing)
    }

    /// The dense matrix `[rows, cols]` behind a view, mapped and not read.
    ///
    /// # Errors
    /// As [`Self::locate`]; sizes that this machine cannot address.
    pub fn view(&self, module: &Module, matrix: &Matrix, view: &WeightView) -> Result<MatrixView> {
        let weight = self.weight(module, view.weight)?;
        let located = self.locate(module, weight)?;
        let too_large = || StoreError::TooLarge(weight.name.clone());
        let rows = usize::try_from(matrix.out_features).map_err(|_| too_large())?;
        let cols = usize::try_from(matrix.in_features).map_err(|_| too_large())?;
        let bytes = weight.dtype.bytes_for(matrix.entries());
        let skip = bytes
            .zip(Some(view.index.unwrap_or(0)))
            .and_then(|(bytes, index)| bytes.checked_mul(index))
            .and_then(|skip| skip.checked_add(located.offset))
            .ok_or_else(too_large)?;
        MatrixView::new(
            located.source,
            skip,
            weight.dtype,
            rows,
            cols,
            view.transposed,
        )
        .map_err(|source| StoreError::Weights {
            weight: weight.name.clone(),
            source,
        })
    }

    /// A term with its data. A dense term is decoded whole, as f32.
    ///
    /// # Errors
    /// As [`Self::locate`]; parts that do not fit each other.
    pub fn term(&self, module: &Module, matrix: &Matrix, term: &Term) -> Result<TermData> {
        let rows = matrix.out_features as usize;
        let cols = matrix.in_features as usize;
        let damaged = |problem: String| damaged(module, term, problem);
        Ok(match term {
            Term::Dense(view) => {
                let view = self.view(module, matrix, view)?;
                let mut values = vec![0f32; rows * cols];
                view.read_rows_f32(0..rows, &mut values)
                    .map_err(|e| damaged(e.to_string()))?;
                TermData::Dense {
                    dtype: DType::F32,
                    bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                    rows,
                    cols,
                }
            }
            Term::Quant(q) => {
                let zeros = q.zeros.map(|z| self.bytes(module, z)).transpose()?;
                let codes = self.bytes(module, q.codes)?;
                let scales = self.halves(module, q.scales)?;
                let quant =
                    QuantMatrix::from_parts(rows, cols, q.scheme, q.group, codes, scales, zeros);
                let quant = quant.map_err(|e| damaged(e.to_string()))?;
                rotated(q.rotation, TermData::Quant(quant))
            }
            Term::Trellis(t) => {
                let trellis = TrellisMatrix {
                    rows,
                    cols,
                    states_log2: t.states,
                    bits: self.bytes(module, t.bits)?,
                    codes: self.bytes(module, t.codes)?,
                    scales: self.halves(module, t.scales)?,
                };
                trellis.check().map_err(|e| damaged(e.to_string()))?;
                rotated(t.rotation, TermData::Trellis(trellis))
            }
            Term::LowRank(l) => {
                let (u, v) = (self.factor(module, &l.u)?, self.factor(module, &l.v)?);
                let low_rank = LowRank::new(rows, cols, l.blocks.clone(), u, v);
                TermData::LowRank(low_rank.map_err(|e| damaged(e.to_string()))?)
            }
            Term::Sparse(s) => {
                let columns = self.bytes(module, s.columns)?;
                let columns = if matrix.in_features > 65536 {
                    ColumnIndex::U32(u32s(&columns))
                } else {
                    ColumnIndex::U16(columns.chunks_exact(2).map(pair).collect())
                };
                let sparse = Sparse::Csr {
                    rows,
                    cols,
                    values: self.halves(module, s.values)?,
                    columns,
                    offsets: u32s(&self.bytes(module, s.offsets)?),
                };
                sparse.check().map_err(|e| damaged(e.to_string()))?;
                TermData::Sparse(sparse)
            }
            Term::Columns(c) => {
                let sparse = Sparse::Columns {
                    rows,
                    cols,
                    columns: u32s(&self.bytes(module, c.columns)?),
                    values: self.halves(module, c.values)?,
                };
                sparse.check().map_err(|e| damaged(e.to_string()))?;
                TermData::Sparse(sparse)
            }
            Term::Custom(c) => {
                let kind = kind::needed(&c.kind).map_err(|e| StoreError::Kind {
                    weight: first_weight(module, term),
                    problem: e.to_string(),
                })?;
                let tensor = |(name, id): &(String, WeightId)| -> Result<CustomTensor> {
                    let weight = self.weight(module, *id)?;
                    Ok(CustomTensor {
                        name: name.clone(),
                        dtype: weight.dtype,
                        shape: weight.dims.clone(),
                        bytes: self.bytes(module, *id)?,
                    })
                };
                let custom = CustomData {
                    kind: c.kind.clone(),
                    rows,
                    cols,
                    attrs: c.attrs.clone(),
                    tensors: c.tensors.iter().map(tensor).collect::<Result<_>>()?,
                };
                kind.check(&custom.view())
                    .map_err(|e| damaged(e.to_string()))?;
                TermData::Custom(custom)
            }
        })
    }

    /// The sum of all terms, `[out, in]` as f32. Memory: the whole matrix.
    ///
    /// # Errors
    /// As [`Self::term`].
    pub fn dense(&self, module: &Module, matrix: &Matrix) -> Result<Vec<f32>> {
        let rows = matrix.out_features as usize;
        let too_large = || StoreError::TooLarge("of a matrix".to_string());
        let entries = usize::try_from(matrix.entries()).map_err(|_| too_large())?;
        let mut sum = vec![0f32; entries];
        for term in &matrix.terms {
            if let Term::Dense(view) = term {
                let view = self.view(module, matrix, view)?;
                let mut values = vec![0f32; entries];
                view.read_rows_f32(0..rows, &mut values)
                    .map_err(|source| StoreError::Weights {
                        weight: String::new(),
                        source,
                    })?;
                sum.iter_mut().zip(&values).for_each(|(s, v)| *s += v);
            } else {
                let data = self.term(module, matrix, term)?;
                data.add_rows(0..rows, &mut sum)
                    .map_err(|e| undecoded(module, term, e.to_string()))?;
            }
        }
        Ok(sum)
    }

    fn halves(&self, module: &Module, id: WeightId) -> Result<Vec<f16>> {
        let bytes = self.bytes(module, id)?;
        let half = |b: &[u8]| f16::from_bits(pair(b));
        Ok(bytes.chunks_exact(2).map(half).collect())
    }

    fn factor(&self, module: &Module, factor: &FactorRef) -> Result<Factor> {
        let bytes = self.bytes(module, factor.data)?;
        Ok(match (factor.format.scheme(), factor.scales) {
            (Some(scheme), Some(scales)) => Factor::Coded {
                scheme,
                codes: bytes,
                scales: self.halves(module, scales)?,
            },
            _ if factor.format == crate::numeric::FactorFormat::F32 => {
                let single = |b: &[u8]| f32::from_bits(quad(b));
                Factor::F32(bytes.chunks_exact(4).map(single).collect())
            }
            _ => {
                let half = |b: &[u8]| f16::from_bits(pair(b));
                Factor::F16(bytes.chunks_exact(2).map(half).collect())
            }
        })
    }
}

/// A term whose parts do not fit each other.
fn damaged(module: &Module, term: &Term, problem: String) -> StoreError {
    let weight = first_weight(module, term);
    StoreError::Damaged { weight, problem }
}

/// A term that was read and can't be decoded.
fn undecoded(module: &Module, term: &Term, problem: String) -> StoreError {
    let weight = first_weight(module, term);
    match term {
        Term::Custom(_) => StoreError::Plugin { weight, problem },
        _ => StoreError::Damaged { weight, problem },
    }
}

fn first_weight(module: &Module, term: &Term) -> String {
    let first = term.weights().first().copied();
    let weight = first.and_then(|w| module.weight(w));
    weight.map_or(String::new(), |w| w.name.clone())
}

fn rotated(rotation: Option<Rotation>, term: TermData) -> TermData {
    match rotation {
        Some(rotation) => TermData::Rotated(rotation, Box::new(term)),
        None => term,
    }
}

pub(super) fn in_memory(bytes: Vec<u8>) -> Located {
    Located {
        len: bytes.len() as u64,
        source: Bytes::from(bytes).into(),
        offset: 0,
    }
}

fn pair(b: &[u8]) -> u16 {
    u16::from_le_bytes([b[0], b[1]])
}

fn quad(b: &[u8]) -> u32 {
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

fn u32s(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(quad).collect()
}

/// Rows and columns of a synthetic weight: all leading dimensions are rows.
pub(super) fn synthetic_shape(weight: &Weight) -> Result<(usize, usize)> {
    let too_large = || StoreError::TooLarge(weight.name.clone());
    let elements = weight
        .elements()
        .filter(|n| *n <= 1 << 32)
        .ok_or_else(too_large)?;
    let cols = weight.dims.last().copied().unwrap_or(1).max(1);
    Ok(((elements / cols) as usize, cols as usize))
}

/// Elements of a protobuf varint field (ONNX `int32_data` and its kin) as little-endian bytes.
fn varints(weight: &Weight, bytes: &[u8]) -> Result<Vec<u8>> {
    let damaged = |problem: &str| StoreError::Damaged {
        weight: weight.name.clone(),
        problem: problem.to_string(),
    };
    let width = (weight.dtype.bits() as usize).div_ceil(8).clamp(1, 8);
    let mut left = bytes;
    let mut out = Vec::with_capacity(bytes.len() * width);
    while !left.is_empty() {
        let value = prost::encoding::decode_varint(&mut left)
            .map_err(|_| damaged("a varint does not end"))?;
        out.extend_from_slice(value.to_le_bytes().get(..width).unwrap_or(&[]));
    }
    if weight.dtype != DType::String && out.len() as u64 != weight.bytes() {
        return Err(damaged("not as many elements as the shape says"));
    }
    Ok(out)
}
