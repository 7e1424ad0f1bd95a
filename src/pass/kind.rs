//! Kinds of terms that plugins define: what the tool asks of them.
//!
//! A kind knows how its term decodes; everything else (bytes, text, files, verification) is the tool's.
//! Without a kernel of its own a term is multiplied by decoding tiles of rows, without an ONNX form it is
//! exported dense.

use std::ops::Range;
use std::sync::RwLock;

use serde_json::{Map, Value};

use super::PassError;
use crate::weights::DType;

/// A kind of term.
pub trait TermKind: Send + Sync {
    /// Its full name: the plugin's, a dot, its own.
    fn name(&self) -> &str;

    /// One line: what such a term is.
    fn summary(&self) -> &str {
        ""
    }

    /// Whether tensors and constants fit each other; called before anything else is asked of a term.
    ///
    /// # Errors
    /// What does not fit.
    fn check(&self, term: &CustomView<'_>) -> Result<(), PassError> {
        let _ = term;
        Ok(())
    }

    /// Adds rows of the matrix to `out` `[rows, cols]`.
    ///
    /// # Errors
    /// What is wrong with the term.
    fn add_rows(
        &self,
        term: &CustomView<'_>,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), PassError>;

    /// Its own kernel: writes `x Wᵀ` for `rows` of W to `out` `[tokens, rows]`, with `x` `[tokens, cols]`.
    /// `None`: there is none, rows are decoded.
    fn multiply(
        &self,
        term: &CustomView<'_>,
        rows: Range<usize>,
        x: &[f32],
        out: &mut [f32],
    ) -> Option<Result<(), PassError>> {
        let _ = (term, rows, x, out);
        None
    }

    /// The backward rule: from the gradient of the matrix, `dw` `[rows, cols]`, the gradient of each
    /// tensor of the term, in f32 and the tensor's shape; zeros for tensors that are not trained. `None`:
    /// there is none, the term is a constant. Training moves tensors of f32, f16 and bf16. Of the first
    /// eight: an op of a backward graph names a tensor by its place.
    fn backward(
        &self,
        term: &CustomView<'_>,
        dw: &[f32],
    ) -> Option<Result<Vec<Vec<f32>>, PassError>> {
        let _ = (term, dw);
        None
    }

    /// Its ONNX form. `None`: there is none, the term is exported dense.
    ///
    /// # Errors
    /// What is wrong with the term.
    fn onnx(&self, term: &CustomView<'_>) -> Result<Option<OnnxForm>, PassError> {
        let _ = term;
        Ok(None)
    }
}

/// A term of a plugin's kind, as its kind sees it.
#[derive(Clone, Debug)]
pub struct CustomView<'a> {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Small constants.
    pub attrs: &'a Map<String, Value>,
    /// Tensors, in the order in which the term was made.
    pub tensors: Vec<TensorView<'a>>,
}

/// A stored tensor.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name in the term.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: &'a [u64],
    /// Little-endian bytes, row-major, no alignment.
    pub bytes: &'a [u8],
}

/// ONNX nodes that compute the matrix `[rows, cols]` of a term in f32.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OnnxForm {
    /// The least opset of the standard domain that has these nodes.
    pub opset: u64,
    /// Constants.
    pub tensors: Vec<OnnxTensor>,
    /// Nodes of the standard domain, in order.
    pub nodes: Vec<OnnxNode>,
    /// Name of the result.
    pub output: String,
}

/// A constant of an ONNX form.
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxTensor {
    /// Name inside the form.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<u64>,
    /// Little-endian bytes.
    pub bytes: Vec<u8>,
}

/// A node of an ONNX form.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OnnxNode {
    /// Operator of the standard domain.
    pub op_type: String,
    /// Names of constants or of outputs of nodes before it.
    pub inputs: Vec<String>,
    /// Name of its one output.
    pub output: String,
    /// Attributes: integers, floats, strings, lists of integers.
    pub attrs: Map<String, Value>,
}

impl TensorView<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        let count = self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        count.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
    }
}

impl<'a> CustomView<'a> {
    /// The tensor called `name`, of this element type and shape.
    ///
    /// # Errors
    /// There is none, or it is another.
    pub fn tensor(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<&'a [u8], PassError> {
        let found = self.tensors.iter().find(|t| t.name == name);
        let found = found.ok_or_else(|| PassError::new(format!("it has no tensor `{name}`")))?;
        let same = found.shape.len() == shape.len()
            && found.shape.iter().zip(shape).all(|(a, b)| *a == *b as u64);
        if found.dtype != dtype || !same {
            return Err(PassError::new(format!(
                "`{name}` is {}{:?}, needs {dtype}{shape:?}",
                found.dtype, found.shape
            )));
        }
        Ok(found.bytes)
    }

    /// The integer constant called `name`.
    ///
    /// # Errors
    /// There is none.
    pub fn integer(&self, name: &str) -> Result<u64, PassError> {
        let found = self.attrs.get(name).and_then(Value::as_u64);
        found.ok_or_else(|| PassError::new(format!("it has no number `{name}`")))
    }
}

/// Kinds that are known in this process; they are never taken out again.
static KINDS: RwLock<Vec<&'static dyn TermKind>> = RwLock::new(Vec::new());

/// The kind called `name`.
pub fn find(name: &str) -> Option<&'static dyn TermKind> {
    let kinds = KINDS.read().unwrap_or_else(|e| e.into_inner());
    kinds.iter().copied().find(|kind| kind.name() == name)
}

/// Makes a kind known; false where there is one of that name.
pub fn register(kind: &'static dyn TermKind) -> bool {
    let mut kinds = KINDS.write().unwrap_or_else(|e| e.into_inner());
    let new = kinds.iter().all(|known| known.name() != kind.name());
    if new {
        kinds.push(kind);
    }
    new
}

/// The kind of a term that is to be read or computed.
///
/// # Errors
/// No loaded plugin defines it; says how to load one.
pub fn needed(name: &str) -> Result<&'static dyn TermKind, PassError> {
    find(name).ok_or_else(|| {
        let plugin = name.split('.').next().unwrap_or(name);
        PassError::new(format!(
            "no loaded plugin defines terms of the kind `{name}`; load plugin `{plugin}` with \
             --load-pass-plugin or HLRC_PLUGIN_PATH"
        ))
    })
}
