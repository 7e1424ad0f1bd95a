//! Whole plans in emulation: the launches of a plan, on the packed bytes, give the executor's tokens, and
//! the same bits however blocks and threads are scheduled.

use crate::device::{Built, Emulated, build, target};
use crate::emulate::Schedule;
use hlrc::exec::{Engine, Options as ExecOptions, Precision, Rows};
use hlrc::plan::lower::{KvFormat, Options};
use hlrc::runtime::{Device, PlanModel};
use std::ops::ControlFlow;
use std::path::Path;

const STORIES: &str = "tests/fixtures/stories260K";
const MIXTURES: [&str; 2] = [
    "tests/fixtures/families/mixtral",
    "tests/fixtures/families/qwen3_moe",
];

/// What is run, and how.
struct Run<'a> {
    model: &'a str,
    pipeline: &'a str,
    prompt: &'a [u32],
    /// Tokens behind the prompt.
    made: usize,
    chunk: u32,
    kv: KvFormat,
    exact: bool,
    batch: u32,
}

const PROMPT: &[u32] = &[1, 403, 407, 261, 378];
/// Long enough for the kernels of many tokens, of a small vocabulary.
const LONG: &[u32] = &[1, 40, 7, 61, 78, 33, 90, 12, 5, 66, 71];

impl Run<'_> {
    fn build(&self) -> Built {
        let options = Options {
            context: Some(40),
            chunk: self.chunk,
            kv: self.kv,
            exact: self.exact,
            batch: self.batch,
            ..Options::new(target())
        };
        build(Path::new(self.model), self.pipeline, &options)
    }
}

/// Greedy tokens behind a prompt, from a plan in emulation and from the executor.
fn check(run: &Run<'_>, schedule: Schedule) {
    let built = run.build();
    let mut device = Emulated::new(built.plan.clone(), &built.blob, schedule);
    if !device.compile() {
        return;
    }
    let mut model = PlanModel::new(built.plan.clone(), device);
    model.assign_pages().unwrap_or_else(|e| panic!("{e}"));
    let precision = match run.exact {
        true => Precision::Exact,
        false => Precision::Int8,
    };
    let options = ExecOptions {
        threads: 2,
        precision,
        ..ExecOptions::default()
    };
    let engine = Engine::new(&built.module, &built.files, &options);
    let engine = engine.unwrap_or_else(|e| panic!("{e}"));
    let mut state = engine.state(1);
    let mut next = run.prompt.to_vec();
    let what = format!("{} {}", run.model, run.pipeline);
    for step in 0..run.made {
        let mut want = Vec::new();
        let done = engine.forward(&mut state, &next, Rows::Last, &mut |_, row| {
            row.clone_into(&mut want);
            ControlFlow::Continue(())
        });
        done.unwrap_or_else(|e| panic!("{e}"));
        let have = model.advance(&next).unwrap_or_else(|e| panic!("{e}"));
        let largest = |row: &[f32]| {
            (0..row.len())
                .max_by(|&a, &b| row[a].total_cmp(&row[b]))
                .expect("logits")
        };
        let (a, b) = (largest(have), largest(&want));
        let distance: f32 = have
            .iter()
            .zip(&want)
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f32>()
            .sqrt();
        let size: f32 = want.iter().map(|v| v * v).sum::<f32>().sqrt();
        let limit = if run.exact && run.kv == KvFormat::F16 {
            3e-3
        } else {
            3e-2
        };
        assert!(
            distance <= limit * size,
            "{what}, step {step}: logits differ by {:e}",
            distance / size
        );
        assert_eq!(a, b, "{what}, step {step}");
        next = vec![b as u32];
    }
}

const PLAIN: Run<'_> = Run {
    model: STORIES,
    pipeline: "int4",
    prompt: PROMPT,
    made: 6,
    chunk: 8,
    kv: KvFormat::F16,
    exact: true,
    batch: 1,
};

const ALL_TERMS: Run<'_> = Run {
    pipeline: "lowrank,outlier,int4",
    made: 3,
    kv: KvFormat::Q8,
    exact: false,
    ..PLAIN
};

#[test]
fn stories_in_emulation_give_the_executors_tokens() {
    check(&PLAIN, Schedule::Forward);
    check(&ALL_TERMS, Schedule::Random(7));
}

/// A prompt's tokens are sorted by expert; each expert's go through one product.
#[test]
fn mixtures_in_emulation_give_the_executors_tokens() {
    let pipelines = ["int4", "lowrank{rank=8},outlier,int4"];
    for (model, pipeline) in MIXTURES.into_iter().zip(pipelines) {
        let run = Run {
            model,
            pipeline,
            prompt: LONG,
            made: 3,
            chunk: 16,
            ..PLAIN
        };
        check(&run, Schedule::Random(3));
    }
}

/// The bits of all logits of a prompt and some tokens behind it.
fn bits(run: &Run<'_>, built: &Built, schedule: Schedule) -> Option<Vec<u32>> {
    let mut device = Emulated::new(built.plan.clone(), &built.blob, schedule);
    if !device.compile() {
        return None;
    }
    let mut model = PlanModel::new(built.plan.clone(), device);
    let mut all = Vec::new();
    let pieces = [run.prompt, &[9], &[23]];
    for piece in pieces {
        let logits = model.advance(piece).unwrap_or_else(|e| panic!("{e}"));
        all.extend(logits.iter().map(|v| v.to_bits()));
    }
    Some(all)
}

#[test]
fn every_schedule_gives_the_same_bits() {
    let mixture = Run {
        model: MIXTURES[1],
        pipeline: "lowrank{rank=8},outlier,int4",
        prompt: LONG,
        chunk: 16,
        exact: false,
        ..PLAIN
    };
    let many = Run {
        prompt: LONG,
        chunk: 16,
        ..ALL_TERMS
    };
    for run in [many, mixture] {
        let built = run.build();
        let Some(first) = bits(&run, &built, Schedule::Forward) else {
            return;
        };
        assert!(first.iter().all(|b| f32::from_bits(*b).is_finite()));
        for schedule in [Schedule::Reverse, Schedule::Random(1), Schedule::Random(8)] {
            let again = bits(&run, &built, schedule);
            assert_eq!(
                again.as_ref(),
                Some(&first),
                "{} {schedule:?}",
                run.pipeline
            );
        }
    }
}

/// What a sequence gets does not depend on those that decode beside it.
#[test]
fn a_sequence_does_not_see_its_neighbours() {
    let run = Run {
        batch: 3,
        ..ALL_TERMS
    };
    let built = run.build();
    let logits = |neighbours: [i32; 2], schedule: Schedule| -> Option<Vec<u8>> {
        let mut device = Emulated::new(built.plan.clone(), &built.blob, schedule);
        if !device.compile() {
            return None;
        }
        let bytes =
            |values: &[i32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let run = |done: Result<(), hlrc::runtime::RuntimeError>| {
            done.unwrap_or_else(|e| panic!("{e}"));
        };
        run(device.write("sampling", &bytes(&[0; 9])));
        run(device.write("sampling_top_k", &bytes(&[0; 3])));
        for position in 0..2 {
            let [a, b] = neighbours;
            run(device.write("tokens", &bytes(&[a, 403 + position, b])));
            run(device.write("positions", &bytes(&[position; 3])));
            run(device.run("decode"));
        }
        let row = built.plan.shape.vocabulary as usize * 4;
        let mut all = vec![0; 2 * row];
        run(device.read("logits", &mut all));
        Some(all.split_off(row))
    };
    let one = logits([5, 6], Schedule::Forward);
    assert_eq!(one, logits([300, 17], Schedule::Random(2)));
}
