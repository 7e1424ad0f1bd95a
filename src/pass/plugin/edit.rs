//! What a module pass of a plugin changes: edits are collected in a patch, which counts as a whole.
#![allow(unsafe_code)]

use hlrc_pass_abi::*;
use serde_json::{Map, Value};

use super::borrow::{self, spec};
use super::context::with;
use super::scene::ModuleScene;
use super::walk::{FRESH, Result, op, scene, weight};
use crate::ir::text::{parse, parse_type};
use crate::ir::{
    Attr, Attrs, Embedding, Float, Layout, Linear, Matrix, Native, OnnxOp, Op, OpId, OpKind, OpRef,
    Operand, Role, Storage, Term, ValueId, Weight, WeightId,
};
use crate::pass::PassError;

pub(super) unsafe extern "C" fn module_set_text(context: HlrcContext, text: HlrcStr) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        // SAFETY: a text of the plugin, by the interface; so are all texts and lists below.
        let mut whole = parse(unsafe { borrow::text(text) }?).map_err(PassError::new)?;
        whole.base_dir = scene.module.base_dir.clone();
        scene.whole = Some(whole);
        Ok(())
    })
}

pub(super) unsafe extern "C" fn weight_new(
    context: HlrcContext,
    tensor: *const HlrcTensor,
    number: *mut u32,
) -> HlrcStatus {
    with(context, |state| {
        borrow::place(number)?;
        let scene = scene(state)?;
        // SAFETY: as in `module_set_text`.
        let given = unsafe { borrow::slice(tensor, 1, "tensor") }?;
        // SAFETY: as in `module_set_text`.
        let tensor = given.iter().map(|t| unsafe { borrow::tensor(t) }).next();
        let tensor = tensor.ok_or_else(|| PassError::new("no tensor"))??;
        let name = tensor.suffix.into_owned();
        let taken = scene
            .module
            .weights
            .iter()
            .chain(&scene.weights)
            .any(|w| w.name == name);
        if name.is_empty() || taken {
            return Err(PassError::new(format!(
                "a weight can't be called `{name}`: empty, or taken"
            )));
        }
        let made = Weight {
            name,
            dtype: tensor.dtype,
            dims: tensor.shape,
            storage: Storage::Inline(tensor.pieces.concat()),
            sha256: None,
            meta: Attrs::new(),
        };
        scene.weights.push(made.clone());
        let id = scene.patch.add_weight(made);
        // SAFETY: room of the plugin, by the interface; so is all room below.
        unsafe { borrow::put(number, id.index() as u32) }
    })
}

pub(super) unsafe extern "C" fn weight_drop(context: HlrcContext, number: u32) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        weight(scene, number)?;
        scene.patch.drop_weight(WeightId::new(number as usize));
        Ok(())
    })
}

pub(super) unsafe extern "C" fn value_new(
    context: HlrcContext,
    graph: u32,
    name: HlrcStr,
    ty: HlrcStr,
    number: *mut u32,
) -> HlrcStatus {
    with(context, |state| {
        borrow::place(number)?;
        let scene = scene(state)?;
        // SAFETY: as in `module_set_text`.
        let (name, ty) = unsafe { (borrow::text(name)?, borrow::text(ty)?) };
        let missing = || PassError::new(format!("there is no graph {graph}"));
        let count = scene.values.get_mut(graph as usize).ok_or_else(missing)?;
        let ty = match ty {
            "" => None,
            text => Some(parse_type(text).map_err(PassError::new)?),
        };
        *count += 1;
        let id = scene.patch.add_value(graph as usize, name, ty);
        // SAFETY: as in `weight_new`.
        unsafe { borrow::put(number, id.index() as u32) }
    })
}

pub(super) unsafe extern "C" fn op_new(
    context: HlrcContext,
    graph: u32,
    kind: HlrcStr,
    attributes: HlrcStr,
    made: *mut HlrcOpRef,
) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        // SAFETY: as in `module_set_text`.
        let (kind, attributes) = unsafe { (borrow::text(kind)?, borrow::text(attributes)?) };
        let attributes = if attributes.is_empty() {
            "{}"
        } else {
            attributes
        };
        let bad = |e: serde_json::Error| PassError::new(format!("attributes of `{kind}`: {e}"));
        let fields: Map<String, Value> = serde_json::from_str(attributes).map_err(bad)?;
        let kind = op_kind(kind, fields)?;
        let mut op = Op::new(kind, Vec::new(), ValueId::new(0));
        op.results.clear();
        // SAFETY: as in `weight_new`.
        unsafe { add_fresh(scene, graph, op, made) }
    })
}

/// # Safety
/// `made` is null, or may be written.
unsafe fn add_fresh(
    scene: &mut ModuleScene,
    graph: u32,
    op: Op,
    made: *mut HlrcOpRef,
) -> Result<()> {
    if scene.module.graphs.len() <= graph as usize {
        return Err(PassError::new(format!("there is no graph {graph}")));
    }
    scene.fresh.push((graph, op));
    let number = FRESH + (scene.fresh.len() as u32 - 1);
    // SAFETY: the caller's promise.
    unsafe { borrow::put(made, HlrcOpRef { graph, op: number }) }
}

fn op_kind(kind: &str, mut fields: Map<String, Value>) -> Result<OpKind> {
    if let Some(name) = kind.strip_prefix("onnx.") {
        let domain = fields.remove("$domain");
        return Ok(OpKind::Onnx(OnnxOp {
            domain: domain
                .and_then(|d| d.as_str().map(str::to_string))
                .unwrap_or_default(),
            op_type: name.to_string(),
            overload: String::new(),
            attrs: attrs(fields)?,
        }));
    }
    let side = |fields: &Map<String, Value>, name: &str| {
        let found = fields.get(name).and_then(Value::as_u64);
        found.ok_or_else(|| PassError::new(format!("a `{kind}` needs the number `{name}`")))
    };
    match kind {
        "linear" | "embedding" => {
            let matrix = Matrix {
                out_features: side(&fields, "rows")?,
                in_features: side(&fields, "cols")?,
                terms: Vec::new(),
            };
            if kind == "embedding" {
                return Ok(OpKind::Embedding(Embedding { matrix }));
            }
            let role = fields
                .get("role")
                .and_then(Value::as_str)
                .unwrap_or("linear");
            let bias = fields.get("bias").and_then(Value::as_u64);
            let scale = fields.get("scale").and_then(Value::as_f64).unwrap_or(1.0);
            Ok(OpKind::Linear(Linear {
                matrix,
                bias: bias.map(|id| WeightId::new(id as usize)),
                layout: Layout::Rows,
                scale: scale as f32,
                role: Role::from_name(role)
                    .ok_or_else(|| PassError::new(format!("`{role}` is no role")))?,
            }))
        }
        "moe" => Err(PassError::new(
            "a `moe` can be copied, not made: it has regions",
        )),
        native => {
            fields.insert("op".to_string(), native.into());
            let native: Native = serde_json::from_value(fields.into())
                .map_err(|e| PassError::new(format!("`{kind}`: {e}")))?;
            Ok(OpKind::Native(native))
        }
    }
}

fn attrs(fields: Map<String, Value>) -> Result<Attrs> {
    let mut all = Attrs::new();
    for (name, value) in fields {
        if value.get("region").is_some() {
            return Err(PassError::new(format!(
                "attribute `{name}` is a graph: an op that has one can be copied, not made"
            )));
        }
        let unknown = || PassError::new(format!("attribute `{name}` has no ONNX type"));
        all.set(&name, attr(&value).ok_or_else(unknown)?);
    }
    Ok(all)
}

fn attr(value: &Value) -> Option<Attr> {
    let float = |value: &Value| value.as_f64().map(|x| Float(x as f32));
    Some(match value {
        Value::Number(n) if n.is_f64() => Attr::Float(float(value)?),
        Value::Number(n) => Attr::Int(n.as_i64()?),
        Value::String(text) => Attr::str(text),
        Value::Bool(b) => Attr::Int(i64::from(*b)),
        Value::Array(list) if list.iter().all(|v| v.is_i64() || v.is_u64()) => {
            Attr::Ints(list.iter().map(Value::as_i64).collect::<Option<_>>()?)
        }
        Value::Array(list) if list.iter().all(Value::is_number) => {
            Attr::Floats(list.iter().map(float).collect::<Option<_>>()?)
        }
        Value::Array(list) => {
            let text = |v: &Value| v.as_str().map(|s| s.as_bytes().to_vec());
            Attr::Strs(list.iter().map(text).collect::<Option<_>>()?)
        }
        Value::Object(fields) => match fields.get("weight").and_then(Value::as_u64) {
            Some(id) if fields.len() == 1 => Attr::Weight(WeightId::new(id as usize)),
            _ => return None,
        },
        Value::Null => return None,
    })
}

pub(super) unsafe extern "C" fn op_copy(
    context: HlrcContext,
    of: HlrcOpRef,
    made: *mut HlrcOpRef,
) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        let copy = op(scene, of)?.clone();
        // SAFETY: as in `weight_new`.
        unsafe { add_fresh(scene, of.graph, copy, made) }
    })
}

fn fresh(scene: &mut ModuleScene, at: HlrcOpRef) -> Result<&mut Op> {
    let index = at.op.checked_sub(FRESH).map(|n| n as usize);
    let found = index.and_then(|n| scene.fresh.get_mut(n));
    let found = found
        .filter(|(graph, _)| *graph == at.graph)
        .map(|(_, op)| op);
    found.ok_or_else(|| {
        let (graph, op) = (at.graph, at.op);
        PassError::new(format!(
            "op {op} of graph {graph} is not new: copy it with `op_copy` and change that"
        ))
    })
}

pub(super) unsafe extern "C" fn op_set_name(
    context: HlrcContext,
    at: HlrcOpRef,
    name: HlrcStr,
) -> HlrcStatus {
    with(context, |state| {
        // SAFETY: as in `module_set_text`.
        fresh(scene(state)?, at)?.name = unsafe { borrow::text(name) }?.to_string();
        Ok(())
    })
}

/// An operand that means something: values of the graph and weights, new ones included.
fn operand(scene: &ModuleScene, graph: u32, given: &HlrcOperand) -> Result<Operand> {
    match given.kind {
        HLRC_OPERAND_NONE => Ok(Operand::None),
        HLRC_OPERAND_VALUE => Ok(Operand::Value(value(scene, graph, given.id)?)),
        HLRC_OPERAND_WEIGHT => {
            weight(scene, given.id)?;
            Ok(Operand::Weight(WeightId::new(given.id as usize)))
        }
        other => Err(PassError::new(format!("an operand of kind {other}"))),
    }
}

fn value(scene: &ModuleScene, graph: u32, number: u32) -> Result<ValueId> {
    let old = scene
        .module
        .graphs
        .get(graph as usize)
        .map_or(0, |g| g.values.len());
    let new = scene.values.get(graph as usize).copied().unwrap_or(0);
    if number as usize >= old + new as usize {
        return Err(PassError::new(format!(
            "graph {graph} has no value {number}"
        )));
    }
    Ok(ValueId::new(number as usize))
}

pub(super) unsafe extern "C" fn op_set_inputs(
    context: HlrcContext,
    at: HlrcOpRef,
    inputs: *const HlrcOperand,
    count: usize,
) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        // SAFETY: as in `module_set_text`.
        let given = unsafe { borrow::slice(inputs, count, "inputs") }?;
        let inputs = given.iter().map(|o| operand(scene, at.graph, o));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        fresh(scene, at)?.inputs = inputs;
        Ok(())
    })
}

pub(super) unsafe extern "C" fn op_set_results(
    context: HlrcContext,
    at: HlrcOpRef,
    results: *const u32,
    count: usize,
) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        // SAFETY: as in `module_set_text`.
        let given = unsafe { borrow::slice(results, count, "results") }?;
        let result = |&number: &u32| match number {
            HLRC_NO_ID => Ok(None),
            number => value(scene, at.graph, number).map(Some),
        };
        let results = given.iter().map(result).collect::<Result<Vec<_>>>()?;
        fresh(scene, at)?.results = results;
        Ok(())
    })
}

fn matrix(op: &mut Op) -> Result<&mut Matrix> {
    let matrix = op.kind.matrix_mut();
    matrix.ok_or_else(|| PassError::new("the op has no matrix"))
}

pub(super) unsafe extern "C" fn op_clear_terms(context: HlrcContext, at: HlrcOpRef) -> HlrcStatus {
    with(context, |state| {
        matrix(fresh(scene(state)?, at)?)?.terms.clear();
        Ok(())
    })
}

#[allow(clippy::too_many_arguments)] // the interface's own
pub(super) unsafe extern "C" fn op_add_term(
    context: HlrcContext,
    at: HlrcOpRef,
    kind: HlrcStr,
    attributes: HlrcStr,
    names: *const HlrcStr,
    weights: *const u32,
    count: usize,
) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        // SAFETY: as in `module_set_text`.
        let (kind, attributes, weights) = unsafe {
            (
                borrow::text(kind)?,
                borrow::text(attributes)?,
                borrow::slice(weights, count, "weights")?,
            )
        };
        let names = match names.is_null() {
            true => &[],
            // SAFETY: as in `module_set_text`.
            false => unsafe { borrow::slice(names, count, "names") }?,
        };
        // SAFETY: as in `module_set_text`.
        let names = names
            .iter()
            .map(|&n| unsafe { borrow::text(n) }.map(str::to_string));
        let names = names.collect::<Result<Vec<_>>>()?;
        if kind.contains('.') && names.len() != count {
            return Err(PassError::new(
                "a term of a plugin's kind needs its tensors' names",
            ));
        }
        weights
            .iter()
            .try_for_each(|&n| weight(scene, n).map(|_| ()))?;
        let ids: Vec<WeightId> = weights.iter().map(|&n| WeightId::new(n as usize)).collect();
        let spec = spec(kind, attributes, &names)?;
        if spec.tensors() != ids.len() {
            let (need, have) = (spec.tensors(), ids.len());
            return Err(PassError::new(format!(
                "`{kind}` has {need} tensors, {have} are given"
            )));
        }
        let term: Term = spec.term(&ids).map_err(PassError::new)?;
        matrix(fresh(scene, at)?)?.terms.push(term);
        Ok(())
    })
}

pub(super) unsafe extern "C" fn op_replace(
    context: HlrcContext,
    at: HlrcOpRef,
    ops: *const HlrcOpRef,
    count: usize,
) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        // SAFETY: as in `module_set_text`.
        let given = unsafe { borrow::slice(ops, count, "ops") }?;
        if at.op >= FRESH {
            return Err(PassError::new(
                "a new op stands nowhere; name one of the module's",
            ));
        }
        op(scene, at)?;
        let place = OpRef {
            graph: at.graph as usize,
            op: OpId::new(at.op as usize),
        };
        let mut ops = Vec::with_capacity(given.len());
        for new in given {
            if new.graph != at.graph || (new.op < FRESH && *new != at) {
                return Err(PassError::new(
                    "an op is put in the place of one of another graph, or twice",
                ));
            }
            ops.push(op(scene, *new)?.clone());
        }
        scene.patch.replace(place, ops);
        Ok(())
    })
}

pub(super) unsafe extern "C" fn graph_set_ports(
    context: HlrcContext,
    graph: u32,
    inputs: *const u32,
    input_count: usize,
    outputs: *const HlrcOperand,
    output_count: usize,
) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        // SAFETY: as in `module_set_text`.
        let (inputs, outputs) = unsafe {
            (
                borrow::slice(inputs, input_count, "inputs")?,
                borrow::slice(outputs, output_count, "outputs")?,
            )
        };
        let inputs = inputs.iter().map(|&n| value(scene, graph, n));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let outputs = outputs.iter().map(|o| operand(scene, graph, o));
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        if scene.module.graphs.len() <= graph as usize {
            return Err(PassError::new(format!("there is no graph {graph}")));
        }
        scene.patch.set_ports(graph as usize, inputs, outputs);
        Ok(())
    })
}
