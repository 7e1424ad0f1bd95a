//! What is trained: which stored tensors, and how single-precision values go into their formats.
//!
//! The forward pass reads what would be stored, rounded as it would be stored; gradients pass
//! through the rounding as if it were none.

mod codec;
mod paths;
mod pattern;

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::TrainError;
use super::grad::{Parameter, What, of_op};
use crate::ir::{Module, Native, Op, OpKind, Operand, Part, Storage, Term};
use crate::store::Reader;
pub use codec::Codec;
pub use paths::Paths;
use pattern::Pattern;

/// Kinds of trainable tensors, as the command line names them.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Scales of integer and trellis codes
    Scales,
    /// Zero points
    Zeros,
    /// Factors of low-rank terms
    Lowrank,
    /// Entries of sparse terms and outlier columns
    Sparse,
    /// Gains of norms
    Norms,
    /// Biases
    Bias,
    /// Dense matrices, embeddings and head among them
    Dense,
    /// Codes, of integers and of trellises: they move with a dense copy of their matrix
    Codes,
    /// Tensors of plugins' terms whose kind has a backward rule
    Plugin,
}

impl Kind {
    /// Whether weight decay pulls at it: entries of matrices and factors, as is usual. Gains, biases,
    /// scales and zero points have no business near zero.
    pub fn decays(self) -> bool {
        match self {
            Kind::Lowrank | Kind::Sparse | Kind::Dense | Kind::Codes | Kind::Plugin => true,
            Kind::Scales | Kind::Zeros | Kind::Norms | Kind::Bias => false,
        }
    }

    /// The kind's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Scales => "scales",
            Kind::Zeros => "zeros",
            Kind::Lowrank => "lowrank",
            Kind::Sparse => "sparse",
            Kind::Norms => "norms",
            Kind::Bias => "bias",
            Kind::Dense => "dense",
            Kind::Codes => "codes",
            Kind::Plugin => "plugin",
        }
    }
}

/// Which tensors are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Of these kinds.
    pub kinds: BTreeSet<Kind>,
    /// Whose name or whose op's name fits one of these; all where there are none.
    pub only: Vec<String>,
}

/// A tensor that is trained.
#[derive(Clone, Debug)]
pub struct Trainable {
    /// What it is in the graph.
    pub parameter: Parameter,
    /// Its kind.
    pub kind: Kind,
    /// The weight's name.
    pub name: String,
    /// How it is stored.
    pub codec: Codec,
}

/// The trainable tensors that a choice takes, in the order of the ops.
///
/// # Errors
/// A pattern is none, or nothing fits; the message lists the kinds that there are.
pub fn choose(
    module: &Module,
    reader: &Reader<'_>,
    choice: &Choice,
) -> Result<Vec<Trainable>, TrainError> {
    let patterns = choice.only.iter().map(|text| Pattern::new(text));
    let patterns = patterns
        .collect::<Result<Vec<_>, _>>()
        .map_err(TrainError::Settings)?;
    let mut used = vec![false; patterns.len()];
    let (mut seen, mut there) = (HashSet::new(), BTreeSet::new());
    let mut found = Vec::new();
    let Some(graph) = module.graphs.first() else {
        return Err(TrainError::Settings("the module has no graph".to_string()));
    };
    for op in graph.walk().iter().filter_map(|&id| graph.op(id)) {
        for parameter in of_op(op) {
            if !seen.insert(parameter) {
                continue;
            }
            let name = parameter.name(module);
            let Some((kind, codec)) = codec::of(module, reader, op, parameter)? else {
                continue;
            };
            there.insert(kind.name());
            if !choice.kinds.contains(&kind) {
                continue;
            }
            let mut fits = patterns.is_empty();
            for (pattern, used) in patterns.iter().zip(&mut used) {
                let hit = pattern.fits(&name) || pattern.fits(&op.name);
                (fits, *used) = (fits || hit, *used || hit);
            }
            if fits {
                found.push(Trainable {
                    parameter,
                    kind,
                    name,
                    codec,
                });
            }
        }
    }
    if let Some(at) = used.iter().position(|used| !used) {
        let what = format!(
            "--only {}: no trainable tensor of these kinds fits",
            choice.only[at]
        );
        return Err(TrainError::Settings(what));
    }
    if found.is_empty() {
        let kinds: Vec<&str> = choice.kinds.iter().map(|k| k.name()).collect();
        let there: Vec<&str> = there.into_iter().collect();
        return Err(TrainError::Settings(format!(
            "the model has no {}; it has {}",
            kinds.join(", "),
            there.join(", ")
        )));
    }
    Ok(found)
}

/// The kind of a parameter of an op.
fn kind(op: &Op, parameter: Parameter) -> Kind {
    match parameter.what {
        What::Part(Part::Dense) => Kind::Dense,
        What::Part(Part::Scales) => Kind::Scales,
        What::Part(Part::Zeros) => Kind::Zeros,
        What::Part(Part::Codes) => Kind::Codes,
        What::Part(Part::Values) => Kind::Sparse,
        What::Part(Part::U | Part::V) => Kind::Lowrank,
        What::Part(Part::Tensor(_)) => Kind::Plugin,
        What::Vector => {
            let gain = op.inputs.get(1) == Some(&Operand::Weight(parameter.weight));
            match &op.kind {
                OpKind::Native(Native::RmsNorm { .. } | Native::LayerNorm { .. } | Native::Mul)
                    if gain =>
                {
                    Kind::Norms
                }
                _ => Kind::Bias,
            }
        }
    }
}

/// The term of an op that a parameter is a part of.
fn term_of(op: &Op, parameter: Parameter) -> Option<&Term> {
    let What::Part(part) = parameter.what else {
        return None;
    };
    let terms = op.kind.matrix()?.terms.iter();
    let mut own = terms.filter(|term| Part::of(term).contains(&(part, parameter.weight)));
    own.next()
}

/// Puts new bytes in the place of weights.
pub fn apply(module: &mut Module, bytes: &HashMap<String, Bytes>) {
    for weight in &mut module.weights {
        if let Some(bytes) = bytes.get(&weight.name) {
            weight.storage = Storage::Inline(bytes.to_vec());
            weight.sha256 = None;
        }
    }
}
