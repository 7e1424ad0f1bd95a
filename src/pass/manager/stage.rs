//! One stage of matrix passes: jobs, their results in order, and what becomes of them.

use std::collections::HashSet;

use super::choose::{Chosen, choose, estimate, foreseen, passed_on};
use super::memory::Shape;
use super::units::open;
use super::workers::{self, Ended};
use super::{Run, RunError, StoredSite, judge, snapshot};
use crate::ir::patch::without_weights;
use crate::ir::site::{Site, sites};
use crate::ir::{Encoding, Module, OpRef, Storage, Term, WeightId};
use crate::pass::RemarkKind;
use crate::pass::manager::schedule::Stage;
use crate::pass::terms::TermData;
use crate::report::terms_cost;
use crate::store::{Done, Record, Sink};

/// What a finished site has become.
pub(super) struct Finished {
    pub(super) users: Vec<OpRef>,
    pub(super) stem: String,
    pub(super) rows: u64,
    pub(super) cols: u64,
    /// Terms that were there before the stage, the dense one left out.
    pub(super) kept: Vec<Term>,
    /// What each step made, if anything; empty where the site is what it was.
    pub(super) made: Vec<(usize, Option<Term>)>,
    /// The last of the stage's steps on the site; behind it, the site is what the stage leaves.
    pub(super) last: usize,
    /// Whether that was the judgement's end of an earlier stage's terms.
    pub(super) put_back: bool,
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
        let mut chosen =
            choose(module, self.schedule, stage, &all).map_err(|e| self.unless_interrupted(e))?;
        self.remark_unchosen(module, &all, stage);
        self.stages += 1;
        self.reached |= !chosen.is_empty();
        self.bisect_away(&mut chosen);
        if !sink.has_files() {
            self.in_memory = self.in_memory.saturating_add(passed_on(&chosen));
        }
        let limits = estimate(module, &chosen, self.options, self.in_memory)?;
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
        let open = |number: usize| open(&before, schedule, reader, options, &rest[number]);
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
        let earlier: Vec<WeightId> = kept.iter().flat_map(Term::weights).collect();
        let done = Done {
            stage,
            number,
            stem: &stem(site),
            terms,
            passes_on: chosen.passes_on,
            earlier: &earlier,
            weight_squares: merged.weight_squares,
            report: &merged.report,
            remarks,
        };
        let stored = sink.commit(module, done)?;
        self.observer.site(&merged.report);
        let squares = merged.weight_squares;
        self.add_report(module, &at, squares, merged.report);
        Ok(self.rewrite(module, (&at, chosen), kept, merged.made, stored))
    }

    /// Puts a site's stored terms into every op that uses it.
    fn rewrite(
        &mut self,
        module: &mut Module,
        (at, chosen): (&StoredSite<'_>, &Chosen),
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
            last: chosen.steps.last().copied().unwrap_or_default(),
            put_back: false,
        };
        let Some(stored) = stored else {
            finished.put_back = self.put_back(module, at);
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
        Ok(self.rewrite(module, (&at, chosen), kept, made, terms))
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
            if !self.prints() && !self.verifies(name) {
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

/// Terms of a site's matrix that passes leave alone: all but the dense one.
pub(super) fn kept_terms(module: &Module, site: &Site) -> Vec<Term> {
    let terms = site.matrix(module).map(|m| m.terms.as_slice());
    let kept = terms.unwrap_or(&[]).iter();
    kept.filter(|t| !matches!(t, Term::Dense(_)))
        .cloned()
        .collect()
}

/// What the names of a site's tensors start with.
pub(super) fn stem(site: &Site) -> String {
    site.name.clone()
}
