//! Real models, where they are there, and configurations without weights.

use super::super::implied_sites;
use super::*;
use std::path::PathBuf;

/// Folders that models are looked for in.
fn homes() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut homes: Vec<PathBuf> = std::env::var_os("HLRC_MODELS")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    homes.extend(
        ["target/models", "../shared/models", "tests/fixtures"].map(|home| root.join(home)),
    );
    homes
}

/// The model's folder; says so where there is none.
fn find(name: &str, file: &str) -> Option<PathBuf> {
    let found = homes()
        .into_iter()
        .map(|home| home.join(name))
        .find(|f| f.join(file).is_file());
    if found.is_none() {
        eprintln!("skipped: {name} is in none of HLRC_MODELS, target/models, ../shared/models");
    }
    found
}

fn checked(name: &str) -> Option<Imported> {
    let imported = import(&find(name, "model.safetensors")?).unwrap_or_else(|e| panic!("{e}"));
    let text = print(&imported.module);
    assert_eq!(parse(&text).as_ref(), Ok(&imported.module));
    assert!(
        imported
            .sidecars
            .iter()
            .any(|f| f.ends_with("tokenizer.json"))
    );
    Some(imported)
}

#[test]
fn stories260k() {
    let imported = checked("stories260K").expect("the fixture is in the repository");
    assert_eq!(roles(&imported.module), [35, 0, 1, 1, 0]);
    assert!(imported.notes.is_empty(), "{:?}", imported.notes);
    assert_eq!(imported.files.len(), 2);
}

#[test]
fn smollm2() {
    let Some(imported) = checked("smollm2-135m") else {
        return;
    };
    assert_eq!(roles(&imported.module), [210, 0, 1, 1, 0]);
    assert!(imported.notes.is_empty(), "{:?}", imported.notes);
}

#[test]
fn minilm() {
    let Some(imported) = checked("all-MiniLM-L6-v2") else {
        return;
    };
    assert_eq!(roles(&imported.module), [37, 0, 3, 0, 0]);
}

#[test]
fn configurations_imply_shapes() {
    // Parameters as published: 70.6, 405.9, 122.6 and 235.1 billion.
    for (name, billions, linears) in [
        ("llama-3.1-70b", 70.6, 80 * 7),
        ("llama-3.1-405b", 405.9, 126 * 7),
        ("mistral-large-123b", 122.6, 88 * 7),
        ("qwen3-235b-a22b", 235.1, 94 * (4 + 128 * 3)),
    ] {
        let Some(folder) = find(&format!("configs/{name}"), "config.json") else {
            continue;
        };
        let config = Config::read(&folder.join("config.json")).expect("parses");
        let module = implied(&config).unwrap_or_else(|e| panic!("{e}"));
        let parameters: u64 = module.weights.iter().filter_map(|w| w.elements()).sum();
        let have = (parameters as f64 / 1e8).round() / 10.0;
        assert_eq!(have, billions, "{name}");
        let sites = implied_sites(&config).expect("sites");
        assert_eq!(
            sites.iter().filter(|s| s.is_body()).count(),
            linears,
            "{name}"
        );
    }
}

#[test]
fn large_checkpoints_import_quickly() {
    let mut config = base("LlamaForCausalLM", "llama");
    config["num_hidden_layers"] = json!(2000);
    config["hidden_size"] = json!(4);
    config["intermediate_size"] = json!(2);
    config["head_dim"] = json!(2);
    let folder = tempfile::tempdir().expect("dir");
    write(folder.path(), &config, &tensors_of(&config));
    let start = std::time::Instant::now();
    let imported = import(folder.path()).expect("imports");
    let taken = start.elapsed();
    eprintln!("{} tensors in {taken:.2?}", imported.module.weights.len());
    assert!(taken.as_secs() < 20, "{taken:?}");
}
