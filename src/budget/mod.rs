//! The budget: how many bits each group of matrices gets, by what an error in it does to the model.
//!
//! Matrices of one role in neighbouring layers are a [`Group`]. What a group's errors cost is measured as
//! the KL divergence of a model in which that group alone is coded ([`sensitivity`]), not taken from the
//! matrices' own errors: between roles those mislead. A trellis at K bits leaves about 4^-K of the
//! variance, so the cost at other bits follows, and [`allocate`] spends the bits where they buy most.
//!
//! Source: the linearity of small errors, Malinovskii et al., "HIGGS", arXiv 2411.17525.

mod sensitivity;

use std::collections::BTreeMap;

use crate::ir::Module;
use crate::ir::site::{Site, sites};

pub use sensitivity::{BudgetError, sensitivities};

/// Steps in which bits are given.
pub const STEP: f64 = 0.25;

/// Fewest and most bits per weight that a group gets.
pub const RANGE: (f64, f64) = (1.5, 7.0);

/// Depths into which the layers are cut.
const DEPTHS: u32 = 4;

/// Matrices that get the same bits: one role in neighbouring layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The role, as names say it without the layer: `self_attn.q_proj`.
    pub role: String,
    /// First and last layer; none for what is in no layer.
    pub layers: Option<(u32, u32)>,
    /// Names of the sites.
    pub sites: Vec<String>,
    /// Weights of all of them.
    pub entries: u64,
    /// Bytes that trellis codes of them take beside the codes: scales, and bits of columns.
    pub overhead_bytes: u64,
}

impl Group {
    /// A regular expression for the names of its sites alone.
    pub fn regex(&self) -> String {
        let names: Vec<String> = self.sites.iter().map(|name| escaped(name)).collect();
        format!("^({})$", names.join("|"))
    }

    /// Short text for tables.
    pub fn label(&self) -> String {
        match self.layers {
            Some((first, last)) => format!("{} {first}-{last}", self.role),
            None => self.role.clone(),
        }
    }
}

/// A name as a regular expression that matches it alone.
fn escaped(name: &str) -> String {
    let special = |c: char| !(c.is_alphanumeric() || c == '_' || c == '/' || c == '-');
    name.chars()
        .flat_map(|c| special(c).then_some('\\').into_iter().chain([c]))
        .collect()
}

/// The groups of the matrices that pipelines work on by default, in the order of roles and layers.
pub fn groups(module: &Module) -> Vec<Group> {
    let body: Vec<Site> = sites(module)
        .into_iter()
        .filter(|site| site.is_body() && dense(module, site))
        .collect();
    let layers = body
        .iter()
        .filter_map(|s| s.layer)
        .max()
        .map_or(1, |l| l + 1);
    let mut found: BTreeMap<(String, u32), Group> = BTreeMap::new();
    for site in body {
        let depth = site.layer.map_or(0, |l| l * DEPTHS / layers);
        let role = role_of(&site);
        let group = found.entry((role.clone(), depth)).or_insert(Group {
            role,
            layers: site.layer.map(|l| (l, l)),
            sites: Vec::new(),
            entries: 0,
            overhead_bytes: 0,
        });
        if let (Some((first, last)), Some(layer)) = (&mut group.layers, site.layer) {
            (*first, *last) = ((*first).min(layer), (*last).max(layer));
        }
        group.entries += site.rows.saturating_mul(site.cols);
        group.overhead_bytes += 2 * site.rows.div_ceil(16) + site.cols.div_ceil(16);
        group.sites.push(site.name);
    }
    found.into_values().collect()
}

fn dense(module: &Module, site: &Site) -> bool {
    site.matrix(module)
        .is_some_and(|m| m.dense_view().is_some())
}

/// A site's name without its layer's number and what stands before it.
fn role_of(site: &Site) -> String {
    let Some(layer) = site.layer else {
        return site.name.clone();
    };
    let number = layer.to_string();
    let mut parts = site.name.split(['.', '/']);
    match parts.any(|part| part == number) {
        true => parts.collect::<Vec<_>>().join("."),
        false => site.name.clone(),
    }
}

/// What a group costs at the bits at which it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Weights.
    pub entries: u64,
    /// KL divergence of the model with this group coded, nats per token.
    pub divergence: f64,
    /// Bits per weight at which that was.
    pub bits: f64,
}

impl Cost {
    /// The divergence expected at other bits.
    pub fn at(&self, bits: f64) -> f64 {
        self.divergence * 4f64.powf(self.bits - bits)
    }
}

/// Bits for every group, in steps of [`STEP`] within [`RANGE`], so that the sum of expected divergences
/// is least and no more than `total` bits are spent. `None` where even the fewest are too many.
///
/// Each step goes where it lowers the sum most per bit, which is exact for convex costs up to the last
/// step.
pub fn allocate(costs: &[Cost], total: f64) -> Option<Vec<f64>> {
    let (low, high) = RANGE;
    let mut bits = vec![low; costs.len()];
    let weights: f64 = costs.iter().map(|c| c.entries as f64).sum();
    let mut left = total - low * weights;
    if left < 0.0 {
        return None;
    }
    loop {
        let gain = |i: usize| -> f64 {
            let (cost, now) = (&costs[i], bits[i]);
            (cost.at(now) - cost.at(now + STEP)) / (cost.entries as f64).max(1.0)
        };
        let fits = |&i: &usize| {
            bits[i] + STEP <= high + 1e-9 && costs[i].entries as f64 * STEP <= left + 1e-6
        };
        let best = (0..costs.len())
            .filter(fits)
            .max_by(|&a, &b| gain(a).total_cmp(&gain(b)).then(b.cmp(&a)));
        let Some(best) = best else {
            return Some(bits);
        };
        left -= costs[best].entries as f64 * STEP;
        bits[best] += STEP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(entries: u64, divergence: f64) -> Cost {
        Cost {
            entries,
            divergence,
            bits: 3.0,
        }
    }

    #[test]
    fn bits_go_where_they_buy_most() {
        let costs = [cost(1000, 0.16), cost(1000, 0.01), cost(4000, 0.04)];
        let bits = allocate(&costs, 3.0 * 6000.0).expect("enough");
        // Sixteen times the cost per weight is worth two bits.
        assert!((bits[0] - bits[1] - 2.0).abs() <= STEP + 1e-9, "{bits:?}");
        let spent: f64 = costs
            .iter()
            .zip(&bits)
            .map(|(c, b)| c.entries as f64 * b)
            .sum();
        assert!(
            spent <= 18000.0 && spent > 18000.0 - 4000.0 * STEP,
            "{spent}"
        );
        let sum = |bits: &[f64]| -> f64 { costs.iter().zip(bits).map(|(c, &b)| c.at(b)).sum() };
        assert!(sum(&bits) < sum(&[3.0; 3]));
    }

    #[test]
    fn no_other_choice_is_better() {
        let costs = [cost(100, 0.3), cost(100, 0.02), cost(100, 0.07)];
        let total = 100.0 * 9.0;
        let bits = allocate(&costs, total).expect("enough");
        let sum = |bits: &[f64]| -> f64 { costs.iter().zip(bits).map(|(c, &b)| c.at(b)).sum() };
        let steps: Vec<f64> = (0..23).map(|i| RANGE.0 + STEP * f64::from(i)).collect();
        for &a in &steps {
            for &b in &steps {
                let c = 9.0 - a - b;
                if (RANGE.0..=RANGE.1).contains(&c) {
                    assert!(sum(&bits) <= sum(&[a, b, c]) + 1e-12, "{a} {b} {c}");
                }
            }
        }
    }

    #[test]
    fn too_little_is_refused_and_much_is_not_spent() {
        assert_eq!(allocate(&[cost(10, 0.1)], 14.9), None);
        assert_eq!(allocate(&[cost(10, 0.1)], 1e9), Some(vec![RANGE.1]));
        assert_eq!(allocate(&[], 0.0), Some(Vec::new()));
    }

    #[test]
    fn scopes_select_names_alone() {
        let group = Group {
            role: "mlp.up".to_string(),
            layers: Some((0, 1)),
            sites: vec!["h.0.mlp.up".to_string(), "h.1.mlp.up".to_string()],
            entries: 8,
            overhead_bytes: 0,
        };
        assert_eq!(group.regex(), r"^(h\.0\.mlp\.up|h\.1\.mlp\.up)$");
    }
}
