//! From the units of a site, in row tiles, to its terms and report.

use std::collections::HashMap;

use super::choose::Chosen;
use super::unit::{Job, UnitError, UnitResult};
use super::workers::Ended;
use super::{Run, RunError, RunOptions, seed_of, stage::kept_terms};
use crate::ir::site::Site;
use crate::ir::{Module, Storage, Term, WeightId};
use crate::pass::manager::schedule::Schedule;
use crate::pass::terms::TermData;
use crate::pass::{Calibration, MatrixPass, MomentSource, Moments, Pass};
use crate::report::{SiteReport, StepReport};
use crate::store::{in_scratch, turned_moments};

/// A site's units put together.
pub(super) struct Merged {
    /// Row tiles of each term.
    pub(super) terms: Vec<Vec<TermData>>,
    /// Each step, and whether it made a term.
    pub(super) made: Vec<(usize, bool)>,
    /// Σ w² of what the stage began with.
    pub(super) weight_squares: f64,
    pub(super) report: SiteReport,
}

/// Terms of earlier generations. Where an earlier stage of this run has added its own there is no need
/// to read any: the norm of the source is on record.
pub(super) fn earlier_terms(module: &Module, site: &Site) -> Vec<Term> {
    let readable = |id: WeightId| {
        let weight = module.weight(id);
        weight.is_some_and(|w| !matches!(w.storage, Storage::Absent) && !in_scratch(&w.storage))
    };
    let kept = kept_terms(module, site);
    match kept.iter().flat_map(Term::weights).all(readable) {
        true => kept,
        false => Vec::new(),
    }
}

/// Opens a site's matrix for the workers.
pub(super) fn open<'a>(
    module: &Module,
    schedule: &'a Schedule,
    reader: &crate::store::Reader<'_>,
    options: &RunOptions<'_>,
    chosen: &'a Chosen,
) -> Result<Job<'a>, UnitError> {
    let fault = |message: String| UnitError {
        step: None,
        statistics: false,
        message,
    };
    let unfit = |message: String| UnitError {
        statistics: true,
        ..fault(message)
    };
    let matrix = chosen.site.matrix(module);
    let matrix = matrix.ok_or_else(|| fault("the site is gone".to_string()))?;
    let view = reader.view(module, matrix, &chosen.view);
    let view = view.map_err(|e| fault(e.to_string()))?;
    let kept = earlier_terms(module, &chosen.site);
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
    let passes: Vec<_> = passes.collect();
    let uses = |(_, pass): &(usize, &dyn MatrixPass)| pass.calibration() != Calibration::Unused;
    let moments = match options.moments.filter(|_| passes.iter().any(uses)) {
        Some(source) => {
            let mut found = moments(source, &chosen.site, &passes).map_err(unfit)?;
            if let Some(found) = found.as_mut().filter(|_| !source.behind()) {
                turn(found, module, reader, chosen).map_err(fault)?;
            }
            found
        }
        None => None,
    };
    Ok(Job {
        name: &chosen.site.name,
        view,
        passes,
        keep: chosen.keep,
        kept,
        seed: seed_of(options.seed, &chosen.site),
        rotation_seed: options.seed,
        moments,
    })
}

/// Moments of a source's inputs in the coordinates of a matrix that is turned when it is read.
fn turn(
    moments: &mut Moments,
    module: &Module,
    reader: &crate::store::Reader<'_>,
    chosen: &Chosen,
) -> Result<(), String> {
    let view = &chosen.view;
    let found = reader.coordinates(module, view.weight, view.transposed);
    if let Some((turn, gain)) = found.map_err(|e| e.to_string())? {
        let (hessian, diagonal) = (moments.hessian.as_deref_mut(), &mut moments.diagonal);
        turned_moments(turn.as_ref(), gain.as_deref(), hessian, diagonal);
    }
    Ok(())
}

/// The moments of a site's input, which must fit it.
fn moments(
    source: &dyn MomentSource,
    site: &Site,
    passes: &[(usize, &dyn MatrixPass)],
) -> Result<Option<Moments>, String> {
    let Some(found) = source.moments(&site.name)? else {
        let needed = |(_, p): &(usize, &dyn MatrixPass)| p.calibration() == Calibration::Needed;
        return match passes.iter().any(needed) {
            true => Err(
                "the statistics of --calib have nothing about its input; calibrate this model, or give the \
                 tensor another pipeline with -t".to_string(),
            ),
            false => Ok(None),
        };
    };
    found.of_width(site.cols).map(Some)
}

impl Run<'_> {
    pub(super) fn succeeded(
        &self,
        chosen: &Chosen,
        units: Vec<Ended>,
    ) -> Result<Vec<UnitResult>, RunError> {
        let mut results = Vec::with_capacity(units.len());
        for unit in units {
            match unit {
                Ended::Done(result) => results.push(result),
                Ended::Failed(UnitError {
                    step,
                    statistics,
                    message,
                }) => {
                    let site = chosen.site.name.clone();
                    return Err(match step {
                        None if statistics => RunError::Statistics { site, message },
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
    pub(super) fn merge(
        &mut self,
        chosen: &Chosen,
        units: Vec<UnitResult>,
        origin: Option<f64>,
    ) -> Merged {
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
}
