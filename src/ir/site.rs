//! Sites: the distinct matrices of a module, each with all ops that use it.
//!
//! Tied embeddings, or a weight that several nodes share, are one site: a pass that rewrites it
//! rewrites every user, so what was one weight stays one. Where one use has the weight transposed, or
//! an op that is no matrix reads it too, they are different sites: [`otherwise_used`] tells.

use std::collections::HashMap;

use super::{Matrix, Module, OpKind, OpRef, Operand, Role, Term, WeightId, WeightView};

/// One matrix of the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Name that scopes and reports use: the first user's, or else the weight's.
    pub name: String,
    /// Ops that use the matrix, in order.
    pub users: Vec<OpRef>,
    /// Every role that a user has, sorted. A tied embedding has two.
    pub roles: Vec<Role>,
    /// Number of the layer, where the name has one (`layers.3.`, `h.3.`, `layer.3.`, `blk.3.`).
    pub layer: Option<u32>,
    /// Output features.
    pub rows: u64,
    /// Input features.
    pub cols: u64,
}

/// Every matrix of the module, in the order of its first user.
pub fn sites(module: &Module) -> Vec<Site> {
    let mut found: Vec<Site> = Vec::new();
    let mut by_terms: HashMap<String, usize> = HashMap::new();
    for at in module.walk() {
        let Some(op) = module.op(at) else { continue };
        let (matrix, role) = match &op.kind {
            OpKind::Linear(l) => (&l.matrix, l.role),
            OpKind::Embedding(e) => (&e.matrix, Role::Embedding),
            _ => continue,
        };
        let key = format!("{:?}", matrix);
        if let Some(&index) = by_terms.get(&key) {
            let site = &mut found[index];
            site.users.push(at);
            if let Err(place) = site.roles.binary_search(&role) {
                site.roles.insert(place, role);
            }
            continue;
        }
        let name = match op.name.is_empty() {
            false => op.name.clone(),
            true => matrix_name(module, matrix),
        };
        by_terms.insert(key, found.len());
        found.push(Site {
            layer: layer_of(&name),
            name,
            users: vec![at],
            roles: vec![role],
            rows: matrix.out_features,
            cols: matrix.in_features,
        });
    }
    make_unique(&mut found);
    found
}

/// Who else uses the dense matrix of each site, in another way than the site does: transposed, as part
/// of a stack, as the operand of an op that is no matrix.
///
/// The weight stays for that use, so that rewritten terms come on top of it.
pub fn otherwise_used(module: &Module, sites: &[Site]) -> Vec<Option<String>> {
    let view = |site: &Site| site.matrix(module).and_then(Matrix::dense_view).cloned();
    let views: Vec<Option<WeightView>> = sites.iter().map(view).collect();
    let mut by_weight: HashMap<WeightId, Vec<usize>> = HashMap::new();
    for (site, view) in views.iter().enumerate() {
        let Some(view) = view else { continue };
        by_weight.entry(view.weight).or_default().push(site);
    }
    let mut plain: HashMap<WeightId, String> = HashMap::new();
    for at in module.walk() {
        let Some(op) = module.op(at) else { continue };
        for input in &op.inputs {
            if let Operand::Weight(id) = input {
                let named = || match op.name.is_empty() {
                    true => "an unnamed op".to_string(),
                    false => op.name.clone(),
                };
                plain.entry(*id).or_insert_with(named);
            }
        }
    }
    let other = |(site, view): (usize, &Option<WeightView>)| {
        let view = view.as_ref()?;
        let overlaps = |other: &&usize| {
            let index = views.get(**other).and_then(|v| v.as_ref()?.index);
            **other != site && (index.is_none() || view.index.is_none() || index == view.index)
        };
        let twin = by_weight.get(&view.weight)?.iter().find(overlaps);
        let twin = twin.and_then(|&other| sites.get(other));
        let named = twin.map(|twin| twin.name.clone());
        named.or_else(|| plain.get(&view.weight).cloned())
    };
    views.iter().enumerate().map(other).collect()
}

/// The name of a matrix by its weight: the dense one's, or the first term's without its suffix.
fn matrix_name(module: &Module, matrix: &Matrix) -> String {
    let view = matrix.dense_view();
    let id = view
        .map(|v: &WeightView| v.weight)
        .or_else(|| matrix.terms.iter().flat_map(Term::weights).next());
    let Some(weight) = id.and_then(|id| module.weight(id)) else {
        return "matrix".to_string();
    };
    let stem = weight.name.strip_suffix(".weight").unwrap_or(&weight.name);
    match view.and_then(|v| v.index) {
        Some(index) => format!("{stem}.{index}"),
        None => stem.to_string(),
    }
}

/// Two ops may have one name; sites may not, since reports and journals go by them.
fn make_unique(sites: &mut [Site]) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for site in sites {
        let count = seen.entry(site.name.clone()).or_insert(0);
        *count += 1;
        if *count > 1 {
            site.name = format!("{}#{count}", site.name);
        }
    }
}

/// The layer number in a tensor's name, if it has one.
///
/// It is the number after `layers`, `layer`, `h`, `blocks`, `block` or `blk` (`model.layers.3.…`,
/// `/encoder/layer.3/…`), else the first component that is a number by itself.
pub fn layer_of(name: &str) -> Option<u32> {
    let parts: Vec<&str> = name.split(['.', '/', ':', '_']).collect();
    let marks = ["layers", "layer", "h", "blocks", "block", "blk"];
    let marked = parts.windows(2).find_map(|pair| match pair {
        [mark, number] if marks.contains(mark) => digits(number),
        _ => None,
    });
    marked.or_else(|| name.split(['.', '/']).find_map(digits))
}

fn digits(text: &str) -> Option<u32> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

impl Site {
    /// Whether default scopes take it: a body linear or an expert's, in every use.
    pub fn is_body(&self) -> bool {
        let body = |r: &Role| matches!(r, Role::Linear | Role::Expert);
        self.roles.iter().all(body)
    }

    /// The matrix, as the first user has it.
    pub fn matrix<'a>(&self, module: &'a Module) -> Option<&'a Matrix> {
        module.op(*self.users.first()?)?.kind.matrix()
    }
}

#[cfg(test)]
mod tests {
    use super::layer_of;

    #[test]
    fn layers_are_read_off_names() {
        assert_eq!(layer_of("model.layers.12.self_attn.q_proj"), Some(12));
        assert_eq!(layer_of("/encoder/layer.0/attention/MatMul"), Some(0));
        assert_eq!(layer_of("transformer.h.3.attn.c_attn"), Some(3));
        assert_eq!(layer_of("blk.7.ffn_down"), Some(7));
        assert_eq!(layer_of("lm_head"), None);
    }
}
