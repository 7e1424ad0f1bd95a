//! Bytes that the fused linear loads in emulation, over the floor: codes, scales, factors and outliers, read
//! once. `docs/plan.md` has the table; `--nocapture` prints it.
//!
//! Sectors of 32 bytes count once for each block that loads any of them, since blocks do not share a
//! first-level cache. Activations come on top: all blocks load the same, from the second-level cache.

use crate::common;
use crate::device::{Built, Emulated, Moved, build};
use crate::emulate::{Schedule, Traffic};
use crate::linear;
use hlrc::ir::Term;
use hlrc::plan::lower::Options;
use hlrc::plan::{Target, Value};
use hlrc::runtime::Device;

/// Most bytes over the floor.
const BAR: f64 = 1.05;

/// Slices of Llama 8B's matrices, two row tiles to a block as on 128 multiprocessors.
const SLICES: [&str; 3] = [
    "rows=256 cols=4096 grid=8",
    "rows=64 cols=14336 grid=2",
    "rows=256 cols=4096 grid=8 GLU=1 ACTIVATION=1 XIN=1",
];

/// Forms of the matrix, as passes make them by default.
const FORMS: [(&str, &str); 6] = [
    ("int8", "BITS=8 GROUP=0"),
    ("int4", "BITS=4 GROUP=32"),
    ("int3", "BITS=3 GROUP=64 ZEROS=1"),
    ("int2", "BITS=2 GROUP=32 ZEROS=1"),
    (
        "lowrank,outlier,int4",
        "BITS=4 GROUP=32 LOWRANK=1 SPARSE=1 rank=64 per_mille=5",
    ),
    (
        "lowrank{depth=2},outlier,int4",
        "BITS=4 GROUP=32 LOWRANK=1 SPARSE=1 rank=32 depth=2 per_mille=5",
    ),
];

/// A define of the kernel, or else a setting of the case.
fn is_define(setting: &&str) -> bool {
    setting.starts_with(|c: char| c.is_ascii_uppercase())
}

#[test]
fn slices_of_llama_8b_are_read_about_once() {
    for slice in SLICES {
        for (name, form) in FORMS {
            let all = || slice.split_whitespace().chain(form.split_whitespace());
            let join = |words: Vec<&str>| words.join(" ");
            let variant = join(all().filter(is_define).collect());
            let case = join(all().filter(|s| !is_define(s)).collect());
            for text in linear::check(&[&variant], &[&case]) {
                let ratio = text.split_whitespace().nth(4).expect("a ratio");
                let ratio: f64 = ratio.parse().expect("a number");
                println!("Llama 8B, {slice}: {name}: {ratio:.4}");
                assert!(ratio <= BAR, "{name}, {slice}: {ratio}\n{text}");
                assert!(ratio >= 1.0, "{name}, {slice}: bytes are missing\n{text}");
            }
        }
    }
}

/// Bytes from memory.
fn bytes(section: &str, traffic: &Traffic) -> u64 {
    // Codes are streamed past the first-level cache: a block that loads them twice reads them twice.
    let repeated = match section {
        "q" => traffic.loaded,
        _ => 0,
    };
    repeated.max(32 * traffic.sectors_by_block)
}

/// Bytes of the stored terms of the matrices behind a weight of the plan.
fn stored(built: &Built, weight: &str) -> u64 {
    let parts = &built.plan.weight(weight).expect("a weight").parts;
    let graph = &built.module.graphs[0];
    let ops = graph.walk().into_iter().filter_map(|id| graph.op(id));
    let ops = ops.filter(|op| parts.contains(&op.name));
    let terms = ops.filter_map(|op| op.kind.matrix()).flat_map(|m| &m.terms);
    let weights = terms.flat_map(Term::weights);
    let bytes = |id| built.module.weight(id).expect("a weight").bytes();
    weights.map(bytes).sum()
}

/// What a linear step loaded of its matrices, over what is stored of them; `None` for other steps.
fn ratio(built: &Built, moved: &Moved) -> Option<f64> {
    let steps = &built.plan.program("decode").expect("a program").steps;
    let step = steps.iter().find(|s| s.name == moved.step)?;
    if built.plan.kernels[step.kernel as usize].kernel != "fused_linear" {
        return None;
    }
    let Some(Value::Section { weight, .. }) = step.args.get("q") else {
        return None;
    };
    let mut loaded = 0;
    for (name, traffic) in &moved.regions {
        let own = name.strip_prefix('@').and_then(|n| n.rsplit_once('/'));
        if let Some((_, section)) = own.filter(|(w, _)| w == weight) {
            loaded += bytes(section, traffic);
        }
    }
    Some(loaded as f64 / stored(built, weight) as f64)
}

#[test]
fn a_layer_of_smollm2_is_read_about_once() {
    let Some(model) = common::model("smollm2-135m") else {
        return;
    };
    let pipelines = ["int8", "int4", "int3", "int2", "lowrank,outlier,int4"];
    for pipeline in pipelines {
        let options = Options {
            context: Some(64),
            ..Options::new(Target::named("sm_89").unwrap_or_else(|e| panic!("{e}")))
        };
        let scoped = format!("layers[0]({pipeline})");
        let built = build(&model, &scoped, &options);
        let mut device = Emulated::new(built.plan.clone(), &built.blob, Schedule::Forward);
        for buffer in ["tokens", "positions"] {
            let done = device.write(buffer, &1i32.to_le_bytes());
            done.unwrap_or_else(|e| panic!("{buffer}: {e}"));
        }
        device.moved = Some(Vec::new());
        // The table of embeddings, and the first layer.
        let last = |step: &hlrc::plan::Step| step.name.contains("layers.1.");
        let steps = &built.plan.program("decode").expect("a program").steps;
        let count = steps.iter().position(last).expect("a second layer");
        if !device.run_first("decode", count) {
            return;
        }
        let moved = device.moved.take().unwrap_or_default();
        let mut seen = 0;
        for moved in &moved {
            let Some(ratio) = ratio(&built, moved) else {
                continue;
            };
            seen += 1;
            println!("smollm2-135m, {}: {pipeline}: {ratio:.4}", moved.step);
            // 2 and 3 bits come in tiles of 128 columns, and 576 is no multiple of that.
            let padded = (pipeline.ends_with("int3") || pipeline.ends_with("int2"))
                && !moved.step.contains("down");
            let bar = if padded { BAR * 640.0 / 576.0 } else { BAR };
            assert!(ratio <= bar, "{}, {pipeline}: {ratio}", moved.step);
            assert!(ratio >= 0.9, "{}, {pipeline}: {ratio}", moved.step);
        }
        assert_eq!(seen, 4, "{pipeline}: linear launches of a layer");
    }
}
