//! Ops of training: losses, and the ops of which backward graphs are made.
//!
//! `dy` is the gradient of the loss by an op's result. The gradient of a native op is one op,
//! `grad.<name>`, with the native's own fields: it takes `dy` and the native's inputs (`_` for one
//! that it does not need), and makes the gradient by each of them (`_` for one that nobody wants).
//! Gradients of matrices are made in steps: the gradient by the whole matrix, `grad.outer` or
//! `grad.scatter`, turned into a term's coordinates by `grad.rotate`, then by what the term stores,
//! `grad.term`. Gradients by stored codes, factors and scales are by their decoded values.

use serde::{Deserialize, Serialize};

use super::{Matrix, Native, Region, Term, Weight, WeightId};

/// An op of training.
#[derive(Clone, Debug, PartialEq)]
pub struct Grad {
    /// What it computes.
    pub kind: GradKind,
    /// The matrix whose terms it reads, where it does: of `grad.term` the one term alone.
    pub matrix: Option<Matrix>,
    /// Of `grad.moe`, one region per expert: tokens `[N,width]` and `dy` `[N,width]` to the expert's
    /// result, the gradient by its tokens, and gradients by its parameters.
    pub experts: Vec<Region>,
}

/// What an op of training computes.
#[derive(Clone, Debug, PartialEq)]
pub enum GradKind {
    /// The gradient of a native op.
    Of(Native),
    /// The rest.
    Op(Training),
}

/// Losses, their gradients, and gradients around matrices. A loss is a scalar `Σ_t w_t · loss_t` over
/// tokens; weights `[…]` are one per token, and a token of weight 0 is not looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum Training {
    /// `−ln p(label)`; inputs logits `[…,V]`, labels `[…]`, weights `[…]`.
    #[serde(rename = "loss.cross_entropy")]
    CrossEntropy,
    /// `KL(teacher ‖ model)`; inputs logits `[…,V]`, the teacher's logits `[…,V]`, weights `[…]`.
    #[serde(rename = "loss.kl")]
    Kl,
    /// KL over the teacher's k likeliest tokens and one class for all others; inputs logits `[…,V]`,
    /// token ids `[…,k]`, their log-probabilities `[…,k]`, weights `[…]`.
    #[serde(rename = "loss.top_kl")]
    TopKl,
    /// `mean_i (y_i − target_i)²`; inputs y `[…,width]`, target `[…,width]`, weights `[…]`.
    #[serde(rename = "loss.mean_square")]
    MeanSquare,
    /// The gradient of `loss.cross_entropy` by the logits; inputs as there.
    #[serde(rename = "grad.cross_entropy")]
    CrossEntropyGrad,
    /// The gradient of `loss.kl` by the logits; inputs as there.
    #[serde(rename = "grad.kl")]
    KlGrad,
    /// The gradient of `loss.top_kl` by the logits; inputs as there.
    #[serde(rename = "grad.top_kl")]
    TopKlGrad,
    /// The gradient of `loss.mean_square` by y; inputs as there.
    #[serde(rename = "grad.mean_square")]
    MeanSquareGrad,
    /// `dx = scale · (Σ terms)ᵀ dy`, of a linear along the last axis.
    #[serde(rename = "grad.linear")]
    Linear {
        /// The linear's factor.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        scale: f64,
    },
    /// `dW = scale · Σ_t dy_t x_tᵀ`, `[out,in]`; inputs dy, x.
    #[serde(rename = "grad.outer")]
    Outer {
        /// The linear's factor.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        scale: f64,
    },
    /// `dW`, `[entries,width]`, of a table of vectors; inputs dy, ids.
    #[serde(rename = "grad.scatter")]
    Scatter {
        /// Rows of the table.
        entries: u64,
    },
    /// `R_out dW R_inᵀ`: the gradient in the coordinates of a rotated term.
    #[serde(rename = "grad.rotate")]
    Rotate {
        /// Blocks along `out`.
        out: u64,
        /// Blocks along `in`.
        r#in: u64,
        /// Where the signs come from.
        seed: u64,
    },
    /// From the gradient by a matrix, in the term's coordinates, to that by a part of the term.
    #[serde(rename = "grad.term")]
    Term {
        /// Which part.
        of: Part,
    },
    /// The gradients by U and V of a low-rank term, through its factors; inputs dy, x.
    #[serde(rename = "grad.factors")]
    Factors {
        /// The linear's factor.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        scale: f64,
    },
    /// `Σ_t dy_t`, `[width]`: the gradient by a bias.
    #[serde(rename = "grad.sum_rows")]
    SumRows,
    /// The gradient of a mixture of experts, routes held; inputs dy, x, router logits. Results: dx, the
    /// gradient by the logits, then what the experts' regions make beyond two, expert by expert.
    #[serde(rename = "grad.moe")]
    Moe {
        /// How many experts a token is sent to.
        top_k: u32,
        /// Whether the chosen experts' probabilities are scaled to sum to one.
        normalize: bool,
    },
}

/// What of a term a gradient is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum Part {
    /// The entries of a dense term, as they are stored (transposed, if they are).
    Dense,
    /// Scales of codes, in their stored shape.
    Scales,
    /// Zero points, one per group.
    Zeros,
    /// The decoded matrix of codes: what codes would move along.
    Codes,
    /// Entries of a sparse term, or of whole columns.
    Values,
    /// All U_b, one after the other.
    U,
    /// All V_b, one after the other.
    V,
    /// A tensor of a term of a plugin's kind, by its place in the term.
    Tensor(u8),
}

/// Names of tensors by their places; terms with more have no gradients by the others.
const TENSORS: [&str; 8] = [
    "tensor0", "tensor1", "tensor2", "tensor3", "tensor4", "tensor5", "tensor6", "tensor7",
];

impl From<Part> for &'static str {
    fn from(part: Part) -> Self {
        part.name()
    }
}

impl TryFrom<String> for Part {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        use Part::{Codes, Dense, Scales, U, V, Values, Zeros};
        let tensors = (0..TENSORS.len() as u8).map(Part::Tensor);
        let mut all = [Dense, Scales, Zeros, Codes, Values, U, V]
            .into_iter()
            .chain(tensors);
        let found = all.find(|part| part.name() == name);
        found.ok_or_else(|| format!("`{name}` is no part of a term"))
    }
}

fn one() -> f64 {
    1.0
}

fn is_one(x: &f64) -> bool {
    *x == 1.0
}

impl Part {
    /// The part's name in text.
    pub fn name(self) -> &'static str {
        match self {
            Part::Dense => "dense",
            Part::Scales => "scales",
            Part::Zeros => "zeros",
            Part::Codes => "codes",
            Part::Values => "values",
            Part::U => "u",
            Part::V => "v",
            Part::Tensor(at) => TENSORS.get(usize::from(at)).copied().unwrap_or("tensor"),
        }
    }

    /// The parts of a term, and the weight that each is stored in.
    pub fn of(term: &Term) -> Vec<(Part, WeightId)> {
        match term {
            Term::Dense(view) => vec![(Part::Dense, view.weight)],
            Term::Quant(q) => {
                let zeros = q.zeros.map(|zeros| (Part::Zeros, zeros));
                let parts = [(Part::Scales, q.scales), (Part::Codes, q.codes)];
                parts.into_iter().chain(zeros).collect()
            }
            Term::Trellis(t) => vec![(Part::Scales, t.scales), (Part::Codes, t.codes)],
            Term::LowRank(l) => vec![(Part::U, l.u.data), (Part::V, l.v.data)],
            Term::Sparse(s) => vec![(Part::Values, s.values)],
            Term::Columns(c) => vec![(Part::Values, c.values)],
            // Which of them have gradients, their plugin says.
            Term::Custom(c) => {
                let tensors = c.tensors.iter().zip(0..TENSORS.len() as u8);
                tensors
                    .map(|((_, id), at)| (Part::Tensor(at), *id))
                    .collect()
            }
        }
    }

    /// Number of values that the part of a term of `matrix` has.
    pub fn len(self, matrix: &Matrix, term: &Term, weights: &[Weight]) -> u64 {
        let stored = |id: WeightId| {
            let weight = weights.get(id.index());
            weight.and_then(Weight::elements).unwrap_or(0)
        };
        match (self, term) {
            (Part::Dense | Part::Codes, _) => matrix.entries(),
            (Part::Scales, Term::Quant(q)) => stored(q.scales),
            (Part::Zeros, Term::Quant(q)) => stored(q.scales),
            (Part::Scales, Term::Trellis(t)) => stored(t.scales),
            (Part::Values, Term::Sparse(s)) => s.nnz,
            (Part::Values, Term::Columns(c)) => c.count.saturating_mul(matrix.out_features),
            (Part::U, Term::LowRank(l)) => l.blocks.iter().map(|b| (b.rows * b.rank) as u64).sum(),
            (Part::V, Term::LowRank(l)) => l.blocks.iter().map(|b| (b.rank * b.cols) as u64).sum(),
            (Part::Tensor(at), Term::Custom(c)) => c
                .tensors
                .get(usize::from(at))
                .map_or(0, |(_, id)| stored(*id)),
            _ => 0,
        }
    }
}

impl Training {
    /// The op's name in text.
    pub fn name(&self) -> &'static str {
        match self {
            Training::CrossEntropy => "loss.cross_entropy",
            Training::Kl => "loss.kl",
            Training::TopKl => "loss.top_kl",
            Training::MeanSquare => "loss.mean_square",
            Training::CrossEntropyGrad => "grad.cross_entropy",
            Training::KlGrad => "grad.kl",
            Training::TopKlGrad => "grad.top_kl",
            Training::MeanSquareGrad => "grad.mean_square",
            Training::Linear { .. } => "grad.linear",
            Training::Outer { .. } => "grad.outer",
            Training::Scatter { .. } => "grad.scatter",
            Training::Rotate { .. } => "grad.rotate",
            Training::Term { .. } => "grad.term",
            Training::Factors { .. } => "grad.factors",
            Training::SumRows => "grad.sum_rows",
            Training::Moe { .. } => "grad.moe",
        }
    }

    /// Numbers of inputs and of results; of `grad.moe`, the least number of results.
    pub fn arity(&self) -> (usize, usize) {
        match self {
            Training::CrossEntropy | Training::Kl | Training::MeanSquare => (3, 1),
            Training::CrossEntropyGrad | Training::KlGrad | Training::MeanSquareGrad => (3, 1),
            Training::TopKl | Training::TopKlGrad => (4, 1),
            Training::Linear { .. } | Training::Rotate { .. } | Training::Term { .. } => (1, 1),
            Training::SumRows => (1, 1),
            Training::Outer { .. } | Training::Scatter { .. } => (2, 1),
            Training::Factors { .. } => (2, 2),
            Training::Moe { .. } => (3, 2),
        }
    }

    /// Whether it reads a matrix.
    pub fn has_matrix(&self) -> bool {
        matches!(
            self,
            Training::Linear { .. } | Training::Term { .. } | Training::Factors { .. }
        )
    }

    /// Whether it is a loss.
    pub fn is_loss(&self) -> bool {
        self.gradient().is_some()
    }

    /// The gradient of a loss by its first input.
    pub fn gradient(&self) -> Option<Training> {
        Some(match self {
            Training::CrossEntropy => Training::CrossEntropyGrad,
            Training::Kl => Training::KlGrad,
            Training::TopKl => Training::TopKlGrad,
            Training::MeanSquare => Training::MeanSquareGrad,
            _ => return None,
        })
    }
}

impl Grad {
    /// An op that reads no matrix.
    pub fn op(training: Training) -> Self {
        Self {
            kind: GradKind::Op(training),
            matrix: None,
            experts: Vec::new(),
        }
    }

    /// An op that reads a matrix.
    pub fn with_matrix(training: Training, matrix: Matrix) -> Self {
        Self {
            matrix: Some(matrix),
            ..Self::op(training)
        }
    }

    /// The gradient of a native op.
    pub fn of(native: Native) -> Self {
        Self {
            kind: GradKind::Of(native),
            matrix: None,
            experts: Vec::new(),
        }
    }

    /// The op's name in text.
    pub fn name(&self) -> String {
        match &self.kind {
            GradKind::Of(native) => format!("grad.{}", native.name()),
            GradKind::Op(training) => training.name().to_string(),
        }
    }

    /// Inputs of the gradient of a native op with `inputs` inputs, and its results.
    pub fn native_results(native: &Native) -> usize {
        match native {
            Native::LayerNorm { .. } | Native::Attention { .. } => 3,
            Native::RmsNorm { .. } | Native::Add | Native::Mul => 2,
            _ => 1,
        }
    }
}
