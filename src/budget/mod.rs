//! The budget: what each group of matrices becomes, by what an error in it does to the model.
//!
//! Matrices of one role in neighbouring layers are a [`Group`]. What a group's errors cost is measured as
//! the KL divergence of a model in which that group alone is coded ([`sensitivity`]), not taken from the
//! matrices' own errors: between roles those mislead. Within a group they don't: a candidate is expected
//! to cost in proportion to its error on one of the group's matrices ([`candidates`]), and [`choose`]
//! spends the bytes where they buy most.
//!
//! Source: the linearity of small errors, Malinovskii et al., "HIGGS", arXiv 2411.17525.

pub mod candidates;
mod knapsack;
pub mod running;
mod sensitivity;

use std::collections::BTreeMap;

use crate::ir::Module;
use crate::ir::site::{Site, sites};
use crate::numeric::trellis;

pub use candidates::{Candidate, Family, Tried};
pub use knapsack::{Choice, choose};
pub use sensitivity::{BudgetError, sensitivities};

/// Steps in which bits are given.
pub const STEP: f64 = 0.25;

/// Fewest and most bits per weight of a trellis.
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
    /// `[out, in]` of each site.
    pub shapes: Vec<(u64, u64)>,
}

impl Group {
    /// A regular expression for the names of its sites alone.
    pub fn regex(&self) -> String {
        let names: Vec<String> = self.sites.iter().map(|name| escaped(name)).collect();
        format!("^({})$", names.join("|"))
    }

    /// Bytes of all of them as a trellis at some bits per weight, all that is stored counted.
    pub fn trellis_bytes(&self, bits: f64) -> u64 {
        let each = self.shapes.iter();
        each.map(|&(rows, cols)| trellis::matrix_bytes(rows, cols, bits))
            .fold(0, u64::saturating_add)
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
    groups_of(module, &|_| true)
}

/// The groups of some of them; layers are cut into depths as with all.
pub fn groups_of(module: &Module, wanted: &dyn Fn(&Site) -> bool) -> Vec<Group> {
    let body: Vec<Site> = sites(module)
        .into_iter()
        .filter(|site| site.is_body() && is_dense(module, site))
        .collect();
    let layers = body
        .iter()
        .filter_map(|s| s.layer)
        .max()
        .map_or(1, |l| l + 1);
    let mut found: BTreeMap<(String, u32), Group> = BTreeMap::new();
    for site in body.into_iter().filter(|site| wanted(site)) {
        let depth = site.layer.map_or(0, |l| l * DEPTHS / layers);
        let role = role_of(&site);
        let group = found.entry((role.clone(), depth)).or_insert(Group {
            role,
            layers: site.layer.map(|l| (l, l)),
            sites: Vec::new(),
            entries: 0,
            shapes: Vec::new(),
        });
        if let (Some((first, last)), Some(layer)) = (&mut group.layers, site.layer) {
            (*first, *last) = ((*first).min(layer), (*last).max(layer));
        }
        group.entries += site.rows.saturating_mul(site.cols);
        group.shapes.push((site.rows, site.cols));
        group.sites.push(site.name);
    }
    found.into_values().collect()
}

/// Whether a matrix has a dense term, which passes work on.
pub fn is_dense(module: &Module, site: &Site) -> bool {
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

/// Bits that a trellis may get: steps of [`STEP`] within [`RANGE`].
pub fn steps() -> impl Iterator<Item = f64> {
    let count = ((RANGE.1 - RANGE.0) / STEP).round() as u32;
    (0..=count).map(|i| RANGE.0 + STEP * f64::from(i))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_select_names_alone() {
        let group = Group {
            role: "mlp.up".to_string(),
            layers: Some((0, 1)),
            sites: vec!["h.0.mlp.up".to_string(), "h.1.mlp.up".to_string()],
            entries: 8,
            shapes: vec![(2, 2); 2],
        };
        assert_eq!(group.regex(), r"^(h\.0\.mlp\.up|h\.1\.mlp\.up)$");
    }
}
