//! Every matrix.

use crate::report::groups::{Groups, layer};
use crate::report::html::markup::{Cell, Table, escape, section};
use crate::report::html::{Page, nothing};
use crate::report::{SiteReport, human};

/// Rows of the table; what is left out is told.
const MOST_ROWS: usize = 2000;

/// The section.
pub fn render(page: &Page<'_>, groups: &Groups) -> String {
    let sites = &page.report.sites;
    let title = "Every matrix";
    if sites.is_empty() {
        return section("matrices", title, "", &nothing("No matrix was rewritten."));
    }
    let mut order: Vec<usize> = (0..sites.len()).collect();
    let error = |index: &usize| sites.get(*index).map_or(0.0, |s: &SiteReport| s.rel_error);
    order.sort_by(|a, b| error(b).total_cmp(&error(a)));
    let worst = sites
        .iter()
        .map(|s| s.rel_error)
        .filter(|e| e.is_finite())
        .fold(0.0, f64::max);
    let noted = sites.iter().any(|site| site.reverted.is_some());
    let mut heads = vec![
        "matrix",
        "role",
        "layer>",
        "shape",
        "stored as",
        "before>",
        "after>",
        "bits per weight>",
        "relative error>",
        "FLOPs left>",
    ];
    heads.extend(noted.then_some("note"));
    let mut table = Table::new(&heads).class("tall sortable");
    for index in order.iter().take(MOST_ROWS) {
        let (Some(site), Some((role, _))) = (sites.get(*index), groups.places.get(*index)) else {
            continue;
        };
        let role = groups.roles.get(*role).map_or("", String::as_str);
        let note = noted.then(|| Cell::text(site.reverted.as_deref().unwrap_or("")));
        table.row(row(site, role, worst).into_iter().chain(note));
    }
    let mut intro = String::from("The largest errors first; a click on a heading sorts by it.");
    if sites.len() > MOST_ROWS {
        intro.push_str(&format!(
            " These are {MOST_ROWS} of {} matrices; all of them are in report.json.",
            sites.len()
        ));
    }
    section("matrices", title, &intro, &table.render())
}

fn row(site: &SiteReport, role: &str, worst: f64) -> Vec<Cell> {
    let [out, inp] = site.shape;
    let layer = layer(site);
    let share = 100.0 * site.flops_after as f64 / site.flops_before.max(1) as f64;
    let bar = match worst > 0.0 && site.rel_error.is_finite() {
        true => 100.0 * site.rel_error / worst,
        false => 0.0,
    };
    let error = human::error(site.rel_error);
    let error = Cell::html(format!(
        "<span class=\"bar\" style=\"--w:{bar:.0}%\">{}</span>",
        escape(&error)
    ));
    vec![
        Cell::name(&site.name),
        Cell::text(role),
        layer.map_or_else(
            || Cell::text("–"),
            |l| Cell::number(&l.to_string(), f64::from(l)),
        ),
        Cell::number(&format!("{out} × {inp}"), site.params_before as f64),
        Cell::text(&stored(site)),
        Cell::number(&human::size(site.bytes_before), site.bytes_before as f64),
        Cell::number(&human::size(site.bytes_after), site.bytes_after as f64),
        Cell::number(
            &format!("{:.2}", site.bits_per_weight),
            site.bits_per_weight,
        ),
        error.valued(site.rel_error),
        Cell::number(&format!("{share:.0} %"), share),
    ]
}

/// The terms in short: `r32 + 0.5 % outliers + int4`.
fn stored(site: &SiteReport) -> String {
    if site.reverted.is_some() {
        return site.source_dtype.clone();
    }
    let word = |term: &str| match term.ends_with('%') {
        true => format!("{term} outliers"),
        false => term.to_string(),
    };
    let terms = site.steps.iter().map(|step| step.term.as_str());
    let terms: Vec<String> = terms.filter(|term| !term.is_empty()).map(word).collect();
    match terms.is_empty() {
        true => site.source_dtype.clone(),
        false => terms.join(" + "),
    }
}
