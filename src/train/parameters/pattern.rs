//! Patterns of names: part of a name, `*` and `?`, or `re:` and a regular expression.

use regex::Regex;

/// A pattern of names.
pub(super) enum Pattern {
    Part(String),
    Expression(Regex),
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let bad = |error: regex::Error| format!("--only {text}: {error}");
        if let Some(expression) = text.strip_prefix("re:") {
            return Regex::new(expression).map(Pattern::Expression).map_err(bad);
        }
        if text.is_empty() {
            return Err("--only: an empty pattern fits everything; leave it out".to_string());
        }
        if !text.contains(['*', '?']) {
            return Ok(Pattern::Part(text.to_string()));
        }
        let escaped = regex::escape(text).replace("\\*", ".*").replace("\\?", ".");
        Regex::new(&format!("^{escaped}$"))
            .map(Pattern::Expression)
            .map_err(bad)
    }

    pub(super) fn fits(&self, name: &str) -> bool {
        match self {
            Pattern::Part(part) => name.contains(part.as_str()),
            Pattern::Expression(expression) => expression.is_match(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn patterns_fit_as_scopes_do() {
        let fits = |pattern: &str, name: &str| Pattern::new(pattern).is_ok_and(|p| p.fits(name));
        assert!(fits("q_proj", "layers.0.q_proj.scales"));
        assert!(fits("layers.?.q*", "layers.0.q_proj"));
        assert!(!fits("layers.?.q*", "model.layers.0.q_proj"));
        assert!(fits("re:[qk]_proj", "layers.0.k_proj"));
        assert!(Pattern::new("re:(").is_err());
    }
}
