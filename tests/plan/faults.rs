//! Plans that do not hold what they claim are refused, with the place.

use std::path::Path;

use super::model::{Model, STORIES, family, options};
use hlrc::plan::verify::verify;
use hlrc::plan::{Plan, Step, Value};

fn plan() -> Plan {
    let model = Model::new(Path::new(STORIES), "lowrank,outlier,int4");
    let (plan, _) = model.plan(&options(64));
    plan
}

/// The index of the first decode step of a kernel.
fn first(plan: &Plan, kernel: &str) -> usize {
    let is = |s: &Step| plan.kernels[s.kernel as usize].kernel == kernel;
    plan.programs[0].steps.iter().position(is).expect("a step")
}

/// Changes a plan, and expects a fault that says so.
fn refused(plan: &Plan, change: impl FnOnce(&mut Plan), at: &str, problem: &str) {
    let mut broken = plan.clone();
    change(&mut broken);
    assert_ne!(&broken, plan, "{problem}: nothing was changed");
    let faults = verify(&broken).expect_err(problem);
    let told = faults
        .0
        .iter()
        .any(|f| f.at.contains(at) && f.problem.contains(problem));
    assert!(told, "expected `{at}: {problem}`, found {faults}");
}

fn set(plan: &mut Plan, step: usize, name: &str, value: Value) {
    plan.programs[0].steps[step].args.set(name, value);
}

#[test]
fn a_sound_plan_passes_and_comes_back_from_json() {
    let plan = plan();
    verify(&plan).unwrap_or_else(|e| panic!("{e}"));
    let json = serde_json::to_string(&plan).expect("JSON");
    let again: Plan = serde_json::from_str(&json).expect("the same JSON");
    assert_eq!(again, plan);
}

#[test]
fn broken_memory_is_refused() {
    let plan = plan();
    let blob = "outside of the blob";
    refused(
        &plan,
        |p| p.blob.as_mut().expect("a blob").bytes -= 4096,
        "weight",
        blob,
    );
    refused(
        &plan,
        |p| p.weights[1].sections[0].offset += 4,
        "section",
        "no multiple of 256",
    );
    refused(
        &plan,
        |p| p.weights[1].sections[0].offset = p.weights[0].sections[0].offset,
        "section",
        "overlaps",
    );
    refused(
        &plan,
        |p| p.weights[0].sections[0].dtype = "f8".into(),
        "section",
        "type f8",
    );
    refused(
        &plan,
        |p| p.weights[1].name = p.weights[0].name.clone(),
        "weight",
        "stands twice",
    );
    refused(
        &plan,
        |p| p.weights[0].pack_version = 9,
        "weight",
        "packed as version 9",
    );
    refused(
        &plan,
        |p| p.programs[0].arena_bytes -= 256,
        "buffer",
        "outside of its arena",
    );
    refused(
        &plan,
        |p| p.persistent[0].dims[0] += 1,
        "buffer",
        "are not those of",
    );
    refused(
        &plan,
        |p| {
            let offset = p.programs[0].buffers[0].offset;
            p.programs[0].buffers[1].offset = offset;
        },
        "buffer",
        "while both are in use",
    );
    refused(
        &plan,
        |p| p.programs[0].buffers[0].live = Some([0, 0]),
        "buffer",
        "lives in",
    );
}

#[test]
fn broken_steps_are_refused() {
    let plan = plan();
    let linear = first(&plan, "fused_linear");
    refused(
        &plan,
        |p| p.programs[0].steps[linear].kernel = 999,
        "step",
        "not in the plan",
    );
    refused(
        &plan,
        |p| p.programs[0].steps[linear].block = 128,
        "step",
        "blocks of 128 threads",
    );
    refused(
        &plan,
        |p| p.programs[0].steps[linear].shared_bytes = 200_000,
        "step",
        "has at most 101376",
    );
    refused(
        &plan,
        |p| p.programs[0].steps[linear].grid = [0, 1, 1],
        "step",
        "can't be launched",
    );
    refused(
        &plan,
        |p| set(p, linear, "y", Value::buffer("nowhere")),
        "step",
        "no buffer `nowhere`",
    );
    refused(
        &plan,
        |p| set(p, linear, "y", Value::Int(3)),
        "step",
        "3 is no f32 pointer",
    );
    refused(
        &plan,
        |p| set(p, linear, "y", Value::buffer("positions")),
        "step",
        "is i32, and f32 is read",
    );
    refused(
        &plan,
        |p| set(p, linear, "q", Value::section("none", "q")),
        "step",
        "there is no @none/q",
    );
    refused(
        &plan,
        |p| set(p, linear, "q", Value::Null),
        "step",
        "`q` is null",
    );
    refused(
        &plan,
        |p| set(p, linear, "h", Value::Null),
        "step",
        "`h` is null",
    );
    refused(
        &plan,
        |p| set(p, linear, "strange", Value::Null),
        "step",
        "`strange` is no parameter",
    );
    refused(
        &plan,
        |p| p.programs[0].steps[linear].args.0.swap(0, 1),
        "step",
        "not in the order",
    );
    refused(
        &plan,
        |p| {
            p.programs[0].steps[linear].args.0.pop();
        },
        "step",
        "is not given",
    );
    refused(
        &plan,
        |p| p.programs[0].steps[linear].after.clear(),
        "step",
        "does not wait for step",
    );
    refused(
        &plan,
        |p| p.programs[0].steps[linear].after.push(900),
        "step",
        "not before it",
    );
}

#[test]
fn experts_that_nobody_sorts_are_refused() {
    let model = Model::new(&family("mixtral"), "lowrank{rank=8},int4");
    let (plan, _) = model.plan(&options(40));
    let step = |kernel: &str| {
        let is = |s: &Step| plan.kernels[s.kernel as usize].kernel == kernel;
        let steps = &plan.programs[1].steps;
        let routed = |s: &Step| !s.name.ends_with("gate") && s.name.contains("experts");
        steps
            .iter()
            .position(|s| is(s) && routed(s))
            .expect("a step")
    };
    let change = |step: usize, name: &'static str, value: Value| {
        move |p: &mut Plan| p.programs[1].steps[step].args.set(name, value)
    };
    for kernel in ["linear_prefill", "low_rank_inner"] {
        let one = step(kernel);
        refused(
            &plan,
            change(one, "slots", Value::Null),
            "experts",
            "`slots` is null",
        );
        refused(
            &plan,
            change(one, "v_index", Value::Null),
            "experts",
            "`v_index` is null",
        );
        refused(
            &plan,
            |p| p.programs[1].steps[one].grid[2] = 400,
            "experts",
            "argument `starts`",
        );
    }
    let sort = step("moe_sort");
    refused(
        &plan,
        change(sort, "top_k", Value::Int(3)),
        "sort",
        "argument `slots`",
    );
    refused(
        &plan,
        change(sort, "experts", Value::Int(99)),
        "sort",
        "argument `starts`",
    );
    let combine = step("moe_combine");
    refused(
        &plan,
        change(combine, "ldx", Value::Int(1 << 20)),
        "combine",
        "argument `x`",
    );
    refused(
        &plan,
        |p| p.programs[1].steps[combine].grid[0] = 1,
        "combine",
        "do not cover",
    );
    refused(
        &plan,
        |p| {
            p.programs[1].steps.remove(sort);
        },
        "experts",
        "is read before it is written",
    );
}

#[test]
fn what_is_read_before_it_is_written_is_refused() {
    let plan = plan();
    let embed = first(&plan, "embed");
    refused(
        &plan,
        |p| {
            p.programs[0].steps.remove(embed);
        },
        "step",
        "is read before it is written",
    );
    refused(
        &plan,
        |p| {
            p.persistent
                .iter_mut()
                .filter(|b| b.name == "tokens")
                .for_each(|b| b.filled = None)
        },
        "embed",
        "`tokens` is read before it is written",
    );
}

#[test]
fn launches_that_reach_too_far_or_not_far_enough_are_refused() {
    let plan = plan();
    let linear = first(&plan, "fused_linear");
    let attention = first(&plan, "attention_decode");
    let wider = |name: &'static str| {
        move |p: &mut Plan| {
            let value = p.programs[0].steps[linear].args.int(name);
            set(p, linear, name, Value::Int(value * 64));
        }
    };
    refused(&plan, wider("cols"), "step", "elements are used");
    refused(&plan, wider("rank"), "step", "`h`");
    refused(&plan, wider("tiles"), "step", "are not those of");
    refused(
        &plan,
        |p| p.programs[0].steps[attention].grid[0] += 1,
        "step",
        "does not cover",
    );
    refused(
        &plan,
        |p| set(p, attention, "capacity", Value::Int(1 << 20)),
        "step",
        "bytes of cache",
    );
    refused(
        &plan,
        |p| set(p, attention, "heads", Value::Int(7)),
        "step",
        "heads over",
    );
    refused(
        &plan,
        |p| set(p, attention, "rotary_dim", Value::Int(512)),
        "step",
        "are rotated",
    );
    refused(
        &plan,
        |p| {
            let kernel = p.programs[0].steps[linear].kernel as usize;
            p.kernels[kernel].defines.insert("BITS".into(), 8);
        },
        "step",
        "`q`",
    );
    refused(
        &plan,
        |p| {
            let kernel = p.programs[0].steps[linear].kernel as usize;
            p.kernels[kernel].defines.insert("BITS".into(), 5);
        },
        "kernel",
        "BITS=5",
    );
}
