//! What a plugin can ask of the host.

use super::{
    HlrcContext, HlrcEarlier, HlrcGraphInfo, HlrcMoments, HlrcOnnxNode, HlrcOpInfo, HlrcOpRef,
    HlrcOperand, HlrcStatus, HlrcStr, HlrcTensor, HlrcTerm, HlrcTermView, HlrcValueInfo,
    HlrcWeightInfo,
};

/// `kind` of a remark: a pass did what it was asked.
pub const HLRC_REMARK_PASSED: u32 = 0;
/// `kind` of a remark: a pass did not, and says why.
pub const HLRC_REMARK_MISSED: u32 = 1;
/// `kind` of a remark: something worth knowing.
pub const HLRC_REMARK_ANALYSIS: u32 = 2;

/// The host's functions. Each refuses handles and numbers that mean nothing with a status; none ends the
/// process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcHost {
    /// `sizeof` this struct as the host knows it.
    pub size: usize,
    /// `HLRC_ABI_MAJOR` as the host knows it.
    pub abi_major: u32,
    /// `HLRC_ABI_MINOR` as the host knows it.
    pub abi_minor: u32,
    /// The host's version, for people.
    pub version: HlrcStr,

    /// Says why the callback fails. The last word counts; a callback that returns `HLRC_OK` behind it has failed
    /// all the same.
    pub fail: unsafe extern "C" fn(context: HlrcContext, message: HlrcStr) -> HlrcStatus,
    /// Why the last call of this context was refused.
    pub last_error: unsafe extern "C" fn(context: HlrcContext, message: *mut HlrcStr) -> HlrcStatus,
    /// A remark about a site; an empty `site` is the one at hand.
    pub remark: unsafe extern "C" fn(
        context: HlrcContext,
        kind: u32,
        site: HlrcStr,
        message: HlrcStr,
    ) -> HlrcStatus,
    /// How much of a long work is done.
    pub progress: unsafe extern "C" fn(context: HlrcContext, done: u64, total: u64) -> HlrcStatus,
    /// `HLRC_CANCELLED` once the user asked to stop: the callback should return it soon.
    pub cancelled: unsafe extern "C" fn(context: HlrcContext) -> HlrcStatus,
    /// Uniform random numbers, the same in every run with the same seed; `seed` says which that is.
    pub random:
        unsafe extern "C" fn(context: HlrcContext, out: *mut u64, count: usize) -> HlrcStatus,

    /// Makes a term `[rows, cols]`; tensors are copied and checked. `kind` is a built-in kind's name or
    /// `plugin.kind`; `attributes` is the kind's JSON object.
    pub term_new: unsafe extern "C" fn(
        context: HlrcContext,
        kind: HlrcStr,
        attributes: HlrcStr,
        rows: u64,
        cols: u64,
        tensors: *const HlrcTensor,
        tensor_count: usize,
        term: *mut HlrcTerm,
    ) -> HlrcStatus,
    /// Structure and tensors of a term.
    pub term_view: unsafe extern "C" fn(
        context: HlrcContext,
        term: HlrcTerm,
        view: *mut HlrcTermView,
    ) -> HlrcStatus,
    /// Adds decoded rows of a term to `out` `[rows, cols]`.
    pub term_add_rows: unsafe extern "C" fn(
        context: HlrcContext,
        term: HlrcTerm,
        first_row: u64,
        rows: u64,
        out: *mut f32,
    ) -> HlrcStatus,

    /// Short text for progress lines, of the term that a peel makes: `r64`.
    pub note: unsafe extern "C" fn(context: HlrcContext, note: HlrcStr) -> HlrcStatus,
    /// A term of an earlier pass.
    pub earlier: unsafe extern "C" fn(
        context: HlrcContext,
        index: usize,
        earlier: *mut HlrcEarlier,
    ) -> HlrcStatus,
    /// Puts another term in an earlier one's place; the sum of terms and residual must stay what it was.
    pub earlier_set:
        unsafe extern "C" fn(context: HlrcContext, index: usize, term: HlrcTerm) -> HlrcStatus,

    /// The module as text IR.
    pub module_text: unsafe extern "C" fn(context: HlrcContext, text: *mut HlrcStr) -> HlrcStatus,
    /// Puts another module in its place; counts alone, not with other edits.
    pub module_set_text: unsafe extern "C" fn(context: HlrcContext, text: HlrcStr) -> HlrcStatus,
    /// Number of graphs.
    pub graph_count: unsafe extern "C" fn(context: HlrcContext, count: *mut u32) -> HlrcStatus,
    /// A graph.
    pub graph_info: unsafe extern "C" fn(
        context: HlrcContext,
        graph: u32,
        info: *mut HlrcGraphInfo,
    ) -> HlrcStatus,
    /// An op.
    pub op_info: unsafe extern "C" fn(
        context: HlrcContext,
        op: HlrcOpRef,
        info: *mut HlrcOpInfo,
    ) -> HlrcStatus,
    /// A term of an op's matrix.
    pub op_term: unsafe extern "C" fn(
        context: HlrcContext,
        op: HlrcOpRef,
        index: usize,
        term: *mut HlrcTerm,
    ) -> HlrcStatus,
    /// Decoded rows of an op's matrix, the sum of its terms, to `out` `[rows, cols]`.
    pub op_rows: unsafe extern "C" fn(
        context: HlrcContext,
        op: HlrcOpRef,
        first_row: u64,
        rows: u64,
        out: *mut f32,
    ) -> HlrcStatus,
    /// A value of a graph.
    pub value_info: unsafe extern "C" fn(
        context: HlrcContext,
        graph: u32,
        value: u32,
        info: *mut HlrcValueInfo,
    ) -> HlrcStatus,
    /// Number of weights.
    pub weight_count: unsafe extern "C" fn(context: HlrcContext, count: *mut u32) -> HlrcStatus,
    /// A weight.
    pub weight_info: unsafe extern "C" fn(
        context: HlrcContext,
        weight: u32,
        info: *mut HlrcWeightInfo,
    ) -> HlrcStatus,
    /// A weight's elements as they are stored, mapped and not copied.
    pub weight_data: unsafe extern "C" fn(
        context: HlrcContext,
        weight: u32,
        tensor: *mut HlrcTensor,
    ) -> HlrcStatus,

    /// Adds a weight; its number is valid in this context at once.
    pub weight_new: unsafe extern "C" fn(
        context: HlrcContext,
        tensor: *const HlrcTensor,
        weight: *mut u32,
    ) -> HlrcStatus,
    /// Takes a weight out, unless something refers to it in the end.
    pub weight_drop: unsafe extern "C" fn(context: HlrcContext, weight: u32) -> HlrcStatus,
    /// Adds a value to a graph; `ty` as text has it, or empty.
    pub value_new: unsafe extern "C" fn(
        context: HlrcContext,
        graph: u32,
        name: HlrcStr,
        ty: HlrcStr,
        value: *mut u32,
    ) -> HlrcStatus,
    /// Makes an op. `kind` as `op_info` gives it; `attributes` its JSON object, which for `linear` and
    /// `embedding` has `rows` and `cols` (and `bias`, a weight's number). Ops with graphs of
    /// their own (`moe`, ONNX's `If`) can be copied, not made.
    pub op_new: unsafe extern "C" fn(
        context: HlrcContext,
        graph: u32,
        kind: HlrcStr,
        attributes: HlrcStr,
        op: *mut HlrcOpRef,
    ) -> HlrcStatus,
    /// Makes a copy of an op, to be changed and put somewhere.
    pub op_copy:
        unsafe extern "C" fn(context: HlrcContext, of: HlrcOpRef, op: *mut HlrcOpRef) -> HlrcStatus,
    /// Names a new op.
    pub op_set_name:
        unsafe extern "C" fn(context: HlrcContext, op: HlrcOpRef, name: HlrcStr) -> HlrcStatus,
    /// What a new op reads.
    pub op_set_inputs: unsafe extern "C" fn(
        context: HlrcContext,
        op: HlrcOpRef,
        inputs: *const HlrcOperand,
        count: usize,
    ) -> HlrcStatus,
    /// What a new op makes.
    pub op_set_results: unsafe extern "C" fn(
        context: HlrcContext,
        op: HlrcOpRef,
        results: *const u32,
        count: usize,
    ) -> HlrcStatus,
    /// Takes all terms of a new op's matrix out.
    pub op_clear_terms: unsafe extern "C" fn(context: HlrcContext, op: HlrcOpRef) -> HlrcStatus,
    /// Adds a term to a new op's matrix: its kind, constants, and weights by number in the kind's order.
    /// `names` are the tensors' names, of terms of plugins' kinds; else null.
    pub op_add_term: unsafe extern "C" fn(
        context: HlrcContext,
        op: HlrcOpRef,
        kind: HlrcStr,
        attributes: HlrcStr,
        names: *const HlrcStr,
        weights: *const u32,
        count: usize,
    ) -> HlrcStatus,
    /// Puts new ops where an op of the module stands; none removes it. Naming the op itself keeps it.
    pub op_replace: unsafe extern "C" fn(
        context: HlrcContext,
        at: HlrcOpRef,
        ops: *const HlrcOpRef,
        count: usize,
    ) -> HlrcStatus,
    /// What a graph takes and gives.
    pub graph_set_ports: unsafe extern "C" fn(
        context: HlrcContext,
        graph: u32,
        inputs: *const u32,
        input_count: usize,
        outputs: *const HlrcOperand,
        output_count: usize,
    ) -> HlrcStatus,

    /// Adds a constant to the ONNX form of a term.
    pub onnx_tensor:
        unsafe extern "C" fn(context: HlrcContext, tensor: *const HlrcTensor) -> HlrcStatus,
    /// Adds a node to it.
    pub onnx_node:
        unsafe extern "C" fn(context: HlrcContext, node: *const HlrcOnnxNode) -> HlrcStatus,
    /// Says which value is the matrix `[rows, cols]` in f32, and the least opset that has the nodes.
    pub onnx_output:
        unsafe extern "C" fn(context: HlrcContext, name: HlrcStr, opset: u64) -> HlrcStatus,

    // What later minor versions add may be missing from a host's table, and is an `Option`: a table that is
    // filled up with zeros stays valid.
    /// Since 1.1. Gives a term's memory back before the context ends, with what `term_view` lent of it; its
    /// handle means nothing then.
    pub term_drop: Option<unsafe extern "C" fn(context: HlrcContext, term: HlrcTerm) -> HlrcStatus>,

    /// Since 1.2. The seed that the callback's random numbers come from: of the run (`--seed`) in `create`,
    /// `traits`, `cost` and `run`; of run, site and pass in `peel` and `peel_stored`; of a term's kind and
    /// attributes in callbacks of kinds, since a term is the same matrix in every run.
    pub seed: Option<unsafe extern "C" fn(context: HlrcContext, seed: *mut u64) -> HlrcStatus>,
    /// Since 1.2. Name of the site that an op with a matrix is a user of, as reports, scopes and statistics
    /// have it; `HLRC_NONE` where it has none.
    pub op_site: Option<
        unsafe extern "C" fn(context: HlrcContext, op: HlrcOpRef, site: *mut HlrcStr) -> HlrcStatus,
    >,
    /// Since 1.2. In a module pass: second moments of what goes into a site's matrix. They live until the
    /// next call. `HLRC_NONE` where there are none of it: without `--calib`, and in a dry run.
    pub moments: Option<
        unsafe extern "C" fn(
            context: HlrcContext,
            site: HlrcStr,
            moments: *mut HlrcMoments,
        ) -> HlrcStatus,
    >,
}
