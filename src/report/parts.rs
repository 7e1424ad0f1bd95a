//! Where the bytes of an output went: parts of rewritten matrices, and what was left alone.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::SiteReport;
use crate::ir::site::sites;
use crate::ir::{Matrix, Module, Role, Term, Weight, WeightId};

/// Bytes of a matrix by what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Parts {
    /// Packed codes of quantized terms.
    pub codes: u64,
    /// Their scales and zero points.
    pub scales: u64,
    /// Low-rank factors, with their own scales.
    pub factors: u64,
    /// Values of entries and columns that are kept apart.
    pub values: u64,
    /// Where those stand.
    pub indices: u64,
    /// Entries as they were.
    pub dense: u64,
}

/// What no pass rewrote, by what it is in the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untouched {
    /// `embedding`, `head`, `embedding and head`, `linear`, `expert`, `other tensors`.
    pub what: String,
    /// Matrices, or tensors where it is no matrix.
    pub count: u64,
    /// Bytes in the output.
    pub bytes: u64,
}

impl Parts {
    /// All of them.
    pub fn total(&self) -> u64 {
        [
            self.codes,
            self.scales,
            self.factors,
            self.values,
            self.indices,
            self.dense,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    /// Adds another's bytes.
    pub fn add(&mut self, other: &Parts) {
        let pairs = [
            (&mut self.codes, other.codes),
            (&mut self.scales, other.scales),
            (&mut self.factors, other.factors),
            (&mut self.values, other.values),
            (&mut self.indices, other.indices),
            (&mut self.dense, other.dense),
        ];
        for (sum, bytes) in pairs {
            *sum = sum.saturating_add(bytes);
        }
    }
}

/// Counts what a matrix stores; a weight that was counted before is another matrix's.
struct Count<'a> {
    weights: &'a [Weight],
    seen: HashSet<(WeightId, Option<u64>)>,
}

impl Count<'_> {
    fn bytes(&mut self, id: WeightId) -> u64 {
        match self.seen.insert((id, None)) {
            true => self.weights.get(id.index()).map_or(0, Weight::bytes),
            false => 0,
        }
    }

    fn matrix(&mut self, matrix: &Matrix) -> Parts {
        let mut parts = Parts::default();
        for term in &matrix.terms {
            match term {
                Term::Dense(view) => {
                    let first = self.seen.insert((view.weight, view.index));
                    parts.dense += u64::from(first) * term.bytes(matrix, self.weights);
                }
                Term::Quant(quant) => {
                    parts.codes += self.bytes(quant.codes);
                    parts.scales += self.bytes(quant.scales);
                    parts.scales += quant.zeros.map_or(0, |id| self.bytes(id));
                }
                Term::Trellis(trellis) => {
                    parts.codes += self.bytes(trellis.codes);
                    parts.scales += self.bytes(trellis.scales) + self.bytes(trellis.bits);
                }
                Term::Custom(_) => {
                    parts.codes += term
                        .weights()
                        .into_iter()
                        .map(|w| self.bytes(w))
                        .sum::<u64>();
                }
                Term::LowRank(_) => {
                    parts.factors += term
                        .weights()
                        .into_iter()
                        .map(|w| self.bytes(w))
                        .sum::<u64>();
                }
                Term::Sparse(sparse) => {
                    parts.values += self.bytes(sparse.values);
                    parts.indices += self.bytes(sparse.columns) + self.bytes(sparse.offsets);
                }
                Term::Columns(columns) => {
                    parts.values += self.bytes(columns.values);
                    parts.indices += self.bytes(columns.columns);
                }
            }
        }
        parts
    }
}

/// Fills in the parts of the sites, and tells what else the module stores. Together they are all of its bytes.
pub fn split(module: &Module, reports: &mut [SiteReport]) -> Vec<Untouched> {
    let mut count = Count {
        weights: &module.weights,
        seen: HashSet::new(),
    };
    let index: HashMap<String, usize> = reports
        .iter()
        .enumerate()
        .map(|(i, report)| (report.name.clone(), i))
        .collect();
    let mut groups: Vec<Untouched> = Vec::new();
    let mut sum = 0u64;
    for site in sites(module) {
        let Some(matrix) = site.matrix(module) else {
            continue;
        };
        let parts = count.matrix(matrix);
        sum = sum.saturating_add(parts.total());
        let report = index.get(&site.name).and_then(|&i| reports.get_mut(i));
        match report {
            Some(report) => report.parts = parts,
            None => add(&mut groups, words(&site.roles), 1, parts.total()),
        }
    }
    let matrices: HashSet<WeightId> = count.seen.iter().map(|(id, _)| *id).collect();
    let stored = module.weights.iter().map(Weight::bytes);
    let rest = stored.fold(0, u64::saturating_add).saturating_sub(sum);
    let tensors = module.weights.len().saturating_sub(matrices.len()) as u64;
    if rest > 0 {
        add(&mut groups, "other tensors".into(), tensors, rest);
    }
    groups
}

fn add(groups: &mut Vec<Untouched>, what: String, count: u64, bytes: u64) {
    match groups.iter_mut().find(|group| group.what == what) {
        Some(group) => {
            group.count += count;
            group.bytes = group.bytes.saturating_add(bytes);
        }
        None => groups.push(Untouched { what, count, bytes }),
    }
}

/// Roles in words: `embedding and head`.
pub fn words(roles: &[Role]) -> String {
    let words: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    words.join(" and ")
}
