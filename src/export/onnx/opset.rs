//! Operator-set versions: what a form needs, and upgrades of the rest.

use super::ExportError;
use crate::ir::{Attr, Attrs, Graph, Module, OnnxOp, OpKind, Operand, Storage, Weight, WeightId};
use crate::weights::DType;

/// Ops whose meaning or signature changed up to opset 21, with the version
/// that changed it, and which no rule here converts. What changed with 13 is
/// not listed: nothing from below is raised to it.
///
/// Source: ONNX changelog; changes that only add types or optional inputs and
/// attributes are none.
const CHANGED: [(&str, i64); 35] = [
    ("BatchNormalization", 14),
    ("RoiAlign", 16),
    ("Resize", 18),
    ("AveragePool", 19),
    ("GridSample", 20),
    ("DFT", 20),
    ("GroupNormalization", 21),
    // Attributes that became inputs, and ops that went.
    ("Clip", 11),
    ("Pad", 11),
    ("Resize", 11),
    ("Scatter", 11),
    ("Slice", 10),
    ("TopK", 10),
    ("Upsample", 10),
    ("BatchNormalization", 9),
    ("Scan", 9),
    ("Upsample", 9),
    // Broadcasting by the shapes instead of an attribute.
    ("Add", 7),
    ("And", 7),
    ("Div", 7),
    ("Equal", 7),
    ("Gemm", 7),
    ("Greater", 7),
    ("Less", 7),
    ("Mul", 7),
    ("Or", 7),
    ("Pow", 7),
    ("PRelu", 7),
    ("Sub", 7),
    ("Xor", 7),
    ("Dropout", 7),
    ("GRU", 7),
    ("LSTM", 7),
    ("RNN", 7),
    ("Reshape", 5),
];

/// Reductions whose axes became an input with opset 18.
const REDUCTIONS: [&str; 9] = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
];

/// Declares a domain, if it isn't yet.
pub(super) fn import(meta: &mut Attrs, domain: &str, version: i64) {
    let mut entry = Attrs::new();
    entry.set("domain", Attr::str(domain));
    entry.set("version", Attr::Int(version));
    let named = |item: &Attr| match item {
        Attr::Dict(dict) => dict.get("domain").and_then(Attr::as_str) == Some(domain),
        _ => false,
    };
    match meta.0.iter_mut().find(|(name, _)| name == "opset_import") {
        Some((_, Attr::List(list))) if list.iter().any(named) => {}
        Some((_, Attr::List(list))) => list.push(Attr::Dict(entry)),
        _ => meta.set("opset_import", Attr::List(vec![Attr::Dict(entry)])),
    }
}

/// Raises the standard opset of the model and of its functions to `needed`, converting ops on the
/// way.
///
/// # Errors
/// Ops that changed in between and have no rule, by name.
pub(super) fn require(module: &mut Module, needed: i64) -> Result<(), ExportError> {
    for index in 0..module.graphs.len() {
        let Some(from) = opset_of(module, index).filter(|from| *from < needed) else {
            continue;
        };
        let blockers = blockers(module, index, from, needed);
        if !blockers.is_empty() {
            return Err(ExportError::Opset {
                from,
                to: needed,
                ops: blockers.join(", "),
            });
        }
    }
    for index in 0..module.graphs.len() {
        let Some(from) = opset_of(module, index).filter(|from| *from < needed) else {
            continue;
        };
        if from < 18 && needed >= 18 {
            convert(module, index);
        }
        let meta = match index {
            0 => Some(&mut module.meta),
            _ => module.graphs.get_mut(index).map(|g| &mut g.body.meta),
        };
        if let Some(meta) = meta {
            state(meta, needed);
        }
        // IR version that came with the opset: 4-bit types and blocks need 10.
        let least = if needed >= 21 { 10 } else { 8 };
        let now = module
            .meta
            .get("ir_version")
            .and_then(Attr::as_int)
            .unwrap_or(3);
        module.meta.set("ir_version", Attr::Int(now.max(least)));
    }
    Ok(())
}

/// The standard opset that graph number `index` is written for.
fn opset_of(module: &Module, index: usize) -> Option<i64> {
    match index {
        0 => Some(module.meta.opset().unwrap_or(1)),
        _ => module.graphs.get(index)?.body.meta.opset(),
    }
}

fn state(meta: &mut Attrs, needed: i64) {
    let mut entries = meta.0.iter_mut();
    if let Some((_, Attr::List(list))) = entries.find(|(name, _)| name == "opset_import") {
        for item in list {
            if let Attr::Dict(dict) = item
                && dict.is_standard_domain()
            {
                dict.set("version", Attr::Int(needed));
            }
        }
    }
}

/// Ops in the way of an upgrade, sorted, each once.
fn blockers(module: &Module, index: usize, from: i64, to: i64) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let graph = module.graphs.get(index).into_iter();
    for onnx in graph.flat_map(|graph| &graph.ops).filter_map(standard) {
        let changed = CHANGED
            .iter()
            .any(|&(name, at)| name == onnx.op_type && from < at && at <= to);
        // With 13 half of all ops changed.
        if changed || (from < 13 && to >= 13) {
            found.push(onnx.op_type.clone());
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn standard(op: &crate::ir::Op) -> Option<&OnnxOp> {
    match &op.kind {
        OpKind::Onnx(onnx) if onnx.domain.is_empty() || onnx.domain == "ai.onnx" => Some(onnx),
        _ => None,
    }
}

/// The changes of opset 18: axes of reductions are an input, Split states its
/// number of outputs where it states nothing else.
fn convert(module: &mut Module, index: usize) {
    let Some(mut graph) = module.graphs.get_mut(index).map(std::mem::take) else {
        return;
    };
    for op in 0..graph.ops.len() {
        convert_op(module, &mut graph, op);
    }
    if index > 0 {
        // Functions declare no tensors; theirs become nodes.
        graph.body.weights.clear();
    }
    if let Some(slot) = module.graphs.get_mut(index) {
        *slot = graph;
    }
}

fn convert_op(module: &mut Module, graph: &mut Graph, index: usize) {
    let Some(op) = graph.ops.get_mut(index) else {
        return;
    };
    let outputs = op.results.len() as i64;
    let inputs = op.inputs.len();
    let OpKind::Onnx(onnx) = &mut op.kind else {
        return;
    };
    let domain = onnx.domain.is_empty() || onnx.domain == "ai.onnx";
    if domain && onnx.op_type == "Split" && inputs < 2 && onnx.attrs.get("num_outputs").is_none() {
        onnx.attrs.set("num_outputs", Attr::Int(outputs));
        op.meta.remove(crate::onnx::mapping::LAYOUT);
        return;
    }
    if !domain || !REDUCTIONS.contains(&onnx.op_type.as_str()) {
        return;
    }
    let Some(Attr::Ints(axes)) = onnx.attrs.remove("axes") else {
        return;
    };
    let weight = axes_weight(module, &axes);
    op.inputs.push(Operand::Weight(weight));
    op.meta.remove(crate::onnx::mapping::LAYOUT);
    if !graph.body.weights.contains(&weight) {
        graph.body.weights.push(weight);
    }
}

/// One tensor for each list of axes.
fn axes_weight(module: &mut Module, axes: &[i64]) -> WeightId {
    let joined: Vec<String> = axes.iter().map(i64::to_string).collect();
    let name = format!("reduction_axes_{}", joined.join("_"));
    if let Some(at) = module.weights.iter().position(|weight| weight.name == name) {
        return WeightId::new(at);
    }
    module.add_weight(Weight {
        name,
        dtype: DType::I64,
        dims: vec![axes.len() as u64],
        storage: Storage::Inline(axes.iter().flat_map(|axis| axis.to_le_bytes()).collect()),
        sha256: None,
        meta: Attrs::new(),
    })
}
