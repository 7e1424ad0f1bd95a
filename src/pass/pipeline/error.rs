//! Places in a pipeline's text, and errors that show them.

use std::fmt;
use std::sync::Arc;

/// Where in the text a piece was written; byte offsets.
///
/// Spans are all equal, so that two pipelines of the same meaning compare equal wherever they were written.
#[derive(Clone)]
pub struct Span {
    source: Arc<str>,
    start: usize,
    end: usize,
}

impl Span {
    /// The bytes `start..end` of `source`; cut to what the text has.
    pub fn new(source: &Arc<str>, start: usize, end: usize) -> Self {
        let boundary = |at: usize| {
            let mut at = at.min(source.len());
            while !source.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let start = boundary(start);
        Self {
            source: Arc::clone(source),
            start,
            end: boundary(end).max(start),
        }
    }

    /// A span of nothing, for pipelines made by code.
    pub fn none() -> Self {
        Self {
            source: Arc::from(""),
            start: 0,
            end: 0,
        }
    }

    /// The text that the span covers.
    pub fn text(&self) -> &str {
        self.source.get(self.start..self.end).unwrap_or_default()
    }

    /// The column of its first character, counted from 1.
    pub fn column(&self) -> usize {
        self.source
            .get(..self.start)
            .map_or(0, |before| before.chars().count())
            + 1
    }

    /// An error at this place.
    pub fn error(&self, message: impl Into<String>, help: impl Into<String>) -> SyntaxError {
        SyntaxError {
            message: message.into(),
            help: help.into(),
            span: self.clone(),
        }
    }
}

impl PartialEq for Span {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// What is wrong in a pipeline, where, and what to do.
///
/// Its `Display` shows the line with carets under the place.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", self.render())]
pub struct SyntaxError {
    /// What is wrong.
    pub message: String,
    /// What to do; may be empty.
    pub help: String,
    /// Where.
    pub span: Span,
}

/// Characters shown on either side of the place; a pipeline can be long.
const CONTEXT: usize = 60;

impl SyntaxError {
    fn render(&self) -> String {
        let mut out = self.message.clone();
        let source = &self.span.source;
        if !source.is_empty() {
            let before: Vec<char> = source
                .get(..self.span.start)
                .unwrap_or_default()
                .chars()
                .collect();
            let cut = before.len().saturating_sub(CONTEXT);
            let marked = self.span.text().chars().count().clamp(1, CONTEXT);
            let after = source.get(self.span.start..).unwrap_or_default();
            let mut shown: String = if cut > 0 { "…".into() } else { String::new() };
            shown.extend(before.get(cut..).unwrap_or_default());
            let indent = shown.chars().count();
            shown.extend(after.chars().take(marked + CONTEXT));
            if after.chars().count() > marked + CONTEXT {
                shown.push('…');
            }
            let shown: String = shown
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            out = format!(
                "{out}\n  at column {}:\n    {shown}\n    {}{}",
                self.span.column(),
                " ".repeat(indent),
                "^".repeat(marked)
            );
        }
        if !self.help.is_empty() {
            out = format!("{out}\n  help: {}", self.help);
        }
        out
    }
}

/// The candidate nearest to what was written, if it is near enough to be a slip.
pub fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let written = written.to_ascii_lowercase();
    let longest = (written.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&written, &candidate.to_ascii_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| {
            *distance <= longest || (written.len() >= 3 && candidate.starts_with(&written))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean X?` if a candidate is near, else the list of them all.
pub fn did_you_mean(written: &str, what: &str, candidates: &[&str]) -> String {
    match nearest(written, candidates.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None if candidates.is_empty() => format!("there are no {what}"),
        None => format!("{what}: {}", candidates.join(", ")),
    }
}
