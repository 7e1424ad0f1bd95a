//! Terms of plugins' kinds, with their data.

use std::ops::Range;

use serde_json::{Map, Value};

use super::super::{PassError, kind};
use super::{TensorData, TermSpec};
use crate::ir::CustomTerm;
use crate::pass::kind::{CustomView, TensorView};
use crate::weights::DType;

/// A term of a kind that a plugin defines.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomData {
    /// Full name of the kind: the plugin's, a dot, its own.
    pub kind: String,
    /// Rows at hand.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Small constants.
    pub attrs: Map<String, Value>,
    /// Tensors. Where a term is made in row tiles their first dimensions add up.
    pub tensors: Vec<CustomTensor>,
}

/// A tensor of such a term.
#[derive(Clone, Debug, PartialEq)]
pub struct CustomTensor {
    /// What its name ends in.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<u64>,
    /// Little-endian bytes, row-major.
    pub bytes: Vec<u8>,
}

impl CustomData {
    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.iter().map(|t| t.bytes.len()).sum()
    }

    /// As its kind sees it.
    pub fn view(&self) -> CustomView<'_> {
        CustomView {
            rows: self.rows,
            cols: self.cols,
            attrs: &self.attrs,
            tensors: self
                .tensors
                .iter()
                .map(|t| TensorView {
                    name: &t.name,
                    dtype: t.dtype,
                    shape: &t.shape,
                    bytes: &t.bytes,
                })
                .collect(),
        }
    }

    /// Adds rows of the term to `[rows, cols]` values.
    ///
    /// # Errors
    /// The kind's plugin is not loaded, or refuses the term.
    pub fn add_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), PassError> {
        kind::needed(&self.kind)?.add_rows(&self.view(), rows, out)
    }

    /// The term as the IR will have it, its weights not yet known.
    pub(super) fn outline(&self) -> CustomTerm {
        let none = crate::ir::WeightId::new(0);
        CustomTerm {
            kind: self.kind.clone(),
            tensors: self
                .tensors
                .iter()
                .map(|t| (t.name.clone(), none))
                .collect(),
            attrs: self.attrs.clone(),
        }
    }

    pub(super) fn into_parts(self) -> (TermSpec, Vec<TensorData>) {
        let spec = TermSpec::Custom {
            name: self.kind,
            tensors: self.tensors.iter().map(|t| t.name.clone()).collect(),
            attrs: self.attrs,
        };
        let tensor = |t: CustomTensor| TensorData {
            suffix: t.name.into(),
            dtype: t.dtype,
            shape: t.shape,
            pieces: vec![t.bytes],
        };
        (spec, self.tensors.into_iter().map(tensor).collect())
    }
}
