//! Makes one linear of those that read the same input: query, key and value, gate and up.
//!
//! One matrix with all rows is one kernel and one read of the activation, and what the rows have in
//! common is stored once: a low-rank term of all of them shares its V. Row-major matrices are
//! stacked by naming their bytes one after the other, so nothing is copied before a later pass or
//! the output reads it. Fused are body linears with one dense term each, of one type, stored
//! `[out, in]` and used nowhere else, with biases all or none. In ONNX models those are `Gemm` with
//! `transB` and weights behind Transpose; a MatMul's `[in, out]` is left alone, since its outputs
//! are columns, and stacking columns would copy every matrix.
//!
//! Before: `%q = linear %x [576,576] { dense(@wq) }  %k = linear %x [192,576] { dense(@wk) }`
//! After:  `%a = linear %x [768,576] { dense(@wqk) }  %q = slice %a {start=0, width=576}
//! %k = slice %a {start=576, width=192}` with `@wqk = concat(file(…), file(…))`
//!
//! Cost: linear in ops; a fused matrix is put together in memory when it is read.
//! Source: D. Narayanan et al., "Efficient large-scale language model training on GPU clusters
//! using Megatron-LM", arXiv 2104.04473.

use std::collections::{BTreeMap, HashMap, HashSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::find_linears::SPELLING;
use super::shared::entry::pass_entry;
use crate::ir::patch::Patch;
use crate::ir::{
    Attr, Attrs, Dim, Graph, Layout, Linear, Matrix, Module, Native, Op, OpId, OpKind, OpRef,
    Operand, Role, Storage, Term, Type, ValueId, Weight, WeightId, WeightView,
};
use crate::pass::{ModulePass, Pass, PassError, Remark, RemarkKind, Rewrite};
use crate::weights::DType;

/// Options of `fuse-siblings`: none.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {}

/// The pass.
pub struct FuseSiblings;

impl ModulePass for FuseSiblings {
    fn run(&self, rewrite: &mut Rewrite<'_>) -> Result<Patch, PassError> {
        let (module, remarks) = (rewrite.module, &mut *rewrite.remarks);
        let mut fuser = Fuser {
            module,
            patch: Patch::new(module, "fuse-siblings"),
            users: users(module),
            names: module.weights.iter().map(|w| w.name.clone()).collect(),
            remarks,
        };
        for graph in 0..module.graphs.len() {
            fuser.graph(graph);
        }
        Ok(fuser.patch)
    }
}

struct Fuser<'a> {
    module: &'a Module,
    patch: Patch,
    /// Number of ops that use each weight.
    users: HashMap<WeightId, usize>,
    names: HashSet<String>,
    remarks: &'a mut Vec<Remark>,
}

/// What linears must have in common.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    role: Role,
    cols: u64,
    scale: u32,
    dtype: &'static str,
    bias: Option<&'static str>,
    /// Element type that an ONNX node computes in.
    computes: Option<&'static str>,
}

/// A linear as its region has it.
type Found<'a> = (OpId, &'a Op, &'a Linear);

/// A linear that may be fused.
struct Sibling<'a> {
    id: OpId,
    op: &'a Op,
    linear: &'a Linear,
    weight: WeightId,
}

impl<'a> Fuser<'a> {
    fn graph(&mut self, index: usize) {
        let module = self.module;
        let Some(graph) = module.graphs.get(index) else {
            return;
        };
        let inner = graph.walk().into_iter().filter_map(|id| graph.op(id));
        let regions: Vec<_> = inner.flat_map(|op| op.kind.regions()).collect();
        for region in std::iter::once(&graph.body).chain(regions) {
            let mut by_input: Vec<(Operand, Vec<Found<'_>>)> = Vec::new();
            for &id in &region.ops {
                let Some(op) = graph.op(id) else { continue };
                let (OpKind::Linear(linear), [input]) = (&op.kind, op.inputs.as_slice()) else {
                    continue;
                };
                match by_input.iter_mut().find(|(i, _)| i == input) {
                    Some((_, ops)) => ops.push((id, op, linear)),
                    None => by_input.push((*input, vec![(id, op, linear)])),
                }
            }
            for (input, ops) in by_input.into_iter().filter(|(_, ops)| ops.len() > 1) {
                self.siblings(index, graph, input, &ops);
            }
        }
    }

    fn siblings(&mut self, index: usize, graph: &Graph, input: Operand, ops: &[Found<'a>]) {
        let mut kinds: BTreeMap<Kind, Vec<Sibling<'a>>> = BTreeMap::new();
        for &(id, op, linear) in ops {
            match self.fusable(op, linear) {
                Ok((kind, weight)) => {
                    let sibling = Sibling {
                        id,
                        op,
                        linear,
                        weight,
                    };
                    kinds.entry(kind).or_default().push(sibling);
                }
                Err(why) => {
                    let name = self.name(op, linear);
                    self.remarks.push(Remark::missed(&name, why));
                }
            }
        }
        for siblings in kinds.into_values() {
            match siblings.as_slice() {
                [alone] => {
                    let name = self.name(alone.op, alone.linear);
                    let why = "no sibling has its type, role, scale and kind of bias";
                    self.remarks.push(Remark::missed(&name, why));
                }
                all => self.fuse(index, graph, input, all),
            }
        }
    }

    /// What a linear must share with its siblings, and its weight; or why it cannot be fused.
    fn fusable(&self, op: &Op, linear: &Linear) -> Result<(Kind, WeightId), String> {
        let matrix = &linear.matrix;
        let [Term::Dense(view)] = matrix.terms.as_slice() else {
            return Err("it is not one dense matrix; fuse before passes that make terms".into());
        };
        let weight = self
            .module
            .weight(view.weight)
            .ok_or("its weight is missing")?;
        if view.transposed {
            return Err("its matrix is stored [in, out], and stacking columns copies it".into());
        }
        if view.index.is_some() || linear.layout != Layout::Rows {
            return Err("its matrix is not stored [out, in] by itself".into());
        }
        if !matches!(linear.role, Role::Linear | Role::Expert) {
            return Err(format!("its role is {}", linear.role.name()));
        }
        if self.users.get(&view.weight) != Some(&1) {
            return Err("other ops use its weight".into());
        }
        let bias = linear
            .bias
            .map(|id| self.module.weight(id).ok_or("its bias is missing"));
        let bias = bias.transpose()?;
        for stored in std::iter::once(weight).chain(bias) {
            if stored.storage.raw_bytes() != Some(stored.bytes()) {
                return Err(format!("@{} has no bytes in a file yet", stored.name));
            }
        }
        let kind = Kind {
            role: linear.role,
            cols: matrix.in_features,
            scale: linear.scale.to_bits(),
            dtype: weight.dtype.name(),
            bias: bias.map(|w| w.dtype.name()),
            computes: spelled_dtype(op).map(DType::name),
        };
        Ok((kind, view.weight))
    }

    fn fuse(&mut self, index: usize, graph: &Graph, input: Operand, siblings: &[Sibling<'a>]) {
        let Some(first) = siblings.first() else {
            return;
        };
        let names: Vec<String> = siblings.iter().map(|s| self.name(s.op, s.linear)).collect();
        let name = joined(&names);
        let rows = siblings.iter().map(|s| s.linear.matrix.out_features).sum();
        let cols = first.linear.matrix.in_features;
        let weights: Vec<WeightId> = siblings.iter().map(|s| s.weight).collect();
        let biases: Vec<WeightId> = siblings.iter().filter_map(|s| s.linear.bias).collect();
        let stacked = self.stack(&format!("{name}.weight"), vec![rows, cols], &weights);
        let bias = match biases.as_slice() {
            [] => None,
            all => Some(self.stack(&format!("{name}.bias"), vec![rows], all)),
        };
        let ty = widened(graph, first.op, rows);
        let result = self.patch.add_value(index, "", ty);
        let linear = Linear {
            matrix: Matrix::dense(rows, cols, WeightView::whole(stacked)),
            bias,
            ..first.linear.clone()
        };
        let mut fused = Op::new(OpKind::Linear(linear), vec![input], result);
        fused.name = name.clone();
        if let Some(dtype) = spelled_dtype(first.op) {
            // No one node of the source, but of their element type.
            let mut spelled = Attrs::new();
            spelled.set("dtype", Attr::str(dtype.name()));
            fused.meta.set(SPELLING, Attr::Dict(spelled));
        }
        let mut ops = vec![fused];
        let mut start = 0;
        for sibling in siblings {
            let width = sibling.linear.matrix.out_features;
            let slice = OpKind::Native(Native::Slice { start, width });
            ops.push(Op {
                results: sibling.op.results.clone(),
                ..Op::new(slice, vec![Operand::Value(result)], result)
            });
            start += width;
            let at = OpRef {
                graph: index,
                op: sibling.id,
            };
            self.patch.replace(at, Vec::new());
        }
        self.patch.replace(
            OpRef {
                graph: index,
                op: first.id,
            },
            ops,
        );
        weights
            .iter()
            .chain(&biases)
            .for_each(|&w| self.patch.drop_weight(w));
        let text = format!("{} linears are one of [{rows}, {cols}]", siblings.len());
        self.remarks
            .push(Remark::new(RemarkKind::Passed, &name, text));
    }

    /// A weight that is others' bytes, one after the other.
    fn stack(&mut self, name: &str, dims: Vec<u64>, ids: &[WeightId]) -> WeightId {
        let weights = ids.iter().filter_map(|&id| self.module.weight(id));
        let parts = weights
            .clone()
            .flat_map(|w| w.storage.parts().iter().cloned());
        let dtype = weights.clone().next().map_or(DType::F32, |w| w.dtype);
        let mut unique = name.to_string();
        let mut number = 0;
        while !self.names.insert(unique.clone()) {
            number += 1;
            unique = format!("{name}.{number}");
        }
        self.patch.add_weight(Weight {
            name: unique,
            dtype,
            dims,
            storage: Storage::Concat(parts.collect()),
            sha256: None,
            meta: Attrs::new(),
        })
    }

    fn name(&self, op: &Op, linear: &Linear) -> String {
        if !op.name.is_empty() {
            return op.name.clone();
        }
        let mut weights = linear.matrix.terms.iter().flat_map(Term::weights);
        let weight = weights.next().and_then(|id| self.module.weight(id));
        let name = weight.map_or("linear", |w| &w.name);
        name.strip_suffix(".weight").unwrap_or(name).to_string()
    }
}

/// The element type of the ONNX node that a linear was.
fn spelled_dtype(op: &Op) -> Option<DType> {
    let Attr::Dict(spelled) = op.meta.get(SPELLING)? else {
        return None;
    };
    spelled.get("dtype")?.as_str()?.parse().ok()
}

/// The first sibling's type with another width.
fn widened(graph: &Graph, op: &Op, width: u64) -> Option<Type> {
    let result: ValueId = (*op.results.first()?)?;
    let mut ty = graph.value(result)?.ty.clone()?;
    if let Type::Tensor(tensor) = &mut ty {
        *tensor.shape.as_mut()?.last_mut()? = Dim::Known(i64::try_from(width).ok()?);
    }
    Some(ty)
}

/// One name for several: what differs between `.` or `/` is joined, `a.{q,k}.w` to `a.q_k.w`.
fn joined(names: &[String]) -> String {
    let separator = |c: char| matches!(c, '.' | '/');
    let Some(first) = names.first() else {
        return String::new();
    };
    let shared = |name: &String, other: &String| {
        let same = name.chars().zip(other.chars()).take_while(|(a, b)| a == b);
        same.map(|(c, _)| c.len_utf8()).sum::<usize>()
    };
    let head = names.iter().map(|n| shared(first, n)).min().unwrap_or(0);
    let head = first[..head].rfind(separator).map_or(0, |at| at + 1);
    let parts = names.iter().map(|n| n[head..].to_string());
    format!("{}{}", &first[..head], parts.collect::<Vec<_>>().join("_"))
}

/// How many ops use each weight.
fn users(module: &Module) -> HashMap<WeightId, usize> {
    let mut users: HashMap<WeightId, usize> = HashMap::new();
    for at in module.walk() {
        let Some(op) = module.op(at) else { continue };
        for weight in op.weights() {
            *users.entry(weight).or_default() += 1;
        }
    }
    users
}

pass_entry!("fuse-siblings" in "fuse_siblings.rs", Options, |_: Options| Ok(Pass::Module(
    Box::new(FuseSiblings)
)));
