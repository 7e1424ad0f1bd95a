//! Module passes of plugins read the run's seed and the statistics of `--calib`.

use std::path::{Path, PathBuf};

use super::common::{HEADER, c_library, fails, hlrc, library, text, works};

const STORIES: &str = "tests/fixtures/stories260K";

fn calibrated(here: &Path) -> PathBuf {
    let data = std::fs::canonicalize("tests/fixtures/text/stories.txt").expect("the fixture");
    let out = here.join("x.calibration");
    let arguments = [
        "calibrate",
        STORIES,
        "--data",
        data.to_str().expect("utf-8"),
        "--ctx",
        "64",
        "--windows",
        "4",
        "-o",
        out.to_str().expect("utf-8"),
        "-q",
    ];
    works(Path::new("."), &arguments);
    out
}

/// Remarks of a pass.
fn remarks(here: &Path, pass: &str, plugin: &Path, more: &[&str]) -> Vec<String> {
    let model = std::fs::canonicalize(STORIES).expect("the fixture");
    let arguments = [
        model.to_str().expect("utf-8"),
        "-p",
        pass,
        "-S",
        "-q",
        "--remarks-output",
        "remarks.yaml",
        "--load-pass-plugin",
        plugin.to_str().expect("utf-8"),
    ];
    works(here, &[&arguments[..], more].concat());
    let said = std::fs::read_to_string(here.join("remarks.yaml")).expect("remarks");
    said.split("---").map(str::to_string).collect()
}

#[test]
fn statistics_reach_module_passes() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let Some(c) = c_library("listen.c", HEADER, &[], here) else {
        return;
    };
    let rust = library("misbehave");
    let file = calibrated(here);
    let calib = ["--calib", file.to_str().expect("utf-8")];
    // What the file says, read by the library.
    let statistics = hlrc::calib::Statistics::open(&file).expect("statistics");
    let found = statistics
        .site("model.layers.0.self_attn.q_proj")
        .expect("read");
    let found = found.expect("a site");
    let diagonal: f64 = found.diag.iter().map(|&x| f64::from(x)).sum();
    for (pass, plugin) in [("listen", &c), ("listen-in-rust", &rust)] {
        let with = remarks(here, pass, plugin, &calib);
        let own = with
            .iter()
            .find(|r| r.contains("layers.0.self_attn.q_proj"));
        let own = own.expect("a remark about it");
        assert!(
            own.contains(&format!("tokens={} width=64", found.tokens)),
            "{own}"
        );
        let said = |name: &str| -> f64 {
            let (_, rest) = own.split_once(name).expect("a number");
            let end = rest
                .find(|c: char| !"0123456789.e+-".contains(c))
                .unwrap_or(rest.len());
            rest[..end].parse().expect("a number")
        };
        assert!(
            (said("diagonal=") - diagonal).abs() < 1e-4 * diagonal,
            "{own}"
        );
        assert!((said("trace=") - diagonal).abs() < 1e-4 * diagonal, "{own}");
        // In a process of its own, the same.
        let isolated = [&calib[..], &["--isolate-plugins"]].concat();
        assert_eq!(
            with,
            remarks(here, pass, plugin, &isolated),
            "{pass} isolated"
        );
        // Without statistics, and with another seed.
        let without = remarks(here, pass, plugin, &["--seed", "7"]);
        assert!(
            without.iter().any(|r| r.contains("no statistics")),
            "{without:?}"
        );
        assert!(
            !without.iter().any(|r| r.contains("tokens=")),
            "{without:?}"
        );
        let seeds = |said: &[String]| said.iter().find(|r| r.contains("seed=")).cloned();
        let (zero, seven) = (
            seeds(&with).expect("a seed"),
            seeds(&without).expect("a seed"),
        );
        assert!(
            zero.contains("seed=0 ") && seven.contains("seed=7 "),
            "{zero} {seven}"
        );
        let random = |said: &str| said.split_once("random=").map(|(_, r)| r[..16].to_string());
        assert_ne!(random(&zero), random(&seven));
    }
}

#[test]
fn a_pass_that_needs_statistics_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    // HLRC_CALIBRATION_NEEDED
    let Some(plugin) = c_library("listen.c", HEADER, &[("NEEDS", 2)], here) else {
        return;
    };
    let plugin = plugin.to_str().expect("utf-8");
    let model = std::fs::canonicalize(STORIES).expect("the fixture");
    let run = [
        model.to_str().expect("utf-8"),
        "-p",
        "listen",
        "-S",
        "-q",
        "--load-pass-plugin",
        plugin,
    ];
    for isolated in [&[][..], &["--isolate-plugins"]] {
        let arguments = [&run[..], isolated].concat();
        fails(
            here,
            &arguments,
            2,
            &["pass listen needs statistics", "--calib"],
        );
    }
    let file = calibrated(here);
    let arguments = [&run[..], &["--calib", file.to_str().expect("utf-8")]].concat();
    works(here, &arguments);
    // Of a pass that has no use for them, it is said that they have no effect.
    let unused = c_library("listen.c", HEADER, &[("NEEDS", 0)], here).expect("built");
    let unused = unused.to_str().expect("utf-8");
    let arguments = [
        model.to_str().expect("utf-8"),
        "-p",
        "listen",
        "-S",
        "--load-pass-plugin",
        unused,
        "--calib",
        file.to_str().expect("utf-8"),
    ];
    fails(here, &arguments, 2, &["--calib would have no effect"]);
    let checked = hlrc(here, &["plugin", "check", plugin]);
    assert!(text(&checked.stdout).contains("works on 3 modules"));
}

#[test]
fn statistics_of_another_model_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let Some(plugin) = c_library("listen.c", HEADER, &[], here) else {
        return;
    };
    let file = calibrated(here);
    let other = "hlir 1\nmodule \"m\" {\n  weight @q.weight : f32[8,8] = synthetic(seed=1, power=1.2, scale=0.02, outliers=0.0)\n  graph @main(%x : f32[B,8]) -> (%y) {\n    %y = linear %x [8,8] { dense(@q.weight) } name(\"model.layers.0.self_attn.q_proj\") : f32[B,8]\n  }\n}\n";
    std::fs::write(here.join("m.hlir"), other).expect("written");
    let arguments = [
        "m.hlir",
        "-p",
        "listen",
        "-S",
        "--load-pass-plugin",
        plugin.to_str().expect("utf-8"),
        "--calib",
        file.to_str().expect("utf-8"),
        "--crash-reproducer",
        "crash.hlir",
    ];
    let says = [
        "plugin listen 1",
        "of 64 inputs, the matrix has 8",
        "another model",
    ];
    fails(here, &arguments, 1, &says);
}
