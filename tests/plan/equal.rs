//! The interpreter on packed bytes against the executor on the model.

use std::path::Path;

use super::common;
use super::model::{Model, STORIES, decode, error, family, forward, machine, options, prefill};
use hlrc::exec::{Data, Precision, Tensor};
use hlrc::ir::{Native, Op, OpKind, Operand, ValueId};
use hlrc::plan::interpret::Machine;
use hlrc::plan::lower::{KvFormat, Options};
use hlrc::plan::{Place, Step};

/// Tokens that no model has a reason to like.
fn tokens(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * 7919 + 13) % vocabulary) as u32)
        .collect()
}

/// The worst errors of a plan's logits.
struct Errors {
    /// A token at a time, with keys and values as the cache keeps them.
    decoding: f64,
    /// The same with keys and values as they are.
    unrounded: f64,
    /// Of a prompt, its activations in f16.
    prompt: f64,
}

/// Runs a model both ways.
fn compare(model: &Model, options: &Options, precision: Precision, count: usize) -> Errors {
    let (plan, blob) = model.plan(options);
    let engine = model.engine(precision);
    let vocabulary = plan.shape.vocabulary as usize;
    let tokens = tokens(count, vocabulary);
    let mut state = engine.state(1);
    let mut wanted = Vec::new();
    for token in &tokens {
        wanted.push(forward(&engine, &mut state, &[*token]));
    }
    let batch = plan.shape.batch as usize;
    let run = |mut machine: Machine<'_>| {
        let mut worst = 0f64;
        for (position, (token, wanted)) in tokens.iter().zip(&wanted).enumerate() {
            for have in decode(&mut machine, &plan, &vec![*token; batch], position) {
                worst = worst.max(error(&have, wanted));
            }
        }
        worst
    };
    let decoding = run(machine(&plan, &blob));
    let unrounded = run(machine(&plan, &blob).with_unrounded_caches());
    // A prompt in two pieces, and a token behind it.
    let mut prompt = 0f64;
    let mut two = machine(&plan, &blob);
    let exact = model.engine(Precision::Exact);
    let wanted = forward(&exact, &mut exact.state(1), &tokens);
    let wanted = |position: usize| &wanted[position * vocabulary..][..vocabulary];
    let chunk = plan.shape.chunk as usize;
    let mut at = 0;
    for piece in tokens[..count - 1].chunks(chunk.min(count / 2 + 1)) {
        let have = prefill(&mut two, &plan, piece, at);
        at += piece.len();
        prompt = prompt.max(error(&have, wanted(at - 1)));
    }
    let behind = decode(&mut two, &plan, &vec![tokens[count - 1]; batch], count - 1);
    prompt = prompt.max(error(&behind[0], wanted(count - 1)));
    Errors {
        decoding,
        unrounded,
        prompt,
    }
}

/// Positions of every plan: as many as the smallest fixture has.
const CONTEXT: u32 = 40;
/// Most relative error of logits where nothing is rounded: sums in another order.
const SUMS: f64 = 1e-5;
/// The same where keys and values are f16.
const HALVES: f64 = 2e-3;
/// Where activations are rounded to 8 bits: one of them that falls to the other side of a middle, since
/// sums in front of it are in another order.
const ONE_CODE: f64 = 2e-2;

/// The first layer's queries by the plan, against the executor's.
fn first_projection(model: &Model, options: &Options) -> f64 {
    let (plan, blob) = model.plan(options);
    let attention = |op: &&Op| matches!(op.kind, OpKind::Native(Native::Attention { .. }));
    let graph = &model.module.graphs[0];
    let maker = |value: ValueId| {
        let mut ops = graph.body.ops.iter().filter_map(|id| graph.op(*id));
        ops.find(|op| op.results.contains(&Some(value)))
            .expect("an op")
    };
    let operand = |op: &Op| match op.inputs[0] {
        Operand::Value(value) => value,
        other => panic!("{other:?}"),
    };
    let first = graph
        .body
        .ops
        .iter()
        .filter_map(|id| graph.op(*id))
        .find(attention);
    let first = first.expect("attention");
    let OpKind::Native(Native::Attention {
        heads, head_dim, ..
    }) = first.kind
    else {
        panic!("attention");
    };
    let queries = (heads * head_dim) as usize;
    let mut value = operand(first);
    while !matches!(maker(value).kind, OpKind::Linear(_)) {
        value = operand(maker(value));
    }
    let name = maker(value).name.clone();
    let mut cut = Model::again(model);
    cut.module.graphs[0].body.outputs = vec![Operand::Value(value)];
    let engine = cut.engine(Precision::Int8);
    let ids = Tensor::i64(&[1, 1], vec![7]);
    let inputs: Vec<(&str, Tensor)> = (engine.inputs().iter())
        .map(|port| match port.name.as_str() {
            "input_ids" => ("input_ids", ids.clone()),
            "position_ids" => ("position_ids", Tensor::i64(&[1, 1], vec![0])),
            "attention_mask" => ("attention_mask", Tensor::i64(&[1, 1], vec![1])),
            other => panic!("{other}"),
        })
        .collect();
    let outputs = engine.run(&inputs).unwrap_or_else(|e| panic!("{e}"));
    let Data::F32(wanted) = &outputs[0].1.data else {
        panic!("floats");
    };
    let mut machine = machine(&plan, &blob);
    machine
        .set_ints("tokens", &[7])
        .unwrap_or_else(|e| panic!("{e}"));
    machine
        .set_ints("positions", &[0])
        .unwrap_or_else(|e| panic!("{e}"));
    let stem = name
        .rsplit_once('.')
        .map_or("", |(stem, _)| stem)
        .to_string();
    let mut found = Vec::new();
    let mut watch = |step: &Step, y: &[f32]| {
        let own = [format!("{stem}.qkv"), name.clone(), format!("{name}.back")];
        if own.contains(&step.name) {
            found = y.to_vec();
        }
    };
    machine
        .run_watched("decode", &mut watch)
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(found.len() >= queries, "no step makes {name}");
    error(&found[..queries], &wanted[..queries])
}

fn check(name: &str, path: &Path, pipeline: &str, count: usize) {
    check_model(name, &Model::new(path, pipeline), pipeline, count);
}

fn check_model(name: &str, model: &Model, pipeline: &str, count: usize) {
    let exact = Options {
        exact: true,
        ..options(CONTEXT)
    };
    let e = compare(model, &exact, Precision::Exact, count);
    let (unrounded, decoding, prompt) = (e.unrounded, e.decoding, e.prompt);
    eprintln!(
        "{name} {pipeline}: {unrounded:.1e}, with f16 caches {decoding:.1e}, prompt {prompt:.1e}"
    );
    assert!(unrounded <= SUMS, "{name} {pipeline}: off by {unrounded:e}");
    assert!(
        decoding <= HALVES,
        "{name} {pipeline}: off by {decoding:e} with f16 caches"
    );
    assert!(
        prompt <= 2.0 * HALVES,
        "{name} {pipeline}: the prompt is off by {prompt:e}"
    );
    let first = first_projection(model, &options(CONTEXT));
    let rounded = compare(model, &options(CONTEXT), Precision::Int8, count).unrounded;
    eprintln!("{name} {pipeline}: 8 bits: first projection {first:.1e}, logits {rounded:.1e}");
    assert!(
        first <= SUMS,
        "{name} {pipeline}: the first projection is off by {first:e}"
    );
    assert!(
        rounded <= ONE_CODE,
        "{name} {pipeline}: off by {rounded:e} with 8-bit activations"
    );
}

#[test]
fn stories_equal_the_executor() {
    let pipelines = [
        "",
        "int4",
        "int8{group=row}",
        "int3",
        "int2",
        "int8{group=column}",
        "int4{asymmetric group=64},embeddings(int8),head(int8)",
        "lowrank,outlier,int4",
        "lowrank{depth=2},outlier,int3",
        "lowrank{rank=8 factors=int4},outlier{columns=true density=5%},int4",
        "lowrank{rank=16 factors=f16}",
    ];
    for pipeline in pipelines {
        check("stories260K", Path::new(STORIES), pipeline, 12);
    }
}

/// Where factors take more bytes than the matrix in f16, that is what is kept.
#[test]
fn factors_of_high_rank_are_multiplied_out() {
    let pipeline = "lowrank{rank=30 factors=f32},outlier,int8";
    let model = Model::new(Path::new(STORIES), pipeline);
    let exact = Options {
        exact: true,
        ..options(CONTEXT)
    };
    let (plan, _) = model.plan(&exact);
    assert!(plan.kernels.iter().all(|k| k.define("LOWRANK") == 0));
    let told = |n: &hlrc::plan::Note| n.text.contains("multiplied out in f16");
    assert!(plan.notes.iter().any(told));
    let e = compare(&model, &exact, Precision::Exact, 8);
    let worst = e.unrounded.max(e.decoding);
    assert!(
        worst <= HALVES && e.prompt <= 2.0 * HALVES,
        "{worst:e} {:e}",
        e.prompt
    );
}

#[test]
fn rotated_codes_equal_the_executor() {
    for pipeline in ["trellis", "outlier,trellis{bits=2.5}", "rotate,int4"] {
        check("stories260K", Path::new(STORIES), pipeline, 8);
    }
}

/// Names of ONNX nodes part their paths with slashes: layers' buffers must not share a name, or the second
/// layer reads what the first one's rows were rounded or rotated to.
#[test]
fn a_model_of_onnx_equals_the_executor() {
    let path = Path::new(STORIES).join("stories260K.onnx");
    for pipeline in ["int4", "rotate,int4"] {
        let model = Model::new(&path, pipeline);
        let exact = Options {
            exact: true,
            ..options(CONTEXT)
        };
        let e = compare(&model, &exact, Precision::Exact, 12);
        assert!(e.unrounded <= SUMS, "{pipeline}: {:e}", e.unrounded);
        assert!(e.decoding <= HALVES, "{pipeline}: {:e}", e.decoding);
        assert!(e.prompt <= 2.0 * HALVES, "{pipeline}: {:e}", e.prompt);
    }
}

#[test]
fn folded_rotations_equal_the_executor() {
    for pipeline in [
        "fold-rotations",
        "fold-rotations,int4",
        "fold-rotations{down=false},rotate,int4",
    ] {
        check("stories260K", Path::new(STORIES), pipeline, 8);
    }
    check("llama", &family("llama"), "fold-rotations,int4", 40);
    check("gemma2", &family("gemma2"), "fold-rotations,int4", 40);
    let down = "fold-rotations{down=false},int4";
    check("mixtral", &family("mixtral"), down, 40);
    // An expert is one launch, with nothing between gate and down.
    let model = Model::new(&family("mixtral"), "fold-rotations,int4");
    let refused = hlrc::plan::lower::lower(&model.module, &options(CONTEXT));
    let text = refused.expect_err("refused").to_string();
    assert!(text.contains("expert 0 is not down("), "{text}");
}

#[test]
fn a_rotated_head_is_refused() {
    let model = Model::new(Path::new(STORIES), "trellis,embeddings(trellis{bits=4})");
    let refused = hlrc::plan::lower::lower(&model.module, &options(CONTEXT));
    let text = refused.expect_err("refused").to_string();
    assert!(text.contains("a head of rotated codes"), "{text}");
}

#[test]
fn families_equal_the_executor() {
    let cases = [
        ("llama", "int4"),
        ("llama", "fuse-siblings,int4"),
        ("llama_yarn", "int4"),
        ("mistral", "lowrank{rank=8},int4"),
        ("qwen2", "int4"),
        ("qwen3", "lowrank{rank=4 factors=f16},outlier,int4"),
        ("gemma2", "int4"),
        ("gemma3", "int4"),
        ("gpt2", "int4"),
        ("mixtral", "int4"),
        ("qwen3_moe", "lowrank{rank=8},outlier,int4"),
        ("qwen3_moe_plain", "int8"),
    ];
    for (name, pipeline) in cases {
        check(name, &family(name), pipeline, 40);
    }
}

/// A prompt whose tokens go to their experts one expert after another, over two chunks, and one of whose
/// experts stand in main memory.
#[test]
fn experts_on_the_host_equal_the_executor() {
    let cases = [
        ("mixtral", "int4"),
        ("qwen3_moe", "lowrank{rank=8},outlier,int4"),
    ];
    let experts = regex::Regex::new(r"\.experts\.").expect("a pattern");
    for (name, pipeline) in cases {
        let model = Model::new(&family(name), pipeline);
        let host = Options {
            exact: true,
            placement: vec![(experts.clone(), Place::Host)],
            ..options(CONTEXT)
        };
        let (plan, _) = model.plan(&host);
        let weights = |place| {
            let placed = plan.weights.iter().filter(move |w| w.place == place);
            placed.filter(|w| w.name.contains(".experts.")).count()
        };
        assert_eq!(weights(Place::Device), 0, "{name}");
        assert!(weights(Place::Host) > 0, "{name}");
        for program in &plan.programs {
            let there = program.steps.iter().filter(|s| s.place == Place::Host);
            let names: Vec<&str> = there.map(|s| s.name.as_str()).collect();
            assert!(!names.is_empty(), "{name}, {}", program.name);
            let own = |n: &&str| n.contains(".gate_up") || n.contains(".down");
            assert!(names.iter().all(own), "{name}: {names:?}");
            // Graphs stop where the host takes over.
            assert!(program.captures.len() > 1, "{name}, {}", program.name);
        }
        let e = compare(&model, &host, Precision::Exact, 40);
        assert!(e.unrounded <= SUMS, "{name}: off by {:e}", e.unrounded);
        assert!(
            e.prompt <= 2.0 * HALVES,
            "{name}: the prompt is off by {:e}",
            e.prompt
        );
    }
}

#[test]
fn caches_in_8_bits_and_in_pages() {
    let model = Model::new(&family("mistral"), "int4");
    let exact = |kv, page| Options {
        exact: true,
        kv,
        page,
        ..options(CONTEXT)
    };
    let compare = |kv, page| compare(&model, &exact(kv, page), Precision::Exact, 40);
    let plain = compare(KvFormat::F16, None);
    let paged = compare(KvFormat::F16, Some(16));
    assert!(plain.decoding <= HALVES && paged.decoding <= HALVES);
    let rounded = compare(KvFormat::Q8, Some(16));
    let (decoding, prompt) = (rounded.decoding, rounded.prompt);
    eprintln!("keys and values in 8 bits: off by {decoding:.1e}, a prompt by {prompt:.1e}");
    assert!(
        decoding <= 3e-2 && prompt <= 3e-2,
        "{decoding:e} {prompt:e}"
    );
}

#[test]
fn several_sequences_decode_together() {
    let model = Model::new(Path::new(STORIES), "lowrank,outlier,int4");
    let three = Options {
        exact: true,
        batch: 3,
        ..options(CONTEXT)
    };
    let e = compare(&model, &three, Precision::Exact, 8);
    assert!(e.unrounded <= SUMS && e.decoding <= HALVES && e.prompt <= 2.0 * HALVES);
}

#[test]
fn smollm2_equals_the_executor() {
    let Some(path) = common::model("smollm2-135m") else {
        return;
    };
    let cases = [
        ("smollm2_int4", "int4"),
        ("smollm2_lowrank_outlier_int4", "lowrank,outlier,int4"),
        (
            "smollm2_lowrank_depth2_outlier_int3",
            "lowrank{depth=2},outlier,int3",
        ),
        ("smollm2_trellis", "trellis"),
    ];
    for (golden, pipeline) in cases {
        let model = Model::new(&path, pipeline);
        super::golden::accept(golden, &model, &options(512));
        check_model("smollm2-135m", &model, pipeline, 3);
    }
}
