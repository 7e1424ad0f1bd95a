//! Checks a plan against its own claims, the table of kernels, and the target's limits.
//!
//! 1. Format, kernel parameters and packs have versions that are known; names are unique.
//! 2. Variants have the defines of their kernel, with values that it has.
//! 3. Sections lie in the blob, aligned, and do not overlap; buffers lie in their arena likewise, but
//!    for those that do not live at the same time.
//! 4. A step's arguments are its kernel's parameters, in order, of their types; what they name is there,
//!    and of the element type that is read.
//! 5. Every buffer is written before it is read, and lives from the first step that uses it to the last.
//! 6. A step waits for those whose results it reads, and for those that use what it overwrites.
//! 7. Blocks, grids and shared memory are within the target's limits.
//! 8. Sections are as long as the kernel reads, and buffers as it reads and writes: launches cover
//!    their outputs.
//! 9. Steps on the host, and they alone, use weights on the host; buffers that they use are seen by both.

mod extents;
mod linear;
mod memory;
mod steps;

use std::fmt;

use super::{PACK_VERSION, PLAN_VERSION, Plan, kernels};

/// Something that a plan claims and does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: program and step, buffer, weight and section, kernel.
    pub at: String,
    /// What is wrong.
    pub problem: String,
}

/// All that is wrong with a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

/// Faults that a message lists.
const LISTED: usize = 20;

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the plan does not hold what it claims:")?;
        for fault in self.0.iter().take(LISTED) {
            write!(f, "\n  {}: {}", fault.at, fault.problem)?;
        }
        match self.0.len().checked_sub(LISTED) {
            Some(more) if more > 0 => write!(f, "\n  and {more} more"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Faults {}

impl Faults {
    fn add(&mut self, at: impl Into<String>, problem: impl Into<String>) {
        self.0.push(Fault {
            at: at.into(),
            problem: problem.into(),
        });
    }
}

/// Checks a plan.
///
/// # Errors
/// All faults that were found.
pub fn verify(plan: &Plan) -> Result<(), Faults> {
    let mut faults = Faults::default();
    if plan.plan_version != PLAN_VERSION {
        let problem = format!(
            "version {}; this program reads {PLAN_VERSION}",
            plan.plan_version
        );
        faults.add("plan_version", problem);
        return Err(faults);
    }
    if let Err(problem) = plan.target.check() {
        faults.add("target", problem);
    }
    variants(plan, &mut faults);
    memory::weights(plan, &mut faults);
    memory::persistent(plan, &mut faults);
    for program in &plan.programs {
        memory::program(plan, program, &mut faults);
        steps::program(plan, program, &mut faults);
    }
    unique(
        plan.programs.iter().map(|p| p.name.as_str()),
        "program",
        &mut faults,
    );
    match faults.0.is_empty() {
        true => Ok(()),
        false => Err(faults),
    }
}

fn variants(plan: &Plan, faults: &mut Faults) {
    for (index, variant) in plan.kernels.iter().enumerate() {
        let at = format!("kernel {index}, {}", variant.kernel);
        let Some(kernel) = kernels::find(&variant.kernel) else {
            faults.add(at, "no kernel has this name");
            continue;
        };
        if variant.abi != kernel.abi {
            faults.add(
                &at,
                format!(
                    "parameters of version {}; they are at {}",
                    variant.abi, kernel.abi
                ),
            );
        }
        for misfit in kernel.misfits(variant) {
            faults.add(&at, misfit);
        }
        if plan.kernels[..index].contains(variant) {
            faults.add(&at, "stands twice");
        }
    }
    for weight in &plan.weights {
        if weight.pack_version != PACK_VERSION {
            let problem = format!(
                "packed as version {}; kernels read {PACK_VERSION}",
                weight.pack_version
            );
            faults.add(format!("weight {}", weight.name), problem);
        }
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a str>, what: &str, faults: &mut Faults) {
    let mut seen = std::collections::HashSet::new();
    for name in names {
        if !seen.insert(name) {
            faults.add(format!("{what} {name}"), "the name stands twice");
        }
    }
}
