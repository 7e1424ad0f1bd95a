//! Singular values of some of the original's matrices: what a low rank could find there.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::groups::Groups;
use super::{ModelReport, SiteReport};
use crate::ir::Module;
use crate::ir::site::{Site, sites};
use crate::numeric::lowrank::LowRankError;
use crate::numeric::lowrank::svd::{self, Method, Rank};
use crate::numeric::matrix::Matrix;
use crate::store::{Reader, StoreError};
use crate::weights::FileCache;

/// Shorter side up to which all singular values are computed.
const EXACT: usize = 1024;
/// Leading ones that are computed of longer matrices.
const LEADING: usize = 256;
/// Entries of the largest matrix that is decomposed: 512 MiB as f32.
const MOST_ENTRIES: u64 = 128 << 20;
/// Entries of a matrix that is decomposed beside others.
const SMALL: u64 = 4 << 20;

/// Spectra of some matrices, or why there are none.
#[derive(Clone, Debug, PartialEq)]
pub enum Spectra {
    /// There are none, for this reason.
    Absent(String),
    /// They were computed.
    Found {
        /// One for each matrix chosen, largest relative error first.
        list: Vec<Spectrum>,
        /// Matrices that were left out, each with the reason.
        left_out: Vec<(String, String)>,
    },
}

/// The singular values of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Spectrum {
    /// The matrix.
    pub name: String,
    /// `[out, in]`
    pub shape: [u64; 2],
    /// Singular values, descending: all of them, or the leading ones.
    pub values: Vec<f32>,
    /// Sum of squares of all of them.
    pub total: f64,
    /// Rank that the pipeline gave it, where it has one low-rank term.
    pub rank: Option<usize>,
}

/// Why spectra can't be computed.
#[derive(Debug, thiserror::Error)]
pub enum SpectraError {
    /// The model is not the one of the report.
    #[error(
        "none of the {matrices} matrices of the report is in the model: it is not the original"
    )]
    Other {
        /// Matrices of the report.
        matrices: usize,
    },
    /// A matrix can't be read.
    #[error("{site}: {source}")]
    Store {
        /// The matrix.
        site: String,
        /// Why.
        source: StoreError,
    },
    /// The user interrupted.
    #[error("interrupted")]
    Interrupted,
}

impl Spectrum {
    /// Singular values that the matrix has.
    pub fn full_rank(&self) -> usize {
        usize::try_from(self.shape[0].min(self.shape[1])).unwrap_or(usize::MAX)
    }

    /// Share of the energy that the first r values hold, for r = 1, 2, ….
    pub fn energy(&self) -> Vec<f64> {
        let mut sum = 0.0;
        let add = |value: &f32| {
            sum += f64::from(*value) * f64::from(*value);
            (sum / self.total.max(f64::MIN_POSITIVE)).min(1.0)
        };
        self.values.iter().map(add).collect()
    }

    /// The fewest values that hold a share of the energy; none where more than the known ones are needed.
    pub fn rank_of(&self, share: f64) -> Option<usize> {
        // A rounding error of the decomposition must not cost the last rank.
        let enough = |energy: &f64| *energy >= share - 1e-6;
        self.energy().iter().position(enough).map(|at| at + 1)
    }

    /// What [`Self::rank_of`] is for independent entries of equal variance in a matrix of this shape.
    ///
    /// The law of Marchenko and Pastur (1967), summed from its upper end.
    pub fn rank_of_noise(&self, share: f64) -> usize {
        let long = self.shape[0].max(self.shape[1]).max(1) as f64;
        let full = self.full_rank() as f64;
        let beta = full / long;
        let (low, high) = ((1.0 - beta.sqrt()).powi(2), (1.0 + beta.sqrt()).powi(2));
        let steps = 4000;
        let width = (high - low) / f64::from(steps);
        let (mut count, mut energy) = (0.0, 0.0);
        for step in 0..steps {
            let at = high - (f64::from(step) + 0.5) * width;
            let root = ((high - at) * (at - low)).max(0.0).sqrt();
            let flow = width * root / (std::f64::consts::TAU * beta);
            count += flow / at;
            energy += flow;
            if energy >= share {
                break;
            }
        }
        (full * count.min(1.0)).ceil() as usize
    }
}

/// Which matrices are worth a look: of each role the one with the largest error, then the next ones.
pub fn choose(report: &ModelReport, most: usize) -> Vec<usize> {
    let groups = Groups::new(&report.sites);
    let error = |index: usize| report.sites.get(index).map_or(0.0, |s| s.rel_error);
    let mut order: Vec<usize> = (0..report.sites.len()).collect();
    order.sort_by(|a, b| error(*b).total_cmp(&error(*a)));
    let role = |index: usize| groups.places.get(index).map_or(0, |place| place.0);
    let mut seen = vec![false; groups.roles.len()];
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for index in order {
        match seen.get_mut(role(index)) {
            Some(seen) if !*seen => {
                *seen = true;
                first.push(index);
            }
            _ => rest.push(index),
        }
    }
    first.extend(rest);
    first.truncate(most);
    first
}

/// Singular values of at most `most` matrices of the original.
///
/// All of them where the shorter side is at most 1024, else the 256 leading ones by the randomized method;
/// energies are right in both cases, since the sum of squares is known. Results do not depend on threads.
///
/// # Errors
/// The model is another one, a matrix can't be read, `interrupt` was set.
///
/// # Cost
/// About a second for each matrix of a small model, some seconds and 4 bytes per entry for larger ones.
pub fn compute(
    report: &ModelReport,
    original: &Module,
    most: usize,
    interrupt: &AtomicBool,
) -> Result<Spectra, SpectraError> {
    let all = sites(original);
    let by_name: HashMap<&str, &Site> = all.iter().map(|site| (site.name.as_str(), site)).collect();
    let known = |site: &SiteReport| {
        let other = by_name.get(site.name.as_str())?;
        ([other.rows, other.cols] == site.shape).then_some(*other)
    };
    let matrices = report.sites.len();
    if matrices > 0 && !report.sites.iter().any(|site| known(site).is_some()) {
        return Err(SpectraError::Other { matrices });
    }
    let mut left_out = Vec::new();
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for site in choose(report, most)
        .into_iter()
        .filter_map(|i| report.sites.get(i))
    {
        let entries = site.params_before;
        match known(site) {
            None => left_out.push((
                site.name.clone(),
                "is not in the original by this name and shape".into(),
            )),
            Some(_) if entries > MOST_ENTRIES => {
                let text = format!("has {entries} entries; at most {MOST_ENTRIES} are decomposed");
                left_out.push((site.name.clone(), text));
            }
            Some(other) if entries <= SMALL => small.push((site, other)),
            Some(other) => large.push((site, other)),
        }
    }
    let cache = FileCache::new();
    let reader = Reader::new(&cache);
    let one =
        |(site, other): &(&SiteReport, &Site), threads| match interrupt.load(Ordering::Relaxed) {
            true => Err(SpectraError::Interrupted),
            false => spectrum(&reader, original, site, other, threads),
        };
    let found: Result<Vec<_>, _> = small.par_iter().map(|pair| one(pair, 1)).collect();
    let mut found = found?;
    let threads = rayon::current_num_threads();
    for pair in &large {
        found.push(one(pair, threads)?);
    }
    let mut list = Vec::new();
    for (name, outcome) in found {
        match outcome {
            Ok(spectrum) => list.push(spectrum),
            Err(error) => left_out.push((name, error.to_string())),
        }
    }
    let error: HashMap<&str, f64> = report
        .sites
        .iter()
        .map(|s| (s.name.as_str(), s.rel_error))
        .collect();
    let of = |s: &Spectrum| error.get(s.name.as_str()).copied().unwrap_or(0.0);
    list.sort_by(|a, b| of(b).total_cmp(&of(a)));
    Ok(Spectra::Found { list, left_out })
}

type Outcome = (String, Result<Spectrum, LowRankError>);

fn spectrum(
    reader: &Reader<'_>,
    module: &Module,
    site: &SiteReport,
    other: &Site,
    threads: usize,
) -> Result<Outcome, SpectraError> {
    let store = |source| SpectraError::Store {
        site: site.name.clone(),
        source,
    };
    let values = match other.matrix(module) {
        Some(matrix) => reader.dense(module, matrix).map_err(store)?,
        None => Vec::new(),
    };
    let (rows, cols) = (size(other.rows), size(other.cols));
    let outcome = Matrix::new(rows, cols, values).map_err(LowRankError::Shape);
    let outcome = outcome.and_then(|matrix| {
        let short = rows.min(cols);
        let exact = short <= EXACT;
        let options = svd::Options {
            method: if exact {
                Method::Exact
            } else {
                Method::Randomized
            },
            power_iterations: 2,
            threads,
            ..svd::Options::default()
        };
        let rank = Rank::Fixed(if exact { short } else { LEADING });
        svd::truncated(matrix.view(), rank, &options)
    });
    let outcome = outcome.map(|svd| Spectrum {
        name: site.name.clone(),
        shape: site.shape,
        values: svd.s,
        total: svd.total,
        rank: rank(site),
    });
    Ok((site.name.clone(), outcome))
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The rank of a matrix's only flat low-rank term.
fn rank(site: &SiteReport) -> Option<usize> {
    let ranks: Vec<usize> = site
        .steps
        .iter()
        .filter_map(|step| step.term.strip_prefix('r')?.parse().ok())
        .collect();
    match (ranks.as_slice(), &site.reverted) {
        ([rank], None) => Some(*rank),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn energies() {
        let spectrum = Spectrum {
            name: "w".into(),
            shape: [3, 4],
            values: vec![3.0, 4f32.sqrt(), 12f32.sqrt()],
            total: 25.0,
            rank: None,
        };
        assert!((spectrum.energy()[0] - 0.36).abs() < 1e-9);
        assert_eq!(spectrum.rank_of(0.5), Some(2));
        assert_eq!(spectrum.rank_of(1.0), Some(3));
    }

    /// Against numpy: singular values of 400 × 400 and 200 × 800 normal entries.
    #[test]
    fn noise() {
        let spectrum = |shape| Spectrum {
            name: String::new(),
            shape,
            values: Vec::new(),
            total: 1.0,
            rank: None,
        };
        let near = |a: usize, b: usize| a.abs_diff(b) <= 3;
        let square = spectrum([400, 400]).rank_of_noise(0.9);
        let flat = spectrum([200, 800]).rank_of_noise(0.9);
        assert!(near(square, 205) && near(flat, 153), "{square} {flat}");
    }
}
