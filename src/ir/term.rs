//! Terms: what a linear's matrix is the sum of.

use serde_json::{Map, Value};

use super::{Weight, WeightId};
use crate::numeric::{Block, FactorFormat, Group, Scheme};

/// A matrix `[out, in]` as a sum of terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Rows: output features (of an embedding: entries of the vocabulary).
    pub out_features: u64,
    /// Columns: input features (of an embedding: the width of a vector).
    pub in_features: u64,
    /// The terms, in the order in which passes made them. An empty sum is the zero matrix.
    pub terms: Vec<Term>,
}

/// One summand of a matrix `[out, in]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Term {
    /// `dense(@w)`: all entries.
    Dense(WeightView),
    /// `quant(@codes, @scales, int4, group=32)`: `(q − z)·s` with a scale per group.
    Quant(QuantTerm),
    /// `trellis(@codes, @scales, @bits, states=12)`: tail-biting trellis codes in tiles of 16 × 16.
    Trellis(TrellisTerm),
    /// `low_rank(@u, @v, r=16)`: Σ over blocks of U_b·V_b.
    LowRank(LowRankTerm),
    /// `sparse(@values, @columns, @offsets, nnz=737)`: entries in CSR form.
    Sparse(SparseTerm),
    /// `columns(@columns, @values, count=4)`: whole columns.
    Columns(ColumnsTerm),
    /// `kmeans4.codebook(codes=@c, values=@v, {entries=16})`: a kind that a plugin defines.
    Custom(CustomTerm),
}

/// A matrix inside a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightView {
    /// The tensor.
    pub weight: WeightId,
    /// Which matrix of a stack, where the tensor has three dimensions (stacked experts).
    pub index: Option<u64>,
    /// Whether it is stored as `[in, out]`.
    pub transposed: bool,
}

/// Codes with group scales.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantTerm {
    /// Packed unsigned codes, `u8[out, ceil(in·bits/8)]`.
    pub codes: WeightId,
    /// Scales, `f16[out, groups]`, or `f16[in]` for `group=column`.
    pub scales: WeightId,
    /// Packed zero points, `u8[out, ceil(groups·bits/8)]`; absent for symmetric schemes.
    pub zeros: Option<WeightId>,
    /// Bits and symmetry.
    pub scheme: Scheme,
    /// Which entries share a scale.
    pub group: Group,
    /// The coordinates in which codes are kept, where they are not the matrix's own.
    pub rotation: Option<Rotation>,
}

/// Trellis codes of 16 × 16 tiles.
#[derive(Clone, Debug, PartialEq)]
pub struct TrellisTerm {
    /// `u8[ceil(out/16), row bytes]`: for each 16 rows the tiles along `in`, 32·K bytes each.
    pub codes: WeightId,
    /// `f16[ceil(out/16)]`: one per 16 rows.
    pub scales: WeightId,
    /// `u8[ceil(in/16)]`: bits per weight, K, of each 16 columns.
    pub bits: WeightId,
    /// Bits of a state, 8 to 16: the trellis has 2^states of them.
    pub states: u8,
    /// The coordinates in which codes are kept.
    pub rotation: Option<Rotation>,
}

/// A block Hadamard rotation with random signs on both sides of a matrix.
///
/// With `R = H·diag(s)`, H orthonormal and block-diagonal, codes are those of `R_out · W · R_inᵀ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rotation {
    /// Size of the blocks along `out`, a power of two that divides it; 1: this side is not rotated.
    pub out_block: u64,
    /// Size of the blocks along `in`.
    pub in_block: u64,
    /// Where the signs come from.
    pub seed: u64,
}

impl Rotation {
    /// The largest block.
    pub const MAX_BLOCK: u64 = 512;

    /// Whether its blocks are powers of two that divide a matrix's sides, and none is too large.
    pub fn fits(&self, out_features: u64, in_features: u64) -> bool {
        let fits = |n: u64, block: u64| {
            block.is_power_of_two() && block <= Self::MAX_BLOCK && n.is_multiple_of(block)
        };
        fits(out_features, self.out_block) && fits(in_features, self.in_block)
    }
}

/// A sum of low-rank blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankTerm {
    /// Where each block stands and its rank; plain SVD is one block that covers all.
    pub blocks: Vec<Block>,
    /// All U_b `[rows, rank]`, one after the other.
    pub u: FactorRef,
    /// All V_b `[rank, cols]`, one after the other.
    pub v: FactorRef,
}

/// A stored factor.
#[derive(Clone, Debug, PartialEq)]
pub struct FactorRef {
    /// How the entries are stored.
    pub format: FactorFormat,
    /// Entries or packed codes.
    pub data: WeightId,
    /// Group scales of integer formats.
    pub scales: Option<WeightId>,
}

/// Entries in compressed sparse rows.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseTerm {
    /// `f16[nnz]`
    pub values: WeightId,
    /// `u16[nnz]`, or `u32[nnz]` where `in` > 65536.
    pub columns: WeightId,
    /// `u32[out + 1]`
    pub offsets: WeightId,
    /// Number of entries.
    pub nnz: u64,
}

/// Whole columns.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnsTerm {
    /// `u32[count]`, ascending.
    pub columns: WeightId,
    /// `f16[out, count]`
    pub values: WeightId,
    /// Number of columns.
    pub count: u64,
}

/// A term of a kind that a plugin defines. Nothing but the plugin knows what it means; its bytes, its
/// text and its place in files need nobody.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomTerm {
    /// The plugin's name, a dot, and the plugin's name for the kind: `kmeans4.codebook`.
    pub kind: String,
    /// Its tensors by name, in the plugin's order.
    pub tensors: Vec<(String, WeightId)>,
    /// Small constants.
    pub attrs: Map<String, Value>,
}

/// Whether `kind` can be the name of a plugin's kind of term: two words of letters, digits and `_` with a
/// dot between them, each starting with a letter. Names of built-in kinds have no dot.
pub fn is_custom_kind(kind: &str) -> bool {
    kind.split_once('.')
        .is_some_and(|(plugin, kind)| is_word(plugin) && is_word(kind))
}

/// Whether `text` is a word of letters, digits and `_` that starts with a letter.
pub fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl WeightView {
    /// The whole of a two-dimensional tensor stored as `[out, in]`.
    pub fn whole(weight: WeightId) -> Self {
        Self {
            weight,
            index: None,
            transposed: false,
        }
    }
}

impl Matrix {
    /// A matrix that is one dense tensor.
    pub fn dense(out_features: u64, in_features: u64, view: WeightView) -> Self {
        Self {
            out_features,
            in_features,
            terms: vec![Term::Dense(view)],
        }
    }

    /// The dense term, if there is one.
    pub fn dense_view(&self) -> Option<&WeightView> {
        self.terms.iter().find_map(|t| match t {
            Term::Dense(view) => Some(view),
            _ => None,
        })
    }

    /// Number of entries of the matrix.
    pub fn entries(&self) -> u64 {
        self.out_features.saturating_mul(self.in_features)
    }

    /// Bytes of all terms. A stack's or shared tensor's share is that of one matrix.
    pub fn bytes(&self, weights: &[Weight]) -> u64 {
        self.terms.iter().map(|t| t.bytes(self, weights)).sum()
    }
}

impl Term {
    /// Every weight that the term refers to.
    pub fn weights(&self) -> Vec<WeightId> {
        match self {
            Term::Dense(v) => vec![v.weight],
            Term::Quant(q) => [Some(q.codes), Some(q.scales), q.zeros]
                .into_iter()
                .flatten()
                .collect(),
            Term::Trellis(t) => vec![t.codes, t.scales, t.bits],
            Term::LowRank(l) => [Some(l.u.data), l.u.scales, Some(l.v.data), l.v.scales]
                .into_iter()
                .flatten()
                .collect(),
            Term::Sparse(s) => vec![s.values, s.columns, s.offsets],
            Term::Columns(c) => vec![c.columns, c.values],
            Term::Custom(c) => c.tensors.iter().map(|(_, id)| *id).collect(),
        }
    }

    /// Calls `f` on every weight that the term refers to, so that ids can be changed.
    pub fn for_each_weight(&mut self, mut f: impl FnMut(&mut WeightId)) {
        match self {
            Term::Dense(v) => f(&mut v.weight),
            Term::Quant(q) => {
                f(&mut q.codes);
                f(&mut q.scales);
                q.zeros.iter_mut().for_each(f);
            }
            Term::Trellis(t) => {
                f(&mut t.codes);
                f(&mut t.scales);
                f(&mut t.bits);
            }
            Term::LowRank(l) => {
                for factor in [&mut l.u, &mut l.v] {
                    f(&mut factor.data);
                    factor.scales.iter_mut().for_each(&mut f);
                }
            }
            Term::Sparse(s) => {
                f(&mut s.values);
                f(&mut s.columns);
                f(&mut s.offsets);
            }
            Term::Columns(c) => {
                f(&mut c.columns);
                f(&mut c.values);
            }
            Term::Custom(c) => c.tensors.iter_mut().for_each(|(_, id)| f(id)),
        }
    }

    /// Bytes of the term's data: codes, scales, zero points, factors, indices.
    pub fn bytes(&self, matrix: &Matrix, weights: &[Weight]) -> u64 {
        let of = |id: WeightId| weights.get(id.index()).map_or(0, Weight::bytes);
        match self {
            Term::Dense(v) => weights
                .get(v.weight.index())
                .and_then(|w| w.dtype.bytes_for(matrix.entries()))
                .unwrap_or(0),
            other => other.weights().into_iter().map(of).sum(),
        }
    }

    /// The rotation in whose coordinates the term is kept, if it is kept in others than the matrix's.
    pub fn rotation(&self) -> Option<Rotation> {
        match self {
            Term::Quant(q) => q.rotation,
            Term::Trellis(t) => t.rotation,
            _ => None,
        }
    }

    /// The term's name in text.
    pub fn name(&self) -> &str {
        match self {
            Term::Dense(_) => "dense",
            Term::Quant(_) => "quant",
            Term::Trellis(_) => "trellis",
            Term::LowRank(_) => "low_rank",
            Term::Sparse(_) => "sparse",
            Term::Columns(_) => "columns",
            Term::Custom(c) => &c.kind,
        }
    }
}
