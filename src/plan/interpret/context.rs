//! One step: its defines, numbers, and the memory behind its pointers.

use std::ops::Range;

use half::f16;

use super::{Machine, Result, words};
use crate::plan::{PlanError, Program, Step, Value, Variant};

/// One step that is being run.
pub(super) struct Context<'m, 'a> {
    machine: &'m mut Machine<'a>,
    program: &'a Program,
    step: &'a Step,
    variant: &'a Variant,
}

/// Where a pointer points to.
enum Place {
    Arena(Range<usize>),
    Persistent(Range<usize>),
    Blob(Range<usize>),
}

impl<'m, 'a> Context<'m, 'a> {
    pub(super) fn new(
        machine: &'m mut Machine<'a>,
        program: &'a Program,
        step: &'a Step,
    ) -> Result<Self> {
        let variant = machine.plan.kernels.get(step.kernel as usize);
        let variant = variant.ok_or_else(|| {
            PlanError::run(&step.name, "names a kernel that the plan does not have")
        })?;
        Ok(Self {
            machine,
            program,
            step,
            variant,
        })
    }

    pub(super) fn kernel(&self) -> &'a str {
        &self.variant.kernel
    }

    /// Tokens that go through the program.
    pub(super) fn tokens(&self) -> usize {
        self.program.tokens as usize
    }

    /// Blocks of the launch along x: rows, for kernels with a block for each.
    pub(super) fn grid(&self, axis: usize) -> usize {
        self.step.grid[axis] as usize
    }

    pub(super) fn define(&self, name: &str) -> i64 {
        self.variant.define(name)
    }

    pub(super) fn int(&self, name: &str) -> usize {
        usize::try_from(self.step.args.int(name)).unwrap_or(0)
    }

    pub(super) fn float(&self, name: &str) -> f32 {
        match self.step.args.get(name) {
            Some(Value::Float(x)) => *x,
            Some(Value::Int(i)) => *i as f32,
            _ => 0.0,
        }
    }

    pub(super) fn fault(&self, problem: impl Into<String>) -> PlanError {
        PlanError::run(&self.step.name, problem)
    }

    pub(super) fn is_null(&self, name: &str) -> bool {
        matches!(self.step.args.get(name), None | Some(Value::Null))
    }

    fn place(&self, name: &str) -> Result<Place> {
        match self.step.args.get(name) {
            Some(Value::Buffer { name, offset }) => {
                let (arena, range) = self.machine.place(self.program, name)?;
                let skip = usize::try_from(*offset).unwrap_or(usize::MAX);
                let start = range.start.saturating_add(skip).min(range.end);
                Ok(match arena {
                    true => Place::Arena(start..range.end),
                    false => Place::Persistent(start..range.end),
                })
            }
            Some(Value::Section { weight, section }) => {
                let found = self
                    .machine
                    .plan
                    .weight(weight)
                    .and_then(|w| w.section(section));
                let found = found
                    .ok_or_else(|| self.fault(format!("@{weight}/{section} is not in the plan")))?;
                let start = usize::try_from(found.offset).unwrap_or(usize::MAX);
                let bytes = usize::try_from(found.bytes).unwrap_or(usize::MAX);
                Ok(Place::Blob(start..start.saturating_add(bytes)))
            }
            _ => Err(self.fault(format!("argument `{name}` is no pointer, and is read"))),
        }
    }

    /// The bytes behind a pointer, to the end of its buffer or section.
    pub(super) fn bytes(&self, name: &str) -> Result<&[u8]> {
        let found = match self.place(name)? {
            Place::Arena(range) => self.machine.arena.get(range),
            Place::Persistent(range) => self.machine.persistent.get(range),
            Place::Blob(range) => self.machine.blob.get(range),
        };
        found.ok_or_else(|| self.fault(format!("argument `{name}` lies outside of its memory")))
    }

    pub(super) fn f32s(&self, name: &str) -> Result<Vec<f32>> {
        Ok(words(self.bytes(name)?).map(f32::from_bits).collect())
    }

    pub(super) fn u32s(&self, name: &str) -> Result<Vec<u32>> {
        Ok(words(self.bytes(name)?).collect())
    }

    pub(super) fn i32s(&self, name: &str) -> Result<Vec<i32>> {
        Ok(words(self.bytes(name)?).map(|w| w as i32).collect())
    }

    pub(super) fn f16s(&self, name: &str) -> Result<Vec<f32>> {
        let pairs = self.bytes(name)?.as_chunks::<2>().0;
        Ok(pairs
            .iter()
            .map(|b| f16::from_le_bytes(*b).to_f32())
            .collect())
    }

    /// Writes bytes behind a pointer.
    pub(super) fn write(&mut self, name: &str, at: usize, bytes: &[u8]) -> Result<()> {
        let place = self.place(name)?;
        let fault = || {
            PlanError::run(
                &self.step.name,
                format!("writes beyond the end of `{name}`"),
            )
        };
        let (memory, range) = match place {
            Place::Arena(range) => (&mut self.machine.arena, range),
            Place::Persistent(range) => (&mut self.machine.persistent, range),
            Place::Blob(_) => {
                return Err(PlanError::run(
                    &self.step.name,
                    format!("writes to weights, `{name}`"),
                ));
            }
        };
        let into = memory.get_mut(range).and_then(|m| {
            let end = at.checked_add(bytes.len())?;
            m.get_mut(at..end)
        });
        into.ok_or_else(fault)?.copy_from_slice(bytes);
        Ok(())
    }

    /// Writes floats from element `at` on.
    pub(super) fn store(&mut self, name: &str, at: usize, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.write(name, at * 4, &bytes)
    }

    /// Writes floats as f16 from element `at` on.
    pub(super) fn store_halves(&mut self, name: &str, at: usize, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|v| f16::from_f32(*v).to_le_bytes())
            .collect();
        self.write(name, at * 2, &bytes)
    }

    /// Writes integers from element `at` on.
    pub(super) fn store_ints(&mut self, name: &str, at: usize, values: &[i32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.write(name, at * 4, &bytes)
    }

    /// Keeps a vector of a cache unrounded too, where that is asked for.
    pub(super) fn keep(&mut self, cache: &str, vector: usize, values: &[f32]) {
        let key = (self.named(cache), vector);
        if let Some(kept) = &mut self.machine.unrounded {
            kept.insert(key, values.to_vec());
        }
    }

    /// A vector of a cache that was kept unrounded.
    pub(super) fn kept(&self, cache: &str, vector: usize) -> Option<Vec<f32>> {
        let kept = self.machine.unrounded.as_ref()?;
        kept.get(&(self.named(cache), vector)).cloned()
    }

    fn named(&self, arg: &str) -> String {
        let value = self.step.args.get(arg);
        value.map(Value::to_string).unwrap_or_default()
    }

    /// Elements `at..at + count` of some values.
    pub(super) fn slice<'v, T>(
        &self,
        what: &str,
        values: &'v [T],
        at: usize,
        count: usize,
    ) -> Result<&'v [T]> {
        let found = at.checked_add(count).and_then(|end| values.get(at..end));
        found.ok_or_else(|| {
            self.fault(format!(
                "reads beyond the end of `{what}`: {count} from {at} of {}",
                values.len()
            ))
        })
    }

    /// Tokens of a prompt that there are, by the device scalars; all of the launch's without them.
    pub(super) fn live_tokens(&self, most: usize) -> Result<usize> {
        if self.is_null("scalars") {
            return Ok(most);
        }
        let scalars = self.i32s("scalars")?;
        let count = scalars.first().copied().unwrap_or(0);
        Ok(usize::try_from(count).unwrap_or(0).min(most))
    }
}
