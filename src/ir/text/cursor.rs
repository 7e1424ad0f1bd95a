//! A position in the text, and the small words that the grammar is made of.

use super::{ParseError, is_bare_byte};

pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

type Result<T> = std::result::Result<T, ParseError>;

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// An error at the current position.
    pub(super) fn error(&self, what: impl Into<String>) -> ParseError {
        self.error_at(self.at, what)
    }

    pub(super) fn error_at(&self, at: usize, what: impl Into<String>) -> ParseError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        let source = self.text.get(start..).unwrap_or("");
        ParseError {
            line: before.matches('\n').count() + 1,
            column: before.get(start..).unwrap_or("").chars().count() + 1,
            what: what.into(),
            source_line: source
                .lines()
                .next()
                .unwrap_or("")
                .chars()
                .take(160)
                .collect(),
        }
    }

    pub(super) fn position(&mut self) -> usize {
        self.skip();
        self.at
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    /// Passes white space and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    pub(super) fn at_end(&mut self) -> bool {
        self.skip();
        self.rest().is_empty()
    }

    pub(super) fn peek(&mut self) -> Option<u8> {
        self.skip();
        self.rest().bytes().next()
    }

    /// Takes `token` if it is next. A word must end where the token ends.
    pub(super) fn eat(&mut self, token: &str) -> bool {
        self.skip();
        let Some(after) = self.rest().strip_prefix(token) else {
            return false;
        };
        let is_word = token.bytes().all(is_bare_byte);
        if is_word && after.bytes().next().is_some_and(is_bare_byte) {
            return false;
        }
        self.at += token.len();
        true
    }

    pub(super) fn expect(&mut self, token: &str) -> Result<()> {
        if self.eat(token) {
            return Ok(());
        }
        let found: String = self.rest().chars().take(16).collect();
        let found = found.lines().next().unwrap_or("");
        Err(self.error(format!("expected `{token}`, found `{found}`")))
    }

    /// A bare word; empty where there is none.
    pub(super) fn word(&mut self) -> &'a str {
        self.skip();
        let rest = self.rest();
        let len = rest.bytes().take_while(|&b| is_bare_byte(b)).count();
        self.at += len;
        rest.get(..len).unwrap_or("")
    }

    /// A bare word or a quoted string, as UTF-8.
    pub(super) fn name(&mut self) -> Result<String> {
        let at = self.position();
        if self.peek() == Some(b'"') {
            let bytes = self.string()?;
            return String::from_utf8(bytes).map_err(|_| self.error_at(at, "name is not UTF-8"));
        }
        match self.word() {
            "" => Err(self.error("expected a name")),
            word => Ok(word.to_string()),
        }
    }

    /// A quoted string: any bytes.
    pub(super) fn string(&mut self) -> Result<Vec<u8>> {
        self.expect("\"")?;
        let mut out = Vec::new();
        let mut rest = self.rest().char_indices();
        while let Some((offset, c)) = rest.next() {
            match c {
                '"' => {
                    self.at += offset + 1;
                    return Ok(out);
                }
                '\\' => {
                    let escape = rest.next().map(|(_, c)| c);
                    match escape {
                        Some('n') => out.push(b'\n'),
                        Some('r') => out.push(b'\r'),
                        Some('t') => out.push(b'\t'),
                        Some(c @ ('"' | '\\')) => out.push(c as u8),
                        Some('x') => {
                            let digit =
                                |c: Option<(usize, char)>| c.and_then(|(_, c)| c.to_digit(16));
                            let byte = digit(rest.next()).zip(digit(rest.next()));
                            let Some((high, low)) = byte else {
                                return Err(
                                    self.error_at(self.at + offset, "`\\x` needs two hex digits")
                                );
                            };
                            out.push((high * 16 + low) as u8);
                        }
                        _ => return Err(self.error_at(self.at + offset, "unknown escape")),
                    }
                }
                '\n' => break,
                c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        Err(self.error("string does not end on its line"))
    }

    /// A number's text: digits, sign, point, exponent, `inf`.
    pub(super) fn number(&mut self) -> &'a str {
        self.skip();
        let rest = self.rest();
        let len = rest
            .bytes()
            .take_while(|&b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
            .count();
        self.at += len;
        rest.get(..len).unwrap_or("")
    }

    pub(super) fn integer<T: std::str::FromStr>(&mut self) -> Result<T> {
        let at = self.position();
        let rest = self.rest();
        let sign = usize::from(rest.starts_with('-'));
        let digits = rest
            .bytes()
            .skip(sign)
            .take_while(u8::is_ascii_digit)
            .count();
        let text = rest.get(..sign + digits).unwrap_or("");
        self.at += text.len();
        text.parse()
            .map_err(|_| self.error_at(at, "expected an integer in range"))
    }

    /// `0x1f` or `31`.
    pub(super) fn offset(&mut self) -> Result<u64> {
        let at = self.position();
        let word = self.word();
        let parsed = match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => word.parse(),
        };
        parsed.map_err(|_| self.error_at(at, "expected an offset such as 0x40"))
    }

    /// `open item, item close`
    pub(super) fn list(
        &mut self,
        open: &str,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.expect(open)?;
        if self.eat(close) {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.eat(close) {
                return Ok(());
            }
            self.expect(",")?;
        }
    }
}
