//! Terms with their data, between the pass that makes them and the store that keeps them.

mod custom;
mod from_parts;
mod parts;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ir::{
    ColumnsTerm, CustomTerm, FactorRef, LowRankTerm, QuantTerm, Rotation, SparseTerm, Term,
    TrellisTerm, WeightId, WeightView,
};
use crate::numeric::trellis::TrellisMatrix;
use crate::numeric::{Block, FactorFormat, LowRank, QuantMatrix, Scheme, Sparse};
use crate::weights::DType;

pub use custom::{CustomData, CustomTensor};
pub use parts::quant_tensors;
use parts::{low_rank_parts, quant_parts, sparse_parts, trellis_bits, trellis_parts};

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
    /// Trellis codes.
    Trellis(TrellisMatrix),
    /// Codes of the rotated matrix: a `Quant` or a `Trellis`.
    Rotated(Rotation, Box<TermData>),
    /// Factors.
    LowRank(LowRank),
    /// Entries or columns.
    Sparse(Sparse),
    /// A kind that a plugin defines.
    Custom(CustomData),
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
        /// Blocks along `out` and `in` and the seed, where codes are those of the rotated matrix.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rotation: Option<[u64; 3]>,
    },
    /// Trellis codes.
    Trellis {
        /// Bits of a state.
        states: u8,
        /// As with `Quant`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rotation: Option<[u64; 3]>,
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
    /// A kind that a plugin defines.
    Custom {
        /// Full name of the kind.
        name: String,
        /// Names of its tensors.
        tensors: Vec<String>,
        /// Small constants.
        attrs: Map<String, Value>,
    },
}

/// One tensor of a term, ready to be stored.
pub struct TensorData {
    /// What its name ends in: `codes`, `scales`, `u`, …
    pub suffix: Cow<'static, str>,
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
            suffix: suffix.into(),
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
            TermData::Trellis(t) => t.bytes() as u64,
            TermData::Rotated(_, term) => term.bytes(),
            TermData::LowRank(l) => l.bytes() as u64,
            TermData::Sparse(s) => s.bytes() as u64,
            TermData::Custom(c) => c.bytes() as u64,
        }
    }

    /// Rows and columns of a term whose matrix is in rotated coordinates; of others nobody asks.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            TermData::Quant(q) => (q.rows, q.cols),
            TermData::Trellis(t) => (t.rows, t.cols),
            TermData::Dense { rows, cols, .. } => (*rows, *cols),
            TermData::LowRank(l) => (l.rows, l.cols),
            TermData::Sparse(
                Sparse::Csr { rows, cols, .. } | Sparse::Columns { rows, cols, .. },
            ) => (*rows, *cols),
            TermData::Rotated(_, term) => term.shape(),
            TermData::Custom(c) => (c.rows, c.cols),
        }
    }

    /// Short text for progress lines: `int4`, `r64`, `737 outliers`.
    pub fn label(&self) -> String {
        match self {
            TermData::Dense { dtype, .. } => format!("dense {dtype}"),
            TermData::Quant(q) => format!("int{}", q.scheme.bits),
            TermData::Trellis(t) => format!("t{:.2}", trellis_bits(&t.bits)),
            TermData::Rotated(_, term) => term.label(),
            TermData::LowRank(l) => match l.blocks.as_slice() {
                [one] => format!("r{}", one.rank),
                blocks => format!("{} blocks", blocks.len()),
            },
            TermData::Sparse(Sparse::Csr { values, .. }) => format!("{} outliers", values.len()),
            TermData::Sparse(Sparse::Columns { columns, .. }) => {
                format!("{} columns", columns.len())
            }
            TermData::Custom(c) => c.kind.clone(),
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
                rotation: None,
            }),
            TermData::Trellis(t) => Term::Trellis(TrellisTerm {
                codes: none,
                scales: none,
                bits: none,
                states: t.states_log2,
                rotation: None,
            }),
            TermData::Rotated(rotation, term) => {
                let mut outline = term.outline();
                match &mut outline {
                    Term::Quant(q) => q.rotation = Some(*rotation),
                    Term::Trellis(t) => t.rotation = Some(*rotation),
                    _ => {}
                }
                outline
            }
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
            TermData::Custom(c) => Term::Custom(c.outline()),
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
            let by_rows = matches!(
                spec,
                TermSpec::Quant { .. } | TermSpec::Dense | TermSpec::Custom { .. }
            );
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
            TermData::Trellis(t) => trellis_parts(t),
            TermData::Rotated(rotation, term) => {
                let (mut spec, tensors) = term.into_parts();
                let Rotation {
                    out_block,
                    in_block,
                    seed,
                } = rotation;
                if let TermSpec::Quant { rotation, .. } | TermSpec::Trellis { rotation, .. } =
                    &mut spec
                {
                    *rotation = Some([out_block, in_block, seed]);
                }
                (spec, tensors)
            }
            TermData::LowRank(l) => low_rank_parts(l),
            TermData::Sparse(s) => sparse_parts(s),
            TermData::Custom(c) => c.into_parts(),
        }
    }
}

impl TermSpec {
    /// How many tensors the term is stored in.
    pub fn tensors(&self) -> usize {
        match self {
            TermSpec::Dense => 1,
            TermSpec::Quant { zeros, .. } => 2 + usize::from(*zeros),
            TermSpec::Trellis { .. } => 3,
            TermSpec::LowRank { format, .. } => match format_named(format) {
                Some(f) if f.scheme().is_some() => 4,
                _ => 2,
            },
            TermSpec::Sparse { .. } => 3,
            TermSpec::Columns { .. } => 2,
            TermSpec::Custom { tensors, .. } => tensors.len(),
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
            TermSpec::Trellis { states, rotation } => Term::Trellis(TrellisTerm {
                codes: next()?,
                scales: next()?,
                bits: next()?,
                states: *states,
                rotation: rotation_of(rotation),
            }),
            TermSpec::Quant {
                bits,
                group,
                zeros,
                rotation,
            } => Term::Quant(QuantTerm {
                codes: next()?,
                scales: next()?,
                zeros: if *zeros { Some(next()?) } else { None },
                scheme: Scheme {
                    bits: *bits,
                    symmetric: !zeros,
                },
                group: group.parse().map_err(|e| BadSpec(format!("{e}")))?,
                rotation: rotation_of(rotation),
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
            TermSpec::Custom {
                name,
                tensors,
                attrs,
            } => {
                let named = |tensor: &String| Ok((tensor.clone(), next()?));
                Term::Custom(CustomTerm {
                    kind: name.clone(),
                    tensors: tensors.iter().map(named).collect::<Result<_, BadSpec>>()?,
                    attrs: attrs.clone(),
                })
            }
        })
    }
}

fn rotation_of(stored: &Option<[u64; 3]>) -> Option<Rotation> {
    let of = |[out_block, in_block, seed]: [u64; 3]| Rotation {
        out_block,
        in_block,
        seed,
    };
    stored.map(of)
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
