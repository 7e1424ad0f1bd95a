//! A module as Graphviz source.

use super::describe::terms;
use crate::ir::{Graph, Module, OpKind, Operand, ValueId};
use std::collections::HashMap;
use std::fmt::Write;

/// The graphs of a module, one cluster each; nested regions are drawn in place.
pub fn render(module: &Module) -> String {
    let mut out = format!(
        "digraph {} {{\n  rankdir=TB;\n  node [shape=box, fontname=monospace];\n",
        quote(&module.name)
    );
    for (index, graph) in module.graphs.iter().enumerate() {
        draw(module, graph, index, &mut out);
    }
    out.push_str("}\n");
    out
}

fn draw(module: &Module, graph: &Graph, index: usize, out: &mut String) {
    let name = |id: ValueId| match graph.value(id) {
        Some(value) if !value.name.is_empty() => value.name.clone(),
        _ => format!("%{}", id.index()),
    };
    // Writing to a string can't fail.
    let _ = writeln!(
        out,
        "  subgraph cluster_{index} {{\n    label={};",
        quote(&graph.body.name)
    );
    let mut maker: HashMap<ValueId, String> = HashMap::new();
    for &input in &graph.body.inputs {
        let node = format!("g{index}_in{}", input.index());
        let _ = writeln!(
            out,
            "    {node} [shape=ellipse, label={}];",
            quote(&name(input))
        );
        maker.insert(input, node);
    }
    for id in graph.walk() {
        let Some(op) = graph.op(id) else { continue };
        let node = format!("g{index}_op{}", id.index());
        let mut label = kind_name(&op.kind);
        if !op.name.is_empty() {
            label = format!("{label}\n{}", op.name);
        }
        if let Some(matrix) = op.kind.matrix() {
            label = format!(
                "{label}\n[{},{}] {}",
                matrix.out_features,
                matrix.in_features,
                terms(module, matrix)
            );
        }
        let _ = writeln!(out, "    {node} [label={}];", quote(&label));
        for input in &op.inputs {
            if let Operand::Value(value) = input {
                edge(&maker, *value, &node, &name(*value), out);
            }
        }
        for result in op.results.iter().flatten() {
            maker.insert(*result, node.clone());
        }
    }
    for (position, output) in graph.body.outputs.iter().enumerate() {
        let Operand::Value(value) = output else {
            continue;
        };
        let node = format!("g{index}_out{position}");
        let _ = writeln!(
            out,
            "    {node} [shape=ellipse, label={}];",
            quote(&name(*value))
        );
        edge(&maker, *value, &node, &name(*value), out);
    }
    out.push_str("  }\n");
}

fn edge(maker: &HashMap<ValueId, String>, value: ValueId, to: &str, name: &str, out: &mut String) {
    if let Some(from) = maker.get(&value) {
        let _ = writeln!(out, "    {from} -> {to} [tooltip={}];", quote(name));
    }
}

/// The op's name as text IR has it.
pub fn kind_name(kind: &OpKind) -> String {
    match kind {
        OpKind::Linear(_) => "linear".into(),
        OpKind::Embedding(_) => "embedding".into(),
        OpKind::Moe(_) => "moe".into(),
        OpKind::Native(native) => native.name().into(),
        OpKind::Grad(grad) => grad.name(),
        OpKind::Onnx(op) if op.domain.is_empty() => format!("onnx.{}", op.op_type),
        OpKind::Onnx(op) => format!("onnx.{}.{}", op.domain, op.op_type),
    }
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
