//! Ops: the transformer set, and every other ONNX node kept whole.

use serde::{Deserialize, Serialize};

use super::{Attrs, Grad, Matrix, Region, ValueId, WeightId};

/// One operation of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Op {
    /// The source's name for it; may be empty.
    pub name: String,
    /// What it computes.
    pub kind: OpKind,
    /// What it computes from. A linear's weights are in its terms, not here.
    pub inputs: Vec<Operand>,
    /// What it makes; `None` for an optional ONNX output that is left out.
    pub results: Vec<Option<ValueId>>,
    /// Documentation, metadata and encoding of the source.
    pub meta: Attrs,
}

/// An input of an op, or an output of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// `_`: an optional input that is left out.
    None,
    /// `%x`
    Value(ValueId),
    /// `@w`
    Weight(WeightId),
}

/// What an op computes.
#[derive(Clone, Debug, PartialEq)]
pub enum OpKind {
    /// `y = (Σ terms) x + bias`
    Linear(Linear),
    /// `y = row x of (Σ terms)`
    Embedding(Embedding),
    /// `y = Σ over the chosen experts of weight · expert(x)`
    Moe(Moe),
    /// The rest of the transformer set.
    Native(Native),
    /// `loss.<name>`, `grad.<name>`: what training needs.
    Grad(Box<Grad>),
    /// `onnx.<Name>`: any ONNX node.
    Onnx(OnnxOp),
}

/// A linear map of activations.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// The matrix, `[out, in]`.
    pub matrix: Matrix,
    /// `[out]`, added to the result.
    pub bias: Option<WeightId>,
    /// Which axis of the activation is contracted.
    pub layout: Layout,
    /// The product is multiplied by this before the bias is added (Gemm's alpha).
    pub scale: f32,
    /// What it is in the model; passes leave some roles alone unless a scope names them.
    pub role: Role,
}

/// A table of vectors, one per row.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The table, `[entries, width]`.
    pub matrix: Matrix,
}

/// A mixture of experts. Inputs: activations `[B,S,width]` and router logits `[B,S,experts]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// How many experts a token is sent to.
    pub top_k: u32,
    /// Whether the chosen experts' probabilities are scaled to sum to one.
    pub normalize: bool,
    /// One region per expert: tokens `[N,width]` to tokens `[N,width]`.
    pub experts: Vec<Region>,
}

/// Any ONNX node, verbatim.
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxOp {
    /// Operator-set domain; empty for the standard one.
    pub domain: String,
    /// Operator name.
    pub op_type: String,
    /// Overload of a model-local function; usually empty.
    pub overload: String,
    /// Attributes in the source's order.
    pub attrs: Attrs,
}

/// Which axis of the activation a linear contracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Layout {
    /// The last: `y[…,o] = Σ_i x[…,i] W[o,i]`.
    #[default]
    Rows,
    /// The last but one: `y[…,o,n] = Σ_i W[o,i] x[…,i,n]` (weight on the left).
    Columns,
    /// The second: `y[b,o,…] = Σ_i W[o,i] x[b,i,…]`, of so many spatial axes (1×1 convolution).
    Channels(u8),
}

/// What a matrix is in its model.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A body linear: compressed by default.
    #[default]
    Linear,
    /// A linear inside an expert: compressed by default.
    Expert,
    /// A table of vectors: left alone unless a scope names it.
    Embedding,
    /// The output projection to the vocabulary: left alone unless a scope names it.
    Head,
    /// The router of a mixture of experts: left alone unless a scope names it.
    Router,
}

impl Role {
    /// The role's name in text.
    pub fn name(self) -> &'static str {
        match self {
            Role::Linear => "linear",
            Role::Expert => "expert",
            Role::Embedding => "embedding",
            Role::Head => "head",
            Role::Router => "router",
        }
    }

    /// The role called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Role::Linear,
            Role::Expert,
            Role::Embedding,
            Role::Head,
            Role::Router,
        ]
        .into_iter()
        .find(|r| r.name() == name)
    }
}

/// Activation functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x·σ(x)
    Silu,
    /// x·Φ(x), by the error function
    Gelu,
    /// x·Φ(x), by the tanh approximation
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// tanh(x)
    Tanh,
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Positions divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Base grows with the length beyond `original_context` (NTK-aware).
    Dynamic {
        /// Stretch.
        factor: f64,
        /// Context of the original training, tokens.
        original_context: u64,
    },
    /// Per-frequency ramp between stretched and original (Llama 3.1).
    Llama3 {
        /// Stretch of low frequencies.
        factor: f64,
        /// Wavelengths above context/this are stretched.
        low_freq_factor: f64,
        /// Wavelengths below context/this are kept.
        high_freq_factor: f64,
        /// Context of the original training, tokens.
        original_context: u64,
    },
    /// Ramp between interpolation and extrapolation (arXiv 2309.00071).
    Yarn {
        /// Stretch.
        factor: f64,
        /// Ramp start, in rotations.
        beta_fast: f64,
        /// Ramp end, in rotations.
        beta_slow: f64,
        /// Context of the original training, tokens.
        original_context: u64,
        /// Factor on cos and sin.
        attention_factor: f64,
    },
}

/// The transformer set, apart from linear, embedding and mixture of experts.
///
/// Activations are `[B,S,width]`; heads are slices of the width, so no reshape is needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Native {
    /// `x / sqrt(mean(x²) + eps) · gain`; inputs x, gain.
    RmsNorm {
        /// Added to the mean square.
        eps: f64,
        /// The stored gain is gain − 1 (Gemma).
        #[serde(default, skip_serializing_if = "is_false")]
        unit_offset: bool,
        /// Normalise each slice of this width by itself (per-head norms).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slice: Option<u64>,
    },
    /// `(x − mean) / sqrt(var + eps) · gain + bias`; inputs x, gain, bias.
    LayerNorm {
        /// Added to the variance.
        eps: f64,
    },
    /// Rotary position embedding of each head; inputs x `[B,S,heads·head_dim]`, positions `[B,S]`.
    Rope {
        /// Number of heads.
        heads: u64,
        /// Width of a head.
        head_dim: u64,
        /// How many of a head's dimensions are rotated.
        rotary_dim: u64,
        /// Base of the frequencies.
        theta: f64,
        /// Pairs are neighbours (i, i+1) instead of halves (i, i + rotary_dim/2).
        #[serde(default, skip_serializing_if = "is_false")]
        interleaved: bool,
        /// Long-context stretching.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scaling: Option<RopeScaling>,
    },
    /// Softmax attention; inputs q, k, v, and a key mask `[B,S]` (1 = attend) or `_`.
    Attention {
        /// Query heads.
        heads: u64,
        /// Key and value heads.
        kv_heads: u64,
        /// Width of a head.
        head_dim: u64,
        /// Factor on q·k.
        scale: f64,
        /// Whether a position sees only itself and earlier ones.
        causal: bool,
        /// A position sees at most this many latest positions, itself included.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window: Option<u64>,
        /// Scores pass through c·tanh(s/c).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        softcap: Option<f64>,
        /// Which slot of the KV cache this layer owns; absent for encoders.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cache: Option<u64>,
    },
    /// An activation function of x.
    Activate {
        /// Which.
        function: Activation,
    },
    /// x + y
    Add,
    /// x · y
    Mul,
    /// x · factor, or x · @w where a second input is given.
    Scale {
        /// The factor.
        factor: f64,
    },
    /// cap·tanh(x/cap)
    Softcap {
        /// The cap.
        cap: f64,
    },
    /// A rotation of the last axis, as of terms in rotated coordinates: `R x`, R = H·diag(s), H of
    /// orthonormal Walsh–Hadamard blocks.
    Hadamard {
        /// Size of the blocks: a power of two, at most 512, that divides the width.
        block: u64,
        /// Where the signs s come from.
        seed: u64,
        /// Rᵀ x instead.
        #[serde(default, skip_serializing_if = "is_false")]
        inverse: bool,
    },
    /// The columns `start .. start + width` of the last axis.
    Slice {
        /// First column.
        start: u64,
        /// Number of columns.
        width: u64,
    },
    /// The positions `[B,S]` of the token ids given: their index in the sequence plus the cache's length.
    Positions,
    /// The first token's vector, `[B,width]`.
    FirstToken,
}

fn is_false(b: &bool) -> bool {
    !b
}

impl Native {
    /// The op's name in text.
    pub fn name(&self) -> &'static str {
        match self {
            Native::RmsNorm { .. } => "rms_norm",
            Native::LayerNorm { .. } => "layer_norm",
            Native::Rope { .. } => "rope",
            Native::Attention { .. } => "attention",
            Native::Activate { .. } => "activate",
            Native::Add => "add",
            Native::Mul => "mul",
            Native::Scale { .. } => "scale",
            Native::Softcap { .. } => "softcap",
            Native::Hadamard { .. } => "hadamard",
            Native::Slice { .. } => "slice",
            Native::Positions => "positions",
            Native::FirstToken => "first_token",
        }
    }

    /// How many inputs the op takes: least and most.
    pub fn arity(&self) -> (usize, usize) {
        match self {
            Native::RmsNorm { .. } => (2, 2),
            Native::LayerNorm { .. } => (2, 3),
            Native::Rope { .. } => (2, 2),
            Native::Attention { .. } => (3, 4),
            Native::Add | Native::Mul => (2, 2),
            Native::Activate { .. }
            | Native::Scale { .. }
            | Native::Softcap { .. }
            | Native::Hadamard { .. }
            | Native::Slice { .. }
            | Native::Positions
            | Native::FirstToken => (1, 1),
        }
    }
}

impl OpKind {
    /// The matrix of a linear or an embedding.
    pub fn matrix(&self) -> Option<&Matrix> {
        match self {
            OpKind::Linear(l) => Some(&l.matrix),
            OpKind::Embedding(e) => Some(&e.matrix),
            _ => None,
        }
    }

    /// The matrix of a linear or an embedding, to be changed.
    pub fn matrix_mut(&mut self) -> Option<&mut Matrix> {
        match self {
            OpKind::Linear(l) => Some(&mut l.matrix),
            OpKind::Embedding(e) => Some(&mut e.matrix),
            _ => None,
        }
    }

    /// The regions that the op holds, in order.
    pub fn regions(&self) -> Vec<&Region> {
        match self {
            OpKind::Moe(moe) => moe.experts.iter().collect(),
            OpKind::Grad(grad) => grad.experts.iter().collect(),
            OpKind::Onnx(op) => op.attrs.regions(),
            _ => Vec::new(),
        }
    }

    /// The regions that the op holds, to be changed.
    pub fn regions_mut(&mut self) -> Vec<&mut Region> {
        match self {
            OpKind::Moe(moe) => moe.experts.iter_mut().collect(),
            OpKind::Grad(grad) => grad.experts.iter_mut().collect(),
            OpKind::Onnx(op) => op.attrs.regions_mut(),
            _ => Vec::new(),
        }
    }
}

impl Op {
    /// Every weight that the op refers to: operands, terms, bias, attributes, metadata.
    pub fn weights(&self) -> Vec<WeightId> {
        let operand = |o: &Operand| match o {
            Operand::Weight(id) => Some(*id),
            _ => None,
        };
        let mut found: Vec<WeightId> = self.inputs.iter().filter_map(operand).collect();
        if let Some(matrix) = self.kind.matrix() {
            found.extend(matrix.terms.iter().flat_map(super::Term::weights));
        }
        match &self.kind {
            OpKind::Linear(linear) => found.extend(linear.bias),
            OpKind::Grad(grad) => {
                let terms = grad.matrix.iter().flat_map(|matrix| &matrix.terms);
                found.extend(terms.flat_map(super::Term::weights));
            }
            OpKind::Onnx(onnx) => found.extend(onnx.attrs.weights()),
            _ => {}
        }
        found.extend(self.meta.weights());
        found
    }

    /// An op with one result and no name.
    pub fn new(kind: OpKind, inputs: Vec<Operand>, result: ValueId) -> Self {
        Self {
            name: String::new(),
            kind,
            inputs,
            results: vec![Some(result)],
            meta: Attrs::new(),
        }
    }
}
