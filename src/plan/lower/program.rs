//! A program while it grows: steps, the buffers that they name, and what was made already.

use std::collections::HashMap;

use super::macros::{Slot, SlotInfo};
use crate::plan::kernels::{self, Launch};
use crate::plan::model::element_bytes;
use crate::plan::{Args, Buffer, Capture, Estimate, Place, Program, Step, Value};

/// A program while it grows.
pub(super) struct Growing {
    pub(super) name: &'static str,
    /// Tokens that go through.
    pub(super) tokens: u64,
    /// Tokens are of one sequence, and how many there are is a device scalar.
    pub(super) prefill: bool,
    pub(super) steps: Vec<Step>,
    pub(super) buffers: Vec<Buffer>,
    /// Forms of activations that were made: by slot, norm and rotation.
    pub(super) made: HashMap<String, Value>,
    /// Rows 0 of these slots are the last token's.
    pub(super) last: HashMap<Slot, Value>,
}

impl Growing {
    pub(super) fn new(name: &'static str, tokens: u64, prefill: bool) -> Self {
        Self {
            name,
            tokens,
            prefill,
            steps: Vec::new(),
            buffers: Vec::new(),
            made: HashMap::new(),
            last: HashMap::new(),
        }
    }

    /// Whether tokens are few enough for the kernels of decoding.
    pub(super) fn is_small(&self) -> bool {
        self.tokens <= 8
    }

    /// The buffer of a slot.
    pub(super) fn slot(&mut self, slot: Slot, slots: &[SlotInfo]) -> Value {
        let Some(info) = slots.get(slot.0) else {
            return Value::Null;
        };
        let name = info.name.clone();
        let rows = self.tokens * info.rows;
        self.buffer(&name, "f32", &[rows, info.width]);
        Value::buffer(name)
    }

    /// A buffer by name; made where it is not there yet.
    pub(super) fn buffer(&mut self, name: &str, dtype: &str, dims: &[u64]) -> Value {
        if !self.buffers.iter().any(|b| b.name == name) {
            let elements = dims.iter().fold(1u64, |n, &d| n.saturating_mul(d));
            self.buffers.push(Buffer {
                name: name.to_string(),
                dtype: dtype.to_string(),
                dims: dims.to_vec(),
                bytes: elements.saturating_mul(element_bytes(dtype).unwrap_or(4)),
                offset: 0,
                live: None,
                filled: None,
                place: Place::Device,
            });
        }
        Value::buffer(name)
    }

    /// Adds a launch; arguments that are not given are null, 0 or 0.0 as the kernel's table has them.
    pub(super) fn push(
        &mut self,
        name: &str,
        (kernel, index): (&str, u32),
        launch: Launch,
        given: Vec<(&str, Value)>,
        estimate: Estimate,
    ) -> usize {
        let mut args = Args::default();
        for param in kernels::find(kernel)
            .map(kernels::Kernel::params)
            .unwrap_or_default()
        {
            let value = match (param.pointer, param.dtype.as_str()) {
                (true, _) => Value::Null,
                (false, "f32") => Value::Float(0.0),
                (false, _) => Value::Int(0),
            };
            args.set(&param.name, value);
        }
        for (name, value) in given {
            args.set(name, value);
        }
        self.steps.push(Step {
            name: name.to_string(),
            kernel: index,
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            stream: 0,
            after: Vec::new(),
            place: Place::Device,
            args,
            estimate,
        });
        self.steps.len() - 1
    }

    /// The program, with dependencies, lifetimes and places in the arena.
    pub(super) fn finish(
        mut self,
        kernels: &[crate::plan::Variant],
        scalars: &[String],
    ) -> Program {
        crate::plan::arena::dependencies(&mut self.steps, kernels);
        crate::plan::arena::lifetimes(&mut self.buffers, &self.steps, kernels);
        let arena_bytes = crate::plan::arena::place(&mut self.buffers);
        let captures = captures(&self.steps, scalars);
        Program {
            name: self.name.to_string(),
            tokens: u32::try_from(self.tokens).unwrap_or(u32::MAX),
            buffers: self.buffers,
            arena_bytes,
            steps: self.steps,
            captures,
        }
    }
}

/// Runs of steps on the device.
pub(super) fn captures(steps: &[Step], scalars: &[String]) -> Vec<Capture> {
    let mut found: Vec<Capture> = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        if step.place == Place::Host {
            continue;
        }
        match found.last_mut() {
            Some(last) if last.steps[1] + 1 == index => last.steps[1] = index,
            _ => found.push(Capture {
                steps: [index, index],
                scalars: scalars.to_vec(),
            }),
        }
    }
    found
}
