//! The characters of a pipeline: a cursor, and what may stand unquoted.

use super::error::did_you_mean;
use super::{Span, SyntaxError};
use std::sync::Arc;

/// Bytes of text accepted.
const MAX_LENGTH: usize = 64 << 10;
/// Words that name a scope by themselves.
pub(super) const KEYWORDS: [&str; 9] = [
    "layers",
    "embeddings",
    "head",
    "experts",
    "vocabulary",
    "default",
    "linear",
    "module",
    "builtin.module",
];

pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '*' | '?')
}

pub(super) fn is_value(c: char) -> bool {
    !c.is_whitespace()
        && !c.is_control()
        && !matches!(
            c,
            ',' | '{' | '}' | '(' | ')' | '[' | ']' | '"' | '=' | '\\'
        )
}

pub(super) fn is_bare_value(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_value)
}

pub(super) fn is_bare_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_word) && !KEYWORDS.contains(&text)
}

/// Whether a regex can stand unquoted both before `(` and before `=`.
pub(super) fn is_bare_regex(text: &str) -> bool {
    let plain = |c: char| is_word(c) || matches!(c, '$' | '^' | '+' | '|' | ':' | '\\');
    !text.is_empty() && text.chars().all(plain) && !text.ends_with('\\')
}

/// Whether a word can name a pass.
pub(super) fn is_pass_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

pub(super) struct Parser<'a> {
    pub(super) text: &'a str,
    source: Arc<str>,
    pub(super) at: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Result<Self, SyntaxError> {
        if text.len() > MAX_LENGTH {
            return Err(Span::none().error(
                format!(
                    "the pipeline has {} bytes; at most {MAX_LENGTH} are accepted",
                    text.len()
                ),
                "use scopes (`layers[0-15](…)`, `re:…(…)`) in place of one item per tensor",
            ));
        }
        Ok(Self {
            text,
            source: Arc::from(text),
            at: 0,
        })
    }

    pub(super) fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    pub(super) fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    pub(super) fn space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.bump();
        }
    }

    pub(super) fn take(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c: char| !accept(c)).unwrap_or(rest.len());
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    pub(super) fn span(&self, start: usize, end: usize) -> Span {
        Span::new(&self.source, start, end)
    }

    /// The character at hand.
    pub(super) fn here(&self) -> Span {
        self.span(self.at, self.at + self.peek().map_or(0, char::len_utf8))
    }

    pub(super) fn found(&self) -> String {
        self.peek()
            .map_or_else(|| "the end".into(), |c| format!("`{c}`"))
    }

    pub(super) fn quoted(&mut self) -> Result<String, SyntaxError> {
        let open = self.here();
        self.bump();
        let mut out = String::new();
        while let Some(c) = self.bump() {
            match c {
                '"' => return Ok(out),
                '\\' => out.extend(self.bump()),
                c => out.push(c),
            }
        }
        Err(open.error("the quoted text is not closed", "add `\"` at its end"))
    }
}

/// Length of the regex at the text's start, whose last top-level group is the scope's body.
///
/// So `re:(q|k)_proj(int4)` means what it seems to. The item ends at a comma or `)` that no bracket holds.
pub(super) fn regex_before_body(text: &str) -> usize {
    let mut depth = 0usize;
    let mut group = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '"' => skip_quoted(&mut chars),
            '(' | '{' | '[' => {
                if depth == 0 && c == '(' {
                    group = Some(at);
                }
                depth += 1;
            }
            ')' | '}' | ']' if depth > 0 => depth -= 1,
            ')' | ',' if depth == 0 => return group.unwrap_or(at),
            _ => {}
        }
    }
    group.unwrap_or(text.len())
}

/// Goes past quoted text whose opening quote was taken.
fn skip_quoted(chars: &mut std::str::CharIndices<'_>) {
    while let Some((_, c)) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '"' => return,
            _ => {}
        }
    }
}

/// Length of the regex at the text's start, up to the first `=` that no bracket holds.
pub(super) fn regex_before_equals(text: &str) -> usize {
    let mut depth = 0usize;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' => depth = depth.saturating_sub(1),
            '=' if depth == 0 => return at,
            _ => {}
        }
    }
    text.len()
}

/// Help for a scope that selects nothing, where its name looks like a keyword misspelt.
pub(super) fn keyword_hint(name: &str) -> Option<String> {
    let hint = did_you_mean(name, "scopes", &KEYWORDS);
    hint.starts_with("did").then_some(hint)
}
