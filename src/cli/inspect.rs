//! `inspect`: what a model holds, read from headers alone.

use super::args::InspectArgs;
use super::describe::{bits_per_weight, percent, terms};
use super::diff::held_by_matrices;
use super::table::Table;
use super::{Exit, Failure, dot, load, print};
use crate::ir::site::{Site, sites};
use crate::ir::{Module, Role, Storage, Weight, text};
use crate::report::human;
use serde_json::{Value, json};

/// Shows a model's linears, tensors or graph.
pub fn run(args: &InspectArgs) -> Result<Exit, Failure> {
    let module = load::model(&args.input)?;
    let out = if args.dot {
        dot::render(&module)
    } else if args.json {
        let text = serde_json::to_string_pretty(&as_json(&module, args)).unwrap_or_default();
        text + "\n"
    } else {
        as_text(&module, args)
    };
    print(out.as_bytes())?;
    Ok(Exit::Ok)
}

/// A site with its figures.
struct Row<'a> {
    site: &'a Site,
    bytes: u64,
    terms: String,
    dtype: String,
}

fn row<'a>(module: &Module, site: &'a Site) -> Row<'a> {
    let matrix = site.matrix(module);
    let dense = matrix
        .and_then(|m| m.dense_view())
        .and_then(|view| module.weight(view.weight));
    Row {
        site,
        bytes: matrix.map_or(0, |m| m.bytes(&module.weights)),
        terms: matrix.map_or_else(String::new, |m| terms(module, m)),
        dtype: dense.map_or_else(|| "-".into(), |w| w.dtype.to_string()),
    }
}

fn roles(site: &Site) -> String {
    let names: Vec<&str> = site.roles.iter().map(|role: &Role| role.name()).collect();
    names.join("+")
}

fn stored(module: &Module) -> u64 {
    module
        .weights
        .iter()
        .map(Weight::bytes)
        .fold(0, u64::saturating_add)
}

/// Entries of all matrices, however they are stored, and floats outside them.
pub(super) fn parameters(module: &Module) -> u64 {
    let entries = sites(module)
        .iter()
        .map(|site| site.rows.saturating_mul(site.cols))
        .fold(0, u64::saturating_add);
    let held = held_by_matrices(module);
    let others = module
        .weights
        .iter()
        .zip(held)
        .filter(|(weight, held)| !held && weight.dtype.is_float());
    others
        .filter_map(|(weight, _)| weight.elements())
        .fold(entries, u64::saturating_add)
}

fn as_text(module: &Module, args: &InspectArgs) -> String {
    let sites = sites(module);
    let rows: Vec<Row<'_>> = sites.iter().map(|site| row(module, site)).collect();
    let mut out = summary(module, &rows);
    if args.graph {
        out.push('\n');
        // The text form without its weights: they are what --tensors lists.
        for line in text::print(module)
            .lines()
            .filter(|line| !line.trim_start().starts_with("weight "))
        {
            out.push_str(line);
            out.push('\n');
        }
    }
    if args.tensors {
        out.push('\n');
        out.push_str(&tensor_table(module));
    }
    if !args.graph && !args.tensors {
        out.push('\n');
        out.push_str(&site_table(&rows));
    }
    out
}

fn summary(module: &Module, rows: &[Row<'_>]) -> String {
    let total = stored(module);
    let of = |role: Role| {
        let chosen = rows.iter().filter(|row| row.site.roles.contains(&role));
        chosen.fold((0usize, 0u64), |(count, bytes), row| {
            (count + 1, bytes.saturating_add(row.bytes))
        })
    };
    let ops: usize = module.graphs.iter().map(|graph| graph.walk().len()).sum();
    let mut out = format!(
        "{}: {} parameters in {}, {}; {}\n",
        if module.name.is_empty() {
            "model"
        } else {
            &module.name
        },
        human::count(parameters(module)),
        human::plural(module.weights.len(), "tensor"),
        human::size(total),
        human::plural(ops, "op"),
    );
    for (name, role) in [
        ("linear", Role::Linear),
        ("expert linear", Role::Expert),
        ("embedding", Role::Embedding),
        ("head", Role::Head),
    ] {
        let (count, bytes) = of(role);
        if count > 0 {
            let share = percent(bytes as f64 / (total as f64).max(1.0));
            let count = human::plural(count, name);
            out.push_str(&format!("  {count}: {} ({share})\n", human::size(bytes)));
        }
    }
    out
}

fn site_table(rows: &[Row<'_>]) -> String {
    let mut table = Table::new(&[
        "matrix",
        "role",
        "out>",
        "in>",
        "terms",
        "size>",
        "bits/weight>",
    ]);
    for row in rows {
        let entries = row.site.rows.saturating_mul(row.site.cols);
        table.row([
            row.site.name.clone(),
            roles(row.site),
            row.site.rows.to_string(),
            row.site.cols.to_string(),
            row.terms.clone(),
            human::size(row.bytes),
            format!("{:.2}", bits_per_weight(row.bytes, entries)),
        ]);
    }
    table.render()
}

fn tensor_table(module: &Module) -> String {
    let mut table = Table::new(&["tensor", "type", "shape", "size>", "where"]);
    for weight in &module.weights {
        let dims: Vec<String> = weight.dims.iter().map(u64::to_string).collect();
        table.row([
            weight.name.clone(),
            weight.dtype.to_string(),
            format!("[{}]", dims.join(",")),
            human::size(weight.bytes()),
            place(weight),
        ]);
    }
    table.render()
}

fn place(weight: &Weight) -> String {
    match &weight.storage {
        Storage::File { path, offset, .. } => format!("{path}@{offset:#x}"),
        Storage::Concat(parts) => format!("{} parts", parts.len()),
        Storage::Rotated(_) => "turned when read".into(),
        Storage::Inline(_) => "inline".into(),
        Storage::Synthetic(_) => "synthetic".into(),
        Storage::Absent => "absent".into(),
    }
}

fn as_json(module: &Module, args: &InspectArgs) -> Value {
    let sites = sites(module);
    let matrices: Vec<Value> = sites
        .iter()
        .map(|site| {
            let row = row(module, site);
            let roles: Vec<&str> = site.roles.iter().map(|role| role.name()).collect();
            json!({
                "name": site.name,
                "roles": roles,
                "layer": site.layer,
                "out": site.rows,
                "in": site.cols,
                "dtype": row.dtype,
                "terms": row.terms,
                "bytes": row.bytes,
                "bits_per_weight": bits_per_weight(row.bytes, site.rows.saturating_mul(site.cols)),
                "users": site.users.len(),
            })
        })
        .collect();
    let ops: usize = module.graphs.iter().map(|graph| graph.walk().len()).sum();
    let mut out = json!({
        "name": module.name,
        "parameters": parameters(module),
        "tensors": module.weights.len(),
        "bytes": stored(module),
        "ops": ops,
        "matrices": matrices,
    });
    if args.tensors {
        out["weights"] = module.weights.iter().map(weight_json).collect();
    }
    if args.graph {
        out["graph"] = text::print(module).into();
    }
    out
}

fn weight_json(weight: &Weight) -> Value {
    json!({
        "name": weight.name,
        "dtype": weight.dtype.to_string(),
        "shape": weight.dims,
        "bytes": weight.bytes(),
        "where": place(weight),
        "sha256": weight.sha256,
    })
}
