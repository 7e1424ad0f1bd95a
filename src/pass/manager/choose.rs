//! Which sites a stage works on, how, and what that takes.

use super::memory::{self, Estimate, Shape};
use super::stage::stem;
use super::unit::residual_dtype;
use super::{Run, RunError, RunOptions};
use crate::ir::site::{Site, otherwise_used};
use crate::ir::{Module, Storage, Weight, WeightView};
use crate::pass::manager::schedule::Schedule;
use crate::pass::terms::quant_tensors;
use crate::pass::{Pass, RemarkKind};
use crate::store::{NewTensor, TensorOutline, copied_as};
use crate::weights::DType;

/// A site that passes of this stage run on.
pub(super) struct Chosen {
    pub(super) site: Site,
    /// Steps of this stage, in order.
    pub(super) steps: Vec<usize>,
    pub(super) view: WeightView,
    pub(super) dtype: DType,
    pub(super) shape: Shape,
    pub(super) keep: Option<DType>,
    /// Whether what is left is taken up by a later stage, and no part of the output.
    pub(super) passes_on: bool,
}

impl Chosen {
    /// The same where an earlier stage has left f32 residuals, in files or in memory.
    pub(super) fn as_residual(&mut self, in_files: bool) {
        let shape = &mut self.shape;
        let whole = shape.rows.saturating_mul(shape.cols);
        let unit = shape.unit_rows.saturating_mul(shape.cols);
        let wider = 4u64.saturating_sub(self.dtype.bytes_for(1).unwrap_or(0));
        let mut more = unit.saturating_mul(wider);
        if !in_files || self.view.transposed {
            more = more.saturating_add(whole.saturating_mul(8));
        }
        if self.keep.is_some() {
            let wider = whole.saturating_mul(wider);
            shape.term_bytes = shape.term_bytes.saturating_add(wider);
            more = more.saturating_add(wider);
        }
        shape.unit_bytes = shape.unit_bytes.saturating_add(more);
    }
}

/// The sites that these steps run on, with how.
///
/// # Errors
/// A pass can't say what it takes.
pub(super) fn choose(
    module: &Module,
    schedule: &Schedule,
    stage: &[usize],
    sites: &[Site],
) -> Result<Vec<Chosen>, RunError> {
    let mut chosen = Vec::new();
    for (site, other) in sites.iter().zip(otherwise_used(module, sites)) {
        let all = schedule.steps_for(site);
        let steps: Vec<usize> = all.iter().copied().filter(|s| stage.contains(s)).collect();
        let view = site.matrix(module).and_then(|m| m.dense_view()).cloned();
        let (Some(&last), Some(view), None) = (steps.last(), view, other) else {
            continue;
        };
        let Some(weight) = module.weight(view.weight) else {
            continue;
        };
        let dtype = weight.dtype;
        // A later stage takes the residual up: it is stored in between.
        let ends = all.last() == Some(&last);
        let kept = schedule.keeps_residual(last).then(|| residual_dtype(dtype));
        let keep = if ends { kept } else { Some(DType::F32) };
        let mut shape = memory::shape_of(schedule, &steps, site, dtype, view.transposed)?;
        if !ends {
            shape = shape.passing_on();
        }
        shape.unit_bytes = shape
            .unit_bytes
            .saturating_add(in_memory(weight))
            .saturating_add(kept_memory(module, site, &shape));
        chosen.push(Chosen {
            site: site.clone(),
            steps,
            view,
            dtype,
            shape,
            keep,
            passes_on: !ends,
        });
    }
    Ok(chosen)
}

/// Memory for a weight that is put together before it is read, its parts' pages included.
fn in_memory(weight: &Weight) -> u64 {
    match weight.storage {
        Storage::Concat(_) | Storage::Synthetic(_) | Storage::Inline(_) => {
            weight.bytes().saturating_mul(2)
        }
        Storage::Rotated(_) => {
            let f32s = weight.elements().unwrap_or(0).saturating_mul(4);
            weight.bytes().saturating_mul(2).saturating_add(f32s)
        }
        _ => 0,
    }
}

/// Memory for a job's terms of earlier generations, and for the sum that errors are relative to.
fn kept_memory(module: &Module, site: &Site, shape: &Shape) -> u64 {
    match memory::kept_bytes(module, site) {
        0 => 0,
        kept => kept.saturating_add(shape.unit_rows.saturating_mul(shape.cols).saturating_mul(4)),
    }
}

/// Bytes that stay in memory from one stage to the next where there is no file to keep them in: in
/// the module, in the copy that a stage begins with, in two that are verified and printed, and what
/// is on its way between them.
pub(super) fn passed_on(chosen: &[Chosen]) -> u64 {
    let residual = |c: &Chosen| match c.passes_on {
        true => c.shape.rows.saturating_mul(c.shape.cols).saturating_mul(24),
        false => 0,
    };
    chosen.iter().map(residual).fold(0, u64::saturating_add)
}

/// Memory and workers for the chosen sites; `beside` is in memory all the time.
pub(super) fn estimate(
    module: &Module,
    chosen: &[Chosen],
    options: &RunOptions<'_>,
    beside: u64,
) -> Result<Estimate, RunError> {
    let shapes: Vec<Shape> = chosen.iter().map(|c| c.shape).collect();
    let (threads, limit) = (options.threads, options.mem_limit);
    let estimate = memory::estimate(module, &shapes, threads, limit, beside);
    let largest = chosen.iter().max_by_key(|c| c.shape.unit_bytes);
    match (options.mem_limit, largest) {
        (Some(limit), Some(largest)) if estimate.workers == 0 => Err(RunError::Memory {
            site: largest.site.name.clone(),
            need: estimate.peak_memory_bytes,
            limit,
        }),
        _ => Ok(estimate),
    }
}

impl Run<'_> {
    /// Says why sites that a pass might have taken were not.
    pub(super) fn remark_unchosen(&mut self, module: &Module, all: &[Site], stage: &[usize]) {
        for (site, other) in all.iter().zip(otherwise_used(module, all)) {
            let steps = self.schedule.steps_for(site);
            let dense = site
                .matrix(module)
                .is_some_and(|m| m.dense_view().is_some());
            let here = steps.iter().find(|s| stage.contains(s));
            match here {
                Some(&step) if !dense => {
                    let name = self.schedule.steps[step].name;
                    let why = "no dense term is left to take from".to_string();
                    self.rewritten += usize::from(self.stages == 0);
                    self.remark(RemarkKind::Missed, name, &site.name, why);
                }
                Some(&step) if other.is_some() => {
                    let name = self.schedule.steps[step].name;
                    let why = format!(
                        "left as it is: `{}` uses the same weight in another way and would keep it, so the \
                         model would grow; give this one a copy in the source if it shall be rewritten",
                        other.unwrap_or_default()
                    );
                    self.reached = true;
                    self.remark(RemarkKind::Missed, name, &site.name, why);
                }
                None if self.stages == 0 && !site.is_body() && steps.is_empty() => {
                    let roles: Vec<_> = site.roles.iter().map(|r| r.name()).collect();
                    let why = format!(
                        "left as it is: passes leave {} alone unless a scope names them",
                        roles.join(" and ")
                    );
                    self.remark(RemarkKind::Missed, "pipeline", &site.name, why);
                }
                _ => {}
            }
        }
    }

    pub(super) fn bisect_away(&mut self, chosen: &mut Vec<Chosen>) {
        if self.bisect.is_none() {
            return;
        }
        for site in chosen.iter_mut() {
            let name = site.site.name.clone();
            let mut steps = std::mem::take(&mut site.steps);
            steps.retain(|&step| self.allowed(step, &name));
            site.steps = steps;
            if let Some(&last) = site.steps.last() {
                // With later passes cut away, the residual they would have taken up stays.
                let quantizes = matches!(&self.schedule.steps[last].pass,
                    Pass::Matrix(p) if p.quantizer().is_some());
                if !quantizes && site.keep.is_none() {
                    site.keep = Some(residual_dtype(site.dtype));
                }
            }
        }
        chosen.retain(|c| !c.steps.is_empty());
    }
}

/// The tensors that a stage of single quantizers will store, and after them the weights that it leaves
/// alone; `None` where sizes are not known in advance.
pub(super) fn foreseen(
    module: &Module,
    schedule: &Schedule,
    chosen: &[Chosen],
) -> Option<(Vec<NewTensor>, Vec<TensorOutline>)> {
    let mut new = Vec::new();
    let mut gone = vec![false; module.weights.len()];
    for site in chosen {
        let [step] = site.steps.as_slice() else {
            return None;
        };
        let quantizer = match &schedule.steps[*step].pass {
            Pass::Matrix(pass) if site.keep.is_none() => pass.quantizer()?,
            _ => return None,
        };
        let tensors = quant_tensors(&quantizer, site.site.rows, site.site.cols);
        new.extend(tensors.into_iter().map(|t| (stem(&site.site), t)));
        if let Some(slot) = gone.get_mut(site.view.weight.index()) {
            *slot = true;
        }
    }
    let left = module.weights.iter().zip(gone).filter(|(_, gone)| !gone);
    let copies = left.filter_map(|(weight, _)| copied_as(weight));
    Some((new, copies.collect()))
}
