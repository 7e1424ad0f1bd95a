//! Linears that nothing changed → the nodes that they were.

use super::lower::{Lowerer, Site};
use crate::ir::{Attr, Attrs, Matrix, OnnxOp, Op, OpKind, Operand, Term, ValueId};

pub(super) use crate::passes::find_linears::SPELLING;

/// Writes the source's nodes for an op that is still one dense weight.
///
/// `spelling` is what `find-linears` noted, `meta` the op's other metadata.
/// False, with nothing written, if the op has other terms by now.
pub(super) fn restore(
    lowerer: &mut Lowerer<'_>,
    site: &mut Site,
    op: &Op,
    spelling: &Attrs,
    meta: &Attrs,
) -> bool {
    let Some(matrix) = op.kind.matrix() else {
        return false;
    };
    let ([Term::Dense(view)], Some(op_type)) = (
        matrix.terms.as_slice(),
        spelling.get("op").and_then(Attr::as_str),
    ) else {
        return false;
    };
    let attrs = match spelling.get("attrs") {
        Some(Attr::Dict(attrs)) => attrs.clone(),
        _ => Attrs::new(),
    };
    let x = op.inputs.first().copied().unwrap_or(Operand::None);
    let bias = match &op.kind {
        OpKind::Linear(linear) => linear.bias.map(Operand::Weight),
        _ => None,
    };
    let add = match spelling.get("add") {
        Some(Attr::Dict(add)) => Some(add),
        _ => None,
    };
    // As the node saw it: [in, out] behind x in a MatMul, or in a Gemm without transB.
    let left = matches!(&op.kind, OpKind::Linear(l) if l.layout == crate::ir::Layout::Columns);
    let transposed = match op_type {
        "MatMul" => !left,
        "Gemm" => attrs.get("transB").and_then(Attr::as_int).unwrap_or(0) == 0,
        _ => false,
    };
    let as_stored = op_type == "Conv" || view.transposed == transposed;
    let weight = match spelling.get("dequantize") {
        Some(Attr::Dict(parts)) => dequantize(lowerer, site, parts, view.transposed != transposed),
        _ => operand(lowerer, site, matrix, view, transposed, as_stored),
    };
    let mut inputs = match op_type {
        "Gather" => vec![weight, x],
        _ if left => vec![weight, x],
        _ => vec![x, weight],
    };
    if add.is_none() {
        inputs.extend(bias);
    }
    let kind = OpKind::Onnx(OnnxOp {
        domain: String::new(),
        op_type: op_type.to_owned(),
        overload: String::new(),
        attrs,
    });
    let result = op.results.first().copied().flatten();
    let product = match add {
        None => result,
        Some(add) => between(lowerer, site, add),
    };
    site.nodes.push(Op {
        name: op.name.clone(),
        kind,
        inputs,
        results: vec![product],
        meta: meta.clone(),
    });
    if let (Some(add), Some(product), Some(bias)) = (add, product, bias) {
        site.nodes.push(bias_node(add, product, bias, result));
    }
    true
}

/// The weight, through the nodes that its use needs now.
fn operand(
    lowerer: &mut Lowerer<'_>,
    site: &mut Site,
    matrix: &Matrix,
    view: &crate::ir::WeightView,
    transposed: bool,
    as_stored: bool,
) -> Operand {
    let same_type = lowerer
        .source
        .weight(view.weight)
        .is_some_and(|weight| weight.dtype == site.dtype);
    if as_stored && same_type {
        Operand::Weight(view.weight)
    } else {
        lowerer.dense_operand(site, matrix, view, transposed)
    }
}

/// The weight as the source had it, quantized.
fn dequantize(
    lowerer: &mut Lowerer<'_>,
    site: &mut Site,
    parts: &Attrs,
    transpose: bool,
) -> Operand {
    let weight = |name: &str| match parts.get(name) {
        Some(Attr::Weight(id)) => Some(Operand::Weight(*id)),
        _ => None,
    };
    let inputs = ["codes", "scales", "zeros"]
        .into_iter()
        .filter_map(weight)
        .collect();
    let attrs = match parts.get("attrs") {
        Some(Attr::Dict(attrs)) => attrs.iter().map(|(k, v)| (k.as_str(), v.clone())).collect(),
        _ => Vec::new(),
    };
    let decoded = lowerer.standard(site, "DequantizeLinear", inputs, attrs);
    if !transpose {
        return decoded;
    }
    let perm = vec![("perm", Attr::Ints(vec![1, 0]))];
    lowerer.standard(site, "Transpose", vec![decoded], perm)
}

/// The value between product and sum, by its old name.
fn between(lowerer: &mut Lowerer<'_>, site: &Site, add: &Attrs) -> Option<ValueId> {
    let name = add
        .get("between")
        .and_then(Attr::as_str)
        .unwrap_or(&site.name)
        .to_owned();
    let values = &lowerer.graph.values;
    let made_before = values.iter().position(|value| value.name == name);
    made_before
        .map(ValueId::new)
        .or_else(|| Some(lowerer.graph.add_value(&name, None)))
}

fn bias_node(add: &Attrs, product: ValueId, bias: Operand, result: Option<ValueId>) -> Op {
    let product = Operand::Value(product);
    let first = matches!(add.get("first"), Some(Attr::Bool(true)));
    let name = add
        .get("name")
        .and_then(Attr::as_str)
        .unwrap_or("")
        .to_owned();
    let meta = match add.get("meta") {
        Some(Attr::Dict(meta)) => meta.clone(),
        _ => Attrs::new(),
    };
    let kind = OpKind::Onnx(OnnxOp {
        domain: String::new(),
        op_type: "Add".to_owned(),
        overload: String::new(),
        attrs: Attrs::new(),
    });
    // `first` says that the sum's constant is its first operand's neighbour.
    let inputs = if first {
        vec![bias, product]
    } else {
        vec![product, bias]
    };
    Op {
        name,
        kind,
        inputs,
        results: vec![result],
        meta,
    }
}
