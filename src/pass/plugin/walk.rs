//! What a module pass of a plugin reads: the module by numbers, its weights by mapping.
#![allow(unsafe_code)]

use std::sync::Arc;

use hlrc_pass_abi::*;
use serde_json::{Map, Value, json};

use super::borrow::{self, moments_out};
use super::context::{State, with};
use super::host::rows_of;
use super::scene::{ModuleScene, Scene};
use crate::ir::text::{print, type_text};
use crate::ir::{Attr, Attrs, Module, Op, OpId, OpKind, OpRef, Operand, ValueId, Weight};
use crate::pass::PassError;
use crate::store::Reader;

pub(super) type Result<T, E = PassError> = std::result::Result<T, E>;

/// From here on an op's number is that of a new op.
pub(super) const FRESH: u32 = 1 << 31;

pub(super) fn scene(state: &mut State) -> Result<&mut ModuleScene> {
    match &mut state.scene {
        Scene::Module(scene) => Ok(scene),
        _ => Err(PassError::new("only a module pass sees the module")),
    }
}

fn module(state: &mut State) -> Result<Arc<Module>> {
    Ok(scene(state)?.module.clone())
}

/// An op of the module, or a new one.
pub(super) fn op(scene: &ModuleScene, at: HlrcOpRef) -> Result<&Op> {
    let missing = || PassError::new(format!("graph {} has no op {}", at.graph, at.op));
    if at.op >= FRESH {
        let fresh = scene.fresh.get((at.op - FRESH) as usize);
        let fresh = fresh.filter(|(graph, _)| *graph == at.graph);
        return fresh.map(|(_, op)| op).ok_or_else(missing);
    }
    let graph = scene.module.graphs.get(at.graph as usize);
    let found = graph.and_then(|g| g.op(crate::ir::OpId::new(at.op as usize)));
    found.ok_or_else(missing)
}

pub(super) fn weight(scene: &ModuleScene, number: u32) -> Result<&Weight> {
    let (index, old) = (number as usize, scene.module.weights.len());
    let found = match index.checked_sub(old) {
        None => scene.module.weights.get(index),
        Some(new) => scene.weights.get(new),
    };
    found.ok_or_else(|| PassError::new(format!("there is no weight {number}")))
}

fn operand_out(operand: &Operand) -> HlrcOperand {
    let (kind, id) = match operand {
        Operand::None => (HLRC_OPERAND_NONE, 0),
        Operand::Value(id) => (HLRC_OPERAND_VALUE, id.index() as u32),
        Operand::Weight(id) => (HLRC_OPERAND_WEIGHT, id.index() as u32),
    };
    HlrcOperand { kind, id }
}

pub(super) unsafe extern "C" fn module_text(
    context: HlrcContext,
    text: *mut HlrcStr,
) -> HlrcStatus {
    with(context, |state| {
        let module = module(state)?;
        let printed = print(&module);
        let lent = state.lend(printed);
        // SAFETY: room of the plugin, by the interface; so is all room below.
        unsafe { borrow::put(text, lent) }
    })
}

pub(super) unsafe extern "C" fn graph_count(context: HlrcContext, count: *mut u32) -> HlrcStatus {
    with(context, |state| {
        let graphs = module(state)?.graphs.len();
        // SAFETY: as in `module_text`.
        unsafe { borrow::put(count, graphs as u32) }
    })
}

pub(super) unsafe extern "C" fn graph_info(
    context: HlrcContext,
    graph: u32,
    info: *mut HlrcGraphInfo,
) -> HlrcStatus {
    with(context, |state| {
        let module = module(state)?;
        let found = module.graphs.get(graph as usize);
        let found = found.ok_or_else(|| PassError::new(format!("there is no graph {graph}")))?;
        let ops = found.walk().iter().map(|id| id.index() as u32).collect();
        let (ops, op_count) = state.lend_list::<u32>(ops);
        let inputs = found
            .body
            .inputs
            .iter()
            .map(|id| id.index() as u32)
            .collect();
        let (inputs, input_count) = state.lend_list::<u32>(inputs);
        let outputs = found.body.outputs.iter().map(operand_out).collect();
        let (outputs, output_count) = state.lend_operands::<HlrcOperand>(outputs);
        let made = HlrcGraphInfo {
            size: size_of::<HlrcGraphInfo>(),
            name: state.lend(found.body.name.clone()),
            ops,
            op_count,
            inputs,
            input_count,
            outputs,
            output_count,
        };
        // SAFETY: as in `module_text`.
        unsafe { borrow::fill(info, &made) }
    })
}

pub(super) unsafe extern "C" fn op_info(
    context: HlrcContext,
    at: HlrcOpRef,
    info: *mut HlrcOpInfo,
) -> HlrcStatus {
    with(context, |state| {
        let op = op(scene(state)?, at)?.clone();
        let inputs = op.inputs.iter().map(operand_out).collect();
        let (inputs, input_count) = state.lend_operands::<HlrcOperand>(inputs);
        let number = |id: &Option<ValueId>| id.map_or(HLRC_NO_ID, |id| id.index() as u32);
        let (results, result_count) =
            state.lend_list::<u32>(op.results.iter().map(number).collect());
        let (kind, attributes) = described(&op.kind);
        let matrix = op.kind.matrix();
        let bias = match &op.kind {
            OpKind::Linear(linear) => linear.bias,
            _ => None,
        };
        let made = HlrcOpInfo {
            size: size_of::<HlrcOpInfo>(),
            kind: state.lend(kind),
            name: state.lend(op.name.clone()),
            attributes: state.lend(Value::Object(attributes).to_string()),
            inputs,
            input_count,
            results,
            result_count,
            rows: matrix.map_or(0, |m| m.out_features),
            cols: matrix.map_or(0, |m| m.in_features),
            term_count: matrix.map_or(0, |m| m.terms.len()),
            bias: bias.map_or(HLRC_NO_ID, |id| id.index() as u32),
        };
        // SAFETY: as in `module_text`.
        unsafe { borrow::fill(info, &made) }
    })
}

/// An op's kind and constants as C has them.
fn described(kind: &OpKind) -> (String, Map<String, Value>) {
    match kind {
        OpKind::Native(native) => {
            let value = serde_json::to_value(native).unwrap_or_default();
            let mut fields = value.as_object().cloned().unwrap_or_default();
            fields.remove("op");
            (native.name().to_string(), fields)
        }
        OpKind::Linear(l) => {
            let mut fields = sides(&l.matrix);
            fields.insert("role".to_string(), l.role.name().into());
            fields.insert("scale".to_string(), json!(l.scale));
            ("linear".to_string(), fields)
        }
        OpKind::Embedding(e) => ("embedding".to_string(), sides(&e.matrix)),
        OpKind::Moe(moe) => {
            let fields = json!({"top_k": moe.top_k, "normalize": moe.normalize, "experts": moe.experts.len()});
            (
                "moe".to_string(),
                fields.as_object().cloned().unwrap_or_default(),
            )
        }
        // Of training graphs, which `train` makes and no model file has.
        OpKind::Grad(grad) => (grad.name().to_string(), Map::new()),
        OpKind::Onnx(onnx) => {
            let mut fields = attrs(&onnx.attrs);
            if !onnx.domain.is_empty() {
                fields.insert("$domain".to_string(), onnx.domain.as_str().into());
            }
            (format!("onnx.{}", onnx.op_type), fields)
        }
    }
}

fn sides(matrix: &crate::ir::Matrix) -> Map<String, Value> {
    let fields = json!({"rows": matrix.out_features, "cols": matrix.in_features});
    fields.as_object().cloned().unwrap_or_default()
}

fn attrs(attrs: &Attrs) -> Map<String, Value> {
    attrs
        .iter()
        .map(|(name, a)| (name.clone(), attr(a)))
        .collect()
}

fn attr(value: &Attr) -> Value {
    let text = |bytes: &Vec<u8>| Value::from(String::from_utf8_lossy(bytes).into_owned());
    match value {
        Attr::Bool(b) => (*b).into(),
        Attr::Int(i) => (*i).into(),
        Attr::Float(x) => json!(x.0),
        Attr::Str(s) => text(s),
        Attr::Ints(v) => json!(v),
        Attr::Floats(v) => v.iter().map(|x| json!(x.0)).collect(),
        Attr::Strs(v) => v.iter().map(text).collect(),
        Attr::List(v) => v.iter().map(attr).collect(),
        Attr::Dict(d) => Value::Object(attrs(d)),
        Attr::Weight(id) => json!({"weight": id.index()}),
        Attr::Region(region) => json!({"region": region.name}),
        Attr::Type(ty) => json!({"type": type_text(ty)}),
    }
}

pub(super) unsafe extern "C" fn op_term(
    context: HlrcContext,
    at: HlrcOpRef,
    index: usize,
    term: *mut HlrcTerm,
) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        let matrix = op(scene, at)?.kind.matrix();
        let matrix = matrix.ok_or_else(|| PassError::new("the op has no matrix"))?;
        let found = matrix.terms.get(index);
        let found = found.ok_or_else(|| PassError::new(format!("the op has no term {index}")))?;
        let read = Reader::new(&scene.files).term(&scene.module, matrix, found);
        let read = read.map_err(PassError::new)?;
        let handle = state.add_term(read);
        // SAFETY: as in `module_text`.
        unsafe { borrow::put(term, handle) }
    })
}

pub(super) unsafe extern "C" fn op_rows(
    context: HlrcContext,
    at: HlrcOpRef,
    first_row: u64,
    rows: u64,
    out: *mut f32,
) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        let matrix = op(scene, at)?.kind.matrix();
        let matrix = matrix.ok_or_else(|| PassError::new("the op has no matrix"))?;
        let (all, cols) = (
            super::host::size(matrix.out_features)?,
            super::host::size(matrix.in_features)?,
        );
        let range = rows_of(first_row, rows, all)?;
        let entries = range.len().checked_mul(cols);
        let entries = entries.ok_or_else(|| PassError::new("more rows than memory has"))?;
        // SAFETY: as in `module_text`.
        let out = unsafe { borrow::room(out, entries, "rows") }?;
        let reader = Reader::new(&scene.files);
        out.fill(0.0);
        for term in &matrix.terms {
            if let Some(view) = dense(term) {
                let view = reader
                    .view(&scene.module, matrix, view)
                    .map_err(PassError::new)?;
                let mut values = vec![0f32; entries];
                view.read_rows_f32(range.clone(), &mut values)
                    .map_err(PassError::new)?;
                out.iter_mut().zip(&values).for_each(|(o, v)| *o += v);
            } else {
                let term = reader
                    .term(&scene.module, matrix, term)
                    .map_err(PassError::new)?;
                term.add_rows(range.clone(), out)?;
            }
        }
        Ok(())
    })
}

/// The name is asked for by number, since two ops may have one name and sites may not.
pub(super) unsafe extern "C" fn op_site(
    context: HlrcContext,
    at: HlrcOpRef,
    site: *mut HlrcStr,
) -> HlrcStatus {
    found(context, |state| {
        let scene = scene(state)?;
        op(scene, at)?;
        let place = OpRef {
            graph: at.graph as usize,
            op: OpId::new(at.op as usize),
        };
        let mut all = scene.sites().iter();
        let Some(own) = all.find(|s| s.users.contains(&place)) else {
            return Ok(false);
        };
        let name = own.name.clone();
        let lent = state.lend(name);
        // SAFETY: as in `module_text`.
        unsafe { borrow::put(site, lent) }?;
        Ok(true)
    })
}

pub(super) unsafe extern "C" fn moments(
    context: HlrcContext,
    site: HlrcStr,
    out: *mut HlrcMoments,
) -> HlrcStatus {
    found(context, |state| {
        let scene = scene(state)?;
        // SAFETY: a text of the plugin, by the interface.
        let name = unsafe { borrow::text(site) }?;
        let known = scene.sites().iter().find(|s| s.name == name);
        let known = known.ok_or_else(|| PassError::new(format!("there is no site `{name}`")))?;
        let Some(source) = &scene.statistics else {
            return Ok(false);
        };
        let named = |e: String| PassError::new(format!("{name}: {e}"));
        let read = source.moments(name).map_err(named)?;
        let Some(read) = read
            .map(|m| m.of_width(known.cols))
            .transpose()
            .map_err(named)?
        else {
            return Ok(false);
        };
        let lent = moments_out(state.moments.insert(read));
        // SAFETY: as in `module_text`.
        unsafe { borrow::fill(out, &lent) }?;
        Ok(true)
    })
}

/// [`with`], for what may not be there: `HLRC_NONE` then.
fn found(context: HlrcContext, work: impl FnOnce(&mut State) -> Result<bool>) -> HlrcStatus {
    let mut there = false;
    let status = with(context, |state| {
        there = work(state)?;
        Ok(())
    });
    match status {
        HLRC_OK if !there => HLRC_NONE,
        status => status,
    }
}

fn dense(term: &crate::ir::Term) -> Option<&crate::ir::WeightView> {
    match term {
        crate::ir::Term::Dense(view) => Some(view),
        _ => None,
    }
}

pub(super) unsafe extern "C" fn value_info(
    context: HlrcContext,
    graph: u32,
    value: u32,
    info: *mut HlrcValueInfo,
) -> HlrcStatus {
    with(context, |state| {
        let module = module(state)?;
        let found = module.graphs.get(graph as usize);
        let found = found.and_then(|g| g.value(ValueId::new(value as usize)));
        let found =
            found.ok_or_else(|| PassError::new(format!("graph {graph} has no value {value}")))?;
        let made = HlrcValueInfo {
            size: size_of::<HlrcValueInfo>(),
            name: state.lend(found.name.clone()),
            ty: state.lend(found.ty.as_ref().map_or(String::new(), type_text)),
        };
        // SAFETY: as in `module_text`.
        unsafe { borrow::fill(info, &made) }
    })
}

pub(super) unsafe extern "C" fn weight_count(context: HlrcContext, count: *mut u32) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        let all = scene.module.weights.len() + scene.weights.len();
        // SAFETY: as in `module_text`.
        unsafe { borrow::put(count, all as u32) }
    })
}

pub(super) unsafe extern "C" fn weight_info(
    context: HlrcContext,
    number: u32,
    info: *mut HlrcWeightInfo,
) -> HlrcStatus {
    with(context, |state| {
        let found = weight(scene(state)?, number)?.clone();
        let bytes = found.bytes();
        let (dims, rank) = state.lend_list(found.dims);
        let made = HlrcWeightInfo {
            size: size_of::<HlrcWeightInfo>(),
            name: state.lend(found.name),
            dtype: found.dtype.onnx_number() as u32,
            rank: rank as u32,
            dims,
            bytes,
        };
        // SAFETY: as in `module_text`.
        unsafe { borrow::fill(info, &made) }
    })
}

pub(super) unsafe extern "C" fn weight_data(
    context: HlrcContext,
    number: u32,
    tensor: *mut HlrcTensor,
) -> HlrcStatus {
    with(context, |state| {
        let scene = scene(state)?;
        let found = weight(scene, number)?.clone();
        let located = Reader::new(&scene.files).locate(&scene.module, &found);
        // Mapped, or in memory where the file has it in another form; the context keeps either.
        let located = state.keep(located.map_err(PassError::new)?);
        // SAFETY: a kept value stays where it is until the context ends.
        let bytes = unsafe { &*located }.bytes().map_err(PassError::new)?;
        let (data, len) = (bytes.as_ptr(), bytes.len());
        let (dims, rank) = state.lend_list(found.dims);
        let made = HlrcTensor {
            name: state.lend(found.name),
            dtype: found.dtype.onnx_number() as u32,
            rank: rank as u32,
            dims,
            data,
            len,
        };
        // SAFETY: as in `module_text`.
        unsafe { borrow::put(tensor, made) }
    })
}
