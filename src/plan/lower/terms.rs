//! What of a matrix one launch can do: its coded or dense term, with low-rank and sparse ones beside it.

use crate::ir::{Graph, Matrix, Module, OpId, OpKind, QuantTerm, Rotation, Term};
use crate::numeric::{FactorFormat, Group};
use crate::plan::PlanError;
use crate::weights::DType;

/// `FORMAT` of linear kernels.
pub(crate) mod format {
    pub(crate) const CODES: i64 = 0;
    pub(crate) const F16: i64 = 1;
    pub(crate) const BF16: i64 = 2;
    pub(crate) const F32: i64 = 3;
    pub(crate) const TRELLIS: i64 = 4;
    pub(crate) const NONE: i64 = 5;
}

/// A term that covers the whole matrix, as defines of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Base {
    /// Index among the matrix's terms; of no meaning where terms are compared.
    pub(crate) term: usize,
    /// `FORMAT`.
    pub(crate) format: i64,
    /// `BITS`: of codes, or of a trellis's states.
    pub(crate) bits: i64,
    /// `GROUP`: weights along `in` that share a scale; 0 for all.
    pub(crate) group: i64,
    /// `ZEROS`
    pub(crate) zeros: bool,
    /// Scales are of columns, and multiply the activations.
    pub(crate) columns: bool,
    /// Coordinates of the codes.
    pub(crate) rotation: Option<Rotation>,
    /// All terms of the matrix multiplied out, as f16.
    pub(crate) merged: bool,
}

impl Base {
    /// Entries in a float format.
    pub(crate) fn dense(term: usize, format: i64) -> Self {
        Self {
            term,
            format,
            bits: 0,
            group: 0,
            zeros: false,
            columns: false,
            rotation: None,
            merged: false,
        }
    }

    /// Whether both can be rows of one launch.
    pub(crate) fn stacks_with(&self, other: &Base) -> bool {
        let plain = |b: &Base| b.rotation.is_none() && !b.columns && b.format != format::TRELLIS;
        let alike = Base { term: 0, ..*self } == Base { term: 0, ..*other };
        alike && plain(self)
    }
}

/// A matrix's terms, by what kernels do with them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Terms {
    /// Terms that cover the whole matrix.
    pub(crate) bases: Vec<Base>,
    /// Low-rank terms.
    pub(crate) low_rank: Vec<usize>,
    /// `VFORMAT` and `UFORMAT`, where there are low-rank terms.
    pub(crate) factors: Option<(i64, i64)>,
    /// Sparse terms and whole columns.
    pub(crate) sparse: Vec<usize>,
    /// Factor on the product.
    pub(crate) scale: f32,
    /// Whether there is a bias.
    pub(crate) bias: bool,
}

impl Terms {
    /// Whether a launch does all of it.
    pub(crate) fn is_plain(&self) -> bool {
        self.bases.len() <= 1 && self.bases.iter().all(|b| b.rotation.is_none())
    }

    /// Why two matrices with one input can't be rows of one launch, if they can't.
    pub(crate) fn differs_from(&self, other: &Terms) -> Option<&'static str> {
        if !self.is_plain() || !other.is_plain() {
            return Some("codes are kept rotated, or there are several such terms");
        }
        match (self.bases.first(), other.bases.first()) {
            (None, None) => {}
            (Some(a), Some(b)) if a.stacks_with(b) => {}
            _ => return Some("their bits, groups or types differ"),
        }
        if self.scale.to_bits() != other.scale.to_bits() {
            return Some("their factors differ");
        }
        match (self.factors, other.factors) {
            (Some(a), Some(b)) if a != b => Some("their low-rank factors have different formats"),
            _ => None,
        }
    }
}

/// The matrix of a linear or an embedding.
pub(crate) fn matrix(graph: &Graph, op: OpId) -> Result<(&Matrix, &str), PlanError> {
    let found = graph.op(op);
    let matrix = found.and_then(|op| Some((op.kind.matrix()?, op.name.as_str())));
    matrix.ok_or_else(|| PlanError::NotLanguageModel(format!("op {op} holds no matrix")))
}

/// Sorts the terms of an op's matrix.
///
/// # Errors
/// A form that no kernel reads.
pub(crate) fn terms(module: &Module, graph: &Graph, op: OpId) -> Result<Terms, PlanError> {
    let (matrix, name) = matrix(graph, op)?;
    let refuse = |problem: String| PlanError::unsupported("linear", name, problem);
    let (scale, bias) = match graph.op(op).map(|op| &op.kind) {
        Some(OpKind::Linear(linear)) => (linear.scale, linear.bias.is_some()),
        _ => (1.0, false),
    };
    let mut found = Terms {
        bases: Vec::new(),
        low_rank: Vec::new(),
        factors: None,
        sparse: Vec::new(),
        scale,
        bias,
    };
    for (index, term) in matrix.terms.iter().enumerate() {
        match term {
            Term::Dense(view) => {
                let dtype = module.weight(view.weight).map_or(DType::F32, |w| w.dtype);
                let format = match dtype {
                    DType::F16 => format::F16,
                    DType::BF16 => format::BF16,
                    _ => format::F32,
                };
                found.bases.push(Base::dense(index, format));
            }
            Term::Quant(q) => found.bases.push(coded(index, q, matrix).map_err(refuse)?),
            Term::Trellis(t) => found.bases.push(Base {
                term: index,
                format: format::TRELLIS,
                bits: i64::from(t.states),
                group: 0,
                zeros: false,
                columns: false,
                rotation: turned(t.rotation),
                merged: false,
            }),
            Term::LowRank(l) => {
                if l.blocks.iter().all(|b| b.rank == 0) {
                    continue;
                }
                let formats = (bits(l.v.format), bits(l.u.format));
                if *found.factors.get_or_insert(formats) != formats {
                    return Err(refuse(
                        "two low-rank terms have factors of different formats, which has no kernel; use one `factors=`"
                            .to_string(),
                    ));
                }
                found.low_rank.push(index);
            }
            Term::Sparse(s) if s.nnz == 0 => {}
            Term::Columns(c) if c.count == 0 => {}
            Term::Sparse(_) | Term::Columns(_) => found.sparse.push(index),
            Term::Custom(c) => {
                let what = "are their plugin's, which gives no kernel for devices; use a built-in quantizer";
                return Err(refuse(format!("terms of the kind {} {what}", c.kind)));
            }
        }
    }
    merge(module, matrix, &mut found);
    Ok(found)
}

/// Multiplies factors out where the matrix itself, as f16, takes no more bytes: a launch takes at least the
/// time of its bytes, and terms beside a base take more.
fn merge(module: &Module, matrix: &Matrix, found: &mut Terms) {
    let as_halves = matrix.entries().saturating_mul(2);
    let gains = as_halves <= matrix.bytes(&module.weights);
    if found.low_rank.is_empty() || !found.is_plain() || !gains {
        return;
    }
    found.bases = vec![Base {
        merged: true,
        ..Base::dense(0, format::F16)
    }];
    found.low_rank.clear();
    found.factors = None;
    found.sparse.clear();
}

/// A rotation that turns something.
fn turned(rotation: Option<Rotation>) -> Option<Rotation> {
    rotation.filter(|r| r.in_block > 1 || r.out_block > 1)
}

/// `VFORMAT` and `UFORMAT`.
fn bits(format: FactorFormat) -> i64 {
    match format {
        FactorFormat::F32 => 32,
        FactorFormat::F16 => 16,
        FactorFormat::Int8 => 8,
        FactorFormat::Int4 => 4,
    }
}

fn coded(term: usize, q: &QuantTerm, matrix: &Matrix) -> Result<Base, String> {
    let (group, columns) = match q.group {
        Group::Row => (0, false),
        Group::Column => (0, true),
        Group::Size(n) if u64::from(n) >= matrix.in_features => (0, false),
        Group::Size(n @ (32 | 64 | 128 | 256)) => (i64::from(n), false),
        Group::Size(n) => {
            return Err(format!(
                "groups of {n} have no kernel: quantize in groups of 32, 64, 128 or 256, or by rows"
            ));
        }
    };
    if columns && !q.scheme.symmetric {
        return Err(
            "zero points of columns have no kernel: quantize symmetrically, or in groups of 32"
                .to_string(),
        );
    }
    Ok(Base {
        term,
        format: format::CODES,
        bits: i64::from(q.scheme.bits),
        group,
        zeros: !q.scheme.symmetric,
        columns,
        rotation: turned(q.rotation),
        merged: false,
    })
}
