//! What a group of matrices may become, and how well each candidate does on one of them.

use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::{Group, steps};
use crate::exec::Pool;
use crate::ir::Module;
use crate::ir::site::{Site, sites};
use crate::pass::Pass;
use crate::pass::manager::{RunError, RunOptions, Schedule, trial, trial_workers};
use crate::pass::pipeline::Pipeline;
use crate::store::Reader;

/// A kind of candidate: what matrices may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Integers of 2, 3, 4 and 8 bits, two sizes of groups each.
    Int,
    /// Sparse outliers in front of integers.
    OutlierInt,
    /// Integers, low rank behind them, both refined.
    LowRankInt,
    /// Sparse outliers in front of integers, low rank behind them, both refined.
    LowRankOutlierInt,
    /// `trellis`, 1.5 to 7 bits in quarter steps.
    Trellis,
    /// Sparse outliers in front of a trellis.
    OutlierTrellis,
    /// Low rank in front of a trellis.
    LowRankTrellis,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 7] = [
        Family::Int,
        Family::OutlierInt,
        Family::LowRankInt,
        Family::LowRankOutlierInt,
        Family::Trellis,
        Family::OutlierTrellis,
        Family::LowRankTrellis,
    ];

    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Family::Int => "int",
            Family::OutlierInt => "outlier-int",
            Family::LowRankInt => "lowrank-int",
            Family::LowRankOutlierInt => "lowrank-outlier-int",
            Family::Trellis => "trellis",
            Family::OutlierTrellis => "outlier-trellis",
            Family::LowRankTrellis => "lowrank-trellis",
        }
    }
}

/// A pipeline for the matrices of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its kind.
    pub family: Family,
    /// The pipeline.
    pub pipeline: String,
    /// Bits of its trellis, where it is one alone.
    trellis: Option<f64>,
}

/// Bits at which trellises are tried; between them errors are interpolated.
const TRIED: [f64; 5] = [2.0, 3.0, 4.0, 5.0, 6.0];
/// Terms in front of a quantizer and behind it. Low rank takes up what integers have lost; codes of a
/// trellis are of the rotated matrix, where it has to go in front.
type Beside = [(&'static str, &'static str)];
const OUTLIERS: &Beside = &[("outlier{density=0.5%},", ""), ("outlier{density=2%},", "")];
const LOW_RANK: &Beside = &[
    ("", ",lowrank{rank=16 factors=int4},refine"),
    ("", ",lowrank{rank=32 factors=int4},refine"),
    ("", ",lowrank{rank=64 factors=int4},refine"),
];
const LOW_RANK_IN_FRONT: &Beside = &[("lowrank{rank=16},", ""), ("lowrank{rank=64},", "")];
const BOTH: &Beside = &[
    (
        "outlier{density=0.5%},",
        ",lowrank{rank=16 factors=int4},refine",
    ),
    (
        "outlier{density=1%},",
        ",lowrank{rank=32 factors=int4},refine",
    ),
];

/// The candidates of some families. `trellis` gives the pass's text at some bits; integers use error
/// feedback where there are statistics.
pub fn candidates(
    families: &[Family],
    calibrated: bool,
    trellis: &dyn Fn(f64) -> String,
) -> Vec<Candidate> {
    let int = |bits: u32, group: u32| match calibrated {
        true => format!("int{bits}{{group={group} method=gptq}}"),
        false => format!("int{bits}{{group={group}}}"),
    };
    let plain = |family, pipeline| Candidate {
        family,
        pipeline,
        trellis: None,
    };
    let ints = [2, 3, 4, 8].into_iter().flat_map(|b| [(b, 128), (b, 32)]);
    // What is left beside other terms is small in 8 bits whatever they took.
    let beside_int = [2, 3, 4].map(|bits| int(bits, 64)).to_vec();
    let wide = [2, 3, 4].map(|bits| int(bits, 128));
    let beside_low_rank = [beside_int.as_slice(), &wide].concat();
    let beside_trellis = [2.0, 3.0, 4.0].map(trellis).to_vec();
    let mut out = Vec::new();
    for &family in families {
        let (beside, quantizers) = match family {
            Family::Trellis => {
                out.extend(steps().map(|bits| Candidate {
                    family,
                    pipeline: trellis(bits),
                    trellis: Some(bits),
                }));
                continue;
            }
            Family::Int => {
                out.extend(ints.clone().map(|(b, g)| plain(family, int(b, g))));
                continue;
            }
            Family::OutlierInt => (OUTLIERS, &beside_int),
            Family::LowRankInt => (LOW_RANK, &beside_low_rank),
            Family::LowRankOutlierInt => (BOTH, &beside_int),
            Family::OutlierTrellis => (OUTLIERS, &beside_trellis),
            Family::LowRankTrellis => (LOW_RANK_IN_FRONT, &beside_trellis),
        };
        let each = quantizers.iter().flat_map(|quantizer| {
            let pipeline =
                move |(front, behind): &(&str, &str)| format!("{front}{quantizer}{behind}");
            beside.iter().map(move |b| plain(family, pipeline(b)))
        });
        out.extend(each);
    }
    out
}

impl Candidate {
    /// Bytes of it on all matrices of a group: upper bounds where what a pass takes depends on weights.
    ///
    /// # Errors
    /// The pipeline is none, or a pass of it can't say what it takes.
    pub fn bytes(&self, group: &Group) -> Result<u64, RunError> {
        let schedule = schedule(&self.pipeline)?;
        let mut sum = 0u64;
        for &(rows, cols) in &group.shapes {
            for step in &schedule.steps {
                if let Pass::Matrix(pass) = &step.pass {
                    let cost = pass.cost(rows, cols).map_err(|e| own(&self.pipeline, &e))?;
                    sum = sum.saturating_add(cost.term_bytes);
                }
            }
        }
        Ok(sum)
    }
}

/// A schedule of a pipeline that stands for itself.
fn schedule(text: &str) -> Result<Schedule, RunError> {
    let pipeline = Pipeline::parse(text).map_err(|e| own(text, &e))?;
    Schedule::new(&pipeline, &[], None).map_err(|e| own(text, &e))
}

/// An error of a candidate's pipeline.
fn own(text: &str, error: &dyn std::fmt::Display) -> RunError {
    RunError::Weight {
        site: format!("candidate {text}"),
        message: error.to_string(),
    }
}

/// What pipelines did to one matrix of each group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Errors {
    /// `[group][pipeline]`: relative squared error; infinite where a pipeline would leave the matrix alone, or
    /// a pass of it failed there.
    pub rows: Vec<Vec<f64>>,
    /// Pipelines that failed: their index, and what the pass said.
    pub failed: Vec<(usize, String)>,
}

/// Relative squared errors of pipelines on one matrix of each group, the middle one.
///
/// # Errors
/// The first failure that is not a pass's own; a memory limit within which one of them can't run.
///
/// # Cost
/// Each pipeline on each of the matrices; as many at a time as there are threads and the memory limit allows.
pub fn errors(
    module: &Module,
    groups: &[Group],
    pipelines: &[String],
    reader: &Reader<'_>,
    options: &RunOptions<'_>,
    tick: &(dyn Fn(usize) + Sync),
) -> Result<Errors, RunError> {
    let all = sites(module);
    let middle = |group: &Group| {
        let name = group.sites.get(group.sites.len() / 2);
        all.iter().find(|site| Some(&site.name) == name)
    };
    let chosen: Vec<Option<&Site>> = groups.iter().map(middle).collect();
    let schedules: Vec<Schedule> = pipelines
        .iter()
        .map(|text| schedule(text))
        .collect::<Result<_, _>>()?;
    let mut workers = options.threads.max(1);
    if options.mem_limit.is_some() {
        let largest: Vec<Site> = chosen.iter().flatten().copied().cloned().collect();
        for schedule in &schedules {
            workers = workers.min(trial_workers(module, &largest, schedule, options)?);
        }
    }
    let count = schedules.len().max(1);
    let found: Vec<Mutex<Result<f64, RunError>>> = (0..groups.len() * count)
        .map(|_| Mutex::new(Ok(f64::INFINITY)))
        .collect();
    let pool = Pool::new(workers);
    pool.run(groups.len() * schedules.len(), |at| {
        let (group, schedule) = (at / count, at % count);
        if options.interrupt.load(Ordering::Relaxed) {
            return;
        }
        let Some(site) = chosen[group] else {
            return;
        };
        let done = trial(module, site, &schedules[schedule], reader, options);
        let error = done.map(|t| t.map_or(f64::INFINITY, |t| t.error));
        if let Ok(mut slot) = found[at].lock() {
            *slot = error;
        }
        tick(at);
    });
    if options.interrupt.load(Ordering::Relaxed) {
        return Err(RunError::Interrupted {
            done: 0,
            total: groups.len(),
        });
    }
    let mut errors = Errors::default();
    let mut found = found.into_iter();
    for _ in groups {
        let mut row = Vec::with_capacity(schedules.len());
        for (at, slot) in found.by_ref().take(schedules.len()).enumerate() {
            row.push(match slot.into_inner().unwrap_or(Ok(f64::INFINITY)) {
                Ok(error) => error,
                // One candidate less; what else is wrong, with a file or the statistics, is wrong for all.
                Err(error @ RunError::Pass { .. }) => {
                    errors.failed.push((at, error.to_string()));
                    f64::INFINITY
                }
                Err(error) => return Err(error),
            });
        }
        errors.rows.push(row);
    }
    Ok(errors)
}

/// Candidates with the error of each on each group, relative to that of the probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Tried {
    /// The candidates.
    pub candidates: Vec<Candidate>,
    /// `[group][candidate]`: squared error over the probe's; infinite where it can't be had.
    pub ratios: Vec<Vec<f64>>,
    /// Candidates that failed on a matrix: the pipeline, and what the pass said.
    pub failed: Vec<(String, String)>,
}

/// Tries candidates on one matrix of each group.
///
/// # Errors
/// As [`errors`].
pub fn try_all(
    module: &Module,
    groups: &[Group],
    candidates: Vec<Candidate>,
    (probe_text, trellis): (&str, &dyn Fn(f64) -> String),
    (reader, options): (&Reader<'_>, &RunOptions<'_>),
    tick: &(dyn Fn(usize) + Sync),
) -> Result<Tried, RunError> {
    let mut pipelines = vec![probe_text.to_string()];
    let has_trellis = candidates.iter().any(|c| c.trellis.is_some());
    if has_trellis {
        pipelines.extend(TRIED.map(trellis));
    }
    let others = pipelines.len();
    let alone = candidates.iter().filter(|c| c.trellis.is_none());
    pipelines.extend(alone.map(|c| c.pipeline.clone()));
    let found = errors(module, groups, &pipelines, reader, options, tick)?;
    let mut ratios = Vec::with_capacity(groups.len());
    for (row, group) in found.rows.iter().zip(groups) {
        let probe = row.first().copied().unwrap_or(f64::INFINITY);
        if !probe.is_finite() {
            // Nothing could be compared with it.
            let site = group.label();
            let said = found.failed.iter().find(|(at, _)| *at == 0);
            let message = match said {
                Some((_, said)) => format!("can't be measured: {said}"),
                None => format!("can't be measured: {probe_text} leaves it alone"),
            };
            return Err(RunError::Weight { site, message });
        }
        let probe = probe.max(f64::MIN_POSITIVE);
        let mut alone = row.iter().skip(others);
        let ratio = |c: &Candidate| match c.trellis {
            Some(bits) => between(&row[1..others], bits) / probe,
            None => alone.next().map_or(f64::INFINITY, |e| e / probe),
        };
        ratios.push(candidates.iter().map(ratio).collect());
    }
    let failed = found.failed.into_iter();
    let failed = failed.filter_map(|(at, said)| Some((pipelines.get(at)?.clone(), said)));
    Ok(Tried {
        ratios,
        failed: failed.collect(),
        candidates,
    })
}

/// The error of a trellis at some bits, from those at [`TRIED`] bits: its logarithm is nearly linear.
fn between(errors: &[f64], bits: f64) -> f64 {
    let tiny = f64::MIN_POSITIVE;
    let log: Vec<f64> = errors.iter().map(|e| e.max(tiny).ln()).collect();
    let last = TRIED.len() - 2;
    let at = (0..last).find(|&i| bits < TRIED[i + 1]).unwrap_or(last);
    match (log.get(at), log.get(at + 1)) {
        (Some(low), Some(high)) => {
            let share = (bits - TRIED[at]) / (TRIED[at + 1] - TRIED[at]);
            if share == 0.0 {
                return low.exp();
            }
            let error = (low + share * (high - low)).exp();
            // Where both sides failed.
            if error.is_nan() { f64::INFINITY } else { error }
        }
        _ => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_between_tried_bits() {
        let errors = TRIED.map(|b| 4f64.powf(-b));
        for bits in [1.5, 2.0, 2.75, 5.5, 6.0, 7.0] {
            let ratio = between(&errors, bits) / 4f64.powf(-bits);
            assert!((ratio - 1.0).abs() < 1e-9, "{bits}: {ratio}");
        }
    }

    #[test]
    fn what_failed_is_infinitely_bad() {
        let mut errors = TRIED.map(|b| 4f64.powf(-b));
        (errors[3], errors[4]) = (f64::INFINITY, f64::INFINITY);
        assert!(between(&errors, 2.5).is_finite() && between(&errors, 4.0).is_finite());
        for bits in [4.5, 5.5, 7.0] {
            assert_eq!(between(&errors, bits), f64::INFINITY, "{bits}");
        }
    }

    #[test]
    fn candidates_are_pipelines() {
        let trellis = |bits: f64| format!("trellis{{bits={bits}}}");
        for calibrated in [false, true] {
            for candidate in candidates(&Family::ALL, calibrated, &trellis) {
                schedule(&candidate.pipeline).expect("a pipeline");
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_terms() {
        let group = Group {
            role: "up".to_string(),
            layers: None,
            sites: vec!["up".to_string()],
            entries: 64 * 128,
            shapes: vec![(64, 128)],
        };
        let candidate = Candidate {
            family: Family::Int,
            pipeline: "int4{group=32}".to_string(),
            trellis: None,
        };
        let bytes = candidate.bytes(&group).expect("a pipeline");
        assert_eq!(bytes, 64 * 128 / 2 + 64 * 4 * 2);
    }
}
