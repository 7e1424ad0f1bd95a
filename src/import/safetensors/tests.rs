//! Every family on a small checkpoint: structure, roles, mistakes; and golden prints.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::config::Config;
use super::implied;
use crate::import::{Imported, Input, open};
use crate::ir::text::{parse, print};
use crate::ir::{Module, Storage};
use crate::weights::{DType, FileCache, ShardWriter, WriterOptions};

/// A tensor of a test checkpoint: name, type, shape.
type Tensor = (String, DType, Vec<u64>);

/// Writes a checkpoint: zeros, except that nothing reads them.
fn write(folder: &Path, config: &Value, tensors: &[Tensor]) {
    std::fs::write(folder.join("config.json"), config.to_string()).expect("config");
    let options = WriterOptions {
        header_reserve: 1024,
        ..WriterOptions::default()
    };
    let mut writer = ShardWriter::create(folder, options).expect("writer");
    for (name, dtype, dims) in tensors {
        let bytes = dtype.bytes_for_shape(dims).expect("size");
        let data = vec![0; usize::try_from(bytes).expect("small")];
        writer.tensor(name, *dtype, dims, &data).expect("tensor");
    }
    writer.finish().expect("finish");
}

/// The tensors that the configuration implies.
fn tensors_of(config: &Value) -> Vec<Tensor> {
    let module = implied(&parsed(config)).unwrap_or_else(|e| panic!("{e}"));
    let tensor = |w: crate::ir::Weight| (w.name, w.dtype, w.dims);
    module.weights.into_iter().map(tensor).collect()
}

fn parsed(config: &Value) -> Config {
    Config::parse(Path::new("config.json"), config.to_string().as_bytes()).expect("JSON")
}

fn import(folder: &Path) -> Result<Imported, String> {
    open(&Input::Path(folder.to_path_buf()), &FileCache::new()).map_err(|e| e.to_string())
}

fn imported(config: &Value, tensors: &[Tensor]) -> Result<Imported, String> {
    let folder = tempfile::tempdir().expect("dir");
    write(folder.path(), config, tensors);
    let mut imported = import(folder.path())?;
    imported.module.name = "test".to_string();
    let text = print(&imported.module);
    let again = parse(&text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(again, imported.module, "text round trip");
    Ok(imported)
}

/// Imports what the configuration implies and compares with the golden file.
fn golden(name: &str, config: &Value) -> Imported {
    let blessing = std::env::var_os("UPDATE_GOLDENFILES").is_some();
    let ci = std::env::var("CI").is_ok_and(|v| v == "true");
    assert!(!(blessing && ci), "golden files are not blessed under CI");
    let imported = imported(config, &tensors_of(config)).unwrap_or_else(|e| panic!("{e}"));
    let mut module = imported.module.clone();
    // Where the writer puts the bytes is not what is tested here.
    for weight in &mut module.weights {
        weight.storage = Storage::Absent;
    }
    let mut mint = goldenfile::Mint::new("tests/golden/import");
    let mut file = mint.new_goldenfile(format!("{name}.out")).expect("golden");
    file.write_all(print(&module).as_bytes()).expect("write");
    imported
}

fn roles(module: &Module) -> [usize; 5] {
    let mut counts = [0; 5];
    for site in crate::ir::site::sites(module) {
        for role in site.roles {
            counts[role as usize] += 1;
        }
    }
    counts
}

fn with(base: &Value, changes: Value) -> Value {
    let mut config = base.clone();
    for (key, value) in changes.as_object().expect("object") {
        config[key] = value.clone();
    }
    config
}

fn base(architecture: &str, model_type: &str) -> Value {
    json!({
        "architectures": [architecture], "model_type": model_type,
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 32,
        "max_position_embeddings": 128, "torch_dtype": "bfloat16",
    })
}

/// `[linear, expert, embedding, head, router]`
const DENSE_TIED: [usize; 5] = [14, 0, 1, 1, 0];

mod families;
mod mistakes;
mod real;

#[test]
fn llama() {
    let config = with(
        &base("LlamaForCausalLM", "llama"),
        json!({
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        }),
    );
    let imported = golden("llama", &config);
    assert_eq!(roles(&imported.module), DENSE_TIED);
    assert!(imported.notes.is_empty(), "{:?}", imported.notes);
    // Untied: table and head are two weights.
    assert!(
        imported
            .module
            .weights
            .iter()
            .any(|w| w.name == "lm_head.weight")
    );
}

#[test]
fn gemma2() {
    let mut config = base("Gemma2ForCausalLM", "gemma2");
    config["query_pre_attn_scalar"] = json!(64);
    config["sliding_window"] = json!(8);
    let imported = golden("gemma2", &config);
    assert_eq!(roles(&imported.module), DENSE_TIED);
}

#[test]
fn gpt2() {
    let config = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 16, "n_layer": 1,
        "n_head": 4, "n_positions": 64, "vocab_size": 32,
    });
    let imported = golden("gpt2", &config);
    assert_eq!(roles(&imported.module), [4, 0, 2, 1, 0]);
}

#[test]
fn bert() {
    let mut config = base("BertModel", "bert");
    config["num_hidden_layers"] = json!(1);
    let imported = golden("bert", &config);
    assert_eq!(roles(&imported.module), [7, 0, 3, 0, 0]);
}

#[test]
fn mixtral() {
    let mut config = base("MixtralForCausalLM", "mixtral");
    config["num_local_experts"] = json!(2);
    config["num_hidden_layers"] = json!(1);
    let imported = golden("mixtral", &config);
    assert_eq!(roles(&imported.module), [4, 6, 1, 1, 1]);
}
