//! The examples' goldens: `passes/examples/NAME/golden/CASE.hlir` starts with `// RUN: -p PIPELINE`, `CASE.out`
//! beside it is what comes out.

use std::path::Path;

use super::common::{library, text, without_hashes, works};

#[test]
fn examples_do_what_their_goldens_say() {
    let bless = std::env::var("UPDATE_GOLDENFILES").is_ok_and(|v| v == "1");
    for example in ["zero-small", "kmeans4", "row-scale"] {
        let plugin = library(example);
        let folder = Path::new("passes/examples").join(example).join("golden");
        let mut cases: Vec<_> = std::fs::read_dir(&folder)
            .expect("a folder")
            .flatten()
            .collect();
        cases.sort_by_key(|f| f.path());
        let mut count = 0;
        for case in cases
            .iter()
            .map(|f| f.path())
            .filter(|p| p.extension().is_some_and(|e| e == "hlir"))
        {
            count += 1;
            let source = text(&std::fs::read(&case).expect("a case"));
            let run = source
                .lines()
                .next()
                .and_then(|l| l.strip_prefix("// RUN: -p "))
                .expect("a RUN line");
            let (plugin, place) = (
                plugin.to_str().expect("utf-8"),
                case.to_str().expect("utf-8"),
            );
            let arguments = [place, "-p", run, "-S", "-q", "--load-pass-plugin", plugin];
            let out = without_hashes(&works(Path::new("."), &arguments));
            let isolated: Vec<&str> = arguments
                .iter()
                .copied()
                .chain(["--isolate-plugins"])
                .collect();
            assert_eq!(
                out,
                without_hashes(&works(Path::new("."), &isolated)),
                "{place} isolated"
            );
            let golden = case.with_extension("out");
            if bless {
                std::fs::write(&golden, &out).expect("written");
            }
            let expected = text(&std::fs::read(&golden).expect("a golden"));
            assert_eq!(
                out, expected,
                "{place}: UPDATE_GOLDENFILES=1 accepts the new result"
            );
        }
        assert!(count > 0, "{example} has no golden");
    }
}

#[test]
fn examples_pass_their_check() {
    for example in ["zero-small", "kmeans4", "row-scale"] {
        let plugin = library(example);
        let said = works(
            Path::new("."),
            &["plugin", "check", plugin.to_str().expect("utf-8")],
        );
        assert!(
            said.contains("the same bytes for 1 and 3 threads"),
            "{said}"
        );
    }
}

#[test]
fn passes_and_options_are_shown_and_checked() {
    let (here, plugin) = (Path::new("."), library("zero-small"));
    let plugin = plugin.to_str().expect("utf-8");
    let load = ["--load-pass-plugin", plugin];
    let listed = works(here, &[&["passes"], &load[..]].concat());
    assert!(
        listed.contains("zero-small") && listed.contains("lowrank"),
        "{listed}"
    );
    let shown = works(here, &[&["passes", "zero-small"], &load[..]].concat());
    for part in ["keep=", "default: 0.1", "Share of the entries"] {
        assert!(shown.contains(part), "{shown}");
    }
    use super::common::fails;
    let run = |pipeline: &str, says: &[&str]| {
        let arguments = [&["x.onnx", "-p", pipeline], &load[..]].concat();
        fails(here, &arguments, 2, says)
    };
    run("zero-smal", &["no pass `zero-smal`", "zero-small"]);
    run("zero-small{kep=1}", &["kep", "keep"]);
    run("zero-small{keep=2}", &["keep"]);
    fails(
        here,
        &["x.onnx", "-p", "zero-small"],
        2,
        &["no pass `zero-small`"],
    );
    let info = works(here, &["plugin", "info", plugin]);
    assert!(
        info.contains("zero-small 0.1.0") && info.contains("plugin interface: 1.0"),
        "{info}"
    );
    let list = works(here, &[&["plugin", "list"], &load[..]].concat());
    assert!(list.contains("zero-small"), "{list}");
}
