//! What module passes see: graphs, ops, values, weights by number.

use super::HlrcStr;

/// `kind` of an operand: left out.
pub const HLRC_OPERAND_NONE: u32 = 0;
/// `kind` of an operand: a value of the op's graph.
pub const HLRC_OPERAND_VALUE: u32 = 1;
/// `kind` of an operand: a weight of the module.
pub const HLRC_OPERAND_WEIGHT: u32 = 2;
/// No value: a result that nobody asked for, a linear without bias.
pub const HLRC_NO_ID: u32 = u32::MAX;

/// An op: a graph's number and the op's number in it. Ops that `op_new` and `op_copy` make have numbers of
/// their own until an edit puts them somewhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HlrcOpRef {
    /// The graph.
    pub graph: u32,
    /// The op.
    pub op: u32,
}

/// An operand of an op.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HlrcOperand {
    /// `HLRC_OPERAND_…`
    pub kind: u32,
    /// The value's or weight's number.
    pub id: u32,
}

/// A graph.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcGraphInfo {
    /// `sizeof` this struct as its caller knows it.
    pub size: usize,
    /// Its name.
    pub name: HlrcStr,
    /// Its ops in order, those of regions behind the op that holds them.
    pub ops: *const u32,
    /// How many.
    pub op_count: usize,
    /// Values that it takes.
    pub inputs: *const u32,
    /// How many.
    pub input_count: usize,
    /// What it gives.
    pub outputs: *const HlrcOperand,
    /// How many.
    pub output_count: usize,
}

/// An op.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcOpInfo {
    /// `sizeof` this struct as its caller knows it.
    pub size: usize,
    /// `linear`, `embedding`, `moe`, a native op's name, or `onnx.Name`.
    pub kind: HlrcStr,
    /// Its name in the source; may be empty.
    pub name: HlrcStr,
    /// Its constants: a JSON object; a tensor is `{"weight": number}`.
    pub attributes: HlrcStr,
    /// What it reads.
    pub inputs: *const HlrcOperand,
    /// How many.
    pub input_count: usize,
    /// Values that it makes; `HLRC_NO_ID` where nobody asked for one.
    pub results: *const u32,
    /// How many.
    pub result_count: usize,
    /// Rows of its matrix; 0 where it has none.
    pub rows: u64,
    /// Columns of its matrix.
    pub cols: u64,
    /// Terms of its matrix; see `op_term`.
    pub term_count: usize,
    /// Weight of its bias, or `HLRC_NO_ID`.
    pub bias: u32,
}

/// A value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcValueInfo {
    /// `sizeof` this struct as its caller knows it.
    pub size: usize,
    /// Its name; may be empty.
    pub name: HlrcStr,
    /// Its type as text has it, `f32[B,S,576]`; empty where it is not known.
    pub ty: HlrcStr,
}

/// A weight.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcWeightInfo {
    /// `sizeof` this struct as its caller knows it.
    pub size: usize,
    /// Its name.
    pub name: HlrcStr,
    /// Element type, ONNX's number.
    pub dtype: u32,
    /// Number of dimensions.
    pub rank: u32,
    /// The dimensions.
    pub dims: *const u64,
    /// Bytes.
    pub bytes: u64,
}

/// A node of the ONNX form of a term: one operator of the standard domain with one output.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcOnnxNode {
    /// `sizeof` this struct as the plugin knows it.
    pub size: usize,
    /// The operator.
    pub op_type: HlrcStr,
    /// Names of constants, or of outputs of nodes before it.
    pub inputs: *const HlrcStr,
    /// How many.
    pub input_count: usize,
    /// Name of its output.
    pub output: HlrcStr,
    /// Attributes: a JSON object of integers, floats, strings and lists of integers.
    pub attributes: HlrcStr,
}
