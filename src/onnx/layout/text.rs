//! The textual form of layouts, as it stands in metadata of the text IR.

use std::fmt;
use std::str::FromStr;

use super::{Item, Layout, leading_number};

/// Layouts inside layouts, as deep as messages may nest.
const MAX_DEPTH: u32 = 100;

/// A layout string that doesn't parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("layout, column {column}: expected {expected}")]
pub struct LayoutParseError {
    /// Byte offset in the string, from 1.
    pub column: usize,
    /// What would have been right there.
    pub expected: &'static str,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.items.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            item.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Take { number, count: 1 } => write!(f, "{number}"),
            Self::Take { number, count } => write!(f, "{number}*{count}"),
            Self::Shaped {
                number,
                tag_width,
                width,
                inner,
            } => {
                write!(f, "{number}")?;
                if *tag_width != 0 || *width != 0 {
                    write!(f, "~{tag_width}.{width}")?;
                }
                if inner.items.is_empty() {
                    Ok(())
                } else {
                    write!(f, "({inner})")
                }
            }
            Self::Elements {
                number,
                count,
                packed,
            } => {
                write!(f, "{number}{}{count}", if *packed { 'p' } else { 'u' })
            }
            Self::Exact {
                number,
                count,
                bytes,
            } => {
                write!(f, "{number}x{count}:")?;
                hex(f, bytes)
            }
            Self::Extra { bytes, .. } => {
                f.write_str("+")?;
                hex(f, bytes)
            }
            Self::Drop { number } => write!(f, "-{number}"),
        }
    }
}

fn hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

impl FromStr for Layout {
    type Err = LayoutParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parser = Parser {
            text: text.as_bytes(),
            at: 0,
        };
        let layout = parser.layout(MAX_DEPTH)?;
        if parser.at < parser.text.len() {
            return Err(parser.expected("a space or the end"));
        }
        Ok(layout)
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn expected(&self, expected: &'static str) -> LayoutParseError {
        LayoutParseError {
            column: self.at + 1,
            expected,
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn need(&mut self, byte: u8, expected: &'static str) -> Result<(), LayoutParseError> {
        if self.eat(byte) {
            Ok(())
        } else {
            Err(self.expected(expected))
        }
    }

    fn number<T: TryFrom<u64>>(&mut self) -> Result<T, LayoutParseError> {
        let start = self.at;
        let mut value = 0u64;
        while let Some(digit) = self.peek().filter(u8::is_ascii_digit) {
            let next = value
                .checked_mul(10)
                .and_then(|v| v.checked_add(u64::from(digit - b'0')));
            value = next.ok_or_else(|| self.expected("a smaller number"))?;
            self.at += 1;
        }
        if self.at == start {
            return Err(self.expected("a number"));
        }
        T::try_from(value).map_err(|_| self.expected("a smaller number"))
    }

    fn hex(&mut self) -> Result<Box<[u8]>, LayoutParseError> {
        let mut bytes = Vec::new();
        while let Some(high) = self.peek().and_then(digit) {
            self.at += 1;
            let low = self.peek().and_then(digit);
            bytes.push(high << 4 | low.ok_or_else(|| self.expected("a hexadecimal digit"))?);
            self.at += 1;
        }
        Ok(bytes.into())
    }

    fn layout(&mut self, depth: u32) -> Result<Layout, LayoutParseError> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err(self.expected("less nesting"));
        };
        let mut items = Vec::new();
        while !matches!(self.peek(), None | Some(b')')) {
            if !items.is_empty() {
                self.need(b' ', "a space")?;
            }
            items.push(self.item(depth)?);
        }
        Ok(Layout { items })
    }

    fn item(&mut self, depth: u32) -> Result<Item, LayoutParseError> {
        if self.eat(b'+') {
            return self.extra();
        }
        if self.eat(b'-') {
            return Ok(Item::Drop {
                number: self.number()?,
            });
        }
        let number = self.number()?;
        if self.eat(b'*') {
            return Ok(Item::Take {
                number,
                count: self.number()?,
            });
        }
        if self.eat(b'u') {
            return Ok(Item::Elements {
                number,
                count: self.number()?,
                packed: false,
            });
        }
        if self.eat(b'p') {
            return Ok(Item::Elements {
                number,
                count: self.number()?,
                packed: true,
            });
        }
        if self.eat(b'x') {
            let count = self.number()?;
            self.need(b':', "':'")?;
            return Ok(Item::Exact {
                number,
                count,
                bytes: self.hex()?,
            });
        }
        self.shaped(number, depth)
    }

    fn extra(&mut self) -> Result<Item, LayoutParseError> {
        let bytes = self.hex()?;
        let number = leading_number(&bytes).ok_or_else(|| self.expected("an encoded field"))?;
        Ok(Item::Extra { number, bytes })
    }

    fn shaped(&mut self, number: u32, depth: u32) -> Result<Item, LayoutParseError> {
        let (mut tag_width, mut width) = (0, 0);
        if self.eat(b'~') {
            tag_width = self.width()?;
            self.need(b'.', "'.'")?;
            width = self.width()?;
        }
        let mut inner = Layout::default();
        if self.eat(b'(') {
            inner = self.layout(depth)?;
            self.need(b')', "')'")?;
        }
        if tag_width == 0 && width == 0 && inner.items.is_empty() {
            return Ok(Item::Take { number, count: 1 });
        }
        Ok(Item::Shaped {
            number,
            tag_width,
            width,
            inner,
        })
    }

    fn width(&mut self) -> Result<u8, LayoutParseError> {
        let width: u8 = self.number()?;
        if width <= 10 {
            Ok(width)
        } else {
            Err(self.expected("a width of at most 10"))
        }
    }
}

fn digit(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).map(|digit| digit as u8)
}
