//! Terms with their data, between the pass that makes them and the store that keeps them.

use half::f16;
use serde::{Deserialize, Serialize};

use crate::ir::{
    ColumnsTerm, FactorRef, LowRankTerm, QuantTerm, SparseTerm, Term, WeightId, WeightView,
};
use crate::numeric::sparse::ColumnIndex;
use crate::numeric::{Block, Factor, FactorFormat, LowRank, QuantMatrix, Scheme, Sparse};
use crate::weights::DType;

/// A term's data.
#[derive(Clone, Debug)]
pub enum TermData {
    /// What is left, to be stored as it is.
    Dense {
        /// Element type that it is stored in.
        dtype: DType,
        /// `[rows, cols]` in that type.
        bytes: Vec<u8>,
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
    },
    /// Codes and scales.
    Quant(QuantMatrix),
    /// Factors.
    LowRank(LowRank),
    /// Entries or columns.
    Sparse(Sparse),
}

/// A term's structure without its data; what a journal records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TermSpec {
    /// A dense tensor.
    Dense,
    /// Codes and scales.
    Quant {
        /// Bits per code.
        bits: u8,
        /// Group, in the text's words.
        group: String,
        /// Whether zero points are stored.
        zeros: bool,
    },
    /// Factors.
    LowRank {
        /// row0, rows, col0, cols, rank of each block.
        blocks: Vec<[usize; 5]>,
        /// Format of both factors.
        format: String,
    },
    /// Entries in CSR form.
    Sparse {
        /// Number of entries.
        nnz: u64,
    },
    /// Whole columns.
    Columns {
        /// Number of columns.
        count: u64,
    },
}

/// One tensor of a term, ready to be stored.
pub struct TensorData {
    /// What its name ends in: `codes`, `scales`, `u`, …
    pub suffix: &'static str,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<u64>,
    /// Little-endian bytes, in pieces: one per row tile.
    pub pieces: Vec<Vec<u8>>,
}

impl TensorData {
    fn new(suffix: &'static str, dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self {
            suffix,
            dtype,
            shape: shape.iter().map(|&n| n as u64).collect(),
            pieces: vec![bytes],
        }
    }
}

/// Why a recorded term cannot be made again.
#[derive(Debug, thiserror::Error)]
#[error("a recorded term is damaged: {0}; start the run anew without --resume")]
pub struct BadSpec(String);

impl TermData {
    /// Bytes of the term as it will be stored.
    pub fn bytes(&self) -> u64 {
        match self {
            TermData::Dense { bytes, .. } => bytes.len() as u64,
            TermData::Quant(q) => q.bytes() as u64,
            TermData::LowRank(l) => l.bytes() as u64,
            TermData::Sparse(s) => s.bytes() as u64,
        }
    }

    /// Short text for progress lines: `int4`, `r64`, `737 outliers`.
    pub fn label(&self) -> String {
        match self {
            TermData::Dense { dtype, .. } => format!("dense {dtype}"),
            TermData::Quant(q) => format!("int{}", q.scheme.bits),
            TermData::LowRank(l) => match l.blocks.as_slice() {
                [one] => format!("r{}", one.rank),
                blocks => format!("{} blocks", blocks.len()),
            },
            TermData::Sparse(Sparse::Csr { values, .. }) => format!("{} outliers", values.len()),
            TermData::Sparse(Sparse::Columns { columns, .. }) => {
                format!("{} columns", columns.len())
            }
        }
    }

    /// The term as the IR will have it, its weights not yet known: for counting what it costs.
    pub fn outline(&self) -> Term {
        let none = WeightId::new(0);
        let factor = |format| FactorRef {
            format,
            data: none,
            scales: None,
        };
        match self {
            TermData::Dense { .. } => Term::Dense(WeightView::whole(none)),
            TermData::Quant(q) => Term::Quant(QuantTerm {
                codes: none,
                scales: none,
                zeros: None,
                scheme: q.scheme,
                group: q.group,
            }),
            TermData::LowRank(l) => Term::LowRank(LowRankTerm {
                blocks: l.blocks.clone(),
                u: factor(l.u.format()),
                v: factor(l.v.format()),
            }),
            TermData::Sparse(Sparse::Csr { values, .. }) => Term::Sparse(SparseTerm {
                values: none,
                columns: none,
                offsets: none,
                nnz: values.len() as u64,
            }),
            TermData::Sparse(Sparse::Columns { columns, .. }) => Term::Columns(ColumnsTerm {
                columns: none,
                values: none,
                count: columns.len() as u64,
            }),
        }
    }

    /// The structure and the tensors of a term that comes in row tiles, top to bottom.
    ///
    /// # Errors
    /// Tiles of different terms, or of a kind that has no rows of its own.
    pub fn tiles_into_parts(
        tiles: Vec<TermData>,
    ) -> Result<Option<(TermSpec, Vec<TensorData>)>, super::PassError> {
        let mut whole: Option<(TermSpec, Vec<TensorData>)> = None;
        for tile in tiles {
            let (spec, tensors) = tile.into_parts();
            let Some((first, merged)) = &mut whole else {
                whole = Some((spec, tensors));
                continue;
            };
            let by_rows = matches!(spec, TermSpec::Quant { .. } | TermSpec::Dense);
            if *first != spec || !by_rows {
                return Err(super::PassError::new("row tiles of different terms"));
            }
            for (all, tile) in merged.iter_mut().zip(tensors) {
                all.pieces.extend(tile.pieces);
                if let (Some(rows), Some(more)) = (all.shape.first_mut(), tile.shape.first()) {
                    *rows += more;
                }
            }
        }
        Ok(whole)
    }

    /// The structure, and the tensors to store, in the order in which [`TermSpec::term`] takes them.
    pub fn into_parts(self) -> (TermSpec, Vec<TensorData>) {
        match self {
            TermData::Dense {
                dtype,
                bytes,
                rows,
                cols,
            } => {
                let tensor = TensorData::new("weight", dtype, &[rows, cols], bytes);
                (TermSpec::Dense, vec![tensor])
            }
            TermData::Quant(q) => quant_parts(q),
            TermData::LowRank(l) => low_rank_parts(l),
            TermData::Sparse(s) => sparse_parts(s),
        }
    }
}

fn quant_parts(q: QuantMatrix) -> (TermSpec, Vec<TensorData>) {
    use crate::numeric::Group;
    let spec = TermSpec::Quant {
        bits: q.scheme.bits,
        group: q.group.to_string(),
        zeros: q.zeros.is_some(),
    };
    let row_bytes = q.codes.len() / q.rows.max(1);
    let scale_shape = match q.group {
        Group::Column => vec![q.cols],
        _ => vec![q.rows, q.scales.len() / q.rows.max(1)],
    };
    let zero_shape = |len: usize| match q.group {
        Group::Column => vec![len],
        _ => vec![q.rows, len / q.rows.max(1)],
    };
    let mut tensors = vec![
        TensorData::new("codes", DType::U8, &[q.rows, row_bytes], q.codes),
        TensorData::new("scales", DType::F16, &scale_shape, f16_bytes(&q.scales)),
    ];
    if let Some(zeros) = q.zeros {
        let shape = zero_shape(zeros.len());
        tensors.push(TensorData::new("zeros", DType::U8, &shape, zeros));
    }
    (spec, tensors)
}

/// The tensors that a quantizer will make of `[rows, cols]`: suffix, element type, shape.
pub fn quant_tensors(q: &super::Quantizer, rows: u64, cols: u64) -> Vec<(String, DType, Vec<u64>)> {
    use crate::numeric::Group;
    let packed = |count: u64| (count * u64::from(q.scheme.bits)).div_ceil(8);
    let (groups, scales, zeros) = match q.group {
        Group::Column => (cols, vec![cols], vec![packed(cols)]),
        Group::Row => (1, vec![rows, 1], vec![rows, packed(1)]),
        Group::Size(size) => {
            let groups = cols.div_ceil(u64::from(size).max(1));
            (groups, vec![rows, groups], vec![rows, packed(groups)])
        }
    };
    let mut tensors = vec![
        ("codes".to_string(), DType::U8, vec![rows, packed(cols)]),
        ("scales".to_string(), DType::F16, scales),
    ];
    if !q.scheme.symmetric && groups > 0 {
        tensors.push(("zeros".to_string(), DType::U8, zeros));
    }
    tensors
}

fn low_rank_parts(l: LowRank) -> (TermSpec, Vec<TensorData>) {
    let spec = TermSpec::LowRank {
        blocks: l
            .blocks
            .iter()
            .map(|b| [b.row0, b.rows, b.col0, b.cols, b.rank])
            .collect(),
        format: format_name(l.u.format()).to_string(),
    };
    // One block is stored as two matrices; several are stored flat, one after the other.
    let shapes = match l.blocks.as_slice() {
        [b] => Some(([b.rows, b.rank], [b.rank, b.cols])),
        _ => None,
    };
    let mut tensors = Vec::with_capacity(4);
    factor_parts(l.u, ["u", "u_scales"], shapes.map(|s| s.0), &mut tensors);
    factor_parts(l.v, ["v", "v_scales"], shapes.map(|s| s.1), &mut tensors);
    (spec, tensors)
}

fn factor_parts(
    factor: Factor,
    names: [&'static str; 2],
    shape: Option<[usize; 2]>,
    tensors: &mut Vec<TensorData>,
) {
    let plain = |len: usize| shape.map_or(vec![len], |s| s.to_vec());
    let by_rows = |len: usize| match shape {
        Some([rows, _]) if rows > 0 => vec![rows, len / rows],
        _ => vec![len],
    };
    match factor {
        Factor::F32(values) => {
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let shape = plain(values.len());
            tensors.push(TensorData::new(names[0], DType::F32, &shape, bytes));
        }
        Factor::F16(values) => {
            let shape = plain(values.len());
            let bytes = f16_bytes(&values);
            tensors.push(TensorData::new(names[0], DType::F16, &shape, bytes));
        }
        Factor::Coded { codes, scales, .. } => {
            let shape = by_rows(codes.len());
            tensors.push(TensorData::new(names[0], DType::U8, &shape, codes));
            let shape = by_rows(scales.len());
            let bytes = f16_bytes(&scales);
            tensors.push(TensorData::new(names[1], DType::F16, &shape, bytes));
        }
    }
}

fn sparse_parts(s: Sparse) -> (TermSpec, Vec<TensorData>) {
    match s {
        Sparse::Csr {
            values,
            columns,
            offsets,
            ..
        } => {
            let nnz = values.len();
            let (dtype, column_bytes): (_, Vec<u8>) = match columns {
                ColumnIndex::U16(c) => {
                    (DType::U16, c.iter().flat_map(|x| x.to_le_bytes()).collect())
                }
                ColumnIndex::U32(c) => {
                    (DType::U32, c.iter().flat_map(|x| x.to_le_bytes()).collect())
                }
            };
            let offset_bytes = offsets.iter().flat_map(|x| x.to_le_bytes()).collect();
            let tensors = vec![
                TensorData::new("values", DType::F16, &[nnz], f16_bytes(&values)),
                TensorData::new("columns", dtype, &[nnz], column_bytes),
                TensorData::new("offsets", DType::U32, &[offsets.len()], offset_bytes),
            ];
            (TermSpec::Sparse { nnz: nnz as u64 }, tensors)
        }
        Sparse::Columns {
            rows,
            columns,
            values,
            ..
        } => {
            let count = columns.len();
            let column_bytes = columns.iter().flat_map(|x| x.to_le_bytes()).collect();
            let tensors = vec![
                TensorData::new("columns", DType::U32, &[count], column_bytes),
                TensorData::new("values", DType::F16, &[rows, count], f16_bytes(&values)),
            ];
            (
                TermSpec::Columns {
                    count: count as u64,
                },
                tensors,
            )
        }
    }
}

impl TermSpec {
    /// How many tensors the term is stored in.
    pub fn tensors(&self) -> usize {
        match self {
            TermSpec::Dense => 1,
            TermSpec::Quant { zeros, .. } => 2 + usize::from(*zeros),
            TermSpec::LowRank { format, .. } => match format_named(format) {
                Some(f) if f.scheme().is_some() => 4,
                _ => 2,
            },
            TermSpec::Sparse { .. } => 3,
            TermSpec::Columns { .. } => 2,
        }
    }

    /// The IR's term, its tensors being `weights` in the order of [`TermData::into_parts`].
    ///
    /// # Errors
    /// Fewer tensors than the term has, or words that mean nothing.
    pub fn term(&self, weights: &[WeightId]) -> Result<Term, BadSpec> {
        let mut left = weights.iter().copied();
        let mut next = || {
            left.next()
                .ok_or_else(|| BadSpec("too few tensors".to_string()))
        };
        Ok(match self {
            TermSpec::Dense => Term::Dense(WeightView::whole(next()?)),
            TermSpec::Quant { bits, group, zeros } => Term::Quant(QuantTerm {
                codes: next()?,
                scales: next()?,
                zeros: if *zeros { Some(next()?) } else { None },
                scheme: Scheme {
                    bits: *bits,
                    symmetric: !zeros,
                },
                group: group.parse().map_err(|e| BadSpec(format!("{e}")))?,
            }),
            TermSpec::LowRank { blocks, format } => {
                let format = format_named(format)
                    .ok_or_else(|| BadSpec(format!("`{format}` is no factor format")))?;
                let coded = format.scheme().is_some();
                let mut factor = || -> Result<FactorRef, BadSpec> {
                    Ok(FactorRef {
                        format,
                        data: next()?,
                        scales: if coded { Some(next()?) } else { None },
                    })
                };
                let (u, v) = (factor()?, factor()?);
                let block = |&[row0, rows, col0, cols, rank]: &[usize; 5]| Block {
                    row0,
                    rows,
                    col0,
                    cols,
                    rank,
                };
                Term::LowRank(LowRankTerm {
                    blocks: blocks.iter().map(block).collect(),
                    u,
                    v,
                })
            }
            TermSpec::Sparse { nnz } => Term::Sparse(SparseTerm {
                values: next()?,
                columns: next()?,
                offsets: next()?,
                nnz: *nnz,
            }),
            TermSpec::Columns { count } => Term::Columns(ColumnsTerm {
                columns: next()?,
                values: next()?,
                count: *count,
            }),
        })
    }
}

const FORMATS: [(FactorFormat, &str); 4] = [
    (FactorFormat::F32, "f32"),
    (FactorFormat::F16, "f16"),
    (FactorFormat::Int8, "int8"),
    (FactorFormat::Int4, "int4"),
];

fn format_name(format: FactorFormat) -> &'static str {
    FORMATS
        .iter()
        .find(|(f, _)| *f == format)
        .map_or("f16", |(_, name)| name)
}

fn format_named(name: &str) -> Option<FactorFormat> {
    FORMATS.iter().find(|(_, n)| *n == name).map(|(f, _)| *f)
}

fn f16_bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
