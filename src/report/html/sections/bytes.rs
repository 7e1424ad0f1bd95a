//! Where the bytes went.

use crate::report::groups::Groups;
use crate::report::html::axis::Axis;
use crate::report::html::markup::{Cell, Figure, Table, block, key, section, tail};
use crate::report::html::plot::{self, Paint, Size};
use crate::report::html::{HtmlError, Page, nothing};
use crate::report::human;
use crate::report::parts::Parts;

/// Kinds of bytes, with their colours.
const KINDS: [(&str, Paint); 6] = [
    ("codes", Paint::Series(0)),
    ("scales and zero points", Paint::Series(5)),
    ("low-rank factors", Paint::Series(1)),
    ("outlier values", Paint::Series(2)),
    ("outlier positions", Paint::Series(4)),
    ("as stored before", Paint::Series(7)),
];

/// A bar: what it is, how many matrices, bytes before where they are known, parts.
struct Bar {
    name: String,
    count: u64,
    params: Option<u64>,
    before: Option<u64>,
    parts: Parts,
}

fn amounts(parts: &Parts) -> [u64; 6] {
    [
        parts.codes,
        parts.scales,
        parts.factors,
        parts.values,
        parts.indices,
        parts.dense,
    ]
}

/// The section.
///
/// # Errors
/// The plot cannot be drawn.
pub fn render(page: &Page<'_>, groups: &Groups) -> Result<String, HtmlError> {
    let title = "Where the bytes went";
    let bars = bars(page, groups);
    let sum = bars
        .iter()
        .map(|bar| bar.parts.total())
        .fold(0, u64::saturating_add);
    if sum == 0 {
        let text = match page.report.model_totals.bytes_after {
            0 => "The output stores nothing.",
            _ => {
                "The report is of an earlier version, which did not say what bytes hold; run again to see it."
            }
        };
        return Ok(section("bytes", title, "", &nothing(text)));
    }
    let mut body = figure(&bars)?;
    body.push_str(&table(&bars, sum));
    let intro = "All bytes of the output by what holds them. Roles are matrices that passes ran on, summed over \
                 the layers; the last rows are what was left alone.";
    Ok(section("bytes", title, intro, &body))
}

fn bars(page: &Page<'_>, groups: &Groups) -> Vec<Bar> {
    let sites = &page.report.sites;
    let named = groups.roles.iter().zip(groups.by_role(sites));
    let mut bars: Vec<Bar> = named
        .map(|(name, sum)| Bar {
            name: name.clone(),
            count: sum.count,
            params: Some(sum.params),
            before: Some(sum.before),
            parts: Parts::default(),
        })
        .collect();
    for (site, (role, _)) in sites.iter().zip(&groups.places) {
        if let Some(bar) = bars.get_mut(*role) {
            bar.parts.add(&site.parts);
        }
    }
    bars.extend(page.report.untouched.iter().map(|group| {
        let dense = group.bytes;
        Bar {
            name: match group.what.as_str() {
                "linear" | "expert" | "router" => format!("other {}s", group.what),
                what => what.to_string(),
            },
            count: group.count,
            params: None,
            before: None,
            parts: Parts {
                dense,
                ..Parts::default()
            },
        }
    }));
    bars
}

/// The unit that bytes of a size are shown in.
fn unit(bytes: u64) -> (f64, &'static str) {
    match bytes {
        0..=0x7fff => (1.0, "bytes"),
        0x8000..=0x1ff_ffff => (1024.0, "KiB"),
        0x200_0000..=0x7_ffff_ffff => (1024.0 * 1024.0, "MiB"),
        _ => (1024.0 * 1024.0 * 1024.0, "GiB"),
    }
}

fn figure(bars: &[Bar]) -> Result<String, HtmlError> {
    let most = bars.iter().map(|bar| bar.parts.total()).max().unwrap_or(0);
    let (scale, unit) = unit(most);
    let names: Vec<String> = bars.iter().map(|bar| tail(&bar.name, 34)).collect();
    let longest = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0) as u32;
    let size = Size {
        width: 760,
        height: 26 * bars.len() as u32 + 62,
        left: 16 + 15 * longest / 2,
        right: 78,
    };
    let x = Axis::linear(unit, 0.0, most as f64 / scale);
    let y = Axis::names("", &names, 1000).reversed();
    let svg = plot::draw("bytes of each role", size, &x, &y, |chart| {
        for (row, bar) in bars.iter().enumerate() {
            let (top, bottom) = (row as f64 + 0.16, row as f64 + 0.84);
            let mut start = 0.0;
            for (amount, (_, paint)) in amounts(&bar.parts).into_iter().zip(KINDS) {
                let end = start + amount as f64 / scale;
                if amount > 0 {
                    plot::cell(chart, (start, top), (end, bottom), paint)?;
                }
                start = end;
            }
            let total = human::size(bar.parts.total());
            plot::note(chart, (start, row as f64 + 0.5), &total, true)?;
        }
        Ok(())
    })?;
    let present = |index: usize| {
        let amount = |bar: &Bar| amounts(&bar.parts).get(index).copied().unwrap_or(0);
        bars.iter().any(|bar| amount(bar) > 0)
    };
    let keys = KINDS.iter().enumerate().filter(|(i, _)| present(*i));
    let figure = Figure {
        title: "Bytes of each role, by what they hold",
        svg,
        key: keys
            .map(|(_, (name, paint))| key(&block(&paint.variable()), name))
            .collect(),
        caption: "A longer bar stores more. Codes are the quantized weights themselves; everything else in a bar \
                  is what the other terms and the scales cost on top.",
        wide: true,
    };
    Ok(figure.render())
}

fn table(bars: &[Bar], sum: u64) -> String {
    let mut table = Table::new(&[
        "role",
        "matrices>",
        "parameters>",
        "before>",
        "after>",
        "bits per weight>",
        "share of output>",
    ]);
    let dash = || Cell::text("–");
    for bar in bars {
        let bytes = bar.parts.total();
        let bits = bar.params.map(|p| 8.0 * bytes as f64 / p.max(1) as f64);
        let share = 100.0 * bytes as f64 / sum.max(1) as f64;
        table.row([
            Cell::name(&bar.name),
            Cell::number(&bar.count.to_string(), bar.count as f64),
            bar.params.map_or_else(
                || Cell::text("left alone"),
                |p| Cell::number(&human::count(p), p as f64),
            ),
            bar.before
                .map_or_else(dash, |b| Cell::number(&human::size(b), b as f64)),
            Cell::number(&human::size(bytes), bytes as f64),
            bits.map_or_else(dash, |b| Cell::number(&format!("{b:.2}"), b)),
            Cell::number(&format!("{share:.1} %"), share),
        ]);
    }
    table.render()
}
