//! The report of a run: every matrix, and the model in all.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::parts::{self, Untouched};
use super::{SiteReport, number};
use crate::ir::site::sites;
use crate::ir::{Module, OpRef, Role, Term, Weight};
use crate::pass::Remark;
use crate::pass::manager::Outcome;

/// The layout of reports that this tool writes; it reads all up to this.
pub const REPORT_VERSION: u32 = 1;

fn first() -> u32 {
    1
}

/// Sums over some matrices or weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Parameters before.
    pub params_before: u64,
    /// Stored numbers after.
    pub params_after: u64,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes after.
    pub bytes_after: u64,
    /// Bytes before over bytes after.
    #[serde(deserialize_with = "number::or_nan")]
    pub ratio: f64,
    /// Share of the bytes that is gone, percent.
    #[serde(deserialize_with = "number::or_nan")]
    pub reduction_percent: f64,
    /// 8 × bytes after / parameters before.
    #[serde(deserialize_with = "number::or_nan")]
    pub bits_per_weight: f64,
    /// FLOPs per token before (linears only).
    pub flops_before: u64,
    /// FLOPs per token after (linears only).
    pub flops_after: u64,
}

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Version of this layout; reports of the first had none.
    #[serde(default = "first")]
    pub report_version: u32,
    /// The model's name.
    pub model: String,
    /// The canonical pipeline.
    pub pipeline: String,
    /// Everything that the model stores.
    pub model_totals: Totals,
    /// The matrices that passes ran on.
    pub rewritten_totals: Totals,
    /// Embeddings and head, as they are now.
    pub embeddings_and_head: Totals,
    /// Share of the output's bytes that embeddings and head hold, percent.
    #[serde(deserialize_with = "number::or_nan")]
    pub embeddings_and_head_percent: f64,
    /// Sites that were kept as they were although passes ran.
    pub reverted: u64,
    /// Every matrix that passes ran on, in order.
    pub sites: Vec<SiteReport>,
    /// What no pass rewrote; with the parts of the sites, all bytes of the output.
    #[serde(default)]
    pub untouched: Vec<Untouched>,
    /// Everything that passes said.
    pub remarks: Vec<Remark>,
    /// What training of the output has seen. Errors of the sites are those before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<crate::train::History>,
    #[serde(skip)]
    by_user: HashMap<OpRef, usize>,
}

impl Totals {
    fn finish(mut self) -> Self {
        self.ratio = self.bytes_before as f64 / self.bytes_after.max(1) as f64;
        // Of nothing there is nothing to save.
        self.reduction_percent = match self.bytes_before {
            0 => 0.0,
            _ => 100.0 - 100.0 / self.ratio.max(1e-12),
        };
        self.bits_per_weight = 8.0 * self.bytes_after as f64 / self.params_before.max(1) as f64;
        self
    }
}

impl ModelReport {
    /// The report of a run that made `after` from `before`.
    pub fn new(before: &Module, after: &Module, outcome: &Outcome, pipeline: &str) -> Self {
        let mut rewritten = Totals::default();
        for site in &outcome.sites {
            rewritten.params_before += site.params_before;
            rewritten.params_after += site.params_after;
            rewritten.bytes_before += site.bytes_before;
            rewritten.bytes_after += site.bytes_after;
            rewritten.flops_before += site.flops_before;
            rewritten.flops_after += site.flops_after;
        }
        let stored = |m: &Module| m.weights.iter().map(Weight::bytes).sum::<u64>();
        let params_before = parameters(before);
        let (flops_before, flops_after) = flops(before, outcome);
        let model = Totals {
            params_before,
            params_after: params_before - rewritten.params_before.min(params_before)
                + rewritten.params_after,
            bytes_before: stored(before),
            bytes_after: stored(after),
            flops_before,
            flops_after,
            ..Totals::default()
        };
        let ends = ends(before, after);
        let share = 100.0 * ends.bytes_after as f64 / model.bytes_after.max(1) as f64;
        let mut by_user = HashMap::new();
        let index: HashMap<&str, usize> = outcome
            .sites
            .iter()
            .enumerate()
            .map(|(i, s)| (s.name.as_str(), i))
            .collect();
        for site in sites(after) {
            if let Some(&i) = index.get(site.name.as_str()) {
                by_user.extend(site.users.iter().map(|u| (*u, i)));
            }
        }
        let mut reports = outcome.sites.clone();
        let untouched = parts::split(after, &mut reports);
        Self {
            report_version: REPORT_VERSION,
            model: before.name.clone(),
            pipeline: pipeline.to_string(),
            model_totals: model.finish(),
            rewritten_totals: rewritten.finish(),
            embeddings_and_head: ends.finish(),
            embeddings_and_head_percent: share,
            reverted: outcome
                .sites
                .iter()
                .filter(|s| s.reverted.is_some())
                .count() as u64,
            sites: reports,
            untouched,
            remarks: outcome.remarks.clone(),
            training: None,
            by_user,
        }
    }

    /// `5.62 bpw, rel_err 4.10e-2` for an op that uses a rewritten matrix.
    pub fn annotation(&self, _module: &Module, at: OpRef) -> Option<String> {
        let site = self.sites.get(*self.by_user.get(&at)?)?;
        let error = site.rel_error;
        Some(format!(
            "{:.2} bpw, rel_err {error:.2e}",
            site.bits_per_weight
        ))
    }

    /// The report as JSON, the same bytes for the same run.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }
}

/// Parameters of a module: of a matrix out × in, however it is stored, of other weights their elements.
fn parameters(module: &Module) -> u64 {
    let mut counted = vec![false; module.weights.len()];
    let mut sum = 0u64;
    for site in sites(module) {
        let Some(matrix) = site.matrix(module) else {
            continue;
        };
        // A dense weight alone counts by itself: once, however many views it has.
        if matches!(matrix.terms.as_slice(), [Term::Dense(_)]) {
            continue;
        }
        sum = sum.saturating_add(site.rows.saturating_mul(site.cols));
        for id in matrix.terms.iter().flat_map(Term::weights) {
            if let Some(slot) = counted.get_mut(id.index()) {
                *slot = true;
            }
        }
    }
    let rest = module.weights.iter().zip(counted).filter(|(_, done)| !done);
    rest.map(|(weight, _)| weight.elements().unwrap_or(0))
        .fold(sum, u64::saturating_add)
}

/// FLOPs per token of all linears: a mixture's experts count as often as they are chosen.
fn flops(before: &Module, outcome: &Outcome) -> (u64, u64) {
    let after: HashMap<&str, u64> = outcome
        .sites
        .iter()
        .map(|s| (s.name.as_str(), s.flops_after))
        .collect();
    let mut sum = (0u64, 0u64);
    for site in sites(before) {
        let linear = site.roles.iter().any(|r| *r != Role::Embedding);
        if !linear {
            continue;
        }
        let dense = 2 * site.rows.saturating_mul(site.cols);
        sum.0 = sum.0.saturating_add(dense);
        let now = after.get(site.name.as_str()).copied().unwrap_or(dense);
        sum.1 = sum.1.saturating_add(now);
    }
    sum
}

/// Embeddings and head before and after.
fn ends(before: &Module, after: &Module) -> Totals {
    let bytes = |module: &Module| {
        let mut sum = (0u64, 0u64);
        for site in sites(module) {
            if site
                .roles
                .iter()
                .any(|r| matches!(r, Role::Embedding | Role::Head))
            {
                sum.0 += site.rows.saturating_mul(site.cols);
                sum.1 += site.matrix(module).map_or(0, |m| m.bytes(&module.weights));
            }
        }
        sum
    };
    let (was, is) = (bytes(before), bytes(after));
    Totals {
        params_before: was.0,
        params_after: is.0,
        bytes_before: was.1,
        bytes_after: is.1,
        ..Totals::default()
    }
}
