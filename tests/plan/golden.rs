//! Plans as text, compared with what was read and accepted. New texts are accepted with
//! `UPDATE_GOLDENFILES=1 cargo test --release --test plan`, which is refused where `CI=true`.

use std::io::Write as _;
use std::path::Path;

use super::model::{Model, STORIES, family, options};
use goldenfile::Mint;
use hlrc::plan::lower::{Options, lower};
use hlrc::plan::text::print;

fn check(name: &str, path: &Path, pipeline: &str, options: &Options) {
    accept(name, &Model::new(path, pipeline), options);
}

/// Lines of the first two layers, and of what is no layer; more of a large model are alike.
fn shortened(text: &str) -> String {
    let mut kept = String::new();
    let mut shown = true;
    for line in text.lines() {
        // A step's arguments stand below it.
        if !line.starts_with("    ") {
            let layer = line.split_whitespace().find_map(|word| {
                let number = word.split("layers.").nth(1)?.split('.').next()?;
                number.parse::<u32>().ok()
            });
            let cache = line
                .strip_prefix("persistent kv.")
                .and_then(|l| l.split('.').next());
            let layer = layer.or(cache.and_then(|l| l.parse().ok()));
            shown = layer.is_none_or(|l| l < 2);
        }
        if shown {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// Compares a plan's text with what was accepted.
pub(crate) fn accept(name: &str, model: &Model, options: &Options) {
    assert!(!blessing(), "{BLESSING}");
    let mut plan = lower(&model.module, options)
        .unwrap_or_else(|e| panic!("{name}: {e}"))
        .plan;
    // What a module is called follows from where it lies.
    plan.model = name.to_string();
    let mut mint = Mint::new("tests/plan/golden");
    let mut file = mint
        .new_goldenfile(format!("{name}.plan"))
        .expect("a temporary file");
    let text = print(&plan);
    let text = match plan.kv.layers {
        0..=8 => text,
        _ => shortened(&text),
    };
    file.write_all(text.as_bytes()).expect("writing to it");
}

const BLESSING: &str =
    "golden files are blessed by people, not under CI=true: unset UPDATE_GOLDENFILES";

fn blessing() -> bool {
    let on = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    on("UPDATE_GOLDENFILES", "1") && on("CI", "true")
}

#[test]
fn plans_are_what_they_were() {
    let stories = Path::new(STORIES);
    let plain = options(64);
    check("stories_int4", stories, "int4", &plain);
    check(
        "stories_lowrank_outlier_int4",
        stories,
        "lowrank{rank=8},outlier,int4",
        &plain,
    );
    check(
        "stories_lowrank_depth2_outlier_int3",
        stories,
        "lowrank{depth=2 rank=4},outlier,int3",
        &plain,
    );
    check("stories_trellis", stories, "trellis", &plain);
    check("mixtral_int4", &family("mixtral"), "int4", &plain);
    check("gemma3_int4", &family("gemma3"), "int4", &plain);
    check("qwen3_int4", &family("qwen3"), "int4", &plain);
    let host = Options {
        placement: vec![(
            regex::Regex::new(r"\.experts\.").expect("a pattern"),
            hlrc::plan::Place::Host,
        )],
        ..plain
    };
    check(
        "qwen3_moe_int4_experts_on_host",
        &family("qwen3_moe"),
        "int4",
        &host,
    );
}
