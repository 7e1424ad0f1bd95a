//! Bits per weight and error by layer and role.

use std::collections::BTreeMap;

use crate::report::groups::{Groups, Sum};
use crate::report::html::axis::Axis;
use crate::report::html::markup::{Figure, block, key, section, tail};
use crate::report::html::plot::{self, Paint, RAMP, SERIES, Size};
use crate::report::html::{HtmlError, Page, nothing};
use crate::report::human;

/// Dots of a plot; more are put together by layer and role.
const MOST_DOTS: usize = 3000;
/// Columns up to which lines have a mark at each.
const MOST_MARKS: usize = 40;

type Places = BTreeMap<(usize, usize), Sum>;

/// The section.
///
/// # Errors
/// A plot cannot be drawn.
pub fn render(page: &Page<'_>, groups: &Groups) -> Result<String, HtmlError> {
    let title = "By layer and role";
    let sites = &page.report.sites;
    if sites.is_empty() {
        let text = nothing("No matrix was rewritten, so there is nothing to tell apart.");
        return Ok(section("layers", title, "", &text));
    }
    let places = groups.by_place(sites);
    let series = series(groups, sites);
    let mut body = String::new();
    body.push_str(&heat(groups, &places, &BITS)?);
    body.push_str(&heat(groups, &places, &ERROR)?);
    body.push_str("<div class=\"pair\">\n");
    body.push_str(&lines(groups, &places, &series)?);
    body.push_str(&dots(page, groups, &places, &series)?);
    body.push_str("</div>\n");
    let intro = "Roles are what matrices are called inside a layer. Several matrices of one place (experts) are \
                 averaged by their parameters.";
    Ok(section("layers", title, intro, &body))
}

/// Which series a role is drawn as: the largest have their own, the rest share the last.
struct Series {
    of_role: Vec<usize>,
    names: Vec<String>,
}

fn series(groups: &Groups, sites: &[crate::report::SiteReport]) -> Series {
    let sums = groups.by_role(sites);
    let mut order: Vec<usize> = (0..groups.roles.len()).collect();
    let several = groups.roles.len() > SERIES;
    if several {
        order.sort_by_key(|&role| std::cmp::Reverse(sums.get(role).map_or(0, |s| s.params)));
    }
    let own = if several { SERIES - 1 } else { SERIES };
    let mut of_role = vec![SERIES - 1; groups.roles.len()];
    let mut names = Vec::new();
    for (index, role) in order.iter().take(own).enumerate() {
        if let (Some(slot), Some(name)) = (of_role.get_mut(*role), groups.roles.get(*role)) {
            *slot = index;
            names.push(name.clone());
        }
    }
    if several {
        names.push(format!("{} more roles", groups.roles.len() - own));
    }
    Series { of_role, names }
}

impl Series {
    fn of(&self, role: usize) -> usize {
        self.of_role.get(role).copied().unwrap_or(SERIES - 1)
    }

    fn keys(&self) -> String {
        let named = self.names.iter().enumerate();
        named.map(|(i, name)| key(&plot::swatch(i), name)).collect()
    }
}

/// What a map shows.
struct Shown {
    title: &'static str,
    caption: &'static str,
    value: fn(&Sum) -> f64,
    text: fn(f64) -> String,
    log: bool,
}

const BITS: Shown = Shown {
    title: "Bits per weight",
    caption: "Every box is one role in one layer; the stronger its colour, the more bits it stores per weight of \
              the source, everything counted. The number behind a row is its average.",
    value: Sum::bits,
    text: |bits| format!("{bits:.2}"),
    log: false,
};

const ERROR: Shown = Shown {
    title: "Relative error of the weights",
    caption: "‖W − what is stored‖ / ‖W‖: the stronger the colour, the further a matrix is from its source. 0.1 means \
              that a tenth of its size is lost, 1 that nothing of it is left.",
    value: Sum::error,
    text: human::error,
    log: true,
};

fn heat(groups: &Groups, places: &Places, shown: &Shown) -> Result<String, HtmlError> {
    let values: Vec<f64> = places
        .values()
        .map(shown.value)
        .filter(|v| v.is_finite())
        .collect();
    let low = values
        .iter()
        .copied()
        .filter(|v| !shown.log || *v > 0.0)
        .fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    let rows: Vec<usize> = (0..groups.roles.len())
        .filter(|role| places.keys().any(|(r, _)| r == role))
        .collect();
    if rows.is_empty() || !low.is_finite() {
        return Ok(nothing(&format!("{}: nothing to show.", shown.title)));
    }
    let log = shown.log && high > 10.0 * low;
    let step = |value: f64| match (log, high > low) {
        (_, false) => RAMP / 2,
        (_, true) if value <= low => 0,
        (true, true) => level((value / low).ln() / (high / low).ln()),
        (false, true) => level((value - low) / (high - low)),
    };
    let name = |role: &usize| groups.roles.get(*role).map_or("", String::as_str);
    let names: Vec<String> = rows.iter().map(|role| tail(name(role), 26)).collect();
    let longest = names.iter().map(|n| n.chars().count()).max().unwrap_or(0) as u32;
    let left = 16 + 15 * longest / 2;
    let boxes = (groups.columns.len() as u32 * 26).clamp(330, 900);
    let size = Size {
        width: left + boxes + 64,
        height: 24 * rows.len() as u32 + 60,
        left,
        right: 64,
    };
    let x = Axis::names(groups.axis, &groups.columns, boxes as usize / 26);
    let y = Axis::names("", &names, 1000).reversed();
    let svg = plot::draw(shown.title, size, &x, &y, |chart| {
        for (row, role) in rows.iter().enumerate() {
            let (top, bottom) = (row as f64 + 0.05, row as f64 + 0.95);
            let mut sum = (0.0, 0.0);
            for ((_, column), place) in places.range((*role, 0)..(*role + 1, 0)) {
                let value = (shown.value)(place);
                let (from, to) = (*column as f64 + 0.04, *column as f64 + 0.96);
                let paint = Paint::Ramp(step(value));
                plot::cell(chart, (from, top), (to, bottom), paint)?;
                sum = (
                    sum.0 + place.params as f64 * value,
                    sum.1 + place.params as f64,
                );
            }
            let mean = (shown.text)(sum.0 / sum.1);
            let end = groups.columns.len() as f64;
            plot::note(chart, (end, row as f64 + 0.5), &mean, true)?;
        }
        Ok(())
    })?;
    Ok(Figure {
        title: shown.title,
        svg,
        key: ramp(low, high, log, shown),
        caption: shown.caption,
        wide: true,
    }
    .render())
}

fn level(share: f64) -> usize {
    ((share * RAMP as f64) as usize).min(RAMP - 1)
}

/// The key of a ramp: its steps between the smallest and the largest value.
fn ramp(low: f64, high: f64, log: bool, shown: &Shown) -> String {
    if high <= low {
        let paint = Paint::Ramp(RAMP / 2);
        return key(
            &block(&paint.variable()),
            &format!("{} everywhere", (shown.text)(high)),
        );
    }
    let blocks: String = (0..RAMP)
        .map(|i| block(&Paint::Ramp(i).variable()))
        .collect();
    let ends = ((shown.text)(low), (shown.text)(high));
    let kind = if log { ", logarithmic" } else { "" };
    format!(
        "<span>{} <span class=\"ramp\">{blocks}</span> {}{kind}</span>",
        ends.0, ends.1
    )
}

/// Ends of positive, finite values.
fn span(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let good = values.filter(|v| v.is_finite() && *v > 0.0);
    good.fold(None, |ends, v| match ends {
        None => Some((v, v)),
        Some((low, high)) => Some((low.min(v), high.max(v))),
    })
}

fn lines(groups: &Groups, places: &Places, series: &Series) -> Result<String, HtmlError> {
    let Some((low, high)) = span(places.values().map(Sum::error)) else {
        return Ok(nothing("No matrix has an error: all are as they were."));
    };
    let x = Axis::names(groups.axis, &groups.columns, 12);
    let y = Axis::log("relative error", low, high);
    let every = groups.columns.len().div_ceil(MOST_MARKS).max(1);
    let svg = plot::draw("relative error by layer", Size::HALF, &x, &y, |chart| {
        for (role, _) in groups.roles.iter().enumerate() {
            let own = places.range((role, 0)..(role + 1, 0));
            let points: Vec<(f64, f64)> = own
                .map(|((_, column), sum)| (*column as f64 + 0.5, sum.error()))
                .filter(|(_, error)| *error > 0.0 && error.is_finite())
                .map(|(x, error)| (x, error.log10()))
                .collect();
            plot::line(chart, points.iter().copied(), series.of(role))?;
            plot::mark(chart, points.into_iter().step_by(every), series.of(role))?;
        }
        Ok(())
    })?;
    Ok(Figure {
        title: "Error along the model",
        svg,
        key: series.keys(),
        caption: "Lower is closer to the source. A line that stands out is a role that the pipeline treats badly; a \
                  peak is a layer to protect (with an override -t).",
        wide: false,
    }
    .render())
}

fn dots(
    page: &Page<'_>,
    groups: &Groups,
    places: &Places,
    series: &Series,
) -> Result<String, HtmlError> {
    let sites = &page.report.sites;
    let many = sites.len() > MOST_DOTS;
    let all: Vec<(usize, f64, f64)> = match many {
        true => places
            .iter()
            .map(|((role, _), s)| (*role, s.bits(), s.error()))
            .collect(),
        false => {
            let roles = groups.places.iter().map(|(role, _)| *role);
            let values = sites.iter().map(|s| (s.bits_per_weight, s.rel_error));
            roles
                .zip(values)
                .map(|(role, (bits, error))| (role, bits, error))
                .collect()
        }
    };
    let all: Vec<_> = all
        .into_iter()
        .filter(|(_, bits, e)| bits.is_finite() && *e > 0.0)
        .collect();
    let Some((low, high)) = span(all.iter().map(|(_, _, error)| *error)) else {
        return Ok(String::new());
    };
    let bits = span(all.iter().map(|(_, bits, _)| *bits)).unwrap_or((0.0, 1.0));
    let pad = 0.06 * (bits.1 - bits.0).max(0.05);
    let x = Axis::linear("bits per weight", bits.0 - pad, bits.1 + pad);
    let y = Axis::log("relative error", low, high);
    let svg = plot::draw(
        "error against bits per weight",
        Size::HALF,
        &x,
        &y,
        |chart| {
            for index in 0..series.names.len() {
                let own = all.iter().filter(|(role, ..)| series.of(*role) == index);
                plot::mark(
                    chart,
                    own.map(|(_, bits, error)| (*bits, error.log10())),
                    index,
                )?;
            }
            Ok(())
        },
    )?;
    let what = if many {
        "Every mark is a role in a layer."
    } else {
        "Every mark is a matrix."
    };
    let caption = format!(
        "{what} Left is smaller, down is closer to the source: marks at the right that are not lower than others \
         spend bits without need."
    );
    Ok(Figure {
        title: "Error against size",
        svg,
        key: series.keys(),
        caption: &caption,
        wide: false,
    }
    .render())
}
