//! The interpreter: steps in order, values in slots, buffers handed on.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use super::activations::Coordinates;
use super::kernels::float::{self, PanelProduct};
use super::kernels::rope::Angles;
use super::matrix::PreparedMatrix;
use super::program::{Arg, Kind, PreparedMoe, Step};
use super::segments::Tap;
use super::state::State;
use super::tensor::{Buffers, Data, Tensor};
use super::{Engine, ExecError, Precision, grad, linear, ops};
use crate::ir::Layout;

/// One run of an engine.
pub(super) struct Run<'a> {
    pub(super) engine: &'a Engine,
    pub(super) slots: Vec<Option<Tensor>>,
    pub(super) buffers: Buffers,
    /// KV caches, where the run has them.
    pub(super) state: Option<&'a mut State>,
    /// Who sees what goes into linears.
    pub(super) tap: Option<&'a mut dyn Tap>,
    /// Angles of rotary embeddings, by table and positions: all layers share them.
    pub(super) angles: Vec<((usize, Arg), Angles)>,
}

/// The step that an error is about.
pub(super) fn misfit(step: &Step, problem: impl Into<String>) -> ExecError {
    ExecError::Shape {
        op: step.op.to_string(),
        name: step.name.clone(),
        problem: problem.into(),
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            if let Some(value) = slot.take() {
                self.buffers.give(value);
            }
        }
        self.engine.keep(std::mem::take(&mut self.buffers));
    }
}

impl<'a> Run<'a> {
    pub(super) fn new(engine: &'a Engine, state: Option<&'a mut State>) -> Self {
        Self {
            engine,
            slots: vec![None; engine.program.slots],
            buffers: engine.buffers(),
            state,
            tap: None,
            angles: Vec::new(),
        }
    }

    /// Puts a value in its place.
    pub(super) fn set(&mut self, slot: usize, value: Tensor) {
        self.angles.retain(|((_, of), _)| *of != Arg::Slot(slot));
        if let Some(place) = self.slots.get_mut(slot)
            && let Some(old) = place.replace(value)
        {
            self.buffers.give(old);
        }
    }

    /// Takes a value out of its place.
    pub(super) fn take(&mut self, slot: usize) -> Option<Tensor> {
        self.slots.get_mut(slot).and_then(Option::take)
    }

    pub(super) fn get(&self, arg: Arg) -> Option<&Tensor> {
        match arg {
            Arg::None => None,
            Arg::Slot(slot) => self.slots.get(slot).and_then(Option::as_ref),
            Arg::Constant(at) => self.engine.program.constants.get(at),
        }
    }

    /// Runs steps in order and frees values behind their last use.
    pub(super) fn steps(&mut self, steps: &[Step]) -> Result<(), ExecError> {
        let mut rest = steps;
        while let Some(first) = rest.first() {
            if self.engine.stop.is_some_and(|s| s.load(Ordering::Relaxed)) {
                return Err(ExecError::Interrupted);
            }
            let count = siblings(rest);
            let (now, later) = rest.split_at(count.max(1));
            match count {
                0 => self.step(first)?,
                _ => self.linears(now)?,
            }
            for &slot in now.iter().flat_map(|s| &s.last_uses) {
                if let Some(value) = self.take(slot) {
                    self.buffers.give(value);
                }
            }
            rest = later;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), ExecError> {
        match &step.kind {
            Kind::Linear(matrix) => {
                let x = self.operand(step, 0)?;
                if self.tap.is_some() {
                    let turned = linear::turned(matrix, x, step)?.values;
                    self.tell(step, &turned, matrix.matrix.cols);
                }
                let x = self.operand(step, 0)?;
                let value = linear::linear_across(&self.engine.pool, matrix, x, step)?;
                self.finish(step, value)
            }
            Kind::Embedding(table) => {
                let indices = self.operand(step, 0)?;
                let ids = indices.integers();
                let ids = ids.ok_or_else(|| misfit(step, "needs integer indices"))?;
                let shape = [indices.shape.as_slice(), &[table.cols]].concat();
                let mut out = vec![0f32; ids.len() * table.cols];
                linear::gather(step, &self.engine.pool, table, ids, &mut out)?;
                self.finish(step, Tensor::f32(&shape, out))
            }
            Kind::Moe(moe) => self.moe(step, moe),
            Kind::Grad(op) => grad::run(self, step, op),
            Kind::Native(native) => {
                let value = ops::native(self, step, native)?;
                self.finish(step, value)
            }
            Kind::Glu(function) => {
                let value = ops::glu(self, step, *function)?;
                self.finish(step, value)
            }
            Kind::Foreign(foreign) => {
                let inputs: Option<Vec<&Tensor>> =
                    step.inputs.iter().map(|a| self.get(*a)).collect();
                let inputs = inputs.ok_or_else(|| misfit(step, "an input has no value"))?;
                let results = foreign.run(&inputs, self.engine.stop)?;
                for (slot, value) in step.outputs.iter().zip(results) {
                    if let Some(slot) = slot {
                        self.set(*slot, value);
                    }
                }
                Ok(())
            }
        }
    }

    /// Input `index` of a step.
    pub(super) fn operand(&self, step: &Step, index: usize) -> Result<&Tensor, ExecError> {
        let arg = step.inputs.get(index).copied().unwrap_or(Arg::None);
        self.get(arg)
            .ok_or_else(|| misfit(step, format!("input {index} has no value")))
    }

    /// Input `index` of a step, which must be floats.
    pub(super) fn floats(&self, step: &Step, index: usize) -> Result<&[f32], ExecError> {
        let tensor = self.operand(step, index)?;
        let problem = || format!("input {index} is {}, not f32", tensor.type_name());
        tensor.floats().ok_or_else(|| misfit(step, problem()))
    }

    /// Takes input `index` itself where this is its last use, else a copy of it.
    pub(super) fn own(&mut self, step: &Step, index: usize) -> Result<Tensor, ExecError> {
        if let Some(&Arg::Slot(slot)) = step.inputs.get(index)
            && step.last_uses.contains(&slot)
            && step
                .inputs
                .iter()
                .filter(|a| **a == Arg::Slot(slot))
                .count()
                == 1
            && let Some(value) = self.take(slot)
        {
            return Ok(value);
        }
        let mut buffers = std::mem::take(&mut self.buffers);
        let result = self.operand(step, index).map(|value| match &value.data {
            Data::F32(x) => {
                let mut copy = buffers.take(x.len());
                copy.copy_from_slice(x);
                Tensor::f32(&value.shape, copy)
            }
            _ => value.clone(),
        });
        self.buffers = buffers;
        result
    }

    fn finish(&mut self, step: &Step, value: Tensor) -> Result<(), ExecError> {
        if let Some(Some(slot)) = step.outputs.first() {
            self.set(*slot, value);
        }
        Ok(())
    }

    /// Runs linears of one input, which is rounded once for all.
    fn linears(&mut self, steps: &[Step]) -> Result<(), ExecError> {
        let Some((first, arg)) = steps.first().and_then(|s| Some((s, *s.inputs.first()?))) else {
            return Ok(());
        };
        // Out of its slot, so that results can be put into theirs.
        let x = match arg {
            Arg::Slot(slot) => self.take(slot),
            _ => self.get(arg).cloned(),
        };
        let x = x.ok_or_else(|| misfit(first, "its activations have no value"))?;
        let result = self.linears_of(steps, &x);
        if let Arg::Slot(slot) = arg {
            self.set(slot, x);
        }
        result
    }

    /// Shows rows of activations to who wants to see them.
    pub(super) fn tell(&mut self, step: &Step, x: &[f32], width: usize) {
        if let Some(tap) = &mut self.tap {
            tap.see(step.id, x, width);
        }
    }

    fn linears_of(&mut self, steps: &[Step], x: &Tensor) -> Result<(), ExecError> {
        let engine = self.engine;
        let pool = &engine.pool;
        let linears = || {
            steps.iter().filter_map(|step| match &step.kind {
                Kind::Linear(linear) => Some((step, linear)),
                _ => None,
            })
        };
        let Some((first, _)) = linears().next() else {
            return Ok(());
        };
        let values = x.floats().ok_or_else(|| misfit(first, "needs floats"))?;
        let (rows, width) = (x.rows(), x.width());
        let needs = || linears().flat_map(|(_, linear)| linear.matrix.needs());
        let int8 = self.engine.options.precision == Precision::Int8;
        let rounded = |side| int8 && needs().any(|n| n.codes && n.side == side);
        for (step, linear) in linears() {
            if width != linear.matrix.cols || x.shape.is_empty() {
                let cols = linear.matrix.cols;
                let problem = format!("activations {:?} where `in` is {cols}", x.shape);
                return Err(misfit(step, problem));
            }
            self.tell(step, values, width);
        }
        let coordinates = Coordinates::new(pool, values, width, needs());
        let forms = coordinates.forms(pool, rounded);
        let mut made: Vec<Vec<f32>> = linears()
            .map(|(_, linear)| self.buffers.take(rows * linear.matrix.rows))
            .collect();
        let mut outs: Vec<(&PreparedMatrix, &mut [f32])> = Vec::new();
        let (mut packed, mut whole) = (Vec::new(), Vec::new());
        for ((_, linear), out) in linears().zip(&mut made) {
            let panels = linear.matrix.packed(rows)?.filter(|_| linear.scale == 1.0);
            whole.push(panels.is_some());
            match panels {
                Some((w, panels)) => packed.push(PanelProduct {
                    panels,
                    w,
                    bias: linear.bias.as_deref(),
                    out,
                }),
                None => outs.push((&linear.matrix, out)),
            }
        }
        float::matmul_all(pool, &mut packed, values, rows);
        PreparedMatrix::multiply_all(pool, &forms, &mut outs)?;
        for (((step, linear), mut out), whole) in linears().zip(made).zip(whole) {
            let mut shape = x.shape.clone();
            if let Some(last) = shape.last_mut() {
                *last = linear.matrix.rows;
            }
            if !whole {
                linear::affine(pool, linear.scale, linear.bias.as_deref(), &mut out);
            }
            self.finish(step, Tensor::f32(&shape, out))?;
        }
        Ok(())
    }

    /// Sends each token through its experts, expert by expert, and sums in the experts' order.
    fn moe(&mut self, step: &Step, moe: &PreparedMoe) -> Result<(), ExecError> {
        let (x, logits) = (self.operand(step, 0)?, self.operand(step, 1)?);
        let (width, rows, shape) = (x.width(), x.rows(), x.shape.clone());
        let experts = logits.width();
        if experts != moe.experts.len() || logits.rows() != rows {
            let problem = format!(
                "router logits {:?} for {} experts and activations {:?}",
                logits.shape,
                moe.experts.len(),
                x.shape
            );
            return Err(misfit(step, problem));
        }
        let chosen = linear::choose(self.floats(step, 1)?, experts, moe.top_k, moe.normalize);
        let x = self.floats(step, 0)?.to_vec();
        self.tell(step, &x, width);
        let mut out = vec![0f32; x.len()];
        for (e, expert) in moe.experts.iter().enumerate() {
            let mine: Vec<(usize, f32)> = chosen
                .iter()
                .enumerate()
                .flat_map(|(t, picks)| picks.iter().filter(|p| p.0 == e).map(move |p| (t, p.1)))
                .collect();
            if mine.is_empty() {
                continue;
            }
            let mut tokens = self.buffers.take(mine.len() * width);
            for (row, (t, _)) in tokens.chunks_mut(width.max(1)).zip(&mine) {
                row.copy_from_slice(&x[t * width..(t + 1) * width]);
            }
            self.set(expert.input, Tensor::f32(&[mine.len(), width], tokens));
            self.steps(&expert.steps)?;
            let y = self.get(expert.output).and_then(Tensor::floats);
            let y = y.filter(|y| y.len() == mine.len() * width);
            let y = y.ok_or_else(|| misfit(step, "an expert's result has another width"))?;
            for (row, (t, weight)) in y.chunks(width.max(1)).zip(&mine) {
                let sum = &mut out[t * width..(t + 1) * width];
                sum.iter_mut().zip(row).for_each(|(s, v)| *s += weight * v);
            }
        }
        self.finish(step, Tensor::f32(&shape, out))
    }

    /// Runs the steps up to the tail, then the tail in chunks of rows.
    ///
    /// `rows` lists the rows of `[sequences × len]` that are wanted, ascending; `each` gets the
    /// first of a chunk (an index into `rows`) and the first output's values.
    pub(super) fn in_chunks(
        &mut self,
        total: usize,
        rows: &[usize],
        chunk: usize,
        each: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), ExecError> {
        let program = &self.engine.program;
        self.steps(&program.steps[..program.tail])?;
        let held: Vec<(usize, Tensor)> = program
            .across
            .iter()
            .filter_map(|&slot| self.take(slot).map(|t| (slot, t)))
            .collect();
        for (i, part) in rows.chunks(chunk.max(1)).enumerate() {
            for (slot, value) in &held {
                self.set(*slot, select(value, total, part));
            }
            self.steps(&program.steps[program.tail..])?;
            let output = program.outputs.first().map_or(Arg::None, |p| p.arg);
            let Some(values) = self.get(output).and_then(Tensor::floats) else {
                return Err(ExecError::NotLanguageModel(
                    "its output is no floats".to_string(),
                ));
            };
            if each(i * chunk.max(1), values).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// How many steps from the first on are linears along the last axis of one input.
fn siblings(steps: &[Step]) -> usize {
    let input = |step: &Step| match &step.kind {
        Kind::Linear(linear) if linear.layout == Layout::Rows => step.inputs.first().copied(),
        _ => None,
    };
    let Some(first) = steps.first().and_then(input) else {
        return 0;
    };
    steps.iter().take_while(|s| input(s) == Some(first)).count()
}

/// The rows of a value `[.., total rows .., width]` that a chunk needs, as `[1, rows, width]`.
fn select(value: &Tensor, total: usize, rows: &[usize]) -> Tensor {
    let width = value.len().checked_div(total).unwrap_or(0);
    if width * total != value.len() {
        return value.clone();
    }
    fn pick<T: Copy>(from: &[T], rows: &[usize], width: usize) -> Vec<T> {
        let row = |&r: &usize| from.get(r * width..(r + 1) * width).unwrap_or_default();
        rows.iter().flat_map(row).copied().collect()
    }
    let mut shape = vec![1, rows.len()];
    if value.shape.len() > 2 {
        shape.push(width);
    }
    let data = match &value.data {
        Data::F32(v) => Data::F32(pick(v, rows, width)),
        Data::I64(v) => Data::I64(pick(v, rows, width)),
        Data::Bool(v) => Data::Bool(pick(v, rows, width)),
    };
    Tensor { shape, data }
}
