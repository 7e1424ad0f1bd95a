//! The report as one HTML page: numbers, plots, remarks; nothing is loaded from anywhere.
//!
//! A page is made from a report alone ([`ModelReport`], as `report.json` holds it), the evaluation in it
//! and spectra of the original where there are any. The same report gives the same bytes.

pub mod axis;
mod markup;
pub mod plot;
mod sections;

use super::ModelReport;
use super::groups::Groups;
use super::spectra::Spectra;
use crate::eval::Evaluation;
use markup::escape;

/// What a page is made from.
pub struct Page<'a> {
    /// The report of the run.
    pub report: &'a ModelReport,
    /// What was found when the output was judged.
    pub evaluation: Option<&'a Evaluation>,
    /// Singular values of the original's matrices, or why there are none.
    pub spectra: &'a Spectra,
}

/// Why a page cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum HtmlError {
    /// The plotting crate gave up.
    #[error("plot of {0}")]
    Plot(String),
}

/// The style sheet of the page.
const STYLE: &str = include_str!("page.css");
/// Sorting of tables; the page is complete without it.
const SCRIPT: &str = include_str!("page.js");
/// What the page may do: nothing but show itself.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";

/// The page.
///
/// Its size grows with the number of layers and roles, and with the number of matrices up to a limit
/// that the page tells of: it stays below some megabytes for any model.
///
/// # Errors
/// A plot cannot be drawn.
pub fn render(page: &Page<'_>) -> Result<String, HtmlError> {
    let groups = Groups::new(&page.report.sites);
    let parts = [
        ("overview", "Overview", sections::overview::render(page)),
        ("quality", "Quality", sections::quality::render(page)?),
        ("training", "Training", sections::training::render(page)?),
        ("bytes", "Bytes", sections::bytes::render(page, &groups)?),
        (
            "layers",
            "Layers and roles",
            sections::layers::render(page, &groups)?,
        ),
        ("passes", "Passes", sections::passes::render(page)),
        ("spectra", "Spectra", sections::spectra::render(page)?),
        ("remarks", "Remarks", sections::remarks::render(page)),
        (
            "matrices",
            "Matrices",
            sections::matrices::render(page, &groups),
        ),
        ("terms", "Terms", sections::terms::render()),
    ];
    let links = parts
        .iter()
        .filter(|(_, _, html)| !html.is_empty())
        .map(|(id, title, _)| format!("<a href=\"#{id}\">{title}</a>"));
    let links: Vec<String> = links.collect();
    let body: String = parts.iter().map(|(_, _, html)| html.as_str()).collect();
    let name = match page.report.model.is_empty() {
        true => "model",
        false => page.report.model.as_str(),
    };
    let name = escape(name);
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <title>{name}: report of hlrc-opt</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header><h1>{name}</h1><nav>{}</nav></header>\n<main>\n{body}</main>\n\
         <footer>hlrc-opt {}</footer>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n",
        links.join(" "),
        env!("CARGO_PKG_VERSION")
    ))
}

/// What cannot be shown as a plot, said in its place.
fn nothing(text: &str) -> String {
    format!("<p class=\"none\">{}</p>\n", escape(text))
}
