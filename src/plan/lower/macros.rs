//! What a graph is made of, one level above launches: slots of activations, and what fills them.

use std::ops::Range;

use crate::ir::{Activation, OpId, RopeScaling, WeightId};
use crate::numeric::hadamard::Rotation;

/// A value that launches hand on: `[tokens, width]` in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot(pub(crate) usize);

/// What a slot holds.
#[derive(Clone, Debug)]
pub(crate) struct SlotInfo {
    /// For the names of buffers.
    pub(crate) name: String,
    /// Columns, padding included.
    pub(crate) width: u64,
    /// Rows per token: more than one for the chosen experts of each.
    pub(crate) rows: u64,
}

/// Rows of a matrix that a linear makes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Part {
    /// The linear or embedding that holds the matrix.
    pub(crate) op: OpId,
    /// Its name.
    pub(crate) name: String,
    /// Which rows.
    pub(crate) rows: Range<u64>,
}

impl Part {
    /// Rows with those that fill up the last tile.
    pub(crate) fn padded(&self) -> u64 {
        (self.rows.end - self.rows.start).next_multiple_of(16)
    }
}

/// A whole-width norm.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Norm {
    /// Its name: the gain's.
    pub(crate) name: String,
    /// Layer norm, or else RMS.
    pub(crate) layer: bool,
    /// Gain `[width]`.
    pub(crate) gain: WeightId,
    /// Bias `[width]`.
    pub(crate) beta: Option<WeightId>,
    /// The stored gain is gain − 1.
    pub(crate) unit_offset: bool,
    /// Added to the mean square.
    pub(crate) eps: f64,
}

/// Several matrices with the same input, and how their outputs stand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outputs {
    /// One after the other, each padded to 16 rows.
    Rows(Vec<Part>),
    /// `activation(gate) · up`.
    Gated {
        gate: Part,
        up: Part,
        activation: Activation,
    },
}

/// What happens to a linear's result on its way out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Epilogue {
    pub(crate) activation: Option<Activation>,
    pub(crate) softcap: Option<f64>,
    pub(crate) residual: Option<Slot>,
}

/// Frequencies of a rotation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rotary {
    pub(crate) theta: f64,
    pub(crate) rotary_dim: u64,
    pub(crate) interleaved: bool,
    pub(crate) scaling: Option<RopeScaling>,
}

/// Attention with its cache.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attention {
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) head_dim: u64,
    pub(crate) scale: f64,
    pub(crate) window: Option<u64>,
    pub(crate) softcap: Option<f64>,
    pub(crate) cache: u64,
    /// Columns of q, k and v in their slot.
    pub(crate) offsets: [u64; 3],
    /// Gains of q's and k's heads, with their epsilon.
    pub(crate) norms: Option<(Norm, Norm)>,
    pub(crate) rotary: Option<Rotary>,
}

/// A step of the model.
#[derive(Clone, Debug)]
pub(crate) enum Macro {
    /// Rows of a table.
    Embed {
        name: String,
        table: Part,
        /// Positions instead of tokens.
        positions: bool,
        y: Slot,
        /// Added to what `y` holds.
        add: bool,
        scale: f64,
    },
    /// A norm that no linear takes up.
    Norm {
        name: String,
        norm: Norm,
        x: Slot,
        residual: Option<Slot>,
        y: Slot,
    },
    /// Linears of one input, in one launch if their terms allow it.
    Linear {
        name: String,
        x: Slot,
        norm: Option<Norm>,
        outputs: Outputs,
        epilogue: Epilogue,
        y: Slot,
        /// Column of `y` where the first part starts.
        y_offset: u64,
        /// Only the last token of a prompt needs it.
        last: bool,
    },
    /// Attention over the cache; appends keys and values first.
    Attend {
        name: String,
        attention: Attention,
        qkv: Slot,
        y: Slot,
    },
    /// A mixture of experts behind its router.
    Experts {
        name: String,
        x: Slot,
        norm: Option<Norm>,
        logits: Slot,
        top_k: u64,
        normalize: bool,
        /// Gate, up and down of each expert.
        experts: Vec<[Part; 3]>,
        activation: Activation,
        residual: Option<Slot>,
        y: Slot,
    },
    /// A rotation of whole rows.
    Hadamard {
        name: String,
        rotation: Rotation,
        inverse: bool,
        x: Slot,
        y: Slot,
    },
    /// An op of its own.
    Elementwise {
        name: String,
        op: Elementwise,
        a: Slot,
        b: Option<Slot>,
        y: Slot,
    },
}

/// Element by element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Elementwise {
    Add,
    Mul,
    Scale(f64),
    Softcap(f64),
    Activate(Activation),
    /// `activation(a) · b`
    Gate(Activation),
    /// The last token's row.
    Last,
}

impl Elementwise {
    /// `OP` of the kernel.
    pub(crate) fn code(self) -> i64 {
        match self {
            Elementwise::Add => 0,
            Elementwise::Mul => 1,
            Elementwise::Scale(_) => 2,
            Elementwise::Softcap(_) => 3,
            Elementwise::Activate(_) => 4,
            Elementwise::Gate(_) => 5,
            Elementwise::Last => 7,
        }
    }

    /// `ACTIVATION` of the kernel.
    pub(crate) fn activation(self) -> i64 {
        match self {
            Elementwise::Activate(a) | Elementwise::Gate(a) => activation_code(Some(a)),
            _ => 0,
        }
    }

    /// `factor` of the kernel.
    pub(crate) fn factor(self) -> f64 {
        match self {
            Elementwise::Scale(f) | Elementwise::Softcap(f) => f,
            _ => 0.0,
        }
    }
}

/// `ACTIVATION` of kernels.
pub(crate) fn activation_code(activation: Option<Activation>) -> i64 {
    match activation {
        None => 0,
        Some(Activation::Silu) => 1,
        Some(Activation::Gelu) => 2,
        Some(Activation::GeluTanh) => 3,
        Some(Activation::Relu) => 4,
        Some(Activation::Tanh) => 5,
    }
}
