//! The interpreter step by step: what each launch of a token leaves, against the executor's value of the
//! ops that the launch takes up.

use std::path::Path;

use super::model::{Model, STORIES, error, family, machine, options};
use hlrc::exec::{Data, Precision, Tensor};
use hlrc::ir::{Graph, Native, Op, OpKind, Operand, ValueId};
use hlrc::plan::lower::Options;
use hlrc::plan::{Plan, Step, Value};

/// Sums in another order.
const SUMS: f64 = 1e-5;
/// Keys and values in f16, in attention and behind it.
const HALVES: f64 = 2e-3;

fn result(op: &Op) -> ValueId {
    op.results[0].expect("a result")
}

/// The op that alone uses a value.
fn user(graph: &Graph, value: ValueId) -> &Op {
    let uses = |op: &&Op| op.inputs.contains(&Operand::Value(value));
    let mut ops = graph.body.ops.iter().filter_map(|id| graph.op(*id));
    ops.find(uses).expect("a user")
}

/// The `index`-th op of the graph that is meant.
fn nth(graph: &Graph, index: usize, meant: impl Fn(&OpKind) -> bool) -> &Op {
    let ops = graph.body.ops.iter().filter_map(|id| graph.op(*id));
    let mut meant = ops.filter(|op| meant(&op.kind));
    meant.nth(index).expect("an op")
}

/// The values that a step makes, one behind the other, each padded to 16 columns; none for steps whose
/// results the graph does not have.
fn made(graph: &Graph, plan: &Plan, step: &Step, seen: &mut [usize; 2]) -> Vec<ValueId> {
    let variant = &plan.kernels[step.kernel as usize];
    let mut behind = |index: usize, meant: fn(&OpKind) -> bool| {
        seen[index] += 1;
        result(nth(graph, seen[index] - 1, meant))
    };
    let mut values = match (variant.kernel.as_str(), variant.define("EXPERTS")) {
        ("attention_decode", _) => {
            return vec![behind(0, |k| {
                matches!(k, OpKind::Native(Native::Attention { .. }))
            })];
        }
        ("fused_linear", 0) => {
            let of = |arg: &str| match step.args.get(arg) {
                Some(Value::Section { weight, .. }) => plan.weight(weight),
                _ => None,
            };
            let weight = of("q").or_else(|| of("v")).expect("a weight");
            let linear = |name: &String| {
                let ops = graph.body.ops.iter().filter_map(|id| graph.op(*id));
                let mut named = ops.filter(|op| op.name == *name);
                named.find(|op| matches!(op.kind, OpKind::Linear(_)))
            };
            let parts: Option<Vec<ValueId>> = weight
                .parts
                .iter()
                .map(|name| linear(name).map(result))
                .collect();
            // A head that is tied goes by the name of the table.
            let Some(parts) = parts else {
                let Operand::Value(logits) = graph.body.outputs[0] else {
                    panic!("logits");
                };
                return vec![logits];
            };
            match variant.define("GLU") {
                1 => vec![result(user(graph, parts[1]))],
                _ => parts,
            }
        }
        ("fused_linear", 2) => vec![behind(1, |k| matches!(k, OpKind::Moe(_)))],
        _ => return Vec::new(),
    };
    for define in ["ACTIVATION", "SOFTCAP", "RESIDUAL"] {
        if variant.define(define) != 0 && variant.define("GLU") == 0 {
            values = values.iter().map(|v| result(user(graph, *v))).collect();
        }
    }
    values
}

fn check(name: &str, path: &Path, pipeline: &str) {
    let model = Model::new(path, pipeline);
    let exact = Options {
        exact: true,
        ..options(40)
    };
    let (plan, blob) = model.plan(&exact);
    let graph = &model.module.graphs[0];
    let steps = &plan.program("decode").expect("a program").steps;
    let mut seen = [0, 0];
    let wanted: Vec<Vec<ValueId>> = steps
        .iter()
        .map(|step| made(graph, &plan, step, &mut seen))
        .collect();
    let mut all: Vec<ValueId> = wanted.iter().flatten().copied().collect();
    all.sort();
    all.dedup();
    let mut cut = Model::again(&model);
    cut.module.graphs[0].body.outputs = all.iter().map(|v| Operand::Value(*v)).collect();
    let engine = cut.engine(Precision::Exact);
    let inputs: Vec<(&str, Tensor)> = (engine.inputs().iter())
        .map(|port| match port.name.as_str() {
            "input_ids" => ("input_ids", Tensor::i64(&[1, 1], vec![7])),
            "position_ids" => ("position_ids", Tensor::i64(&[1, 1], vec![0])),
            "attention_mask" => ("attention_mask", Tensor::i64(&[1, 1], vec![1])),
            other => panic!("{other}"),
        })
        .collect();
    let outputs = engine.run(&inputs).unwrap_or_else(|e| panic!("{e}"));
    let value = |id: &ValueId| {
        let index = all.binary_search(id).expect("an output");
        match &outputs[index].1.data {
            Data::F32(values) => values.clone(),
            _ => panic!("{id} is no floats"),
        }
    };
    let mut machine = machine(&plan, &blob);
    let set = |done: Result<(), hlrc::plan::PlanError>| done.unwrap_or_else(|e| panic!("{e}"));
    set(machine.set_ints("tokens", &[7]));
    set(machine.set_ints("positions", &[0]));
    let (mut index, mut judged, mut behind) = (0, 0, false);
    let mut watch = |step: &Step, y: &[f32]| {
        let kernel = &plan.kernels[step.kernel as usize].kernel;
        behind |= kernel == "attention_decode";
        let mut at = 0;
        for id in &wanted[index] {
            let want = value(id);
            let off = error(&y[at..at + want.len()], &want);
            let bar = if behind { HALVES } else { SUMS };
            assert!(
                off <= bar,
                "{name} {pipeline}, step {index}, {}: off by {off:e}",
                step.name
            );
            at += want.len().next_multiple_of(16);
            judged += 1;
        }
        index += 1;
    };
    set(machine.run_watched("decode", &mut watch));
    assert!(
        judged >= 4 * plan.kv.layers as usize,
        "{name}: {judged} values"
    );
}

#[test]
fn every_step_equals_the_executor() {
    let stories = Path::new(STORIES);
    for pipeline in [
        "int4",
        "lowrank,outlier,int4",
        "lowrank{depth=2},outlier,int3",
    ] {
        check("stories260K", stories, pipeline);
    }
    let cases = [
        ("llama", "int8"),
        ("qwen3", "int4"),
        ("qwen2", "int3"),
        ("mixtral", "int4"),
        ("qwen3_moe", "lowrank{rank=8},outlier,int4"),
    ];
    for (name, pipeline) in cases {
        check(name, &family(name), pipeline);
    }
}
