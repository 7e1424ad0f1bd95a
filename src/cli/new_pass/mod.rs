//! `new-pass`: the skeleton of a pass, registered and with a golden test.
//!
//! What is generated is `template.rs` with the name replaced; the test build compiles that file, so that
//! it can't fall behind the interface.

#[cfg(test)]
mod template;

use super::args::NewPassArgs;
use super::opt::write_text;
use super::{Exit, Failure, print};
use crate::pass::registry::find;
use std::path::{Path, PathBuf};

pub(super) const TEMPLATE: &str = include_str!("template.rs");
const CASE: &str = include_str!("template.hlir");
const EXPECTED: &str = include_str!("template.out");

/// Names that a module of `passes/` can't have: Rust's words, and what is there already.
const TAKEN: [&str; 24] = [
    "mod", "shared", "self", "super", "crate", "use", "fn", "pub", "type", "struct", "enum",
    "impl", "trait", "match", "if", "else", "for", "loop", "move", "ref", "static", "where",
    "none", "template",
];

/// Writes the skeleton.
pub fn run(args: &NewPassArgs) -> Result<Exit, Failure> {
    let name = Name::new(&args.name)?;
    let root = &args.dir;
    let list = root.join("passes/mod.rs");
    let registry = std::fs::read_to_string(&list).map_err(|error| {
        Failure::read(&list, &error)
            .help("run this at the root of hlrc-opt's source tree, or name it with --dir")
    })?;
    let registry = register(&registry, &name).ok_or_else(|| {
        Failure::new(
            Exit::Input,
            format!(
                "{}: has no `pub mod` lines or no list `ALL`",
                list.display()
            ),
        )
        .help("is this the source tree of hlrc-opt?")
    })?;
    let source = root.join(format!("passes/{}.rs", name.module));
    let folder = root.join(format!("tests/golden/{}", name.module));
    for path in [&source, &folder] {
        if path.exists() {
            return Err(Failure::new(
                Exit::Failure,
                format!("{}: is there already", path.display()),
            )
            .help("choose another name, or remove it first"));
        }
    }
    std::fs::create_dir_all(&folder).map_err(|error| Failure::write(&folder, &error))?;
    write_text(&folder.join("default.hlir"), &name.fill(CASE))?;
    write_text(&folder.join("default.out"), &name.fill(EXPECTED))?;
    write_text(&source, &name.fill(TEMPLATE))?;
    write_text(&list, &registry)?;
    let readme = list_in_readme(root, &name)?;
    let shown = |path: &Path| path.display().to_string();
    let mut text = format!(
        "wrote {}\nwrote {}\nadded to {}\n",
        shown(&source),
        shown(&folder.join("default.hlir")),
        shown(&list)
    );
    if let Some(path) = readme {
        text.push_str(&format!("added to {}\n", shown(&path)));
    }
    text.push_str(&format!(
        "\nIt compiles and its golden test passes as it is. Then:\n  \
         edit {}\n  \
         UPDATE_GOLDENFILES=1 cargo test --release --test golden   # accept the new result\n  \
         cargo run --release -- MODEL -p {}\n",
        shown(&source),
        name.pass
    ));
    print(text.as_bytes())?;
    Ok(Exit::Ok)
}

/// A pass's name in its three spellings.
#[derive(Debug)]
pub(super) struct Name {
    /// `my-pass`, in pipelines.
    pub(super) pass: String,
    /// `my_pass`, the file.
    pub(super) module: String,
    /// `MyPass`, the options.
    kind: String,
}

impl Name {
    pub(super) fn new(text: &str) -> Result<Self, Failure> {
        let wrong = |what: &str, help: &str| {
            Failure::new(
                Exit::Usage,
                format!("`{text}` can't be a pass's name: {what}"),
            )
            .help(help)
        };
        let pass = text.replace('_', "-");
        let letters = pass
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let starts = pass.starts_with(|c: char| c.is_ascii_lowercase());
        if !letters || !starts || pass.ends_with('-') || pass.contains("--") || pass.len() > 40 {
            return Err(wrong(
                "it is not made of words in small letters",
                "as in low-rank-plus",
            ));
        }
        let module = pass.replace('-', "_");
        if TAKEN.contains(&module.as_str()) {
            return Err(wrong("the word means something else", "choose another"));
        }
        if find(&pass).is_some() {
            return Err(wrong(
                "there is a pass of that name",
                "`hlrc-opt passes` lists them",
            ));
        }
        let kind = pass.split('-').map(|word| {
            let (first, rest) = word.split_at(1.min(word.len()));
            first.to_ascii_uppercase() + rest
        });
        Ok(Self {
            kind: kind.collect(),
            module,
            pass,
        })
    }

    pub(super) fn fill(&self, template: &str) -> String {
        template
            .replace("template.rs", &format!("{}.rs", self.module))
            .replace("template", &self.pass)
            .replace("Template", &self.kind)
    }
}

/// The registry with the pass added, both lists kept sorted.
fn register(text: &str, name: &Name) -> Option<String> {
    let module = format!("pub mod {};", name.module);
    let entry = format!("    {}::ENTRY,", name.module);
    let with_module = insert_sorted(text, &module, |line| {
        line.starts_with("pub mod ") && line.ends_with(';')
    })?;
    insert_sorted(&with_module, &entry, |line| {
        line.starts_with("    ") && line.ends_with("::ENTRY,")
    })
}

/// The text with a line put before the first of its kind that sorts behind it, or after the last.
fn insert_sorted(text: &str, new: &str, same_kind: impl Fn(&str) -> bool) -> Option<String> {
    let lines: Vec<&str> = text.lines().collect();
    let place = lines.iter().position(|line| same_kind(line) && *line > new);
    let place = place.or_else(|| {
        lines
            .iter()
            .rposition(|line| same_kind(line))
            .map(|last| last + 1)
    })?;
    let (before, after) = lines.split_at(place);
    let all: Vec<&str> = before
        .iter()
        .copied()
        .chain([new])
        .chain(after.iter().copied())
        .collect();
    Some(all.join("\n") + "\n")
}

/// Adds the pass to the README's table of passes, where there is one; returns the README's path then.
fn list_in_readme(root: &Path, name: &Name) -> Result<Option<PathBuf>, Failure> {
    let path = root.join("README.md");
    let Some(text) = std::fs::read_to_string(&path)
        .ok()
        .and_then(|text| add_row(&text, name))
    else {
        return Ok(None);
    };
    write_text(&path, &text)?;
    Ok(Some(path))
}

/// The text with a row for the pass in the table that has one for `lowrank`, kept sorted.
fn add_row(text: &str, name: &Name) -> Option<String> {
    let is_row = |line: &str| line.starts_with("| `");
    let lines: Vec<&str> = text.lines().collect();
    let known = lines
        .iter()
        .position(|line| line.starts_with("| `lowrank` |"))?;
    let (before, after) = lines.split_at(known);
    let first = known - before.iter().rev().take_while(|line| is_row(line)).count();
    let last = known + after.iter().take_while(|line| is_row(line)).count();
    let summary = TEMPLATE.lines().next()?.trim_start_matches("//! ");
    let row = format!("| `{}` | {summary} |", name.pass);
    let rows = lines.get(first..last)?;
    let place = first + rows.iter().take_while(|line| **line < row.as_str()).count();
    let (head, tail) = lines.split_at(place);
    let all: Vec<&str> = head
        .iter()
        .copied()
        .chain([row.as_str()])
        .chain(tail.iter().copied())
        .collect();
    Some(all.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::Pass;

    #[test]
    fn names() {
        let name = Name::new("low-rank_plus").expect("a name");
        assert_eq!(
            (name.pass.as_str(), name.module.as_str(), name.kind.as_str()),
            ("low-rank-plus", "low_rank_plus", "LowRankPlus")
        );
        for bad in [
            "", "Low", "9a", "a--b", "a-", "a b", "../x", "mod", "int4", "shared", "é",
        ] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_stay_sorted() {
        let text = "//! x\n\npub mod a;\npub mod c;\n\npub const ALL: &[E] = &[\n    a::ENTRY,\n    c::ENTRY,\n];\n";
        let name = |text: &str| Name::new(text).expect("a name");
        let with = register(text, &name("b")).expect("registered");
        assert_eq!(
            with,
            text.replace("pub mod c;", "pub mod b;\npub mod c;")
                .replace("    c::E", "    b::ENTRY,\n    c::E")
        );
        let last = register(text, &name("d")).expect("registered");
        assert!(
            last.contains("pub mod c;\npub mod d;\n")
                && last.contains("    c::ENTRY,\n    d::ENTRY,\n];")
        );
        assert!(register("nothing", &name("d")).is_none());
    }

    #[test]
    fn the_readme_gets_a_row() {
        let text = "# x\n\n| pass | what |\n|---|---|\n| `int4` | a |\n| `lowrank` | b |\n| `outlier` | c |\n\nend\n";
        let with = |pass: &str| add_row(text, &Name::new(pass).expect("a name")).expect("a table");
        let row = "| `demo` | Takes the columns of largest norm out of what is left. |\n";
        assert_eq!(
            with("demo"),
            text.replace("| `int4`", &format!("{row}| `int4`"))
        );
        assert!(with("zip").contains("| c |\n| `zip` | Takes"));
        assert!(add_row("# x\n", &Name::new("demo").expect("a name")).is_none());
    }

    #[test]
    fn the_template_is_a_pass() {
        let built = (template::ENTRY.build)(serde_json::Map::new()).expect("its defaults work");
        assert!(matches!(built, Pass::Matrix(_)));
        for part in ["Before:", "After:", "Cost:", "Source:"] {
            assert!(template::ENTRY.doc.contains(part));
        }
    }
}
