//! What each pass did.

use crate::report::html::markup::{Cell, Table, section};
use crate::report::html::{Page, nothing};
use crate::report::{SiteReport, human};

/// Sums over the sites of one pass.
struct Done {
    pass: String,
    sites: u64,
    bytes: u64,
    params: f64,
    before: f64,
    after: f64,
}

/// The section.
pub fn render(page: &Page<'_>) -> String {
    let done = collect(&page.report.sites);
    let title = "What each pass did";
    if done.is_empty() {
        return section("passes", title, "", &nothing("No pass ran on a matrix."));
    }
    let all = page.report.model_totals.bytes_after.max(1);
    let mut table = Table::new(&[
        "pass",
        "matrices>",
        "bytes of its terms>",
        "share of output>",
        "error in front>",
        "error behind>",
    ]);
    for pass in &done {
        let share = 100.0 * pass.bytes as f64 / all as f64;
        let error = |squares: f64| (squares / pass.params.max(1.0)).sqrt();
        table.row([
            Cell::text(&pass.pass),
            Cell::number(&pass.sites.to_string(), pass.sites as f64),
            Cell::number(&human::size(pass.bytes), pass.bytes as f64),
            Cell::number(&format!("{share:.1} %"), share),
            Cell::number(&human::error(error(pass.before)), error(pass.before)),
            Cell::number(&human::error(error(pass.after)), error(pass.after)),
        ]);
    }
    let intro = "Each pass takes a term out of what those before it left. Errors are relative to the source, averaged \
                 over the matrices that the pass ran on (root mean square, by parameters); 1 is a matrix of which \
                 nothing is stored yet. Matrices that were put back are not counted.";
    section("passes", title, intro, &table.render())
}

fn collect(sites: &[SiteReport]) -> Vec<Done> {
    let mut done: Vec<Done> = Vec::new();
    for site in sites.iter().filter(|site| site.reverted.is_none()) {
        let mut before = 1.0;
        let weight = site.params_before as f64;
        for (at, step) in site.steps.iter().enumerate() {
            // The same pass twice in a pipeline is two steps.
            let twice = site
                .steps
                .iter()
                .take(at)
                .filter(|s| s.pass == step.pass)
                .count();
            let name = match twice {
                0 => step.pass.clone(),
                _ => format!("{} ({})", step.pass, twice + 1),
            };
            let known = done.iter().position(|d| d.pass == name);
            let index = known.unwrap_or_else(|| {
                done.push(Done {
                    pass: name,
                    sites: 0,
                    bytes: 0,
                    params: 0.0,
                    before: 0.0,
                    after: 0.0,
                });
                done.len() - 1
            });
            if let Some(sum) = done.get_mut(index) {
                sum.sites += 1;
                sum.bytes = sum.bytes.saturating_add(step.bytes);
                sum.params += weight;
                sum.before += weight * before * before;
                sum.after += weight * step.rel_error * step.rel_error;
            }
            before = step.rel_error;
        }
    }
    done
}
