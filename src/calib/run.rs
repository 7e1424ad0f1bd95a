//! A model over windows of tokens, segment by segment.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::{CalibError, Result};
use super::gather::Gather;
use super::hold::Hold;
use super::metadata::{DataFile, Metadata, ModelId, Protocol, Source, VERSION, token_hash};
use super::plan::{Plan, SegmentPlan, plan};
use super::windows::batches;
use super::write::{HELD, Writer};
use crate::eval::EvalError;
use crate::eval::inputs::token_inputs;
use crate::exec::segments::{Blind, Segment, Segments};
use crate::exec::{Data, Engine, Tensor};
use crate::ir::Module;

/// What a process takes besides what grows with the model and the text.
const BASE: u64 = 64 << 20;
/// Values of a token that live at once, in widths of the widest input.
const LIVING: u64 = 8;

/// What to calibrate, and on what.
pub struct Job<'a> {
    /// The model.
    pub module: &'a Module,
    /// It, ready to run.
    pub engine: &'a Engine,
    /// Who it is.
    pub model: ModelId,
    /// Where the windows come from.
    pub data: Vec<DataFile>,
    /// How they were cut.
    pub protocol: Protocol,
    /// Where the tokenizer was, if not beside the model.
    pub tokenizer: Option<String>,
    /// Token ids; windows of one length that stand together run together.
    pub windows: &'a [Vec<u32>],
    /// Bytes to stay within, weights not counted: those are mapped.
    pub mem_limit: Option<u64>,
}

/// How far a run is, and what it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Segments that are done.
    pub segment: usize,
    /// Segments in all.
    pub segments: usize,
    /// Tokens times segments that are done.
    pub done: u64,
    /// Tokens times segments in all.
    pub total: u64,
    /// Time spent on running the model.
    pub forward: Duration,
    /// Time spent on adding up.
    pub sums: Duration,
    /// Bytes that were spilled.
    pub spilled: u64,
}

/// A job with its sums planned.
struct Planned<'a> {
    job: &'a Job<'a>,
    segments: Segments,
    plan: Plan,
    batches: Vec<Range<usize>>,
}

impl Job<'_> {
    /// What the file will say of itself; its identity names the result.
    pub fn metadata(&self) -> Metadata {
        self.metadata_of(&plan(self.module, &self.engine.segments()))
    }

    fn metadata_of(&self, plan: &Plan) -> Metadata {
        Metadata {
            version: VERSION,
            model: self.model.clone(),
            runs: vec![Source {
                data: self.data.clone(),
                protocol: self.protocol,
                tokenizer: self.tokenizer.clone(),
                windows: self.windows.len(),
                tokens: self.windows.iter().map(|w| w.len() as u64).sum(),
                token_hash: token_hash(self.windows),
            }],
            sites: plan.sites.clone(),
        }
    }
}

/// Gathers statistics and writes them to `output`, which must not be there.
///
/// The file is the same to the byte for any number of threads, any memory limit, and an interrupted
/// run that `resume` goes on from. Memory: the sums of one segment, the activations of 2048 tokens,
/// and what lives between two segments as far as the limit allows.
///
/// # Errors
/// [`CalibError`].
pub fn calibrate(
    job: &Job<'_>,
    output: &Path,
    resume: bool,
    tell: &mut dyn FnMut(&Progress),
) -> Result<Progress> {
    let segments = job.engine.segments();
    let planned = Planned {
        plan: plan(job.module, &segments),
        segments,
        batches: batches(job.windows),
        job,
    };
    if planned.plan.sites.is_empty() {
        let what = format!("{} has no linears that could be calibrated", job.model.name);
        return Err(CalibError::Protocol(what));
    }
    let budget = planned.budget()?;
    let mut writer = Writer::open(output, &job.metadata_of(&planned.plan), resume)?;
    let mut hold = Hold::new(planned.batches.len(), budget, &writer.folder().join(HELD));
    let tokens: u64 = job.windows.iter().map(|w| w.len() as u64).sum();
    let mut progress = Progress {
        segments: planned.segments.list.len(),
        total: tokens * planned.segments.list.len() as u64,
        ..Progress::default()
    };
    let parts = planned.segments.list.iter().zip(&planned.plan.segments);
    for (number, (segment, sums)) in parts.enumerate() {
        let wanted = number >= writer.done;
        if !wanted && writer.done == planned.segments.list.len() {
            break;
        }
        let gather = planned.segment(
            segment,
            wanted.then_some(sums),
            &mut hold,
            &mut progress,
            tell,
        )?;
        job.engine.release_segment(segment);
        if let Some(gather) = gather {
            write(&mut writer, sums, &gather)?;
            writer.segment(number)?;
        }
        progress.segment = number + 1;
        tell(&progress);
    }
    drop(hold);
    writer.finish()?;
    Ok(progress)
}

impl Planned<'_> {
    /// Bytes for what lives between segments.
    fn budget(&self) -> Result<u64> {
        let Some(limit) = self.job.mem_limit else {
            return Ok(u64::MAX);
        };
        let batch = |range: &Range<usize>| {
            let windows = self.job.windows.get(range.clone()).unwrap_or_default();
            windows.iter().map(|w| w.len() as u64).sum::<u64>()
        };
        let tokens = self.batches.iter().map(batch).max().unwrap_or(0);
        let need = |plan: &SegmentPlan| {
            let widths = plan.sums.iter().map(|s| s.width as u64);
            let widest = widths.clone().max().unwrap_or(0);
            let sums: u64 = widths.map(|w| w * w * 4).sum();
            BASE + sums + tokens * widest * 4 * LIVING
        };
        let Some(plan) = self.plan.segments.iter().max_by_key(|plan| need(plan)) else {
            return Ok(limit);
        };
        let need = need(plan);
        limit.checked_sub(need).ok_or_else(|| CalibError::Memory {
            site: plan
                .sums
                .first()
                .map_or_else(String::new, |s| s.key.clone()),
            need,
            limit,
        })
    }

    /// Runs all windows through one segment.
    fn segment<'p>(
        &'p self,
        segment: &Segment,
        sums: Option<&'p SegmentPlan>,
        hold: &mut Hold,
        progress: &mut Progress,
        tell: &mut dyn FnMut(&Progress),
    ) -> Result<Option<Gather<'p>>> {
        let engine = self.job.engine;
        let mut gather = sums.map(|plan| Gather::new(plan, engine.pool()));
        for (batch, range) in self.batches.iter().enumerate() {
            let windows = self.job.windows.get(range.clone()).unwrap_or_default();
            let length = windows.first().map_or(0, Vec::len);
            let inputs = inputs(engine, &self.job.model.name, windows)?;
            let held = hold.take(batch)?;
            let begun = Instant::now();
            let added = gather.as_ref().map_or(Duration::ZERO, |g| g.time);
            let left = match &mut gather {
                Some(gather) => {
                    gather.at(range.start, length);
                    engine.run_segment(segment, &inputs, held, gather)
                }
                None => engine.run_segment(segment, &inputs, held, &mut Blind),
            };
            let left = left.map_err(CalibError::exec(&self.job.model.name))?;
            let adding = gather.as_ref().map_or(Duration::ZERO, |g| g.time) - added;
            progress.sums += adding;
            progress.forward += begun.elapsed().saturating_sub(adding);
            if let Some(gather) = &mut gather {
                gather.check()?;
            }
            hold.put(batch, left)?;
            progress.spilled = hold.spilled;
            progress.done += (windows.len() * length) as u64;
            tell(progress);
        }
        Ok(gather)
    }
}

/// A batch of windows as the model's inputs, each `[windows, tokens]`.
pub(super) fn inputs(
    engine: &Engine,
    model: &str,
    windows: &[Vec<u32>],
) -> Result<Vec<(String, Tensor)>> {
    let mut all: Vec<(String, Tensor)> = Vec::new();
    for window in windows {
        let one = token_inputs(engine, model, window).map_err(|error| match error {
            EvalError::Exec { model, source } => CalibError::Exec { model, source },
            other => CalibError::Protocol(other.to_string()),
        })?;
        if all.is_empty() {
            all = one;
            continue;
        }
        for ((_, to), (_, from)) in all.iter_mut().zip(one) {
            if let (Data::I64(to), Data::I64(from)) = (&mut to.data, from.data) {
                to.extend(from);
            }
            if let Some(count) = to.shape.first_mut() {
                *count += 1;
            }
        }
    }
    Ok(all)
}

/// Writes a segment's sums, the experts' together, and their counts.
fn write(writer: &mut Writer, plan: &SegmentPlan, gather: &Gather<'_>) -> Result<()> {
    for (plan, sum) in plan.sums.iter().zip(&gather.sums) {
        writer.sums(&plan.key, &sum.hessian, sum.width, sum.tokens)?;
    }
    for pool in &plan.pools {
        let members = pool.members.iter().filter_map(|&m| gather.sums.get(m));
        let (mut all, mut tokens, mut width) = (Vec::new(), 0, 0);
        for member in members {
            all.resize(member.hessian.len(), 0f32);
            all.iter_mut()
                .zip(&member.hessian)
                .for_each(|(a, b)| *a += b);
            tokens += member.tokens;
            width = member.width;
        }
        writer.sums(&pool.key, &all, width, tokens)?;
    }
    for (mixture, counts) in plan.mixtures.iter().zip(&gather.counts) {
        writer.counts(&mixture.key, counts)?;
    }
    Ok(())
}
