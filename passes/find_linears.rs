//! Raises ONNX nodes with a constant matrix to `linear` and `embedding`.
//!
//! Term passes work on linears; exporters spell a linear in many ways. Found are MatMul with a
//! constant on either side, Gemm, MatMul and a constant Add behind it, 1×1 Conv, and Gather from a
//! table, the constant being a weight or a Constant, also behind Transpose, Cast to a wider type,
//! Identity or DequantizeLinear. Codes of ONNX Runtime's MatMulNBits and GatherBlockQuantized and
//! Constants of `sparse_value` are read as `quant` and `sparse` terms. A weight that several nodes share stays one weight. Bodies of
//! model-local functions are searched too. Left alone, with a remark: products whose activation has
//! another width than the matrix takes or, for a weight on the left, no known rank; weights that
//! callers may replace, being inputs of the graph too or parameters of a function. Runs by itself
//! before the first term pass of a pipeline; a linear that ends unchanged is exported as the node
//! that it was.
//!
//! Before: `%y = onnx.MatMul %x, @w` and `%z = onnx.Add %y, @b`
//! After:  `%z = linear %x [384,384] { dense(@w transposed) } bias(@b)`
//!
//! Cost: linear in nodes; reads data of weights behind DequantizeLinear, and small integer constants
//! to infer shapes.
//! Source: ONNX operator reference.

use std::collections::{HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use crate::ir::patch::Patch;
use crate::ir::shapes::{Shapes, Trust, infer_with};
use crate::ir::{
    Attr, Attrs, Graph, Layout, Linear, Matrix, Module, OnnxOp, Op, OpId, OpKind, OpRef, Operand,
    Role, ValueId, WeightId, WeightView,
};
use crate::pass::{ModulePass, Pass, PassError, Remark, Rewrite};
use crate::store;
use crate::weights::DType;

mod activation;
mod coded;
mod constant;
mod conv;
mod dequantize;
mod embedding;
mod gemm;
mod matmul;
mod sparse;

use constant::Constant;

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

struct Finder<'a> {
    module: &'a Module,
    shapes: &'a Shapes,
    /// What follows from the inputs alone, as the verifier infers it.
    derived: &'a Shapes,
    /// Number of the graph.
    index: usize,
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
    /// Weights that were made of others, to be terms.
    converted: HashMap<WeightId, WeightId>,
    /// Names of weights that were made.
    names: HashSet<String>,
    largest_table: (u64, u64),
    /// Products whose weight is a parameter of the function at hand.
    parameters: usize,
    /// Which parameters calls give a constant for.
    given: HashMap<ValueId, bool>,
}

impl ModulePass for FindLinears {
    fn run(&self, rewrite: &mut Rewrite<'_>) -> Result<Patch, PassError> {
        let (module, remarks) = (rewrite.module, &mut *rewrite.remarks);
        let shapes = store::shapes(module);
        let derived = infer_with(module, Trust::Inputs, &mut |_| None);
        let mut patch = Patch::new(module, "find-linears");
        let (mut names, mut largest_table) = (HashSet::new(), (0, 0));
        for (index, graph) in module.graphs.iter().enumerate() {
            let mut finder = Finder {
                module,
                shapes: &shapes,
                derived: &derived,
                index,
                graph,
                makers: HashMap::new(),
                users: HashMap::new(),
                patch,
                remarks: &mut *remarks,
                raised: HashMap::new(),
                chains: Vec::new(),
                dequantized: HashMap::new(),
                converted: HashMap::new(),
                names,
                largest_table,
                parameters: 0,
                given: HashMap::new(),
            };
            finder.run(self.0.embeddings);
            (patch, names, largest_table) = (finder.patch, finder.names, finder.largest_table);
        }
        Ok(patch)
    }
}

fn onnx_of(op: &Op) -> Option<&OnnxOp> {
    match &op.kind {
        OpKind::Onnx(onnx) if is_standard(onnx) && !has_references(onnx) => Some(onnx),
        _ => None,
    }
}

fn is_standard(onnx: &OnnxOp) -> bool {
    onnx.domain.is_empty() || onnx.domain == "ai.onnx"
}

/// Whether the caller of the function around gives one of the attributes.
fn has_references(onnx: &OnnxOp) -> bool {
    let reference = |attr: &Attr| matches!(attr, Attr::Dict(dict) if dict.get("ref").is_some());
    onnx.attrs.iter().any(|(_, attr)| reference(attr))
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
    fn run(&mut self, embeddings: bool) {
        self.index();
        let ops = self.graph.walk();
        if embeddings {
            for &id in &ops {
                self.embedding(id);
            }
        }
        for &id in &ops {
            if !self.raised.contains_key(&id) {
                self.linear(id);
            }
        }
        self.drop_dead_chains();
        if self.parameters > 0 {
            let why = format!(
                "{} of its products take their weights as parameters, which differ from call to \
                 call; inline the function to reach them",
                self.parameters
            );
            self.remarks
                .push(Remark::missed(&self.graph.body.name, why));
        }
    }

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

    fn missed(&mut self, op: &Op, why: impl Into<String>) {
        let result = op.results.iter().flatten().next();
        let name = result
            .and_then(|&id| self.graph.value(id))
            .map_or("", |value| &value.name);
        let site = if op.name.is_empty() { name } else { &op.name };
        self.remarks.push(Remark::missed(site, why));
    }

    fn at(&self, op: OpId) -> OpRef {
        OpRef {
            graph: self.index,
            op,
        }
    }

    /// A name for a weight that is made.
    fn weight_name(&mut self, wanted: String) -> String {
        let mut name = wanted.clone();
        let mut count = 1;
        let taken = |name: &String| self.module.weights.iter().any(|w| w.name == *name);
        while self.names.contains(&name) || taken(&name) {
            count += 1;
            name = format!("{wanted}.{count}");
        }
        self.names.insert(name.clone());
        name
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
        let at = self.at(id);
        self.patch.replace(at, ops);
        self.chains.extend(chain);
    }

    fn linear(&mut self, id: OpId) {
        let graph = self.graph;
        let Some(op) = graph.op(id).filter(|op| has_one_result(op)) else {
            return;
        };
        if coded::is_contrib(op, "MatMulNBits") {
            return self.nbits(id, op);
        }
        let Some(onnx) = onnx_of(op) else {
            if let OpKind::Onnx(onnx) = &op.kind
                && is_standard(onnx)
                && ["Gemm", "Conv"].contains(&onnx.op_type.as_str())
            {
                self.missed(op, "an attribute is given by the function's caller");
            }
            return;
        };
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
