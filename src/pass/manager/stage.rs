//! One stage of matrix passes: jobs, their results in order, and what becomes of them.

use std::collections::{HashMap, HashSet};

use super::memory::{self, Estimate, Shape};
use super::unit::{Job, UnitError, UnitResult, residual_dtype};
use super::workers::{self, Ended};
use super::{Run, RunError, RunOptions, StoredSite, judge, seed_of, snapshot};
use crate::ir::patch::without_weights;
use crate::ir::site::{Site, sites};
use crate::ir::{Encoding, Module, OpRef, Storage, Term, WeightId, WeightView};
use crate::pass::manager::schedule::{Schedule, Stage};
use crate::pass::terms::{TermData, quant_tensors};
use crate::pass::{Pass, RemarkKind};
use crate::report::{SiteReport, StepReport, terms_cost};
use crate::store::{Done, NewTensor, Record, Sink, TensorOutline};
use crate::weights::DType;

/// A site that passes of this stage run on.
pub(super) struct Chosen {
    site: Site,
    /// Steps of this stage, in order.
    pub(super) steps: Vec<usize>,
    view: WeightView,
    dtype: DType,
    shape: Shape,
    pub(super) keep: Option<DType>,
    /// Whether what is left is taken up by a later stage, and no part of the output.
    passes_on: bool,
}

/// What a finished site has become.
pub(super) struct Finished {
    pub(super) users: Vec<OpRef>,
    pub(super) stem: String,
    pub(super) rows: u64,
    pub(super) cols: u64,
    /// Terms that were there before the stage, the dense one left out.
    pub(super) kept: Vec<Term>,
    /// What each step made, if anything.
    pub(super) made: Vec<(usize, Option<Term>)>,
    pub(super) residual: Option<Term>,
}

/// The sites that these steps run on, with how.
pub(super) fn choose(
    module: &Module,
    schedule: &Schedule,
    stage: &[usize],
    sites: &[Site],
) -> Vec<Chosen> {
    let mut chosen = Vec::new();
    for site in sites {
        let all = schedule.steps_for(site);
        let steps: Vec<usize> = all.iter().copied().filter(|s| stage.contains(s)).collect();
        let view = site.matrix(module).and_then(|m| m.dense_view()).cloned();
        let (Some(&last), Some(view)) = (steps.last(), view) else {
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
        let mut shape = memory::shape_of(schedule, &steps, site, dtype, view.transposed);
        if !ends {
            shape = shape.passing_on();
        }
        if matches!(weight.storage, Storage::Concat(_) | Storage::Synthetic(_)) {
            shape.unit_bytes = shape.unit_bytes.saturating_add(weight.bytes());
        }
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
    chosen
}

/// Memory and workers for the chosen sites.
pub(super) fn estimate(
    module: &Module,
    chosen: &[Chosen],
    options: &RunOptions<'_>,
) -> Result<Estimate, RunError> {
    let shapes: Vec<Shape> = chosen.iter().map(|c| c.shape).collect();
    let estimate = memory::estimate(module, &shapes, options.threads, options.mem_limit);
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
    pub(super) fn matrices(
        &mut self,
        module: &mut Module,
        sink: &mut Sink,
        number: usize,
        stage: &[usize],
    ) -> Result<(), RunError> {
        let all = sites(module);
        let mut chosen = choose(module, self.schedule, stage, &all);
        self.remark_unchosen(module, &all, stage);
        self.stages += 1;
        self.reached |= !chosen.is_empty();
        self.bisect_away(&mut chosen);
        let limits = estimate(module, &chosen, self.options)?;
        let bytes = |c: &Chosen| c.dtype.bytes_for(c.site.rows * c.site.cols).unwrap_or(0);
        self.observer
            .stage(chosen.len(), chosen.iter().map(bytes).sum());
        sink.reserve_names(module);
        if let Some((new, copies)) = foreseen(module, self.schedule, &chosen) {
            sink.foresee(new, copies);
        }
        let before = module.clone();
        let mut done = sink.take_done(number)?.into_iter();
        let mut finished: Vec<Finished> = Vec::with_capacity(chosen.len());
        let mut first = 0;
        while let (Some(record), Some(site)) = (done.next(), chosen.get(first)) {
            finished.push(self.restored(module, sink, (number, site), &record)?);
            first += 1;
        }
        let rest = chosen.get(first..).unwrap_or(&[]);
        let shapes: Vec<Shape> = rest.iter().map(|c| c.shape).collect();
        let mut failure = None;
        let (schedule, reader, options) = (self.schedule, self.reader, self.options);
        let open = |number: usize| open(&before, schedule, reader, options.seed, &rest[number]);
        workers::run(
            &shapes,
            &open,
            limits.workers,
            options.interrupt,
            |at, units| {
                let done = first + at;
                match self.finish(module, sink, (number, &rest[at]), done, units) {
                    Ok(site) => finished.push(site),
                    Err(RunError::Interrupted { .. }) => {
                        let total = chosen.len();
                        failure = Some(RunError::Interrupted { done, total });
                    }
                    Err(error) => failure = Some(error),
                }
                failure.is_none()
            },
        );
        if let Some(error) = failure {
            return Err(error);
        }
        self.inspect(&before, module, &finished, stage)?;
        self.drop_spent(module, number, &chosen);
        Ok(())
    }

    /// Takes weights that matrices no longer have out of the module, behind the last stage.
    fn drop_spent(&mut self, module: &mut Module, number: usize, chosen: &[Chosen]) {
        let mut used: Vec<WeightId> = chosen.iter().map(|c| c.view.weight).collect();
        let later = self.schedule.stages.iter().skip(number + 1);
        let mut later = later.filter(|s| matches!(s, Stage::Matrices(_)));
        if later.next().is_some() {
            let names = used.iter().filter_map(|&id| module.weight(id));
            self.spent.extend(names.map(|w| w.name.clone()));
            return;
        }
        let spent: HashSet<String> = self.spent.drain(..).collect();
        let named = module.weights.iter().enumerate();
        let named = named.filter(|(_, w)| spent.contains(&w.name));
        used.extend(named.map(|(index, _)| WeightId::new(index)));
        used.sort_unstable();
        used.dedup();
        without_weights(module, &used);
    }

    /// Says why sites that a pass might have taken were not.
    fn remark_unchosen(&mut self, module: &Module, all: &[Site], stage: &[usize]) {
        for site in all {
            let steps = self.schedule.steps_for(site);
            let dense = site
                .matrix(module)
                .is_some_and(|m| m.dense_view().is_some());
            let here = steps.iter().find(|s| stage.contains(s));
            match here {
                Some(&step) if !dense => {
                    let name = self.schedule.steps[step].name;
                    let why = "no dense term is left to take from".to_string();
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

    fn bisect_away(&mut self, chosen: &mut Vec<Chosen>) {
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

    /// Gives back every mapped page of the file that a finished site's matrix is in. Tiles give back
    /// theirs, but the kernel maps neighbours along, and over many matrices those add up; pages that
    /// are still being read are mapped again.
    fn release_source(&self, module: &Module, chosen: &Chosen) {
        let Some(weight) = module.weight(chosen.view.weight) else {
            return;
        };
        let raw = Encoding::Raw;
        if !matches!(&weight.storage, Storage::File { encoding, .. } if *encoding == raw) {
            return;
        }
        if let Ok(located) = self.reader.locate(module, weight) {
            located.source.release(0, u64::MAX);
        }
    }

    /// Takes the units of a site, judges the result, stores it and rewrites the site's users.
    fn finish(
        &mut self,
        module: &mut Module,
        sink: &mut Sink,
        (stage, chosen): (usize, &Chosen),
        number: usize,
        units: Vec<Ended>,
    ) -> Result<Finished, RunError> {
        let said = self.outcome.remarks.len();
        self.release_source(module, chosen);
        let units = self.succeeded(chosen, units)?;
        let site = &chosen.site;
        let at = StoredSite { stage, site };
        let origin = self.origin(&at).map(|o| (o.bytes, o.squares));
        let mut merged = self.merge(chosen, units, origin.map(|o| o.1));
        let source = site.matrix(module).map(|m| m.bytes(&module.weights));
        let original = origin.map_or(source.unwrap_or(0), |o| o.0);
        let kept = kept_terms(module, site);
        let kept_bytes: u64 = site.matrix(module).map_or(0, |m| {
            kept.iter().map(|t| t.bytes(m, &module.weights)).sum()
        });
        let made: u64 = merged.terms.iter().flatten().map(TermData::bytes).sum();
        let reverted = match self.schedule.steps_for(site).last() == chosen.steps.last() {
            true => judge::verdict(self.schedule, chosen, kept_bytes + made, original),
            false => None,
        };
        merged.report.bytes_before = original;
        merged.report.bytes_after = kept_bytes + made;
        let terms = match &reverted {
            None => Some(std::mem::take(&mut merged.terms)),
            Some(why) => {
                merged.report.revert(why);
                self.remark(RemarkKind::Missed, "pipeline", &site.name, why.clone());
                None
            }
        };
        let mut cost = kept.clone();
        let outlines = terms.iter().flatten().filter_map(|tiles| tiles.first());
        cost.extend(outlines.map(TermData::outline));
        if reverted.is_none() {
            let (params, flops, path) = terms_cost(&cost, site.rows, site.cols);
            let report = &mut merged.report;
            (report.params_after, report.flops_after, report.path) = (params, flops, path);
            report.bits_per_weight =
                8.0 * report.bytes_after as f64 / report.params_before.max(1) as f64;
        }
        let remarks = self.outcome.remarks.get(said..).unwrap_or_default();
        let done = Done {
            stage,
            number,
            stem: &stem(site),
            terms,
            passes_on: chosen.passes_on,
            weight_squares: merged.weight_squares,
            report: &merged.report,
            remarks,
        };
        let stored = sink.commit(module, done)?;
        self.observer.site(&merged.report);
        let squares = merged.weight_squares;
        self.add_report(module, &at, squares, merged.report);
        Ok(self.rewrite(module, &at, kept, merged.made, stored))
    }

    /// Puts a site's stored terms into every op that uses it.
    fn rewrite(
        &mut self,
        module: &mut Module,
        at: &StoredSite<'_>,
        kept: Vec<Term>,
        made: Vec<(usize, bool)>,
        stored: Option<Vec<Term>>,
    ) -> Finished {
        let site = at.site;
        let mut finished = Finished {
            users: site.users.clone(),
            stem: stem(site),
            rows: site.rows,
            cols: site.cols,
            kept,
            made: Vec::new(),
            residual: None,
        };
        let Some(stored) = stored else {
            self.put_back(module, at);
            return finished;
        };
        for at in &site.users {
            if let Some(matrix) = module.op_mut(*at).and_then(|op| op.kind.matrix_mut()) {
                matrix.terms.clone_from(&finished.kept);
                matrix.terms.extend(stored.iter().cloned());
            }
        }
        let mut stored = stored.into_iter();
        for (step, has_term) in made {
            let term = if has_term { stored.next() } else { None };
            finished.made.push((step, term));
        }
        finished.residual = stored.next();
        finished
    }

    fn restored(
        &mut self,
        module: &mut Module,
        sink: &Sink,
        (stage, chosen): (usize, &Chosen),
        record: &Record,
    ) -> Result<Finished, RunError> {
        let site = &chosen.site;
        let at = StoredSite { stage, site };
        let kept = kept_terms(module, site);
        let terms = sink.restore(module, record)?;
        let made = record.report.steps.iter().zip(&chosen.steps);
        let made = made.map(|(r, &s)| (s, !r.term.is_empty())).collect();
        let report = record.report.clone();
        self.add_report(module, &at, record.weight_squares, report);
        self.outcome.remarks.extend(record.remarks.iter().cloned());
        Ok(self.rewrite(module, &at, kept, made, terms))
    }

    fn succeeded(&self, chosen: &Chosen, units: Vec<Ended>) -> Result<Vec<UnitResult>, RunError> {
        let mut results = Vec::with_capacity(units.len());
        for unit in units {
            match unit {
                Ended::Done(result) => results.push(result),
                Ended::Failed(UnitError { step, message }) => {
                    let site = chosen.site.name.clone();
                    return Err(match step {
                        None => RunError::Weight { site, message },
                        Some(step) => RunError::Pass {
                            pass: self.schedule.steps[step].name.to_string(),
                            site,
                            message,
                        },
                    });
                }
                Ended::Panicked(message) => {
                    let names = chosen.steps.iter().map(|&s| self.schedule.steps[s].name);
                    return Err(RunError::Panic {
                        pass: names.collect::<Vec<_>>().join(","),
                        site: chosen.site.name.clone(),
                        message,
                    });
                }
                Ended::Interrupted => return Err(RunError::Interrupted { done: 0, total: 0 }),
            }
        }
        Ok(results)
    }

    /// Puts the row tiles of a site together.
    ///
    /// `origin` is Σ w² of the source where an earlier stage has taken terms from it.
    fn merge(&mut self, chosen: &Chosen, units: Vec<UnitResult>, origin: Option<f64>) -> Merged {
        let weights: f64 = units.iter().map(|u| u.weight_squares).sum();
        let errors: f64 = units.iter().map(|u| u.error_squares).sum();
        let source = origin.unwrap_or(weights);
        let relative = |squares: f64| match source > 0.0 {
            true => (squares / source).sqrt(),
            false => 0.0,
        };
        let mut parts: HashMap<usize, Vec<TermData>> = HashMap::new();
        let mut squares = vec![0f64; chosen.steps.len()];
        let mut notes = vec![String::new(); chosen.steps.len()];
        let mut residuals = Vec::new();
        for unit in units {
            for (place, step) in unit.steps.into_iter().enumerate() {
                squares[place] += step.residual_squares;
                self.outcome.totals[step.step].nanos += step.nanos;
                notes[place] = step.note;
                parts.entry(place).or_default().extend(step.term);
            }
            residuals.extend(unit.residual);
            for mut remark in unit.remarks {
                let step: usize = remark.pass.parse().unwrap_or(0);
                remark.pass = self.schedule.steps[step].name.to_string();
                self.outcome.remarks.push(remark);
            }
        }
        let mut merged = Merged {
            terms: Vec::new(),
            made: Vec::new(),
            weight_squares: weights,
            report: SiteReport::begin(&chosen.site, chosen.dtype, relative(errors)),
        };
        for (place, &step) in chosen.steps.iter().enumerate() {
            let tiles = parts.remove(&place).unwrap_or_default();
            let bytes = tiles.iter().map(TermData::bytes).sum();
            let totals = &mut self.outcome.totals[step];
            totals.sites += 1;
            totals.terms += u64::from(!tiles.is_empty());
            totals.term_bytes += bytes;
            let label = tiles.first().map(TermData::label).unwrap_or_default();
            merged.report.steps.push(StepReport {
                pass: self.schedule.steps[step].name.to_string(),
                term: match notes[place].is_empty() || label.is_empty() {
                    true => label,
                    false => std::mem::take(&mut notes[place]),
                },
                bytes,
                rel_error: relative(squares[place]),
            });
            merged.made.push((step, !tiles.is_empty()));
            if !tiles.is_empty() {
                merged.terms.push(tiles);
            }
        }
        if !residuals.is_empty() {
            merged.terms.push(residuals);
        }
        merged
    }

    /// Verifies and prints the module behind each pass of the stage.
    fn inspect(
        &self,
        before: &Module,
        after: &Module,
        finished: &[Finished],
        stage: &[usize],
    ) -> Result<(), RunError> {
        let mut previous = None;
        for (place, &step) in stage.iter().enumerate() {
            let name = self.schedule.steps[step].name;
            let is_last = place + 1 == stage.len();
            if is_last && !self.prints() {
                self.verify(after, name)?;
                break;
            }
            if !self.prints() && !self.options.verify_each {
                continue;
            }
            self.print_before(previous.as_ref().unwrap_or(before), name);
            let (module, changed) = snapshot::behind(before, after, finished, step);
            self.verify(&module, name)?;
            self.print_after(&module, name, changed);
            previous = Some(module);
        }
        Ok(())
    }
}

/// A site's units put together.
struct Merged {
    /// Row tiles of each term.
    terms: Vec<Vec<TermData>>,
    /// Each step, and whether it made a term.
    made: Vec<(usize, bool)>,
    /// Σ w² of what the stage began with.
    weight_squares: f64,
    report: SiteReport,
}

/// The tensors that a stage of single quantizers will store, and after them the weights that it leaves
/// alone; `None` where sizes are not known in advance.
fn foreseen(
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
    let copies = left.filter_map(|(weight, _)| crate::export::hlrc::copied_as(weight));
    Some((new, copies.collect()))
}

/// Opens a site's matrix for the workers.
fn open<'a>(
    module: &Module,
    schedule: &'a Schedule,
    reader: &crate::store::Reader<'_>,
    seed: u64,
    chosen: &'a Chosen,
) -> Result<Job<'a>, UnitError> {
    let fault = |message: String| UnitError {
        step: None,
        message,
    };
    let matrix = chosen.site.matrix(module);
    let matrix = matrix.ok_or_else(|| fault("the site is gone".to_string()))?;
    let view = reader.view(module, matrix, &chosen.view);
    let view = view.map_err(|e| fault(e.to_string()))?;
    // Terms of an earlier stage of this run cannot be read yet; their source's norm is on record.
    let readable = |id: WeightId| {
        let weight = module.weight(id);
        weight.is_some_and(|w| !matches!(w.storage, Storage::Absent))
    };
    let mut kept = kept_terms(module, &chosen.site);
    if !kept.iter().flat_map(Term::weights).all(readable) {
        kept.clear();
    }
    let kept = kept.iter().map(|term| reader.term(module, matrix, term));
    let kept = kept.collect::<Result<Vec<_>, _>>();
    let kept = kept.map_err(|e| fault(e.to_string()))?;
    let passes = chosen
        .steps
        .iter()
        .filter_map(|&s| match &schedule.steps[s].pass {
            Pass::Matrix(pass) => Some((s, pass.as_ref())),
            Pass::Module(_) => None,
        });
    Ok(Job {
        name: &chosen.site.name,
        view,
        passes: passes.collect(),
        keep: chosen.keep,
        kept,
        seed: seed_of(seed, &chosen.site),
    })
}

fn kept_terms(module: &Module, site: &Site) -> Vec<Term> {
    let terms = site.matrix(module).map(|m| m.terms.as_slice());
    let kept = terms.unwrap_or(&[]).iter();
    kept.filter(|t| !matches!(t, Term::Dense(_)))
        .cloned()
        .collect()
}

/// What the names of a site's tensors start with.
fn stem(site: &Site) -> String {
    site.name.clone()
}
