//! The parser: recursive descent over bytes, bounded in depth and length.

use super::lex::{Parser, is_pass_name, is_value, is_word, regex_before_body, regex_before_equals};
use super::{Item, LayerRange, Override, PassCall, PassOption, Pipeline, Scope, Span, SyntaxError};

/// Scopes may nest this deep; more is a slip, and would cost stack.
const MAX_DEPTH: usize = 32;

pub(super) fn pipeline(text: &str) -> Result<Pipeline, SyntaxError> {
    let mut parser = Parser::new(text)?;
    let items = parser.items(0)?;
    parser.end("a comma or the end")?;
    Ok(Pipeline { items })
}

pub(super) fn override_(text: &str) -> Result<Override, SyntaxError> {
    let mut parser = Parser::new(text)?;
    parser.space();
    let start = parser.at;
    let scope = parser.override_scope()?;
    let span = parser.span(start, parser.at);
    parser.space();
    if !parser.eat('=') {
        return Err(parser.here().error(
            "an override needs `=` after its scope",
            "write -t 'SCOPE=PIPELINE', as in -t 'attn_v=int8' or -t 're:down_proj$=none'",
        ));
    }
    parser.space();
    if parser.rest().trim() == "none" {
        return Ok(Override {
            scope,
            body: Pipeline::default(),
            span,
        });
    }
    let items = parser.items(0)?;
    parser.end("a comma or the end")?;
    Ok(Override {
        scope,
        body: Pipeline { items },
        span,
    })
}

impl<'a> Parser<'a> {
    fn end(&mut self, expected: &str) -> Result<(), SyntaxError> {
        self.space();
        let help = match self.peek() {
            None => return Ok(()),
            Some(')') => "no scope is open here; remove it",
            Some('=') => {
                "options stand in braces: NAME{key=value}; quote the pipeline, so that the shell keeps them"
            }
            Some('}') => "no options are open here; remove it",
            _ => "passes are separated by commas, as in lowrank,outlier,int4",
        };
        Err(self
            .here()
            .error(format!("expected {expected}, found {}", self.found()), help))
    }

    /// Items up to a `)` or the end, which is left.
    fn items(&mut self, depth: usize) -> Result<Vec<Item>, SyntaxError> {
        if depth > MAX_DEPTH {
            return Err(self.here().error(
                format!("scopes are nested more than {MAX_DEPTH} deep"),
                "write nested scopes side by side",
            ));
        }
        let mut items = Vec::new();
        self.space();
        if matches!(self.peek(), None | Some(')')) {
            return Ok(items);
        }
        loop {
            self.item(depth, &mut items)?;
            self.space();
            if !self.eat(',') {
                return Ok(items);
            }
            self.space();
            if matches!(self.peek(), None | Some(')' | ',')) {
                return Err(self.here().error(
                    format!("expected a pass after the comma, found {}", self.found()),
                    "remove the comma, or name the pass",
                ));
            }
        }
    }

    fn item(&mut self, depth: usize, items: &mut Vec<Item>) -> Result<(), SyntaxError> {
        let start = self.at;
        if self.eat('@') {
            let name = self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
            if name.is_empty() {
                return Err(self
                    .here()
                    .error("expected a preset's name after `@`", "as in @hl4_m"));
            }
            items.push(Item::Preset {
                name: name.into(),
                span: self.span(start, self.at),
            });
            return Ok(());
        }
        if let Some(scope) = self.explicit_scope()? {
            let span = self.span(start, self.at);
            let body = self.body(&span, depth)?;
            items.push(Item::Scope { scope, body, span });
            return Ok(());
        }
        let word = self.word()?;
        let span = self.span(start, self.at);
        self.space();
        match self.peek() {
            Some('(') => {
                let Some(scope) = self.word_scope(word) else {
                    // The MLIR spelling of "everything": what is inside stands here.
                    items.extend(self.body(&span, depth)?.items);
                    return Ok(());
                };
                let body = self.body(&span, depth)?;
                items.push(Item::Scope { scope, body, span });
            }
            // What `-t` calls leaving a site alone; here it adds nothing.
            _ if word == "none" => {}
            _ if !is_pass_name(word) => {
                return Err(span.error(
                    format!("`{word}` can't be the name of a pass"),
                    format!("a pattern is a scope and needs passes: {word}(int4)"),
                ));
            }
            _ => {
                let options = self.options()?;
                items.push(Item::Pass(PassCall {
                    name: word.into(),
                    options,
                    span,
                }));
            }
        }
        Ok(())
    }

    fn word(&mut self) -> Result<&'a str, SyntaxError> {
        let word = self.take(is_word);
        if word.is_empty() {
            let help = match self.peek() {
                Some('{') => "options follow the name of a pass: NAME{key=value}",
                Some('(') => "a scope needs its name before the parenthesis, as in head(int8)",
                _ => "as in lowrank,outlier,int4; `hlrc-opt passes` lists the passes",
            };
            return Err(self.here().error(
                format!("expected a pass or a scope, found {}", self.found()),
                help,
            ));
        }
        Ok(word)
    }

    fn word_scope(&self, word: &str) -> Option<Scope> {
        Some(match word {
            "layers" => Scope::Layers(vec![LayerRange {
                first: 0,
                last: None,
            }]),
            "embeddings" => Scope::Embeddings,
            "head" => Scope::Head,
            "experts" => Scope::Experts,
            "vocabulary" => Scope::Vocabulary,
            "default" => Scope::Default,
            "linear" | "module" | "builtin.module" => return None,
            name => Scope::Name(name.into()),
        })
    }

    /// `layers[…]`, `re:…` or a quoted name; none where the text begins otherwise.
    fn explicit_scope(&mut self) -> Result<Option<Scope>, SyntaxError> {
        if self.peek() == Some('"') {
            let start = self.at;
            let name = self.quoted()?;
            if name.is_empty() {
                return Err(self
                    .span(start, self.at)
                    .error("a scope's name is empty", "name part of a tensor's name"));
            }
            return Ok(Some(Scope::Name(name)));
        }
        if self.rest().starts_with("re:") {
            self.at += 3;
            return self.regex('(').map(Some);
        }
        if self.rest().starts_with("layers[") {
            self.at += "layers".len();
            return self.layers().map(Some);
        }
        Ok(None)
    }

    fn override_scope(&mut self) -> Result<Scope, SyntaxError> {
        if self.rest().starts_with("re:") {
            self.at += 3;
            return self.regex('=');
        }
        if let Some(scope) = self.explicit_scope()? {
            return Ok(scope);
        }
        let start = self.at;
        let word = self.word()?;
        self.word_scope(word).ok_or_else(|| {
            self.span(start, self.at).error(
                format!("`{word}` selects everything, so the override would replace the pipeline"),
                "use -p for what applies to everything",
            )
        })
    }

    fn body(&mut self, scope: &Span, depth: usize) -> Result<Pipeline, SyntaxError> {
        self.space();
        if !self.eat('(') {
            return Err(self.here().error(
                format!("expected `(` after the scope, found {}", self.found()),
                format!(
                    "write the passes for it in parentheses: {}(int4)",
                    scope.text()
                ),
            ));
        }
        let items = self.items(depth + 1)?;
        self.space();
        if self.eat(')') {
            return Ok(Pipeline { items });
        }
        match self.peek() {
            None => Err(scope.error("the scope is not closed", "add `)` at its end")),
            Some('=') => Err(self.here().error(
                "expected a comma or `)`, found `=`",
                "parentheses hold passes; options stand in braces: NAME{key=value}",
            )),
            _ => Err(self.here().error(
                format!("expected a comma or `)`, found {}", self.found()),
                "passes are separated by commas",
            )),
        }
    }

    fn options(&mut self) -> Result<Vec<PassOption>, SyntaxError> {
        let mut options: Vec<PassOption> = Vec::new();
        let open = self.here();
        if !self.eat('{') {
            return Ok(options);
        }
        loop {
            while self.peek().is_some_and(|c| c == ',' || c.is_whitespace()) {
                self.bump();
            }
            if self.eat('}') {
                return Ok(options);
            }
            if self.peek().is_none() {
                return Err(open.error("the options are not closed", "add `}` after them"));
            }
            let option = self.option()?;
            if options.iter().any(|earlier| earlier.key == option.key) {
                return Err(option.span.error(
                    format!("`{}` is given twice", option.key),
                    "keep one of them",
                ));
            }
            options.push(option);
        }
    }

    fn option(&mut self) -> Result<PassOption, SyntaxError> {
        let start = self.at;
        let key = self.take(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        if !key.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(self.span(start, self.at.max(start + 1)).error(
                format!(
                    "expected an option's name, found {}",
                    if key.is_empty() {
                        self.found()
                    } else {
                        format!("`{key}`")
                    }
                ),
                "options are written {key=value key2=value2} or {flag}",
            ));
        }
        let mut end = self.at;
        self.space();
        let value = if self.eat('=') {
            self.space();
            let value = if self.peek() == Some('"') {
                self.quoted()?
            } else {
                self.take(is_value).into()
            };
            if value.is_empty()
                && self
                    .text
                    .get(..self.at)
                    .is_none_or(|read| !read.ends_with('"'))
            {
                return Err(self.here().error(
                    format!("`{key}` needs a value after `=`, found {}", self.found()),
                    "quote a value that holds spaces, commas, brackets or `=`",
                ));
            }
            end = self.at;
            Some(value)
        } else {
            None
        };
        Ok(PassOption {
            key: key.replace('-', "_"),
            value,
            span: self.span(start, end),
        })
    }

    /// A regular expression up to the scope's body or the override's `=`, groups of its own included.
    fn regex(&mut self, stop: char) -> Result<Scope, SyntaxError> {
        let start = self.at;
        let text = if self.peek() == Some('"') {
            self.quoted()?
        } else {
            let length = if stop == '(' {
                regex_before_body(self.rest())
            } else {
                regex_before_equals(self.rest())
            };
            let text = self.rest().get(..length).unwrap_or_default();
            self.at += length;
            text.trim_end().to_owned()
        };
        if text.is_empty() {
            return Err(self.here().error(
                "expected a regular expression after `re:`",
                "as in re:ffn_.*(int4)",
            ));
        }
        if let Err(error) = super::select::compile(&text) {
            return Err(self.span(start, self.at).error(
                error,
                "quote an expression that holds spaces, commas or `=`: re:\"…\"",
            ));
        }
        Ok(Scope::Regex(text))
    }

    fn layers(&mut self) -> Result<Scope, SyntaxError> {
        let open = self.here();
        self.eat('[');
        let mut ranges = Vec::new();
        loop {
            self.space();
            let first = self.number()?;
            let start = self.at;
            self.space();
            let last = if self.eat('-') {
                self.space();
                if self.peek().is_some_and(|c| c.is_ascii_digit()) {
                    Some(self.number()?)
                } else {
                    None
                }
            } else {
                Some(first)
            };
            if last.is_some_and(|last| last < first) {
                return Err(self.span(start, self.at).error(
                    "the range ends before it begins",
                    "write layers[FIRST-LAST]",
                ));
            }
            ranges.push(LayerRange { first, last });
            self.space();
            match self.peek() {
                Some(',') => self.at += 1,
                Some(']') => {
                    self.at += 1;
                    return Ok(Scope::Layers(ranges));
                }
                None => {
                    return Err(open.error("the list of layers is not closed", "add `]` after it"));
                }
                _ => {
                    return Err(self.here().error(
                        format!("expected a comma or `]`, found {}", self.found()),
                        "layers are written layers[0-15,20]",
                    ));
                }
            }
        }
    }

    fn number(&mut self) -> Result<u32, SyntaxError> {
        let start = self.at;
        let digits = self.take(|c| c.is_ascii_digit());
        digits.parse().map_err(|_| {
            if digits.is_empty() {
                self.here().error(
                    format!("expected a layer number, found {}", self.found()),
                    "layers are written layers[0-15,20]",
                )
            } else {
                self.span(start, self.at).error(
                    format!("{digits} is no layer number"),
                    "layers count from 0",
                )
            }
        })
    }
}
