//! Singular values of the original, and the energy that a rank holds.

use crate::report::html::axis::{Axis, thinned};
use crate::report::html::markup::{Cell, Figure, Table, escape, key, section, tail};
use crate::report::html::plot::{self, SERIES, Size};
use crate::report::html::{HtmlError, Page, nothing};
use crate::report::spectra::{Spectra, Spectrum};

/// Points of a line.
const MOST_POINTS: usize = 120;

/// The section.
///
/// # Errors
/// A plot cannot be drawn.
pub fn render(page: &Page<'_>) -> Result<String, HtmlError> {
    let title = "Spectra of the original";
    let (list, left_out) = match page.spectra {
        Spectra::Absent(why) => return Ok(section("spectra", title, "", &nothing(why))),
        Spectra::Found { list, left_out } => (list, left_out),
    };
    let mut body = String::new();
    for group in list.chunks(SERIES) {
        body.push_str("<div class=\"pair\">\n");
        body.push_str(&falling(group)?);
        body.push_str(&energy(group)?);
        body.push_str("</div>\n");
    }
    if !list.is_empty() {
        body.push_str(&table(list));
    }
    for (name, why) in left_out {
        body.push_str(&format!(
            "<p class=\"none\"><code>{}</code> {}.</p>\n",
            escape(name),
            escape(why)
        ));
    }
    if list.is_empty() && left_out.is_empty() {
        body.push_str(&nothing("No matrix was rewritten, so none was decomposed."));
    }
    let intro = "What a low rank can find: of each role the matrix with the largest error, then the next ones. Where \
                 values fall quickly, a low-rank term is cheap; where they hardly fall, only codes help.";
    Ok(section("spectra", title, intro, &body))
}

fn keys(list: &[Spectrum]) -> String {
    let named = list.iter().enumerate();
    named
        .map(|(i, s)| key(&plot::swatch(i), &tail(&s.name, 44)))
        .collect()
}

/// The longest of the spectra, in ranks.
fn ranks(list: &[Spectrum]) -> f64 {
    list.iter()
        .map(|s| s.values.len())
        .max()
        .unwrap_or(1)
        .max(2) as f64
}

fn falling(list: &[Spectrum]) -> Result<String, HtmlError> {
    let relative = |s: &Spectrum| -> Vec<f64> {
        let first = s
            .values
            .first()
            .copied()
            .map_or(1.0, f64::from)
            .max(f64::MIN_POSITIVE);
        s.values.iter().map(|v| f64::from(*v) / first).collect()
    };
    let lines: Vec<Vec<f64>> = list.iter().map(relative).collect();
    let low = lines
        .iter()
        .flatten()
        .copied()
        .filter(|v| *v > 0.0)
        .fold(1.0, f64::min);
    // The last values of a nearly singular matrix would flatten everything above them.
    let low = low.max(1e-4);
    let x = Axis::linear("rank", 0.0, ranks(list));
    let y = Axis::log("singular value / largest", low, 1.0);
    let svg = plot::draw("singular values", Size::HALF, &x, &y, |chart| {
        for (series, line) in lines.iter().enumerate() {
            let places = thinned(line.len(), MOST_POINTS);
            let points: Vec<(f64, f64)> = places
                .into_iter()
                .filter_map(|i| Some((i as f64 + 1.0, *line.get(i)?)))
                .filter(|(_, v)| *v >= low)
                .map(|(x, v)| (x, v.log10()))
                .collect();
            let marks: Vec<(f64, f64)> = marks(&points, series);
            plot::line(chart, points, series)?;
            plot::mark(chart, marks, series)?;
        }
        Ok(())
    })?;
    Ok(Figure {
        title: "Singular values",
        svg,
        key: keys(list),
        caption: "Each line is a matrix, its singular values in falling order, relative to its largest. Cut at 0.0001.",
        wide: false,
    }
    .render())
}

/// A few of a line's points, at other places for each line.
fn marks(points: &[(f64, f64)], series: usize) -> Vec<(f64, f64)> {
    let every = (points.len() / 5).max(1);
    points
        .iter()
        .copied()
        .skip(every * (series % 5) / 5)
        .step_by(every)
        .collect()
}

fn energy(list: &[Spectrum]) -> Result<String, HtmlError> {
    let x = Axis::linear("rank", 0.0, ranks(list));
    let y = Axis::linear("share of the energy, %", 0.0, 100.0);
    let svg = plot::draw("energy against rank", Size::HALF, &x, &y, |chart| {
        for (series, spectrum) in list.iter().enumerate() {
            let energy = spectrum.energy();
            let point = |i: usize| Some((i as f64 + 1.0, 100.0 * energy.get(i)?));
            let places = thinned(energy.len(), MOST_POINTS);
            let line = std::iter::once((0.0, 0.0)).chain(places.into_iter().filter_map(point));
            plot::line(chart, line, series)?;
            let taken = spectrum.rank.and_then(|rank| point(rank.checked_sub(1)?));
            plot::mark(chart, taken, series)?;
        }
        Ok(())
    })?;
    let any = list.iter().any(|s| s.rank.is_some());
    Ok(Figure {
        title: "Energy against rank",
        svg,
        key: keys(list),
        caption: match any {
            true => "How much of ‖W‖² the first singular values hold. The marks are the ranks that the pipeline took: the \
                     height of a mark is what its low-rank term can hold at most.",
            false => "How much of ‖W‖² the first singular values hold: the height of a line at a rank is what a low-rank \
                      term of this rank could hold at most.",
        },
        wide: false,
    }
    .render())
}

fn table(list: &[Spectrum]) -> String {
    let mut table = Table::new(&[
        "matrix",
        "shape",
        "values computed>",
        "50 % of the energy>",
        "90 %>",
        "90 % of noise>",
        "99 %>",
        "rank taken>",
        "its energy>",
    ]);
    for spectrum in list {
        let rank = |share: f64| match spectrum.rank_of(share) {
            Some(rank) => Cell::number(&rank.to_string(), rank as f64),
            None => Cell::text(&format!("> {}", spectrum.values.len())),
        };
        let noise = spectrum.rank_of_noise(0.9);
        let taken = spectrum.rank;
        let held = taken.and_then(|r| spectrum.energy().get(r.checked_sub(1)?).copied());
        let [out, inp] = spectrum.shape;
        let dash = || Cell::text("–");
        table.row([
            Cell::name(&spectrum.name),
            Cell::text(&format!("{out}\u{a0}×\u{a0}{inp}")),
            Cell::text(&format!(
                "{} of {}",
                spectrum.values.len(),
                spectrum.full_rank()
            )),
            rank(0.5),
            rank(0.9),
            Cell::number(&noise.to_string(), noise as f64),
            rank(0.99),
            taken.map_or_else(dash, |r| Cell::number(&r.to_string(), r as f64)),
            held.map_or_else(dash, |e| Cell::number(&format!("{:.1} %", 100.0 * e), e)),
        ]);
    }
    format!(
        "<p>Ranks at which the energy is reached. Noise is a matrix of independent entries of the same shape (the law of \
         Marchenko and Pastur): a rank near it says that there is no structure to find.</p>\n{}",
        table.render()
    )
}
