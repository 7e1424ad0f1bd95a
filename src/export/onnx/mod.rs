//! Modules as ONNX files.
//!
//! A module that no pass touched is written back byte for byte. Linears and
//! embeddings become what ONNX Runtime runs: `quant` MatMulNBits
//! or, with [`QuantForm::Qdq`], standard DequantizeLinear; `low_rank` two
//! MatMuls; `sparse` a Constant with `sparse_value`; columns Gather and
//! MatMul. Bytes of new tensors are made while they are written, one at a
//! time; everything else is copied from where it lies.

use std::path::{Path, PathBuf};

use crate::ir::Module;
use crate::onnx::mapping::BuildError;
use crate::store::StoreError;
use crate::weights::{FileCache, WeightsError};

mod attention;
mod cache;
mod codes;
mod custom;
mod embed;
mod external;
mod factors;
mod functions;
mod linear;
mod lower;
mod moe;
mod native;
mod opset;
mod prune;
mod recipe;
mod restore;
mod rotate;
mod shapes;
mod terms;
mod write;

/// How quantized matrices are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QuantForm {
    /// `com.microsoft.MatMulNBits` and `GatherBlockQuantized`, any opset.
    #[default]
    NBits,
    /// `DequantizeLinear` of the standard, blocked ones from opset 21 on.
    Qdq,
}

/// Choices of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Form of quantized matrices.
    pub quant: QuantForm,
    /// Give a decoder's keys and values as inputs and outputs.
    pub cache: bool,
    /// Put tensors beside the model even where they would fit into it.
    pub external: bool,
    /// Replace files of external data that are there already.
    pub replace: bool,
}

/// What an export wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// Every file, the model first.
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub bytes: u64,
    /// What the user ought to know: widened codes, costs at load.
    pub notes: Vec<String>,
}

/// Why a module can't be written as ONNX.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// An op without an ONNX form.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A term that no form of the chosen kind can hold.
    #[error("{op}: {what}")]
    NoForm {
        /// The op.
        op: String,
        /// What has no form, and what has one.
        what: String,
    },
    /// Ops whose signature changed before the opset that is needed.
    #[error(
        "opset {from} has to become {to} for this form, but these ops changed in between and are \
         not converted: {ops}; use --onnx-quant=nbits, or convert the source first"
    )]
    Opset {
        /// The source's opset.
        from: i64,
        /// The opset needed.
        to: i64,
        /// The ops, by name.
        ops: String,
    },
    /// A file of external data would replace one that is there.
    #[error("{}: is there already, and the model's data would go there; --force replaces it, -o chooses another place", .0.display())]
    Exists(PathBuf),
    /// A file of external data would replace the input's.
    #[error("{}: holds weights of the input, and the output's data would go there; choose another name with -o", .0.display())]
    InUse(PathBuf),
    /// A weight can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of weights can't be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The output can't be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
}

/// Writes `module` to `path`, replacing what is there once all is written.
///
/// Above 2 GB, the limit of protobuf, and where the source had external data,
/// tensors go to a file beside it. Memory: the messages, and the largest
/// matrix that was rewritten.
///
/// # Errors
/// [`ExportError`]; nothing is left behind.
pub fn export(
    module: &Module,
    cache: &FileCache,
    path: &Path,
    options: Options,
) -> Result<Exported, ExportError> {
    let lowered = lower::lower(module, options)?;
    write::write(module, lowered, cache, path, options)
}
