//! From a plan's steps to launches: arguments by name become addresses and numbers in ABI order.

use super::RuntimeError;
use crate::plan::{Plan, Program, Step, Value, kernels};

/// An argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// An address on the device; 0 where the variant does not use it.
    Pointer(u64),
    /// An `int`.
    Int(i32),
    /// A `float`.
    Float(f32),
}

/// Where a plan's memory is on a device.
pub trait Addresses {
    /// A buffer of the program's arena, or a persistent one.
    fn buffer(&self, program: &Program, name: &str) -> Option<u64>;
    /// A section of a packed weight.
    fn section(&self, weight: &str, section: &str) -> Option<u64>;
}

/// A step with all that a launch needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The step's name.
    pub name: String,
    /// Index of the kernel variant.
    pub variant: usize,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
    /// Arguments in ABI order.
    pub arguments: Vec<Argument>,
}

/// The launches of a program.
///
/// # Errors
/// A step names a kernel, an argument, a buffer or a section that there is not, or an argument of
/// another type.
pub fn bind(
    plan: &Plan,
    program: &Program,
    at: &dyn Addresses,
) -> Result<Vec<Launch>, RuntimeError> {
    program
        .steps
        .iter()
        .map(|step| bind_step(plan, program, step, at))
        .collect()
}

fn bind_step(
    plan: &Plan,
    program: &Program,
    step: &Step,
    at: &dyn Addresses,
) -> Result<Launch, RuntimeError> {
    let fault = |problem: String| RuntimeError::broken(&step.name, problem);
    let variant = plan.kernels.get(step.kernel as usize);
    let variant = variant.ok_or_else(|| {
        fault(format!(
            "names kernel variant {}, which is not in the plan",
            step.kernel
        ))
    })?;
    let kernel = kernels::find(&variant.kernel);
    let kernel =
        kernel.ok_or_else(|| fault(format!("kernel `{}` is not known", variant.kernel)))?;
    if kernel.abi != variant.abi {
        let problem = format!(
            "is made for version {} of kernel `{}`, this program has {}",
            variant.abi, kernel.name, kernel.abi
        );
        return Err(fault(problem));
    }
    let mut arguments = Vec::new();
    for param in kernel.params() {
        let value = step.args.get(&param.name);
        let value =
            value.ok_or_else(|| fault(format!("does not give argument `{}`", param.name)))?;
        let misfit = || {
            fault(format!(
                "argument `{}` is {value}, where the kernel takes {}",
                param.name, param.dtype
            ))
        };
        arguments.push(match value {
            Value::Null if param.pointer => Argument::Pointer(0),
            Value::Buffer { name, offset } if param.pointer => {
                let start = at
                    .buffer(program, name)
                    .ok_or_else(|| fault(format!("buffer `{name}` is not in the plan")))?;
                Argument::Pointer(start.saturating_add(*offset))
            }
            Value::Section { weight, section } if param.pointer => {
                let start = at.section(weight, section);
                Argument::Pointer(
                    start.ok_or_else(|| {
                        fault(format!("@{weight}/{section} is not on the device"))
                    })?,
                )
            }
            Value::Int(i) if !param.pointer && param.dtype == "i32" => {
                Argument::Int(i32::try_from(*i).map_err(|_| misfit())?)
            }
            Value::Float(x) if !param.pointer && param.dtype == "f32" => Argument::Float(*x),
            // JSON writes 1.0 as a number that may read as an integer.
            Value::Int(i) if !param.pointer && param.dtype == "f32" => Argument::Float(*i as f32),
            _ => return Err(misfit()),
        });
    }
    Ok(Launch {
        name: step.name.clone(),
        variant: step.kernel as usize,
        grid: step.grid,
        block: step.block,
        shared_bytes: step.shared_bytes,
        arguments,
    })
}
