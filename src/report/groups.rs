//! Which layer and role a matrix has, by its name.

use std::collections::{BTreeMap, HashMap};

use crate::ir::Role;
use crate::ir::site::layer_of;
use crate::report::{SiteReport, parts};

/// Names of roles that are told apart; more are put together.
const MOST_ROLES: usize = 24;
/// Columns of a plot over layers.
const MOST_COLUMNS: usize = 400;

/// The matrices of a report by layer and role.
#[derive(Clone, Debug, PartialEq)]
pub struct Groups {
    /// Roles in the order of their first matrix.
    pub roles: Vec<String>,
    /// Columns of plots over layers: numbers of layers, or of matrices where names have no layers.
    pub columns: Vec<String>,
    /// What the columns are.
    pub axis: &'static str,
    /// Of each matrix its role, and its column where it has one.
    pub places: Vec<(usize, Option<usize>)>,
}

/// Sums over the matrices of one place.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// Matrices.
    pub count: u64,
    /// Parameters of the source.
    pub params: u64,
    /// Bytes after.
    pub bytes: u64,
    /// Bytes before.
    pub before: u64,
    squares: f64,
}

impl Sum {
    /// Adds a matrix.
    pub fn add(&mut self, site: &SiteReport) {
        self.count += 1;
        self.params = self.params.saturating_add(site.params_before);
        self.bytes = self.bytes.saturating_add(site.bytes_after);
        self.before = self.before.saturating_add(site.bytes_before);
        self.squares += site.params_before as f64 * site.rel_error * site.rel_error;
    }

    /// 8 × bytes / parameters.
    pub fn bits(&self) -> f64 {
        8.0 * self.bytes as f64 / self.params.max(1) as f64
    }

    /// Root mean square of the relative errors, weighted by parameters.
    pub fn error(&self) -> f64 {
        (self.squares / self.params.max(1) as f64).sqrt()
    }
}

/// The sum over all matrices.
pub fn total<'a>(sites: impl IntoIterator<Item = &'a SiteReport>) -> Sum {
    let mut sum = Sum::default();
    sites.into_iter().for_each(|site| sum.add(site));
    sum
}

impl Groups {
    /// Groups the matrices of a report.
    pub fn new(sites: &[SiteReport]) -> Self {
        let mut named = Vec::new();
        for coarseness in [Detail::Path, Detail::Last, Detail::Kind] {
            named = roles(sites, coarseness);
            let mut distinct = named.clone();
            distinct.sort();
            distinct.dedup();
            if distinct.len() <= MOST_ROLES {
                break;
            }
        }
        let mut roles: Vec<String> = Vec::new();
        let mut index: HashMap<&str, usize> = HashMap::new();
        for name in &named {
            let next = roles.len();
            if *index.entry(name).or_insert(next) == next {
                roles.push(name.clone());
            }
        }
        let (columns, axis, of_site) = columns(sites);
        let role = named
            .iter()
            .map(|name| index.get(name.as_str()).copied().unwrap_or(0));
        Self {
            places: role.zip(of_site).collect(),
            roles,
            columns,
            axis,
        }
    }

    /// Sums by role.
    pub fn by_role(&self, sites: &[SiteReport]) -> Vec<Sum> {
        let mut sums = vec![Sum::default(); self.roles.len()];
        for (site, (role, _)) in sites.iter().zip(&self.places) {
            if let Some(sum) = sums.get_mut(*role) {
                sum.add(site);
            }
        }
        sums
    }

    /// Sums by role and column.
    pub fn by_place(&self, sites: &[SiteReport]) -> BTreeMap<(usize, usize), Sum> {
        let mut sums: BTreeMap<(usize, usize), Sum> = BTreeMap::new();
        for (site, (role, column)) in sites.iter().zip(&self.places) {
            if let Some(column) = column {
                sums.entry((*role, *column)).or_default().add(site);
            }
        }
        sums
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    Path,
    Last,
    Kind,
}

fn is_end(site: &SiteReport) -> bool {
    site.roles
        .iter()
        .any(|r| matches!(r, Role::Embedding | Role::Head))
}

/// The number of a matrix's layer; ends of a model have none.
pub fn layer(site: &SiteReport) -> Option<u32> {
    match is_end(site) {
        true => None,
        false => layer_of(&site.name),
    }
}

fn columns(sites: &[SiteReport]) -> (Vec<String>, &'static str, Vec<Option<usize>>) {
    let layers: Vec<Option<u32>> = sites.iter().map(layer).collect();
    let mut known: Vec<u32> = layers.iter().flatten().copied().collect();
    known.sort_unstable();
    known.dedup();
    if known.len() > 1 {
        known.truncate(MOST_COLUMNS);
        let place = |layer: &Option<u32>| known.binary_search(&(*layer)?).ok();
        let of_site = layers.iter().map(place).collect();
        let names = known.iter().map(u32::to_string).collect();
        return (names, "layer", of_site);
    }
    let count = sites.len().min(MOST_COLUMNS);
    let of_site = (0..sites.len())
        .map(|i| Some(i).filter(|i| *i < count))
        .collect();
    let names = (1..=count).map(|i| i.to_string()).collect();
    (names, "matrix, in the model's order", of_site)
}

fn roles(sites: &[SiteReport], detail: Detail) -> Vec<String> {
    let has = |word: &str| {
        sites
            .iter()
            .any(|site| name_parts(&site.name).contains(&word))
    };
    let both = has("encoder") && has("decoder");
    sites
        .iter()
        .map(|site| match (is_end(site), detail) {
            (true, _) | (_, Detail::Kind) => parts::words(&site.roles),
            (_, Detail::Last) => path(&site.name).pop().unwrap_or_else(|| "matrix".into()),
            (_, Detail::Path) => {
                let decoder = both && name_parts(&site.name).contains(&"decoder");
                let path = path(&site.name).join(".");
                format!("{}{path}", if decoder { "decoder." } else { "" })
            }
        })
        .collect()
}

fn name_parts(name: &str) -> Vec<&str> {
    name.split(['.', '/', ':'])
        .filter(|part| !part.is_empty())
        .collect()
}

/// What is left of a name without its layer, its numbers and the names of ops.
fn path(name: &str) -> Vec<String> {
    const MARKS: [&str; 6] = ["layers", "layer", "h", "blocks", "block", "blk"];
    const OPS: [&str; 6] = ["MatMul", "Gemm", "Conv", "MatMulNBits", "linear", "weight"];
    let stem = |part: &str| {
        let (stem, number) = part.rsplit_once('_').unwrap_or((part, ""));
        match !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) {
            true => stem.to_string(),
            false => part.to_string(),
        }
    };
    let all = name_parts(name);
    let is_number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let mark = all
        .iter()
        .rposition(|part| MARKS.contains(&stem(part).as_str()));
    let behind = all.get(mark.map_or(0, |at| at + 1)..).unwrap_or_default();
    // `x#2` is a second matrix of the name.
    let clean = |part: &&str| stem(part.split('#').next().unwrap_or(part));
    let kept = behind.iter().filter(|part| !is_number(part)).map(clean);
    let kept: Vec<String> = kept.filter(|part| !OPS.contains(&part.as_str())).collect();
    match kept.is_empty() {
        true => vec![all.last().map_or_else(|| "matrix".into(), clean)],
        false => kept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_names() {
        for (name, role) in [
            ("model.layers.3.self_attn.q_proj", "self_attn.q_proj"),
            ("/model/layers.3/mlp/down_proj/MatMul", "mlp.down_proj"),
            (
                "/encoder/layer.0/attention/self/query/MatMul_1",
                "attention.self.query",
            ),
            (
                "model.layers.1.mlp.experts.17.gate_proj",
                "mlp.experts.gate_proj",
            ),
            ("transformer.h.3.attn.c_attn", "attn.c_attn"),
            ("MatMul_77", "MatMul"),
            ("blk.0", "0"),
            ("", "matrix"),
        ] {
            assert_eq!(path(name).join("."), role, "{name}");
        }
    }
}
