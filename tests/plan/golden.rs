//! Plans as text, compared with what was read and accepted. New texts are accepted with
//! `UPDATE_GOLDENFILES=1 cargo test --release --test plan`, which is refused where `CI=true`.

use std::io::Write as _;
use std::path::Path;

use super::model::{Model, STORIES, family, options};
use goldenfile::Mint;
use hlrc::plan::lower::{Options, lower};
use hlrc::plan::text::print;

fn check(name: &str, path: &Path, pipeline: &str, options: &Options) {
    let model = Model::new(path, pipeline);
    let mut plan = lower(&model.module, options)
        .unwrap_or_else(|e| panic!("{name}: {e}"))
        .plan;
    // What a module is called follows from where it lies.
    plan.model = name.to_string();
    let mut mint = Mint::new("tests/plan/golden");
    let mut file = mint
        .new_goldenfile(format!("{name}.plan"))
        .expect("a temporary file");
    file.write_all(print(&plan).as_bytes())
        .expect("writing to it");
}

fn blessing() -> bool {
    let on = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    on("UPDATE_GOLDENFILES", "1") && on("CI", "true")
}

#[test]
fn plans_are_what_they_were() {
    assert!(
        !blessing(),
        "golden files are blessed by people, not under CI=true: unset UPDATE_GOLDENFILES"
    );
    let stories = Path::new(STORIES);
    let plain = options(64);
    check("stories_int4", stories, "int4", &plain);
    check(
        "stories_lowrank_outlier_int4",
        stories,
        "lowrank{rank=8},outlier,int4",
        &plain,
    );
    check("stories_trellis", stories, "trellis", &plain);
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
