//! Runs a plan on the CPU, from the plan and the blob alone, in plain scalar code.
//!
//! For judging plans, packs and kernels, not for speed: it shares no code with [`crate::exec`].
//! Buffers stand where the plan places them in the arena, which is filled with NaN before each run, so
//! that what is read before it is written, or overwritten too early, shows in the result.

mod attention;
mod context;
mod linear;
mod q8;
mod small;
mod unpack;
mod work;

use std::collections::HashMap;

use self::context::Context;
use super::model::element_bytes;
use super::{Buffer, Plan, PlanError, Program, Step};

type Result<T> = std::result::Result<T, PlanError>;

/// A plan with its memory.
pub struct Machine<'a> {
    plan: &'a Plan,
    blob: &'a [u8],
    persistent: Vec<u8>,
    arena: Vec<u8>,
    /// Keys and values as they are, beside the caches that round them: by cache and vector.
    unrounded: Option<HashMap<(String, usize), Vec<f32>>>,
}

/// What memory holds before it is written: NaN as f32 and f16, −1 as an integer.
const POISON: u8 = 0xff;

impl<'a> Machine<'a> {
    /// Memory for a plan that was checked by [`super::verify`]; caches and workspaces are poisoned.
    ///
    /// # Errors
    /// The plan has no blob, or another one; buffers do not fit this machine's memory.
    pub fn new(plan: &'a Plan, blob: &'a [u8]) -> Result<Self> {
        let Some(described) = &plan.blob else {
            return Err(PlanError::run(
                "the plan",
                "has no packed weights: it was made from a configuration alone",
            ));
        };
        if described.bytes != blob.len() as u64 {
            let problem = format!(
                "has {} bytes, the plan says {}",
                blob.len(),
                described.bytes
            );
            return Err(PlanError::run(&described.file, problem));
        }
        let ends = plan
            .persistent
            .iter()
            .map(|b| b.offset.saturating_add(b.bytes));
        let mut machine = Self {
            plan,
            blob,
            persistent: memory(ends.max().unwrap_or(0))?,
            arena: memory(
                plan.programs
                    .iter()
                    .map(|p| p.arena_bytes)
                    .max()
                    .unwrap_or(0),
            )?,
            unrounded: None,
        };
        for buffer in &plan.persistent {
            if buffer.filled.as_deref() == Some("zero") {
                machine.bytes_mut(buffer)?.fill(0);
            }
        }
        Ok(machine)
    }

    /// Attention reads keys and values as they were before the cache rounded them, so that what is left
    /// of a difference to the model is not the cache's.
    #[must_use]
    pub fn with_unrounded_caches(mut self) -> Self {
        self.unrounded = Some(HashMap::new());
        self
    }

    fn bytes_mut(&mut self, buffer: &Buffer) -> Result<&mut [u8]> {
        let range = range(buffer)?;
        let fault = || PlanError::run(&buffer.name, "does not fit its arena");
        self.persistent.get_mut(range).ok_or_else(fault)
    }

    fn persistent(&self, name: &str) -> Result<&'a Buffer> {
        let found = self.plan.persistent.iter().find(|b| b.name == name);
        found.ok_or_else(|| PlanError::run(name, "is no persistent buffer of the plan"))
    }

    /// Writes integers to a persistent buffer, from its start.
    ///
    /// # Errors
    /// There is no such buffer, or it is shorter.
    pub fn set_ints(&mut self, name: &str, values: &[i32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.set(name, &bytes)
    }

    /// Writes floats to a persistent buffer, from its start.
    ///
    /// # Errors
    /// As [`Self::set_ints`].
    pub fn set_floats(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.set(name, &bytes)
    }

    fn set(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let buffer = self.persistent(name)?;
        let into = self.bytes_mut(buffer)?;
        let into = into.get_mut(..bytes.len());
        let into = into.ok_or_else(|| {
            PlanError::run(name, format!("holds fewer than {} bytes", bytes.len()))
        })?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    /// A persistent buffer of floats.
    ///
    /// # Errors
    /// There is no such buffer.
    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let buffer = self.persistent(name)?;
        let bytes = self.persistent.get(range(buffer)?).unwrap_or_default();
        Ok(words(bytes).map(f32::from_bits).collect())
    }

    /// A persistent buffer of integers.
    ///
    /// # Errors
    /// There is no such buffer.
    pub fn ints(&self, name: &str) -> Result<Vec<i32>> {
        let buffer = self.persistent(name)?;
        let bytes = self.persistent.get(range(buffer)?).unwrap_or_default();
        Ok(words(bytes).map(|w| w as i32).collect())
    }

    /// Runs a program from its first step to its last.
    ///
    /// # Errors
    /// There is no such program, or a step reads or writes beyond what it is given.
    pub fn run(&mut self, program: &str) -> Result<()> {
        self.run_watched(program, &mut |_, _| {})
    }

    /// Runs a program; `watch` sees each step and the floats of its `y`, or of its first output.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_watched(
        &mut self,
        program: &str,
        watch: &mut dyn FnMut(&Step, &[f32]),
    ) -> Result<()> {
        let plan = self.plan;
        let program = plan.program(program);
        let program = program.ok_or_else(|| PlanError::run("the plan", "has no such program"))?;
        self.arena.fill(POISON);
        for step in &program.steps {
            let mut context = Context::new(self, program, step)?;
            dispatch(&mut context)?;
            let y = context.f32s("y").unwrap_or_default();
            watch(step, &y);
        }
        Ok(())
    }

    /// The place of a buffer: whether it is in the arena, and its bytes.
    fn place(&self, program: &Program, name: &str) -> Result<(bool, std::ops::Range<usize>)> {
        if let Some(buffer) = program.buffer(name) {
            return Ok((true, range(buffer)?));
        }
        Ok((false, range(self.persistent(name)?)?))
    }
}

fn dispatch(c: &mut Context<'_, '_>) -> Result<()> {
    match c.kernel() {
        "fused_linear" | "linear_prefill" => linear::run(c),
        "low_rank_inner" => linear::inner(c),
        "attention_decode" => attention::decode(c),
        "rope_append" => attention::append(c),
        "attention_prefill" => attention::prefill(c),
        "embed" => small::embed(c),
        "normalize" => small::normalize(c),
        "quantize" => small::quantize(c),
        "elementwise" => small::elementwise(c),
        "moe_route" => small::route(c),
        "moe_sort" => small::sort(c),
        "moe_combine" => small::combine(c),
        "hadamard" => small::hadamard(c),
        "sample" => small::sample(c),
        other => {
            let problem = format!("kernel `{other}` is not known to the interpreter");
            Err(c.fault(problem))
        }
    }
}

fn memory(bytes: u64) -> Result<Vec<u8>> {
    let fault = || {
        PlanError::run(
            "the plan",
            format!("needs {bytes} bytes, which there are not"),
        )
    };
    let bytes = usize::try_from(bytes).map_err(|_| fault())?;
    let mut memory = Vec::new();
    memory.try_reserve_exact(bytes).map_err(|_| fault())?;
    memory.resize(bytes, POISON);
    Ok(memory)
}

fn range(buffer: &Buffer) -> Result<std::ops::Range<usize>> {
    let fault = || PlanError::run(&buffer.name, "is larger than can be addressed");
    let start = usize::try_from(buffer.offset).map_err(|_| fault())?;
    let bytes = usize::try_from(buffer.bytes).map_err(|_| fault())?;
    if element_bytes(&buffer.dtype).is_none() {
        return Err(PlanError::run(
            &buffer.name,
            format!("has an unknown type, {}", buffer.dtype),
        ));
    }
    let end = start.checked_add(bytes).ok_or_else(fault)?;
    Ok(start..end)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| u32::from_le_bytes(*b))
}
