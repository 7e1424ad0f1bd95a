//! What a file of statistics holds, role by role.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::error::Result;
use super::file::Statistics;
use super::metadata::{ModelId, Source};

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The model.
    pub model: ModelId,
    /// What it ran on.
    pub runs: Vec<Source>,
    /// Roles of sites, by name without numbers.
    pub roles: Vec<RoleSummary>,
    /// Experts that got fewer tokens than an inner linear has inputs.
    pub short_experts: usize,
    /// Experts that got no token.
    pub unused_experts: usize,
    /// Sites without statistics of their input, embeddings apart; empty where no model was given.
    pub without: Vec<String>,
}

/// Sites of one role.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RoleSummary {
    /// Last part of the sites' names.
    pub role: String,
    /// Number of sites.
    pub sites: usize,
    /// Fewest tokens of a site.
    pub tokens: u64,
    /// Widest input.
    pub width: u64,
    /// Inputs that were zero on every token, all sites together.
    pub dead: usize,
    /// Mean of x² over tokens, inputs and sites.
    pub mean_square: f64,
    /// Largest x² mean of an input over the site's mean.
    pub peak: f64,
    /// Sites with fewer tokens than inputs: their sums have not full rank.
    pub short: usize,
}

impl Summary {
    /// Reads diagonals and counts; matrices are not touched.
    ///
    /// # Errors
    /// As [`Statistics::diagonal`].
    pub fn new(statistics: &Statistics) -> Result<Self> {
        let mut roles: BTreeMap<String, RoleSummary> = BTreeMap::new();
        let mut order: Vec<String> = Vec::new();
        let mut experts: HashMap<(String, usize), (u64, u64)> = HashMap::new();
        for site in statistics.sites() {
            let Some(found) = statistics.diagonal(site)? else {
                continue;
            };
            let role = role(site);
            if !roles.contains_key(&role) {
                order.push(role.clone());
            }
            add(roles.entry(role.clone()).or_default(), &role, &found);
            let input = statistics.metadata().sites.get(site);
            if let (Some(expert), Some(routed)) =
                (input.and_then(|i| i.expert.clone()), found.routed)
            {
                let inner = input.is_some_and(|i| i.pool.is_some());
                let width = if inner { found.diag.len() as u64 } else { 0 };
                let entry = experts.entry(expert).or_insert((routed, 0));
                entry.1 = entry.1.max(width);
            }
        }
        let mut list: Vec<RoleSummary> = order.iter().filter_map(|r| roles.remove(r)).collect();
        for role in &mut list {
            role.mean_square /= role.sites.max(1) as f64;
        }
        let metadata = statistics.metadata();
        Ok(Self {
            model: metadata.model.clone(),
            runs: metadata.runs.clone(),
            roles: list,
            short_experts: experts
                .values()
                .filter(|(tokens, width)| tokens < width)
                .count(),
            unused_experts: experts.values().filter(|(tokens, _)| *tokens == 0).count(),
            without: Vec::new(),
        })
    }
}

fn add(to: &mut RoleSummary, role: &str, found: &super::file::SiteStatistics) {
    let tokens = found.tokens.max(1) as f64;
    let width = found.diag.len();
    let total: f64 = found.diag.iter().map(|&d| f64::from(d)).sum();
    let mean = total / (width.max(1) as f64 * tokens);
    let most = found.diag.iter().fold(0f32, |m, &d| m.max(d));
    to.role = role.to_string();
    to.tokens = if to.sites == 0 {
        found.tokens
    } else {
        to.tokens.min(found.tokens)
    };
    to.sites += 1;
    to.width = to.width.max(width as u64);
    to.dead += found.dead();
    to.mean_square += mean;
    if mean > 0.0 {
        to.peak = to.peak.max(f64::from(most) / tokens / mean);
    }
    to.short += usize::from(found.tokens < width as u64);
}

/// A site's name without the numbers of layers and experts, and without what all have in front.
fn role(site: &str) -> String {
    let parts: Vec<&str> = site.split(['.', '/']).filter(|p| !p.is_empty()).collect();
    let number = |p: &&str| p.bytes().all(|b| b.is_ascii_digit());
    let first = parts.iter().position(number).map_or(0, |at| at + 1);
    let rest: Vec<&str> = parts
        .get(first..)
        .unwrap_or_default()
        .iter()
        .filter(|p| !number(p))
        .copied()
        .collect();
    match rest.is_empty() {
        true => site.to_string(),
        false => rest.join("."),
    }
}

#[cfg(test)]
mod tests {
    use super::role;

    #[test]
    fn roles_have_no_numbers() {
        assert_eq!(role("model.layers.12.self_attn.q_proj"), "self_attn.q_proj");
        assert_eq!(
            role("model.layers.1.mlp.experts.7.down_proj"),
            "mlp.experts.down_proj"
        );
        assert_eq!(
            role("/encoder/layer.0/attention/MatMul"),
            "attention.MatMul"
        );
        assert_eq!(role("lm_head"), "lm_head");
    }
}
