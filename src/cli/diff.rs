//! `diff`: what differs between two models, in structure and in values.

use super::args::DiffArgs;
use super::describe::terms;
use super::table::Table;
use super::{Exit, Failure, errors, load, opt, print, signal};
use crate::ir::site::{Site, sites};
use crate::ir::{Module, OpKind, Weight};
use crate::report::human;
use crate::store::Reader;
use crate::weights::FileCache;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// How one matrix of A compares with B's of the same name.
#[derive(Debug, Serialize)]
struct Compared {
    name: String,
    shape: [u64; 2],
    terms_a: String,
    terms_b: String,
    bytes_a: u64,
    bytes_b: u64,
    /// ‖A − B‖ / ‖A‖, Frobenius; none where values were not compared.
    relative_error: Option<f64>,
    /// Why they can't be compared.
    problem: Option<String>,
}

/// All differences.
#[derive(Debug, Default, Serialize)]
struct Differences {
    matrices: Vec<Compared>,
    only_in_a: Vec<String>,
    only_in_b: Vec<String>,
    /// Matrices of A that B's nodes hold in a packed form: name and op. Values are not compared.
    packed_in_b: BTreeMap<String, String>,
    /// Tensors outside matrices whose bytes differ: name and what differs.
    tensors: BTreeMap<String, String>,
}

/// Compares two models.
pub fn run(args: &DiffArgs) -> Result<Exit, Failure> {
    let filter = match &args.filter {
        None => None,
        Some(text) => Some(regex::Regex::new(text).map_err(|error| {
            Failure::new(
                Exit::Usage,
                format!("--filter `{text}` is no regular expression: {error}"),
            )
        })?),
    };
    let (a, b) = (load::model(&args.a)?, load::model(&args.b)?);
    let wanted = |name: &str| filter.as_ref().is_none_or(|filter| filter.is_match(name));
    let found = compare(&a, &b, args.structure, &wanted)?;
    let text = if args.json {
        serde_json::to_string_pretty(&found).unwrap_or_default() + "\n"
    } else {
        as_text(&found, opt::progress(&args.talk).style().verbose > 0)
    };
    print(text.as_bytes())?;
    gate(args, &found)
}

/// Fails where an error is above what `--max-error` allows.
fn gate(args: &DiffArgs, found: &Differences) -> Result<Exit, Failure> {
    let Some(limit) = args.max_error else {
        return Ok(Exit::Ok);
    };
    let above = |one: &&Compared| {
        one.problem.is_some()
            || one
                .relative_error
                .is_some_and(|error| error > limit || error.is_nan())
    };
    let bad: Vec<&Compared> = found.matrices.iter().filter(above).collect();
    let missing = found.only_in_a.len() + found.only_in_b.len() + found.packed_in_b.len();
    match bad.first() {
        None if missing == 0 => Ok(Exit::Ok),
        None => Err(Failure::new(
            Exit::Gate,
            format!(
                "{missing} of the matrices are in one model only, or in a form that is not compared"
            ),
        )),
        Some(worst) => Err(Failure::new(
            Exit::Gate,
            format!(
                "{}: the relative error is above {limit} ({} in all)",
                worst.name,
                bad.len()
            ),
        )),
    }
}

fn compare(
    a: &Module,
    b: &Module,
    structure: bool,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Differences, Failure> {
    let (sites_a, sites_b) = (sites(a), sites(b));
    let by_name: HashMap<&str, &Site> = sites_b
        .iter()
        .map(|site| (site.name.as_str(), site))
        .collect();
    let names_a: HashMap<&str, ()> = sites_a
        .iter()
        .map(|site| (site.name.as_str(), ()))
        .collect();
    let mut found = Differences::default();
    let (packed, parts) = (packed_nodes(b), parts(&sites_b));
    let mut pairs = Vec::new();
    for site in sites_a.iter().filter(|site| wanted(&site.name)) {
        match by_name.get(site.name.as_str()) {
            Some(other) => pairs.push((site, *other)),
            None => match (parts.get(site.name.as_str()).map(Vec::as_slice), &packed) {
                (Some([one]), _) if [one.rows, one.cols] == [site.rows, site.cols] => {
                    pairs.push((site, one));
                }
                (parts, packed) => {
                    let part = parts.and_then(|parts| Some(part(&parts.first()?.name)?.1));
                    match packed.get(site.name.as_str()).copied().or(part) {
                        Some(op) => {
                            let name = site.name.clone();
                            found.packed_in_b.insert(name, op.to_string());
                        }
                        None => found.only_in_a.push(site.name.clone()),
                    }
                }
            },
        }
    }
    let known = |name: &str| names_a.contains_key(name);
    let of_a = |name: &str| known(name) || part(name).is_some_and(|(site, _)| known(site));
    let only_b = sites_b
        .iter()
        .filter(|site| wanted(&site.name) && !of_a(&site.name));
    found.only_in_b.extend(only_b.map(|site| site.name.clone()));
    let cache = FileCache::new();
    let reader = Reader::new(&cache);
    // Two matrices are in memory per thread.
    let compared = pairs
        .par_iter()
        .map(|(x, y)| one_matrix(&reader, a, x, b, y, structure));
    found.matrices = compared.collect::<Result<_, _>>()?;
    if !structure {
        found.tensors = other_tensors(&reader, a, b, wanted);
    }
    Ok(found)
}

/// The name of the linear that a node of an exported model was part of, and the node's op.
fn part(name: &str) -> Option<(&str, &str)> {
    let (site, op) = name.rsplit_once('/')?;
    let mut ops = ["MatMulNBits", "GatherBlockQuantized", "MatMul", "Gather"].into_iter();
    let numbered = |rest: &str| rest.is_empty() || rest.starts_with('_');
    let op = ops.find(|known| op.strip_prefix(known).is_some_and(numbered))?;
    Some((site, op))
}

/// Matrices of an exported model by the linear that they were parts of.
fn parts(sites: &[Site]) -> HashMap<&str, Vec<&Site>> {
    let mut found: HashMap<&str, Vec<&Site>> = HashMap::new();
    for site in sites {
        if let Some((of, _)) = part(&site.name) {
            found.entry(of).or_default().push(site);
        }
    }
    found
}

/// Ops of an exported model that hold quantized matrices and could not be read, by the name of the linear that they were:
/// its nodes are called `name/op`.
fn packed_nodes(module: &Module) -> HashMap<&str, &str> {
    let held = ["MatMulNBits", "DequantizeLinear", "GatherBlockQuantized"];
    let ops = module.walk().into_iter().filter_map(|at| module.op(at));
    let named = ops.filter_map(|op| match &op.kind {
        OpKind::Onnx(node) if held.contains(&node.op_type.as_str()) => {
            let (site, _) = op.name.rsplit_once('/')?;
            Some((site, node.op_type.as_str()))
        }
        _ => None,
    });
    named.collect()
}

fn one_matrix(
    reader: &Reader<'_>,
    a: &Module,
    site: &Site,
    b: &Module,
    other: &Site,
    structure: bool,
) -> Result<Compared, Failure> {
    if signal::interrupted() {
        return Err(Failure::new(Exit::Interrupted, "interrupted"));
    }
    let (matrix_a, matrix_b) = (site.matrix(a), other.matrix(b));
    let mut out = Compared {
        name: site.name.clone(),
        shape: [site.rows, site.cols],
        terms_a: matrix_a.map_or_else(String::new, |m| terms(a, m)),
        terms_b: matrix_b.map_or_else(String::new, |m| terms(b, m)),
        bytes_a: matrix_a.map_or(0, |m| m.bytes(&a.weights)),
        bytes_b: matrix_b.map_or(0, |m| m.bytes(&b.weights)),
        relative_error: None,
        problem: None,
    };
    if [other.rows, other.cols] != out.shape {
        out.problem = Some(format!(
            "the shape is [{}, {}] in B",
            other.rows, other.cols
        ));
    } else if let (Some(x), Some(y), false) = (matrix_a, matrix_b, structure) {
        let values = |module, matrix| {
            reader
                .dense(module, matrix)
                .map_err(|e| Failure::new(errors::of_store(&e), format!("{}: {e}", site.name)))
        };
        out.relative_error = Some(relative_error(&values(a, x)?, &values(b, y)?));
    }
    Ok(out)
}

/// ‖a − b‖ / ‖a‖; 0 where both are zero, infinite where only `a` is.
fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let (mut difference, mut norm) = (0.0f64, 0.0f64);
    for (&x, &y) in a.iter().zip(b) {
        let (x, y) = (f64::from(x), f64::from(y));
        difference += (x - y) * (x - y);
        norm += x * x;
    }
    if difference == 0.0 {
        0.0
    } else {
        (difference / norm).sqrt()
    }
}

/// Tensors that no matrix holds (norms, biases, tables of constants), by name.
fn other_tensors(
    reader: &Reader<'_>,
    a: &Module,
    b: &Module,
    wanted: &dyn Fn(&str) -> bool,
) -> BTreeMap<String, String> {
    let theirs: HashMap<&str, &Weight> = b
        .weights
        .iter()
        .map(|weight| (weight.name.as_str(), weight))
        .collect();
    let mut found = BTreeMap::new();
    let held = held_by_matrices(a);
    for (weight, _) in a
        .weights
        .iter()
        .zip(held)
        .filter(|(weight, held)| !held && wanted(&weight.name))
    {
        let Some(other) = theirs.get(weight.name.as_str()) else {
            found.insert(weight.name.clone(), "is missing in B".into());
            continue;
        };
        if weight.dtype != other.dtype || weight.dims != other.dims {
            let text = format!(
                "{}{:?} in A, {}{:?} in B",
                weight.dtype, weight.dims, other.dtype, other.dims
            );
            found.insert(weight.name.clone(), text);
            continue;
        }
        let same = match (reader.locate(a, weight), reader.locate(b, other)) {
            (Ok(x), Ok(y)) => matches!((x.bytes(), y.bytes()), (Ok(x), Ok(y)) if x == y),
            _ => false,
        };
        if !same {
            found.insert(weight.name.clone(), "other bytes".into());
        }
    }
    found
}

/// Which weights belong to a matrix, by index.
pub fn held_by_matrices(module: &Module) -> Vec<bool> {
    let mut held = vec![false; module.weights.len()];
    for site in sites(module) {
        let terms = site
            .matrix(module)
            .map(|matrix| matrix.terms.as_slice())
            .unwrap_or_default();
        for id in terms.iter().flat_map(|term| term.weights()) {
            if let Some(slot) = held.get_mut(id.index()) {
                *slot = true;
            }
        }
    }
    held
}

fn as_text(found: &Differences, all: bool) -> String {
    let same = |one: &&Compared| {
        one.problem.is_none() && one.terms_a == one.terms_b && one.relative_error == Some(0.0)
    };
    let mut table = Table::new(&[
        "matrix", "shape", "A", "B", "size A>", "size B>", "rel_err>",
    ]);
    for one in found.matrices.iter().filter(|one| all || !same(one)) {
        let error = match (&one.problem, one.relative_error) {
            (Some(problem), _) => problem.clone(),
            (None, Some(error)) => human::error(error),
            (None, None) => "-".into(),
        };
        table.row([
            one.name.clone(),
            format!("[{},{}]", one.shape[0], one.shape[1]),
            one.terms_a.clone(),
            one.terms_b.clone(),
            human::size(one.bytes_a),
            human::size(one.bytes_b),
            error,
        ]);
    }
    let equal = found.matrices.iter().filter(same).count();
    let mut out = String::new();
    if found.matrices.len() > equal || all {
        out.push_str(&table.render());
        out.push('\n');
    }
    for (names, place) in [(&found.only_in_a, "A"), (&found.only_in_b, "B")] {
        for name in names {
            out.push_str(&format!("only in {place}: {name}\n"));
        }
    }
    for (name, op) in &found.packed_in_b {
        out.push_str(&format!(
            "{name}: a {op} in B, whose values are not compared\n"
        ));
    }
    for (name, what) in &found.tensors {
        out.push_str(&format!("tensor {name}: {what}\n"));
    }
    let worst = found
        .matrices
        .iter()
        .filter_map(|one| one.relative_error)
        .fold(0.0, f64::max);
    let (a, b) = found.matrices.iter().fold((0u64, 0u64), |(a, b), one| {
        (a.saturating_add(one.bytes_a), b.saturating_add(one.bytes_b))
    });
    out.push_str(&format!(
        "{} of {} matrices are equal; largest relative error {}; {} -> {}\n",
        equal,
        found.matrices.len(),
        human::error(worst),
        human::size(a),
        human::size(b)
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::relative_error;

    #[test]
    fn relative_errors() {
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert_eq!(relative_error(&[3.0, 4.0], &[0.0, 0.0]), 1.0);
        assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
        assert_eq!(relative_error(&[0.0], &[1.0]), f64::INFINITY);
        assert!(relative_error(&[f32::NAN], &[1.0]).is_nan());
    }
}
