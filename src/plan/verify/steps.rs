//! Steps: arguments, order, limits.

use std::collections::{HashMap, HashSet};

use super::{Faults, extents};
use crate::plan::arena::{dependencies, lifetimes, uses};
use crate::plan::kernels::{self, Kernel, Param};
use crate::plan::{Buffer, Place, Plan, Program, Step, Value, Variant, element_bytes};

/// Most blocks along y and z of a grid.
const GRID_YZ: u32 = 65535;

pub(super) fn program(plan: &Plan, program: &Program, faults: &mut Faults) {
    for (index, step) in program.steps.iter().enumerate() {
        let at = format!("{}, step {index}, {}", program.name, step.name);
        let variant = plan.kernels.get(step.kernel as usize);
        let kernel = variant.and_then(|v| Some((v, kernels::find(&v.kernel)?)));
        let Some((variant, kernel)) = kernel else {
            faults.add(at, format!("kernel {} is not in the plan", step.kernel));
            continue;
        };
        limits(plan, step, (variant, kernel), &at, faults);
        let before = faults.0.len();
        arguments(plan, program, step, kernel, &at, faults);
        place(plan, program, step, &at, faults);
        // Extents are of arguments that are there.
        if faults.0.len() == before {
            extents::step(plan, program, step, variant, &at, faults);
        }
    }
    order(plan, program, faults);
    for capture in &program.captures {
        let [first, last] = capture.steps;
        let at = format!("{}, capture of steps {first} to {last}", program.name);
        if first > last || last as usize >= program.steps.len() {
            faults.add(&at, "there are no such steps");
        }
        for scalar in &capture.scalars {
            if !plan.persistent.iter().any(|b| b.name == *scalar) {
                faults.add(&at, format!("`{scalar}` is no persistent buffer"));
            }
        }
    }
}

/// The buffer that a step of a program means by a name.
pub(super) fn buffer<'p>(plan: &'p Plan, program: &'p Program, name: &str) -> Option<&'p Buffer> {
    let own = program.buffer(name);
    own.or_else(|| plan.persistent.iter().find(|b| b.name == name))
}

fn limits(
    plan: &Plan,
    step: &Step,
    (variant, kernel): (&Variant, &Kernel),
    at: &str,
    faults: &mut Faults,
) {
    let target = &plan.target;
    let block = match variant.define("WARPS") {
        0 => i64::from(kernel.block),
        warps => warps.saturating_mul(32),
    };
    if i64::from(step.block) != block {
        let problem = format!(
            "blocks of {} threads; the kernel is for {block}",
            step.block
        );
        faults.add(at, problem);
    }
    if step.block > target.block_threads {
        faults.add(
            at,
            format!(
                "{} threads in a block, {} has at most {}",
                step.block, target.arch, target.block_threads
            ),
        );
    }
    if step.shared_bytes > target.shared_bytes {
        let problem = format!(
            "{} bytes of shared memory, {} has at most {}",
            step.shared_bytes, target.arch, target.shared_bytes
        );
        faults.add(at, problem);
    }
    let [x, y, z] = step.grid;
    if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > GRID_YZ || z > GRID_YZ {
        faults.add(
            at,
            format!("a grid of {x} × {y} × {z} blocks can't be launched"),
        );
    }
}

fn arguments(
    plan: &Plan,
    program: &Program,
    step: &Step,
    kernel: &Kernel,
    at: &str,
    faults: &mut Faults,
) {
    let params = kernel.params();
    let given: Vec<&str> = step.args.iter().map(|(n, _)| n.as_str()).collect();
    let wanted: Vec<&str> = params.iter().map(|p| p.name.as_str()).collect();
    if given != wanted {
        let strange = given.iter().find(|n| !wanted.contains(n));
        let missing = wanted.iter().find(|n| !given.contains(n));
        let problem = match (strange, missing) {
            (Some(name), _) => format!("`{name}` is no parameter of {}", kernel.name),
            (_, Some(name)) => format!("parameter `{name}` of {} is not given", kernel.name),
            _ => format!(
                "arguments are not in the order of {}'s parameters",
                kernel.name
            ),
        };
        faults.add(at, problem);
    }
    for param in &params {
        let Some(value) = step.args.get(&param.name) else {
            continue;
        };
        if let Some(problem) = misfit(plan, program, param, value) {
            faults.add(at, format!("argument `{}`: {problem}", param.name));
        }
    }
}

/// Why a value can't be an argument.
fn misfit(plan: &Plan, program: &Program, param: &Param, value: &Value) -> Option<String> {
    match (value, param.pointer) {
        (Value::Null, true) => None,
        (Value::Int(n), false) if param.dtype == "i32" => i32::try_from(*n)
            .err()
            .map(|_| format!("{n} is no 32-bit integer")),
        (Value::Float(x), false) if param.dtype == "f32" => {
            (!x.is_finite()).then(|| format!("{x} is no finite number"))
        }
        (Value::Buffer { name, offset }, true) => {
            let Some(buffer) = buffer(plan, program, name) else {
                return Some(format!("there is no buffer `{name}`"));
            };
            let size = element_bytes(&buffer.dtype).unwrap_or(1);
            if *offset >= buffer.bytes.max(1) || !offset.is_multiple_of(size) {
                return Some(format!(
                    "{offset} is no place in `{name}`, of {} bytes",
                    buffer.bytes
                ));
            }
            // Caches are bytes to kernels, whatever their format.
            let same = param.dtype == buffer.dtype || param.dtype == "u8";
            (!same).then(|| format!("`{name}` is {}, and {} is read", buffer.dtype, param.dtype))
        }
        (Value::Section { weight, section }, true) => {
            let found = plan.weight(weight).and_then(|w| w.section(section));
            let Some(found) = found else {
                return Some(format!("there is no @{weight}/{section}"));
            };
            if !param.read_only {
                return Some("a weight is written".to_string());
            }
            let same = param.dtype == found.dtype;
            (!same).then(|| {
                format!(
                    "@{weight}/{section} is {}, and {} is read",
                    found.dtype, param.dtype
                )
            })
        }
        _ => Some(format!(
            "{value} is no {}{}",
            param.dtype,
            if param.pointer { " pointer" } else { "" }
        )),
    }
}

fn place(plan: &Plan, program: &Program, step: &Step, at: &str, faults: &mut Faults) {
    for (name, value) in step.args.iter() {
        match value {
            Value::Section { weight, .. } => {
                let kept = plan.weight(weight).map(|w| w.place);
                if kept.is_some_and(|p| p == Place::Host) && step.place == Place::Device {
                    faults.add(at, format!("argument `{name}`: `{weight}` is kept on the host, and the step runs on the device"));
                }
            }
            Value::Buffer { name: of, .. } if step.place == Place::Host => {
                let seen = buffer(plan, program, of).map(|b| b.place);
                if seen == Some(Place::Device) {
                    faults.add(
                        at,
                        format!("argument `{name}`: the host does not see `{of}`"),
                    );
                }
            }
            _ => {}
        }
    }
}

/// Whether a written argument is read by the step too.
fn reads_what_it_writes(variant: &Variant, step: &Step, arg: &str) -> bool {
    match (variant.kernel.as_str(), arg) {
        ("rope_append", "qkv") => true,
        ("embed", "y") => step.args.int("add") == 1,
        ("fused_linear" | "attention_decode", "counter") => true,
        _ => false,
    }
}

/// Written before read, lifetimes, dependencies.
fn order(plan: &Plan, program: &Program, faults: &mut Faults) {
    let mut written: HashSet<&str> = HashSet::new();
    // Caches hold what earlier runs wrote.
    let from_before = |b: &&Buffer| b.filled.is_some() || b.is_cache();
    written.extend(
        plan.persistent
            .iter()
            .filter(from_before)
            .map(|b| b.name.as_str()),
    );
    for (index, step) in program.steps.iter().enumerate() {
        let at = format!("{}, step {index}, {}", program.name, step.name);
        let Some(variant) = plan.kernels.get(step.kernel as usize) else {
            continue;
        };
        let used = uses(step, &plan.kernels);
        for one in &used {
            let reads = !one.writes || reads_what_it_writes(variant, step, &one.arg);
            if reads && !written.contains(one.name.as_str()) {
                faults.add(
                    &at,
                    format!(
                        "argument `{}`: `{}` is read before it is written",
                        one.arg, one.name
                    ),
                );
            }
        }
        for one in used.iter().filter(|u| u.writes) {
            if let Some(found) = buffer(plan, program, &one.name) {
                written.insert(found.name.as_str());
            }
        }
    }
    let mut steps = program.steps.clone();
    dependencies(&mut steps, &plan.kernels);
    for (index, (step, needed)) in program.steps.iter().zip(&steps).enumerate() {
        let at = format!("{}, step {index}, {}", program.name, step.name);
        if step.after.iter().any(|&a| a as usize >= index) {
            faults.add(&at, "waits for a step that is not before it");
        }
        if let Some(missing) = needed.after.iter().find(|a| !step.after.contains(a)) {
            faults.add(
                &at,
                format!("does not wait for step {missing}, whose memory it uses"),
            );
        }
    }
    let mut buffers = program.buffers.clone();
    lifetimes(&mut buffers, &program.steps, &plan.kernels);
    let lives: HashMap<&str, Option<[u32; 2]>> =
        buffers.iter().map(|b| (b.name.as_str(), b.live)).collect();
    for buffer in &program.buffers {
        let used = lives.get(buffer.name.as_str()).copied().flatten();
        let covers = match (buffer.live, used) {
            (_, None) => true,
            (Some([a, b]), Some([first, last])) => a <= first && b >= last,
            (None, Some(_)) => false,
        };
        if !covers {
            let at = format!("{}, buffer {}", program.name, buffer.name);
            faults.add(
                at,
                format!("is used in steps {used:?}, and lives in {:?}", buffer.live),
            );
        }
    }
}
