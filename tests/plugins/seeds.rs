//! Seeds: of the run where a pass is made, of site and pass in a peel, of the term in a kind.

use super::common::{HEADER, c_library, fails, library, small, works};

/// What comes behind `what` in a text, up to a blank.
fn behind<'a>(said: &'a str, what: &str) -> &'a str {
    let (_, rest) = said.split_once(what).expect("it is said");
    rest.split(['\'', '"', '\n', ' ']).next().unwrap_or("")
}

#[test]
fn passes_are_made_with_the_seed_of_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    small(here);
    let Some(c) = c_library("listen.c", HEADER, &[], here) else {
        return;
    };
    let rust = library("misbehave");
    for (pass, plugin) in [("listen", &c), ("listen-in-rust", &rust)] {
        let told = |seed: &str, more: &[&str]| {
            let run = ["m.hlir", "-p", pass, "-S", "-q", "--seed", seed];
            let about = [
                "--remarks-output",
                "remarks.yaml",
                "--load-pass-plugin",
                plugin.to_str().expect("utf-8"),
            ];
            works(here, &[&run[..], &about, more].concat());
            let said = std::fs::read_to_string(here.join("remarks.yaml")).expect("remarks");
            assert_eq!(behind(&said, "made="), seed, "{said}");
            behind(&said, "by=").to_string()
        };
        let (seven, eight) = (told("7", &[]), told("8", &[]));
        assert_ne!(seven, eight);
        assert_eq!(seven, told("7", &["--isolate-plugins"]));
    }
}

#[test]
fn stored_rows_have_the_seed_of_a_peel() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    small(here);
    works(here, &["m.hlir", "-o", "dense.hlrc", "-q"]);
    let told = |how: u32, seed: &str, more: &[&str]| {
        let plugin = c_library("evil.c", HEADER, &[("HOW", how)], here)?;
        let run = ["dense.hlrc", "-p", "evil", "-S", "-q", "--seed", seed];
        let load = ["--load-pass-plugin", plugin.to_str().expect("utf-8")];
        let crash = ["--crash-reproducer", "crash.hlir"];
        let arguments = [&run[..], &load, &crash, more].concat();
        let said = fails(here, &arguments, 1, &["pass evil on q", "told "]);
        let (_, rest) = said.split_once("told ")?;
        Some(rest.get(..33).expect("two numbers").to_string())
    };
    let Some(stored) = told(41, "7", &[]) else {
        return;
    };
    assert_eq!(
        Some(&stored),
        told(41, "7", &["--isolate-plugins"]).as_ref()
    );
    assert_eq!(Some(&stored), told(42, "7", &[]).as_ref());
    assert_ne!(Some(&stored), told(41, "8", &[]).as_ref());
}

#[test]
fn a_term_is_the_same_matrix_whatever_the_run() {
    use hlrc::pass::kind::{self, CustomView};
    use hlrc::pass::plugin;
    use serde_json::json;

    plugin::load(&library("misbehave"), false).expect("it loads");
    let kind = kind::find("misbehave.broken").expect("a kind");
    let decoded = |attrs: serde_json::Value| {
        let attrs = attrs.as_object().cloned().expect("an object");
        let term = CustomView {
            rows: 2,
            cols: 3,
            attrs: &attrs,
            tensors: Vec::new(),
        };
        let mut out = vec![0f32; 6];
        kind.add_rows(&term, 0..2, &mut out).expect("rows");
        out
    };
    let noise = json!({"how": "noise", "seed": 1});
    plugin::set_seed(1);
    let first = decoded(noise.clone());
    plugin::set_seed(2);
    assert_eq!(first, decoded(noise));
    plugin::set_seed(0);
    assert!(first.iter().any(|&x| x != first[0]), "{first:?}");
    assert_ne!(first, decoded(json!({"how": "noise", "seed": 2})));
}
