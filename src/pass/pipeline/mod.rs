//! The pipeline syntax: which passes run, with which options, on what.
//!
//! ```text
//! PIPELINE := ITEM (',' ITEM)*
//! ITEM     := NAME OPTIONS?            a pass
//!           | SCOPE '(' PIPELINE ')'   the passes inside see only what the scope selects
//!           | '@' NAME                 a preset
//! OPTIONS  := '{' KEY ('=' VALUE)? ([ ,] KEY ('=' VALUE)?)* '}'
//! ```
//!
//! | scope | selects |
//! |---|---|
//! | `layers[0-15,20]`, `layers[20-]`, `layers` | sites whose name carries such a layer number |
//! | `re:REGEX`, `re:"REGEX"` | sites whose name the expression is found in |
//! | `attn_v` | sites whose name contains the text |
//! | `*.mlp.*_proj` | sites whose whole name fits the pattern (`*`, `?`) |
//! | `embeddings`, `head`, `experts` | sites of that kind |
//! | `vocabulary` | embeddings and head alike; may select nothing |
//! | `default` | sites that no other scope beside it selects |
//! | `linear`, `builtin.module`, `module` | everything (the MLIR spelling; not kept) |
//!
//! A site is a weight that passes work on: a linear, an expert's linear, an embedding, or the head.
//! Passes outside any scope, and those in `default`, leave embeddings and head alone; a scope that names
//! them (by kind, name or expression) reaches them. A name that is also a keyword is written in quotes.
//!
//! `none` stands for no pass. Values are bare (`64`, `0.5%`, `row`) or quoted (`"two words"`); a key without value is `true`; `-` and
//! `_` in a key are the same. [`Pipeline`]'s `Display` is the canonical form, and parsing it gives the same
//! pipeline again. Nothing here knows which passes exist: [`options`] matches options with a pass's own
//! schema, [`select`] says which step applies to which site.

pub mod error;
mod lex;
pub mod options;
mod parse;
pub mod preset;
pub mod select;
#[cfg(test)]
mod tests;

pub use error::{Span, SyntaxError};
pub use options::{OptionDoc, check_options, contradiction, option_docs, options_json};
pub use select::{Program, Site, SiteKind, Step, layer_of};

use std::fmt;

/// A list of passes and scopes, in the order in which they run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pipeline {
    /// What runs, first to last.
    pub items: Vec<Item>,
}

/// One element of a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// A pass with its options.
    Pass(PassCall),
    /// A pipeline that sees only what the scope selects.
    Scope {
        /// What is selected.
        scope: Scope,
        /// What runs on it.
        body: Pipeline,
        /// Where the scope was written.
        span: Span,
    },
    /// A named pipeline, `@name`; [`preset::expand`] replaces it.
    Preset {
        /// The name without its `@`.
        name: String,
        /// Where it was written.
        span: Span,
    },
}

/// A pass's name and options as written.
#[derive(Debug, Clone, PartialEq)]
pub struct PassCall {
    /// The pass's name.
    pub name: String,
    /// Its options in the order written; no key occurs twice.
    pub options: Vec<PassOption>,
    /// Where the name was written.
    pub span: Span,
}

/// One option of a pass.
#[derive(Debug, Clone, PartialEq)]
pub struct PassOption {
    /// The key, `-` replaced by `_`.
    pub key: String,
    /// The value as text; none for a flag, which means `true`.
    pub value: Option<String>,
    /// Where the option was written, value included.
    pub span: Span,
}

/// What a scope selects; see the module's table.
#[derive(Debug, Clone, PartialEq)]
pub enum Scope {
    /// Layer numbers.
    Layers(Vec<LayerRange>),
    /// A regular expression, searched in the site's name.
    Regex(String),
    /// Part of a name, or a pattern for the whole name where it has `*` or `?`.
    Name(String),
    /// Embedding tables.
    Embeddings,
    /// The output projection onto the vocabulary.
    Head,
    /// Linears of a mixture's experts.
    Experts,
    /// Embedding tables and the head, where there are any.
    Vocabulary,
    /// What no other scope beside it selects.
    Default,
}

/// Layers `first..=last`; without `last`, to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerRange {
    /// First layer.
    pub first: u32,
    /// Last layer, included.
    pub last: Option<u32>,
}

/// `-t SCOPE=PIPELINE`: what the scope selects gets this pipeline instead.
///
/// Of several overrides that select a site the last one counts. `none` or nothing after the `=` leaves the
/// site as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// What is selected.
    pub scope: Scope,
    /// What runs on it, instead of the main pipeline.
    pub body: Pipeline,
    /// Where the scope was written.
    pub span: Span,
}

impl Pipeline {
    /// Parses a pipeline.
    ///
    /// # Errors
    /// A [`SyntaxError`] that shows the place and what is expected there.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        parse::pipeline(text)
    }

    /// Whether nothing runs at all.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// All passes named anywhere in it, in order.
    pub fn calls(&self) -> Vec<&PassCall> {
        let mut calls = Vec::new();
        for item in &self.items {
            match item {
                Item::Pass(call) => calls.push(call),
                Item::Scope { body, .. } => calls.extend(body.calls()),
                Item::Preset { .. } => {}
            }
        }
        calls
    }
}

impl Override {
    /// Parses the value of `-t`, `SCOPE=PIPELINE`.
    ///
    /// # Errors
    /// A [`SyntaxError`] that shows the place and what is expected there.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        parse::override_(text)
    }
}

impl PassCall {
    /// The options as the JSON object that a pass's options are read from.
    pub fn options_json(&self) -> serde_json::Map<String, serde_json::Value> {
        options_json(&self.options)
    }
}

impl LayerRange {
    /// Whether the layer lies in the range.
    pub fn contains(&self, layer: u32) -> bool {
        layer >= self.first && self.last.is_none_or(|last| layer <= last)
    }
}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.items.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{item}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass(call) => write!(f, "{call}"),
            Self::Scope { scope, body, .. } => write!(f, "{scope}({body})"),
            Self::Preset { name, .. } => write!(f, "@{name}"),
        }
    }
}

impl fmt::Display for PassCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (index, option) in self.options.iter().enumerate() {
            f.write_str(if index == 0 { "{" } else { " " })?;
            write!(f, "{option}")?;
        }
        if self.options.is_empty() {
            Ok(())
        } else {
            f.write_str("}")
        }
    }
}

impl fmt::Display for PassOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        match &self.value {
            None => Ok(()),
            Some(value) if lex::is_bare_value(value) => write!(f, "={value}"),
            Some(value) => write!(f, "={}", quoted(value)),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layers(ranges) => {
                f.write_str("layers[")?;
                for (index, range) in ranges.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { "," })?;
                    write!(f, "{range}")?;
                }
                f.write_str("]")
            }
            Self::Regex(text) if lex::is_bare_regex(text) => write!(f, "re:{text}"),
            Self::Regex(text) => write!(f, "re:{}", quoted(text)),
            Self::Name(text) if lex::is_bare_name(text) => f.write_str(text),
            Self::Name(text) => f.write_str(&quoted(text)),
            Self::Embeddings => f.write_str("embeddings"),
            Self::Head => f.write_str("head"),
            Self::Experts => f.write_str("experts"),
            Self::Vocabulary => f.write_str("vocabulary"),
            Self::Default => f.write_str("default"),
        }
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.last {
            Some(last) if last == self.first => write!(f, "{last}"),
            Some(last) => write!(f, "{}-{last}", self.first),
            None => write!(f, "{}-", self.first),
        }
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.body.is_empty() {
            write!(f, "{}=none", self.scope)
        } else {
            write!(f, "{}={}", self.scope, self.body)
        }
    }
}

/// The text in double quotes, `"` and `\` escaped.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        if c == '"' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}
