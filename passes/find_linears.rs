//! Raises ONNX nodes with a constant matrix to `linear` and `embedding`.
//!
//! Term passes work on linears; exporters spell a linear in many ways. Found are MatMul with a
//! constant on either side, Gemm, MatMul and a constant Add behind it, 1×1 Conv, and Gather from a
//! table, the constant being a weight or a Constant, also behind Transpose, Cast to a wider type,
//! Identity or DequantizeLinear. A weight that several nodes share stays one weight. Runs by itself
//! before the first term pass of a pipeline; a linear that ends unchanged is exported as the node
//! that it was.
//!
//! Before: `%y = onnx.MatMul %x, @w` and `%z = onnx.Add %y, @b`
//! After:  `%z = linear %x [384,384] { dense(@w transposed) } bias(@b)`
//!
//! Cost: linear in nodes; reads data of weights behind DequantizeLinear only.
//! Source: ONNX operator reference.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use crate::ir::patch::Patch;
use crate::ir::{
    Attr, Attrs, Embedding, Graph, Layout, Linear, Matrix, Module, OnnxOp, Op, OpId, OpKind, OpRef,
    Operand, Role, Type, ValueId, WeightId, WeightView,
};
use crate::pass::{ModulePass, Pass, PassError, Remark};
use crate::weights::DType;

mod dequantize;
mod gemm;
mod matmul;

/// Options of `find-linears`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Also raise Gather from a constant table to `embedding`.
    pub embeddings: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { embeddings: true }
    }
}

/// The pass.
pub struct FindLinears(Options);

/// Key in an op's metadata: how the source spelled it.
pub const SPELLING: &str = "spelling";

/// Whether the op makes one value: what malformed nodes make besides has nothing to come from.
fn has_one_result(op: &Op) -> bool {
    matches!(op.results.as_slice(), [Some(_)])
}

/// A constant matrix as a node sees it.
#[derive(Clone)]
struct Constant {
    weight: WeightId,
    /// Stored dimensions.
    dims: Vec<u64>,
    /// The node sees the transpose.
    transposed: bool,
    /// Element type that the node sees.
    dtype: DType,
    /// Nodes between weight and user.
    chain: Vec<OpId>,
    /// The DequantizeLinear that the weight was decoded from.
    dequantize: Option<Attrs>,
}

struct Finder<'a> {
    module: &'a Module,
    graph: &'a Graph,
    makers: HashMap<ValueId, OpId>,
    /// Ops that read a value, one entry per read; region outputs as `None`.
    users: HashMap<ValueId, Vec<Option<OpId>>>,
    patch: Patch,
    remarks: &'a mut Vec<Remark>,
    /// Nodes that are replaced or removed, and what stands there then reads.
    raised: HashMap<OpId, Vec<Operand>>,
    /// Nodes that may have lost their last user.
    chains: Vec<OpId>,
    /// Weights that dequantizing made, by quantized weight and view.
    dequantized: HashMap<Vec<Operand>, Constant>,
    largest_table: (u64, u64),
}

impl ModulePass for FindLinears {
    fn run(&self, module: &Module, remarks: &mut Vec<Remark>) -> Result<Patch, PassError> {
        let patch = Patch::new(module, "find-linears");
        let Some(graph) = module.graphs.first() else {
            return Ok(patch);
        };
        let mut finder = Finder {
            module,
            graph,
            makers: HashMap::new(),
            users: HashMap::new(),
            patch,
            remarks,
            raised: HashMap::new(),
            chains: Vec::new(),
            dequantized: HashMap::new(),
            largest_table: (0, 0),
        };
        finder.index();
        let ops = graph.walk();
        if self.0.embeddings {
            for &id in &ops {
                finder.embedding(id);
            }
        }
        for &id in &ops {
            if !finder.raised.contains_key(&id) {
                finder.linear(id);
            }
        }
        finder.drop_dead_chains();
        Ok(finder.patch)
    }
}

fn onnx_of(op: &Op) -> Option<&OnnxOp> {
    match &op.kind {
        OpKind::Onnx(onnx) if onnx.domain.is_empty() || onnx.domain == "ai.onnx" => Some(onnx),
        _ => None,
    }
}

fn int(onnx: &OnnxOp, name: &str, default: i64) -> i64 {
    onnx.attrs
        .get(name)
        .and_then(Attr::as_int)
        .unwrap_or(default)
}

fn float(onnx: &OnnxOp, name: &str, default: f32) -> f32 {
    onnx.attrs
        .get(name)
        .and_then(Attr::as_float)
        .unwrap_or(default)
}

impl Finder<'_> {
    fn index(&mut self) {
        let mut regions = vec![&self.graph.body];
        for id in self.graph.walk() {
            let Some(op) = self.graph.op(id) else {
                continue;
            };
            for &result in op.results.iter().flatten() {
                self.makers.insert(result, id);
            }
            for input in &op.inputs {
                if let Operand::Value(value) = input {
                    self.users.entry(*value).or_default().push(Some(id));
                }
            }
            regions.extend(op.kind.regions());
        }
        for output in regions.iter().flat_map(|region| &region.outputs) {
            if let Operand::Value(value) = output {
                self.users.entry(*value).or_default().push(None);
            }
        }
    }

    fn maker(&self, value: ValueId) -> Option<(OpId, &Op, &OnnxOp)> {
        let id = *self.makers.get(&value)?;
        let op = self.graph.op(id)?;
        Some((id, op, onnx_of(op)?))
    }

    /// Follows an operand back to a weight.
    fn constant(&mut self, operand: Operand) -> Option<Constant> {
        let value = match operand {
            Operand::None => return None,
            Operand::Weight(id) => return self.stored(id),
            Operand::Value(value) => value,
        };
        let (id, op, onnx) = self.maker(value)?;
        let input = op.inputs.first().copied();
        let (op_type, inputs) = (onnx.op_type.as_str(), op.inputs.clone());
        let mut found = match op_type {
            "Constant" => {
                let Attr::Weight(weight) = onnx.attrs.get("value")? else {
                    return None;
                };
                self.stored(*weight)?
            }
            "Identity" => self.constant(input?)?,
            "Transpose" => {
                let perm = onnx.attrs.get("perm").and_then(Attr::as_ints);
                let swaps = perm.is_none_or(|perm| perm == [1, 0]);
                let mut inner = self.constant(input?)?;
                if inner.dims.len() != 2 || !swaps {
                    return None;
                }
                inner.transposed = !inner.transposed;
                inner
            }
            "Cast" => {
                let to = int(onnx, "to", 0);
                let to = i32::try_from(to).ok().and_then(DType::from_onnx)?;
                let mut inner = self.constant(input?)?;
                if !widens(inner.dtype, to) {
                    return None;
                }
                inner.dtype = to;
                inner
            }
            "DequantizeLinear" => {
                let onnx = onnx.clone();
                self.dequantized(&inputs, &onnx)?
            }
            _ => return None,
        };
        found.chain.push(id);
        Some(found)
    }

    fn stored(&self, id: WeightId) -> Option<Constant> {
        let weight = self.module.weight(id)?;
        Some(Constant {
            weight: id,
            dims: weight.dims.clone(),
            transposed: false,
            dtype: weight.dtype,
            chain: Vec::new(),
            dequantize: None,
        })
    }

    fn rank(&self, operand: Operand) -> Option<usize> {
        let Operand::Value(id) = operand else {
            return None;
        };
        match self.graph.value(id)?.ty.as_ref()? {
            Type::Tensor(tensor) => Some(tensor.shape.as_ref()?.len()),
            _ => None,
        }
    }

    fn missed(&mut self, op: &Op, why: impl Into<String>) {
        let result = op.results.iter().flatten().next();
        let name = result
            .and_then(|&id| self.graph.value(id))
            .map_or("", |value| &value.name);
        let site = if op.name.is_empty() { name } else { &op.name };
        self.remarks.push(Remark::missed(site, why));
    }

    fn embedding(&mut self, id: OpId) {
        let graph = self.graph;
        let Some(op) = graph.op(id).filter(|op| has_one_result(op)) else {
            return;
        };
        let Some(onnx) = onnx_of(op).filter(|onnx| onnx.op_type == "Gather") else {
            return;
        };
        let &[table, indices] = op.inputs.as_slice() else {
            return;
        };
        if int(onnx, "axis", 0) != 0 || !matches!(indices, Operand::Value(_)) {
            return;
        }
        let Some(found) = self.constant(table) else {
            return;
        };
        let float = matches!(found.dtype, DType::F32 | DType::F16 | DType::BF16);
        let &[rows, cols] = found.dims.as_slice() else {
            return;
        };
        let (entries, width) = if found.transposed {
            (cols, rows)
        } else {
            (rows, cols)
        };
        if !float || entries == 0 || width == 0 {
            return;
        }
        if entries > self.largest_table.0 {
            self.largest_table = (entries, width);
        }
        let view = WeightView {
            weight: found.weight,
            index: None,
            transposed: found.transposed,
        };
        let matrix = Matrix::dense(entries, width, view);
        let mut raised = op.clone();
        raised.kind = OpKind::Embedding(Embedding { matrix });
        raised.inputs = vec![indices];
        raised
            .meta
            .set(SPELLING, Attr::Dict(spelling(onnx, &found)));
        self.replace(id, raised, &found.chain);
    }

    fn replace(&mut self, id: OpId, op: Op, chain: &[OpId]) {
        self.replace_all(id, vec![op], chain);
    }

    fn replace_all(&mut self, id: OpId, ops: Vec<Op>, chain: &[OpId]) {
        let inputs = ops
            .iter()
            .flat_map(|op| op.inputs.iter().copied())
            .collect();
        self.raised.insert(id, inputs);
        self.patch.replace(OpRef { graph: 0, op: id }, ops);
        self.chains.extend(chain);
    }

    fn linear(&mut self, id: OpId) {
        let graph = self.graph;
        let Some(op) = graph.op(id).filter(|op| has_one_result(op)) else {
            return;
        };
        let Some(onnx) = onnx_of(op) else { return };
        match onnx.op_type.as_str() {
            "MatMul" => self.matmul(id, op, onnx),
            "Gemm" => self.gemm(id, op, onnx),
            "Conv" => self.conv(id, op, onnx),
            _ => {}
        }
    }

    /// The linear over a constant; `flip` says that it is seen as [in, out].
    fn linear_of(
        &mut self,
        op: &Op,
        found: &Constant,
        flip: bool,
        layout: Layout,
        scale: f32,
    ) -> Option<Linear> {
        if !matches!(
            found.dtype,
            DType::F32 | DType::F16 | DType::BF16 | DType::F64
        ) {
            if found.dtype.is_float() {
                self.missed(op, format!("weights are {}", found.dtype));
            }
            return None;
        }
        let transposed = found.transposed != flip;
        let (rows, cols) = (*found.dims.first()?, *found.dims.get(1)?);
        let (out, inp) = if transposed {
            (cols, rows)
        } else {
            (rows, cols)
        };
        if out == 0 || inp == 0 {
            return None;
        }
        let view = WeightView {
            weight: found.weight,
            index: None,
            transposed,
        };
        let head = self.largest_table == (out, inp);
        let role = if head { Role::Head } else { Role::Linear };
        let matrix = Matrix::dense(out, inp, view);
        Some(Linear {
            matrix,
            bias: None,
            layout,
            scale,
            role,
        })
    }

    fn conv(&mut self, id: OpId, op: &Op, onnx: &OnnxOp) {
        let (Some(&x), Some(&w)) = (op.inputs.first(), op.inputs.get(1)) else {
            return;
        };
        let Some(found) = self.constant(w) else {
            return;
        };
        let Some(spatial) = found.dims.get(2..).filter(|spatial| !spatial.is_empty()) else {
            return;
        };
        let all = |name: &str, value: i64| {
            onnx.attrs
                .get(name)
                .and_then(Attr::as_ints)
                .is_none_or(|v| v.iter().all(|&x| x == value))
        };
        let pointwise = spatial.iter().all(|&size| size == 1)
            && int(onnx, "group", 1) == 1
            && all("strides", 1)
            && all("pads", 0);
        let Ok(axes) = u8::try_from(spatial.len()) else {
            return;
        };
        if !pointwise || found.transposed || self.constant(x).is_some() {
            return;
        }
        let Some(mut linear) = self.linear_of(op, &found, false, Layout::Channels(axes), 1.0)
        else {
            return;
        };
        match op.inputs.get(2).copied().unwrap_or(Operand::None) {
            Operand::None => {}
            Operand::Weight(bias) => {
                let dims = self
                    .module
                    .weight(bias)
                    .map(|weight| weight.dims.as_slice());
                if dims != Some(&[linear.matrix.out_features]) {
                    return self.missed(op, "the bias is not one value per output");
                }
                linear.bias = Some(bias);
            }
            Operand::Value(_) => return self.missed(op, "the bias is no constant"),
        }
        let mut raised = op.clone();
        raised.kind = OpKind::Linear(linear);
        raised.inputs = vec![x];
        raised
            .meta
            .set(SPELLING, Attr::Dict(spelling(onnx, &found)));
        self.replace(id, raised, &found.chain);
    }

    /// Removes nodes between weights and linears that nothing uses any more.
    fn drop_dead_chains(&mut self) {
        let graph = self.graph;
        let mut uses: HashMap<ValueId, usize> = HashMap::new();
        let mut count = |operand: &Operand| {
            if let Operand::Value(value) = operand {
                *uses.entry(*value).or_default() += 1;
            }
        };
        for id in graph.walk() {
            let Some(op) = graph.op(id) else { continue };
            self.raised
                .get(&id)
                .unwrap_or(&op.inputs)
                .iter()
                .for_each(&mut count);
            let regions = op.kind.regions();
            regions
                .iter()
                .flat_map(|region| &region.outputs)
                .for_each(&mut count);
        }
        graph.body.outputs.iter().for_each(&mut count);
        while let Some(id) = self.chains.pop() {
            let Some(op) = graph.op(id) else { continue };
            let dead = |result: &ValueId| uses.get(result).is_none_or(|&n| n == 0);
            if !op.results.iter().flatten().all(dead) || self.raised.contains_key(&id) {
                continue;
            }
            self.patch.replace(OpRef { graph: 0, op: id }, Vec::new());
            self.raised.insert(id, Vec::new());
            for input in &op.inputs {
                if let Operand::Value(value) = input {
                    uses.entry(*value).and_modify(|n| *n = n.saturating_sub(1));
                    self.chains
                        .extend(self.makers.get(value).filter(|id| self.is_chain(**id)));
                }
            }
        }
    }

    fn is_chain(&self, id: OpId) -> bool {
        let op_type = self
            .graph
            .op(id)
            .and_then(onnx_of)
            .map(|onnx| onnx.op_type.as_str());
        let chain = [
            "Constant",
            "Identity",
            "Transpose",
            "Cast",
            "DequantizeLinear",
        ];
        op_type.is_some_and(|op_type| chain.contains(&op_type))
    }
}

/// Is every value of `from` exact in `to`?
fn widens(from: DType, to: DType) -> bool {
    use DType::{BF16, F16, F32, F64};
    from == to || matches!((from, to), (F16 | BF16, F32 | F64) | (F32, F64))
}

/// What the exporter needs to write the node as it was.
fn spelling(onnx: &OnnxOp, found: &Constant) -> Attrs {
    let mut attrs = Attrs::new();
    attrs.set("op", Attr::str(&onnx.op_type));
    attrs.set("dtype", Attr::str(found.dtype.name()));
    if let Some(dequantize) = &found.dequantize {
        attrs.set("dequantize", Attr::Dict(dequantize.clone()));
    }
    if !onnx.attrs.is_empty() {
        attrs.set("attrs", Attr::Dict(onnx.attrs.clone()));
    }
    attrs
}

pass_entry!("find-linears" in "find_linears.rs", Options, |options: Options| Ok(
    Pass::Module(Box::new(FindLinears(options)))
));
