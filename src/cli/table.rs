//! Plain tables for terminals.

use std::fmt::Write;

/// Rows of cells, the first row being the heads.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// A table with these heads; those that end in `>` are flush right.
    pub fn new(heads: &[&str]) -> Self {
        let right = heads.iter().map(|head| head.ends_with('>')).collect();
        let heads = heads
            .iter()
            .map(|head| head.trim_end_matches('>').to_owned())
            .collect();
        Self {
            rows: vec![heads],
            right,
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text, columns two spaces apart.
    pub fn render(&self) -> String {
        let columns = self.right.len();
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &width), &right) in row.iter().zip(&widths).zip(&self.right) {
                // Writing to a string can't fail.
                let _ = if right {
                    write!(line, "{cell:>width$}  ")
                } else {
                    write!(line, "{cell:<width$}  ")
                };
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Text broken into lines of at most `width` characters, each behind `indent` spaces.
pub fn wrap(text: &str, width: usize, indent: usize) -> String {
    let mut out = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && indent + line.chars().count() + 1 + word.chars().count() > width {
            let _ = writeln!(out, "{:indent$}{line}", "");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(out, "{:indent$}{line}", "");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["name", "bytes>"]);
        table.row(["a".into(), "10".into()]);
        table.row(["long".into(), "9".into()]);
        assert_eq!(table.render(), "name  bytes\na        10\nlong      9\n");
        assert_eq!(wrap("one two three", 9, 2), "  one two\n  three\n");
    }
}
