//! Matrices as they were before any pass, while several stages work on them.

use super::schedule::Stage;
use super::{Run, StoredSite};
use crate::ir::{Matrix, Module, Term, Weight, WeightId};
use crate::report::SiteReport;

/// A site's matrix when its first stage began.
pub(super) struct Origin {
    /// That stage.
    stage: usize,
    matrix: Matrix,
    /// Its weights, term by term; module passes may have numbered them anew since.
    weights: Vec<Weight>,
    /// Bytes of the matrix.
    pub(super) bytes: u64,
    /// Σ w² of what passes took terms from.
    pub(super) squares: f64,
    /// Which report is the site's.
    report: usize,
}

impl Run<'_> {
    /// The site as it was before an earlier stage, if one worked on it.
    pub(super) fn origin(&self, site: &StoredSite<'_>) -> Option<&Origin> {
        let origin = self.sources.get(&site.site.name);
        origin.filter(|o| o.stage != site.stage)
    }

    /// Remembers what a later stage may ask for. `squares` is Σ w² of the dense term.
    fn remember(&mut self, module: &Module, site: &StoredSite<'_>, squares: f64) {
        let matrices = |s: &&Stage| matches!(s, Stage::Matrices(_));
        let stages = self.schedule.stages.iter().filter(matrices).count();
        if stages < 2 || self.sources.contains_key(&site.site.name) {
            return;
        }
        let Some(matrix) = site.site.matrix(module) else {
            return;
        };
        let ids = matrix.terms.iter().flat_map(Term::weights);
        let origin = Origin {
            stage: site.stage,
            weights: ids.filter_map(|id| module.weight(id).cloned()).collect(),
            bytes: matrix.bytes(&module.weights),
            matrix: matrix.clone(),
            squares,
            report: self.outcome.sites.len(),
        };
        self.sources.insert(site.site.name.clone(), origin);
    }

    /// Adds a site's report, to that of earlier stages if there is one.
    pub(super) fn add_report(
        &mut self,
        module: &Module,
        site: &StoredSite<'_>,
        squares: f64,
        mut report: SiteReport,
    ) {
        let place = self.origin(site).map(|o| o.report);
        match place.and_then(|at| self.outcome.sites.get_mut(at)) {
            Some(earlier) => {
                let steps = std::mem::take(&mut report.steps);
                report.steps = std::mem::take(&mut earlier.steps);
                report.steps.extend(steps);
                report.source_dtype = std::mem::take(&mut earlier.source_dtype);
                *earlier = report;
            }
            None => {
                self.remember(module, site, squares);
                self.outcome.sites.push(report);
            }
        }
    }

    /// Gives a site back what it was before an earlier stage; whether there was one.
    pub(super) fn put_back(&mut self, module: &mut Module, site: &StoredSite<'_>) -> bool {
        let Some(origin) = self.origin(site) else {
            return false;
        };
        let mut terms = origin.matrix.terms.clone();
        let mut ids = Vec::with_capacity(origin.weights.len());
        for weight in &origin.weights {
            let there = module.weights.iter().position(|w| w.name == weight.name);
            ids.push(there.map_or_else(|| module.add_weight(weight.clone()), WeightId::new));
        }
        let mut ids = ids.into_iter();
        for term in &mut terms {
            term.for_each_weight(|w| *w = ids.next().unwrap_or(*w));
        }
        if let Some(matrix) = site.site.matrix(module) {
            let gone = matrix.terms.iter().flat_map(Term::weights);
            let names = gone.filter_map(|id| Some(module.weight(id)?.name.clone()));
            self.spent.extend(names);
        }
        for at in &site.site.users {
            if let Some(now) = module.op_mut(*at).and_then(|op| op.kind.matrix_mut()) {
                now.terms.clone_from(&terms);
            }
        }
        true
    }
}
