//! What every contributor has to keep, checked: passes are registered, documented and tested; files
//! stay short; the README names every pass.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hlrc::pass::passes;
use hlrc::pass::pipeline::option_docs;
use serde_json::{Map, Value};

/// Lines of the longest source file that is still read in one go.
const MAX_LINES: usize = 500;

#[test]
fn every_pass_file_is_registered() {
    let files: BTreeSet<String> = files("passes", false)
        .iter()
        .filter_map(|p| Some(p.file_stem()?.to_str()?.replace('_', "-")))
        .filter(|stem| stem != "mod")
        .collect();
    let names: BTreeSet<String> = passes().iter().map(|e| e.name.to_string()).collect();
    assert_eq!(files, names, "files of passes/ against `passes::ALL`");
    assert_eq!(names.len(), passes().len(), "two passes have one name");
}

#[test]
fn every_pass_is_documented() {
    for entry in passes() {
        let name = entry.name;
        let length = entry.summary.chars().count();
        assert!(
            (1..=100).contains(&length),
            "{name}: the summary has {length} characters"
        );
        for part in ["Before:", "After:", "Cost:", "Source:"] {
            assert!(
                entry.doc.contains(part),
                "{name}: the header has no `{part}`"
            );
        }
        let schema = (entry.schema)();
        for option in option_docs(&schema) {
            let (key, doc) = (&option.name, &option.doc);
            assert!(
                !doc.is_empty(),
                "{name}: option `{key}` has no documentation"
            );
        }
        let closed = schema.get("additionalProperties");
        assert_eq!(
            closed,
            Some(&Value::Bool(false)),
            "{name}: deny_unknown_fields"
        );
        assert!(
            (entry.build)(Map::new()).is_ok(),
            "{name}: the defaults must work"
        );
    }
}

#[test]
fn every_pass_has_a_golden() {
    for entry in passes() {
        let folder = Path::new("tests/golden").join(entry.name.replace('-', "_"));
        let cases = files(&folder, false);
        let is_case = |p: &&PathBuf| p.extension().is_some_and(|e| e == "hlir");
        let cases: Vec<_> = cases.iter().filter(is_case).collect();
        assert!(!cases.is_empty(), "no case in {}", folder.display());
        for case in cases {
            let out = case.with_extension("out");
            assert!(
                out.exists(),
                "{} is missing; see tests/golden.rs",
                out.display()
            );
        }
    }
}

#[test]
fn files_are_short() {
    for folder in ["src", "passes", "tests", "benches"] {
        for file in files(folder, true).iter().filter(|p| is_rust(p)) {
            let text = std::fs::read_to_string(file).expect("a readable source");
            let lines = text.lines().count();
            let name = file.display();
            assert!(
                lines <= MAX_LINES,
                "{name} has {lines} lines, at most {MAX_LINES}: split it"
            );
        }
    }
}

#[test]
fn the_readme_names_every_pass() {
    let readme = std::fs::read_to_string("README.md").expect("README.md");
    let lines: Vec<&str> = readme.lines().collect();
    let tables = lines.split(|line| !line.starts_with('|'));
    let table = tables
        .into_iter()
        .find(|t| t.iter().any(|l| l.starts_with("| `lowrank` |")));
    let table = table.expect("a table in README.md with a row for every pass");
    let row = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_string());
    let listed: BTreeSet<String> = table.iter().copied().filter_map(row).collect();
    let names: BTreeSet<String> = passes().iter().map(|e| e.name.to_string()).collect();
    assert_eq!(listed, names, "README.md's table against `passes::ALL`");
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "rs")
}

/// Files of a folder; with `deep`, of those inside too.
fn files(folder: impl AsRef<Path>, deep: bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if !path.is_dir() {
            found.push(path);
        } else if deep {
            found.extend(files(path, true));
        }
    }
    found.sort();
    found
}
