//! Rotates weights together with their neighbours, so that quantizers see nearly Gaussian entries.
//!
//! A block Hadamard matrix with random signs, R, that meets its inverse leaves the model's function as it
//! is, and where both are inside of weights nothing is left to do at run time:
//!
//! - `stream`: the residual stream of a decoder is turned. Linears behind an RMS norm become
//!   `W·diag(gain)·Rᵀ` and the gain 1, since the norm commutes with R; linears whose results are added to
//!   the stream become `R·W`, an embedding's rows `R e`. Where something else reads or writes the stream
//!   (a tied table, a norm behind a linear) an op `hadamard` stands in between. A stream that would take
//!   more of these than norms are folded is left alone, with a remark that names them; so is one of layer
//!   norms, which do not commute with R.
//! - `heads`: each head of the values is turned, and turned back by the columns of the linear behind
//!   attention. Grouped keys and values share their signs.
//! - `down`: an op `hadamard` in front of linears that read an activation or a gated product, which
//!   no norm separates from the nonlinearity.
//!
//! Before: `%n = rms_norm %x, @gain  %q = linear %n { dense(@q) }`
//! After:  `%n = rms_norm %x, @ones  %q = linear %n { dense(@q') }` with
//! `@q' = rotated(file(…), bf16, columns(block=64, seed=0), gain(columns, bf16, file(…)))`
//!
//! Blocks are the largest powers of two, up to 512, that divide the width. New weights are turned when
//! they are read; they keep their type unless `dtype` says otherwise. Statistics of the original serve
//! matrices behind this pass: they are turned with them. Passes that make terms stand behind it.
//!
//! Cost: linear in ops; reading a turned matrix takes `entries · log block` additions. Memory: that matrix
//! in f32.
//! Source: QuaRot, Ashkboos et al., arXiv 2404.00456; SpinQuant, Liu et al., arXiv 2405.16406.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use crate::ir::patch::Patch;
use crate::pass::{ModulePass, Pass, PassError, Rewrite};
use crate::weights::DType;

mod edits;
mod fold;
mod stream;
mod uses;

use edits::Edits;

/// Options of `fold-rotations`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Turn residual streams.
    pub stream: bool,
    /// Turn heads of values.
    pub heads: bool,
    /// Turn inputs of linears behind activations, by ops.
    pub down: bool,
    /// Type of turned matrices: their own, or f32, f16, bf16.
    pub dtype: DTypeOption,
    /// Seed of the signs.
    pub seed: u64,
}

/// Type of turned matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DTypeOption {
    /// That of the source; f32 for types of less than 16 bits.
    Source,
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stream: true,
            heads: true,
            down: true,
            dtype: DTypeOption::Source,
            seed: 0,
        }
    }
}

impl DTypeOption {
    /// The type of what was of `source`.
    fn of(self, source: DType) -> DType {
        match (self, source) {
            (DTypeOption::F16, _) => DType::F16,
            (DTypeOption::Bf16, _) => DType::BF16,
            (DTypeOption::Source, DType::F16 | DType::BF16) => source,
            (DTypeOption::Source | DTypeOption::F32, _) => DType::F32,
        }
    }
}

pass_entry!("fold-rotations" in "fold_rotations.rs", Options, build);

fn build(options: Options) -> Result<Pass, PassError> {
    if !(options.stream || options.heads || options.down) {
        return Err(PassError::new(
            "stream, heads and down are all false: there is nothing to do",
        ));
    }
    Ok(Pass::Module(Box::new(FoldRotations(options))))
}

struct FoldRotations(Options);

impl ModulePass for FoldRotations {
    fn run(&self, rewrite: &mut Rewrite<'_>) -> Result<Patch, PassError> {
        let (module, remarks) = (rewrite.module, &mut *rewrite.remarks);
        let options = &self.0;
        let mut patch = Patch::new(module, "fold-rotations");
        let mut names = module.weights.iter().map(|w| w.name.clone()).collect();
        let mut done = 0;
        for graph in 0..module.graphs.len() {
            let mut edits = Edits::new(module, graph, options);
            if options.stream {
                stream::turn(&mut edits, remarks);
            }
            if options.heads {
                fold::heads(&mut edits, remarks);
            }
            if options.down {
                fold::down(&mut edits, remarks);
            }
            done += edits.finish(&mut patch, &mut names, remarks);
        }
        if done == 0 {
            return Err(PassError::new(
                "no rotation could be folded anywhere (--remarks says why); an ONNX graph needs `raise` in \
                 front, and `rotate` rotates each matrix by itself",
            ));
        }
        Ok(patch)
    }
}
