//! What plugins make of modules by single edits, and of terms by handles.

use super::common::{HEADER, c_library, fails, small, works};

#[test]
fn ops_values_and_weights_can_be_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    small(here);
    let Some(plugin) = c_library("rewrite.c", HEADER, &[], here) else {
        return;
    };
    let plugin = plugin.to_str().expect("utf-8");
    for isolated in [&[][..], &["--isolate-plugins"]] {
        let run = |pipeline: &str, out: &str| {
            let run = ["m.hlir", "-p", pipeline, "-o", out, "-q", "-f"];
            let load = ["--load-pass-plugin", plugin];
            works(here, &[&run[..], &load, isolated].concat());
            works(here, &[out, "-S", "-q"])
        };
        let text = run("chain", "chain.hlrc");
        for part in [
            "%h = linear %x [8,8] { dense(@q.half) } name(\"q.half\") : f32[B,8]",
            "linear %h [8,8] { dense(@q.twice) } name(\"q.twice\") : f32[B,8]",
            "-> (%y, %h)",
        ] {
            assert!(text.contains(part), "`{part}` in {text}");
        }
        assert!(!text.contains("@q.weight"), "{text}");
        let text = run("outlier{density=10%},handles,int8", "handles.hlrc");
        assert!(text.contains("sparse(@q.values"), "{text}");
    }
}

#[test]
fn what_a_plugin_edits_is_verified_whatever_the_arguments_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    small(here);
    // An op without inputs; a bias that is no weight.
    for how in [25, 28] {
        let Some(plugin) = c_library("evil.c", HEADER, &[("HOW", how)], here) else {
            return;
        };
        let run = ["m.hlir", "-p", "evil", "-S", "--no-verify-each"];
        let load = ["--load-pass-plugin", plugin.to_str().expect("utf-8")];
        let crash = ["--crash-reproducer", "crash.hlir"];
        let arguments = [&run[..], &load, &crash].concat();
        fails(here, &arguments, 1, &["plugin evil 1"]);
    }
}
