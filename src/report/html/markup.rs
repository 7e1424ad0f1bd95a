//! Pieces of HTML: everything that comes from a model or a user is escaped here.

use std::fmt::Write;

/// Text as it may stand between tags and in quoted attributes.
///
/// Characters that turn the direction of text or can't be seen are shown by their number: a name may
/// not look like another.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => push_visible(&mut out, c),
        }
    }
    out
}

/// Markup in which characters that can't be seen are shown by their number; its tags stay as they are.
pub fn visible(markup: &str) -> String {
    let mut out = String::with_capacity(markup.len());
    markup.chars().for_each(|c| push_visible(&mut out, c));
    out
}

fn push_visible(out: &mut String, c: char) {
    if matches!(c, '\n' | '\t') || !(c.is_control() || is_invisible(c)) {
        out.push(c);
    } else {
        // Writing to a string can't fail.
        let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
    }
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// The first characters of a text, with a sign that there are more.
pub fn short(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_string(),
        Some(_) => {
            let kept: String = text.chars().take(most.saturating_sub(1)).collect();
            format!("{kept}…")
        }
    }
}

/// The end of a text, with a sign that there was more: of names, ends tell more.
pub fn tail(text: &str, most: usize) -> String {
    let count = text.chars().count();
    match count <= most {
        true => text.to_string(),
        false => {
            let kept: String = text.chars().skip(count - most.saturating_sub(1)).collect();
            format!("…{kept}")
        }
    }
}

/// A plot with its heading, its key and how to read it. `key` is HTML, the other texts are not.
pub struct Figure<'a> {
    /// What it shows.
    pub title: &'a str,
    /// The drawing.
    pub svg: String,
    /// What colours stand for; HTML.
    pub key: String,
    /// How to read it.
    pub caption: &'a str,
    /// Whether it needs the page's whole width.
    pub wide: bool,
}

impl Figure<'_> {
    /// It as HTML.
    pub fn render(&self) -> String {
        let class = if self.wide { " class=\"wide\"" } else { "" };
        let key = match self.key.is_empty() {
            true => String::new(),
            false => format!("<p class=\"legend\">{}</p>\n", self.key),
        };
        format!(
            "<figure{class}>\n<h3>{}</h3>\n{key}<div class=\"plot\">{}</div>\n<figcaption>{}</figcaption>\n</figure>\n",
            escape(self.title),
            self.svg,
            escape(self.caption)
        )
    }
}

/// An entry of a key. `sign` is HTML.
pub fn key(sign: &str, name: &str) -> String {
    format!("<span>{sign}{}</span> ", escape(&short(name, 60)))
}

/// A box of a colour, for keys.
pub fn block(color: &str) -> String {
    format!("<i class=\"block\" style=\"background:{color}\"></i>")
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    html: String,
    value: Option<f64>,
}

impl Cell {
    /// Text.
    pub fn text(text: &str) -> Self {
        Self {
            html: escape(text),
            value: None,
        }
    }

    /// A name, which may be broken into lines where its parts end.
    pub fn name(text: &str) -> Self {
        let parts: Vec<String> = text.split_inclusive(['.', '/']).map(escape).collect();
        Self::html(parts.join("<wbr>"))
    }

    /// A number as it is written, and the value that it is sorted by.
    pub fn number(text: &str, value: f64) -> Self {
        Self {
            html: escape(text),
            value: Some(value),
        }
    }

    /// HTML that was made here.
    pub fn html(html: String) -> Self {
        Self { html, value: None }
    }

    /// The same, sorted by a value.
    #[must_use]
    pub fn valued(mut self, value: f64) -> Self {
        self.value = Some(value);
        self
    }
}

/// A table: heads end in `>` where the column is of numbers.
pub struct Table {
    heads: Vec<(String, bool)>,
    rows: String,
    class: &'static str,
}

impl Table {
    /// A table without rows.
    pub fn new(heads: &[&str]) -> Self {
        let head = |head: &&str| match head.strip_suffix('>') {
            Some(name) => (name.to_string(), true),
            None => ((*head).to_string(), false),
        };
        Self {
            heads: heads.iter().map(head).collect(),
            rows: String::new(),
            class: "",
        }
    }

    /// The same with a class of the style sheet.
    #[must_use]
    pub fn class(mut self, class: &'static str) -> Self {
        self.class = class;
        self
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push_str("<tr>");
        let numbers = self
            .heads
            .iter()
            .map(|(_, number)| *number)
            .chain(std::iter::repeat(false));
        for (index, (cell, number)) in cells.into_iter().zip(numbers).enumerate() {
            let class = if number { " class=\"n\"" } else { "" };
            let value = match cell.value {
                // What is no number is sorted last.
                Some(value) if !value.is_finite() => " data-v=\"1e999\"".to_string(),
                Some(value) => format!(" data-v=\"{value}\""),
                None => String::new(),
            };
            let tag = if index == 0 { "th scope=\"row\"" } else { "td" };
            let end = if index == 0 { "th" } else { "td" };
            // Writing to a string can't fail.
            let _ = write!(self.rows, "<{tag}{class}{value}>{}</{end}>", cell.html);
        }
        self.rows.push_str("</tr>\n");
    }

    /// It as HTML, in a box that scrolls sideways where it is wider than the page.
    pub fn render(&self) -> String {
        let mut out = format!("<div class=\"table {}\"><table>\n<thead><tr>", self.class);
        for (name, number) in &self.heads {
            let class = if *number { " class=\"n\"" } else { "" };
            // Writing to a string can't fail.
            let _ = write!(out, "<th scope=\"col\"{class}>{}</th>", escape(name));
        }
        let _ = write!(
            out,
            "</tr></thead>\n<tbody>\n{}</tbody></table></div>\n",
            self.rows
        );
        out
    }
}

/// A section of the page: `body` is HTML.
pub fn section(id: &str, title: &str, intro: &str, body: &str) -> String {
    let intro = match intro.is_empty() {
        true => String::new(),
        false => format!("<p>{}</p>\n", escape(intro)),
    };
    format!(
        "<section id=\"{id}\">\n<h2>{}</h2>\n{intro}{body}</section>\n",
        escape(title)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out() {
        let hostile = "</td><script>alert('1')</script>\"&\u{202e}\u{0}";
        let safe = escape(hostile);
        assert!(
            !safe.contains(['<', '>', '"', '\'', '\u{202e}', '\u{0}']),
            "{safe}"
        );
        let mut table = Table::new(&["a", "b>"]);
        table.row([Cell::text(hostile), Cell::number("NaN", f64::NAN)]);
        let html = table.render();
        assert!(
            !html.contains("<script") && html.contains("data-v=\"1e999\""),
            "{html}"
        );
        assert!(!key("", hostile).contains("<script"));
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(short("añb", 3), "añb");
        assert_eq!(short("añbc", 3), "añ…");
        assert_eq!(tail("a.b.añb", 4), "…añb");
    }
}
