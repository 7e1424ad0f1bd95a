//! Plots as SVG that follows the page: colours are the page's variables, sizes are a view box.
//!
//! The plotting crate knows fixed colours only, so each colour of the page is drawn as one that stands
//! for it and is put in afterwards.

use std::fmt::Write;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::HtmlError;
use super::axis::Axis;

/// Units of a plot per pixel of the page: coordinates are whole numbers, and half a pixel shows.
pub const SCALE: u32 = 2;
/// Size of text; the SVG back end writes it divided by 1.24.
const TEXT: u32 = 32;

/// A colour of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// One of the eight of a series.
    Series(usize),
    /// One of the nine of a ramp, low to high.
    Ramp(usize),
    /// Text.
    Ink,
    /// Text that matters less, and axes.
    Muted,
    /// Lines of a grid.
    Grid,
    /// The plot's ground.
    Ground,
}

/// Colours of a series.
pub const SERIES: usize = 8;
/// Steps of a ramp.
pub const RAMP: usize = 9;

impl Paint {
    fn index(self) -> u8 {
        match self {
            Paint::Series(i) => (i % SERIES) as u8,
            Paint::Ramp(i) => 16 + i.min(RAMP - 1) as u8,
            Paint::Ink => 32,
            Paint::Muted => 33,
            Paint::Grid => 34,
            Paint::Ground => 35,
        }
    }

    /// The page's variable.
    pub fn variable(self) -> String {
        match self {
            Paint::Series(i) => format!("var(--s{})", i % SERIES),
            Paint::Ramp(i) => format!("var(--r{})", i.min(RAMP - 1)),
            Paint::Ink => "var(--ink)".into(),
            Paint::Muted => "var(--muted)".into(),
            Paint::Grid => "var(--grid)".into(),
            Paint::Ground => "var(--ground)".into(),
        }
    }

    /// The colour that stands for it while plots are drawn.
    pub fn color(self) -> RGBColor {
        RGBColor(254, 1, self.index())
    }

    fn all() -> Vec<Paint> {
        let rest = [Paint::Ink, Paint::Muted, Paint::Grid, Paint::Ground];
        let series = (0..SERIES).map(Paint::Series);
        series
            .chain((0..RAMP).map(Paint::Ramp))
            .chain(rest)
            .collect()
    }
}

/// A plot that is being drawn.
pub type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

/// What drawing may end with.
pub type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// A plot's outer measures.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Room for the text at the left, pixels.
    pub left: u32,
    /// Room at the right, pixels.
    pub right: u32,
}

impl Size {
    /// Half of the page's width: what is read on a telephone too.
    pub const HALF: Size = Size {
        width: 480,
        height: 330,
        left: 62,
        right: 16,
    };
}

/// Draws a plot: axes, then what `paint` adds.
///
/// # Errors
/// The plotting crate refuses; it has no reason to.
pub fn draw(
    label: &str,
    size: Size,
    x: &Axis,
    y: &Axis,
    paint: impl FnOnce(&mut Chart<'_, '_>) -> Drawn,
) -> Result<String, HtmlError> {
    let mut svg = String::new();
    let outcome = onto(&mut svg, size, x, y, paint);
    outcome.map_err(|error| HtmlError::Plot(format!("{label}: {error}")))?;
    Ok(dressed(&svg, label, size.width))
}

fn onto(
    svg: &mut String,
    size: Size,
    x: &Axis,
    y: &Axis,
    paint: impl FnOnce(&mut Chart<'_, '_>) -> Drawn,
) -> Drawn {
    let root = SVGBackend::with_string(svg, (size.width * SCALE, size.height * SCALE));
    let root = root.into_drawing_area();
    let bottom = if x.label.is_empty() { 24 } else { 46 };
    let mut chart = ChartBuilder::on(&root)
        .margin_top(10 * SCALE)
        .margin_right(size.right * SCALE)
        .set_label_area_size(LabelAreaPosition::Left, size.left * SCALE)
        .set_label_area_size(LabelAreaPosition::Bottom, bottom * SCALE)
        .build_cartesian_2d(x.clone(), y.clone())?;
    let text = |paint: Paint| ("sans-serif", TEXT).into_font().color(&paint.color());
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(x.label.clone())
        .y_desc(y.label.clone())
        .x_labels(400)
        .y_labels(400)
        .label_style(text(Paint::Muted))
        .axis_desc_style(text(Paint::Ink))
        .axis_style(Paint::Grid.color())
        .bold_line_style(Paint::Grid.color())
        .light_line_style(TRANSPARENT);
    if !x.grid {
        mesh.disable_x_mesh();
    }
    if !y.grid {
        mesh.disable_y_mesh();
    }
    let (of_x, of_y) = (|v: &f64| x.text(*v), |v: &f64| y.text(*v));
    mesh.x_label_formatter(&of_x)
        .y_label_formatter(&of_y)
        .draw()?;
    paint(&mut chart)?;
    drop(chart);
    root.present()
}

/// The drawing with the page's colours, and a name for those who can't see it.
fn dressed(svg: &str, label: &str, width: u32) -> String {
    // The back end escapes what is markup, and leaves the rest of a name as it is.
    let mut out = super::markup::visible(svg).replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
    for plain in [
        " opacity=\"1\"",
        " font-family=\"sans-serif\"",
        " stroke=\"none\"",
    ] {
        out = out.replace(plain, "");
    }
    for paint in Paint::all() {
        let RGBColor(r, g, b) = paint.color();
        let stand_in = format!("\"#{r:02X}{g:02X}{b:02X}\"");
        out = out.replace(&stand_in, &format!("\"{}\"", paint.variable()));
    }
    let Some(at) = out.find(" viewBox") else {
        return out;
    };
    let label = super::markup::escape(label);
    format!(
        "<svg role=\"img\" aria-label=\"{label}\" style=\"--w:{width}\"{}",
        &out[at..]
    )
}

/// A drawing as a file of its own, in the page's colours, light and dark.
pub fn standalone(drawing: &str) -> String {
    let css = include_str!("page.css");
    let colors = css
        .find("\n* {")
        .and_then(|end| css.get(..end))
        .unwrap_or_default();
    let style = format!(
        "<style>{} svg {{ background: var(--ground); font-family: sans-serif; }}</style>",
        colors.replace(":root", "svg")
    );
    let Some(end) = drawing.find('>') else {
        return drawing.to_string();
    };
    let (head, body) = drawing.split_at(end + 1);
    let head = head.replacen("<svg", "<svg xmlns=\"http://www.w3.org/2000/svg\"", 1);
    format!("{head}{style}{body}\n")
}

/// A mark at a place, in one of eight shapes.
pub fn mark(
    chart: &mut Chart<'_, '_>,
    places: impl IntoIterator<Item = (f64, f64)>,
    series: usize,
) -> Drawn {
    let color = Paint::Series(series).color();
    let shape = outline(series, 4.5 * f64::from(SCALE));
    chart.draw_series(places.into_iter().map(|place| {
        let points: Vec<(i32, i32)> = shape
            .iter()
            .map(|(x, y)| (x.round() as i32, y.round() as i32))
            .collect();
        EmptyElement::at(place) + Polygon::new(points, color.filled())
    }))?;
    Ok(())
}

/// Corners of a series' mark around zero.
fn outline(series: usize, size: f64) -> Vec<(f64, f64)> {
    let corners = |count: usize, turn: f64, inner: f64| {
        (0..count)
            .map(|i| {
                let angle = std::f64::consts::TAU * (i as f64 / count as f64 + turn);
                let radius = if i % 2 == 1 { size * inner } else { size };
                (radius * angle.sin(), -radius * angle.cos())
            })
            .collect()
    };
    match series % SERIES {
        0 => corners(12, 0.0, 1.0),
        1 => corners(4, 0.125, 1.0),
        2 => corners(3, 0.0, 1.0)
            .into_iter()
            .map(|(x, y): (f64, f64)| (1.2 * x, 1.2 * y))
            .collect(),
        3 => corners(4, 0.0, 1.0),
        4 => corners(3, 0.5, 1.0)
            .into_iter()
            .map(|(x, y): (f64, f64)| (1.2 * x, 1.2 * y))
            .collect(),
        5 => corners(8, 0.0, 0.4),
        6 => corners(6, 0.0, 0.45),
        _ => corners(10, 0.0, 0.5),
    }
}

/// The key to a series: its line with its mark.
pub fn swatch(series: usize) -> String {
    let color = Paint::Series(series).variable();
    let points = outline(series, 4.5)
        .into_iter()
        .fold(String::new(), |mut out, (x, y)| {
            // Writing to a string can't fail.
            let _ = write!(out, "{:.1},{:.1} ", x + 13.0, y + 6.0);
            out
        });
    format!(
        "<svg class=\"key\" viewBox=\"0 0 26 12\" aria-hidden=\"true\"><line x1=\"0\" y1=\"6\" x2=\"26\" y2=\"6\" \
         stroke=\"{color}\" stroke-width=\"1.5\"/><polygon fill=\"{color}\" points=\"{}\"/></svg>",
        points.trim_end()
    )
}

/// A line through places.
pub fn line(
    chart: &mut Chart<'_, '_>,
    places: impl IntoIterator<Item = (f64, f64)>,
    series: usize,
) -> Drawn {
    let style = Paint::Series(series).color().stroke_width(3);
    chart.draw_series(LineSeries::new(places, style))?;
    Ok(())
}

/// A filled box between two corners, with a thin gap to its neighbours.
pub fn cell(chart: &mut Chart<'_, '_>, a: (f64, f64), b: (f64, f64), paint: Paint) -> Drawn {
    chart.draw_series([Rectangle::new([a, b], paint.color().filled())])?;
    Ok(())
}

/// Text at a place, at its left or right.
pub fn note(chart: &mut Chart<'_, '_>, place: (f64, f64), text: &str, right: bool) -> Drawn {
    let side = if right { HPos::Left } else { HPos::Right };
    let style = ("sans-serif", TEXT)
        .into_font()
        .color(&Paint::Ink.color())
        .pos(Pos::new(side, VPos::Center));
    let by = if right { 16 } else { -16 };
    let element = EmptyElement::at(place) + Text::new(text.to_string(), (by, 0), style);
    chart.draw_series([element])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_the_pages() {
        let x = Axis::linear("x", 0.0, 1.0);
        let size = Size {
            width: 100,
            height: 100,
            left: 30,
            right: 10,
        };
        let svg = draw("a < b", size, &x, &x, |chart| {
            cell(chart, (0.0, 0.0), (0.5, 0.5), Paint::Ramp(3))?;
            mark(chart, [(0.5, 0.5)], 2)
        });
        let svg = svg.expect("a plot");
        assert!(
            svg.starts_with("<svg role=\"img\" aria-label=\"a &lt; b\" style=\"--w:100\" viewBox=\"0 0 200 200\">"),
            "{svg}"
        );
        assert!(svg.contains("var(--r3)") && svg.contains("var(--s2)"));
        assert!(!svg.contains('#') && !svg.contains("http"), "{svg}");
    }
}
