//! Configurations and tensors that don't fit: located messages, no work in vain.

use proptest::prelude::*;

use super::*;

fn error(config: &Value, tensors: &[Tensor]) -> String {
    imported(config, tensors)
        .map(|i| i.notes)
        .expect_err("must be refused")
}

fn says(config: &Value, tensors: &[Tensor], parts: &[&str]) {
    let error = error(config, tensors);
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

#[test]
fn all_tensors_at_fault_are_listed() {
    let config = base("LlamaForCausalLM", "llama");
    let mut tensors = tensors_of(&config);
    tensors.retain(|(name, ..)| name != "model.layers.1.mlp.up_proj.weight");
    for (name, dtype, dims) in &mut tensors {
        match name.as_str() {
            "model.norm.weight" => *dims = vec![17],
            "model.layers.0.self_attn.q_proj.weight" => *dtype = DType::I8,
            _ => {}
        }
    }
    let parts = [
        "3 problems of the tensors of LlamaForCausalLM",
        "model.layers.0.self_attn.q_proj.weight is i8, expected floating point",
        "model.layers.1.mlp.up_proj.weight is missing, config.json implies [24, 16]",
        "model.norm.weight is [17], config.json implies [16]",
    ];
    says(&config, &tensors, &parts);
}

#[test]
fn tokens_go_to_no_more_experts_than_there_are() {
    for (architecture, kind, key) in [
        ("MixtralForCausalLM", "mixtral", "num_local_experts"),
        ("Qwen3MoeForCausalLM", "qwen3_moe", "num_experts"),
    ] {
        let config = with(
            &base(architecture, kind),
            json!({key: 3, "num_experts_per_tok": 4}),
        );
        let error = implied(&parsed(&config)).expect_err("must be refused");
        let error = error.to_string();
        assert!(
            error.contains("num_experts_per_tok") && error.contains("there are 3 experts"),
            "{error}"
        );
    }
}

#[test]
fn layers_are_believed_as_far_as_tensors_go() {
    let config = base("LlamaForCausalLM", "llama");
    let tensors = tensors_of(&config);
    let many = with(&config, json!({"num_hidden_layers": 1_000_000_000}));
    says(
        &many,
        &tensors,
        &[
            "config.json: `num_hidden_layers`",
            "1000000000 layers, the tensors are of 2",
        ],
    );
    assert!(implied(&parsed(&many)).is_err());
    let few = with(&config, json!({"num_hidden_layers": 1}));
    let imported = imported(&few, &tensors).expect("imports");
    assert!(
        imported.notes.iter().any(|n| n.contains("gives 1 layers")),
        "{:?}",
        imported.notes
    );
    assert_eq!(imported.module.weights.len(), tensors.len());
}

#[test]
fn one_tensor_of_a_late_layer_makes_no_layers() {
    let config = base("LlamaForCausalLM", "llama");
    let mut tensors = tensors_of(&config);
    let late = "model.layers.999999999.mlp.up_proj.weight";
    tensors.push((late.to_string(), DType::BF16, vec![24, 16]));
    let many = with(&config, json!({"num_hidden_layers": 1_000_000_000}));
    says(
        &many,
        &tensors,
        &["1000000000 layers, the tensors are of 3"],
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_value_of_a_field_is_no_panic(
        family in 0usize..5,
        field in 0usize..FIELDS.len(),
        value in 0usize..VALUES.len(),
    ) {
        let (class, name) = [
            ("LlamaForCausalLM", "llama"),
            ("Gemma3ForCausalLM", "gemma3_text"),
            ("Qwen3MoeForCausalLM", "qwen3_moe"),
            ("BertModel", "bert"),
            ("Qwen2ForCausalLM", "qwen2"),
        ][family];
        let mut config = base(class, name);
        config["num_experts"] = json!(2);
        config["num_experts_per_tok"] = json!(1);
        let tensors = tensors_of(&config);
        config[FIELDS[field]] = serde_json::from_str(VALUES[value]).expect("JSON");
        let _ = imported(&config, &tensors);
        let _ = implied(&parsed(&config));
    }
}

const FIELDS: [&str; 24] = [
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "torch_dtype",
    "max_position_embeddings",
    "rope_scaling",
    "rope_parameters",
    "rope_theta",
    "rms_norm_eps",
    "layer_types",
    "sliding_window",
    "tie_word_embeddings",
    "num_experts",
    "decoder_sparse_step",
    "mlp_only_layers",
    "layer_norm_eps",
    "text_config",
    "quantization_config",
];

const VALUES: [&str; 16] = [
    "null",
    "true",
    "0",
    "-1",
    "1",
    "7",
    "1e308",
    "2147483648",
    "18446744073709551615",
    "0.5",
    r#""x""#,
    "[]",
    r#"["sliding_attention","full_attention"]"#,
    "[0,1]",
    "{}",
    r#"{"rope_type":"yarn","factor":1e-300,"beta_fast":1e300,"original_max_position_embeddings":1}"#,
];

#[test]
fn experts_are_believed_as_far_as_tensors_go() {
    let mut config = base("MixtralForCausalLM", "mixtral");
    config["num_local_experts"] = json!(2);
    let tensors = tensors_of(&config);
    config["num_local_experts"] = json!(2_000_000_000u64);
    let parts = ["`num_local_experts` is 2000000000: more than 65536 in all layers"];
    says(&config, &tensors, &parts);
    assert!(implied(&parsed(&config)).is_err());
    config["num_local_experts"] = json!(20_000);
    says(
        &config,
        &tensors,
        &[
            "block_sparse_moe.gate.weight is [2, 16]",
            "experts.2.w1.weight is missing",
        ],
    );
    config["num_local_experts"] = json!(2);
    config["num_experts_per_tok"] = json!(3);
    says(
        &config,
        &tensors,
        &["`num_experts_per_tok` is 3, but there are 2 experts"],
    );
}

#[test]
fn fields_are_named() {
    let config = base("LlamaForCausalLM", "llama");
    let tensors = tensors_of(&config);
    for (changes, part) in [
        (
            json!({"hidden_size": "16"}),
            "config.json: `hidden_size` is \"16\", expected a whole number",
        ),
        (json!({"hidden_size": -16}), "`hidden_size` is -16"),
        (
            json!({"num_attention_heads": 0}),
            "`num_attention_heads` is 0",
        ),
        (
            json!({"num_key_value_heads": 3}),
            "`num_key_value_heads` is 3, which doesn't divide the 4 heads",
        ),
        (json!({"vocab_size": null}), "`vocab_size` is missing"),
        (json!({"head_dim": 7}), "`head_dim` is 7"),
        (
            json!({"attention_bias": 1}),
            "`attention_bias` is 1, expected true or false",
        ),
        (
            json!({"architectures": "Llama"}),
            "`architectures` is \"Llama\", expected a list of texts",
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear"}}),
            "`rope_scaling.factor` is missing",
        ),
        (
            json!({"rope_theta": -1.0}),
            "`rope_theta` is -1.0, expected a number above 0",
        ),
        (
            json!({"intermediate_size": 1u64 << 40}),
            "`intermediate_size` is 1099511627776",
        ),
    ] {
        says(&with(&config, changes), &tensors, &[part]);
    }
    for text in ["", "{", "[]", "3"] {
        let error =
            Config::parse(Path::new("config.json"), text.as_bytes()).expect_err("no object");
        assert!(
            error.to_string().starts_with("config.json: is no JSON"),
            "{error}"
        );
    }
}

#[test]
fn quantized_checkpoints_are_refused() {
    let config = base("LlamaForCausalLM", "llama");
    let tensors = tensors_of(&config);
    let settings = json!({"quantization_config": {"quant_method": "gptq", "bits": 4}});
    says(
        &with(&config, settings),
        &tensors,
        &[
            "quantized already",
            "`quantization_config` of config.json: gptq",
        ],
    );
    for (name, dtype, part) in [
        (
            "model.layers.0.mlp.up_proj.qweight",
            DType::I32,
            "GPTQ or AWQ",
        ),
        (
            "model.layers.0.mlp.up_proj.weight_scale_inv",
            DType::F32,
            "block-scaled f8",
        ),
        (
            "model.layers.0.mlp.up_proj.weight_packed",
            DType::I32,
            "compressed-tensors",
        ),
    ] {
        let mut tensors = tensors.clone();
        tensors.push((name.to_string(), dtype, vec![2, 2]));
        says(&config, &tensors, &[name, part]);
    }
    let f8 = [
        ("w.weight".to_string(), DType::F8E4M3FN, vec![4, 4]),
        ("w.weight_scale".to_string(), DType::F32, vec![1]),
    ];
    says(
        &json!({}),
        &f8,
        &["w.weight_scale beside a weight of f8e4m3fn"],
    );
    // f8 by itself is a type like any other.
    assert!(imported(&json!({}), &f8[..1]).is_ok());
}

#[test]
fn folders_without_weights_say_what_was_looked_for() {
    let folder = tempfile::tempdir().expect("dir");
    let cases = [
        (
            None,
            "neither model.safetensors, model.safetensors.index.json",
        ),
        (
            Some("pytorch_model.bin"),
            "pytorch_model.bin is a PyTorch pickle",
        ),
        (Some("model-q4.gguf"), "model-q4.gguf is GGUF"),
    ];
    std::fs::write(folder.path().join("config.json"), "{}").expect("write");
    for (file, part) in cases {
        if let Some(file) = file {
            std::fs::write(folder.path().join(file), "x").expect("write");
        }
        let error = import(folder.path()).expect_err("no weights");
        assert!(error.contains(part), "{error}");
        if let Some(file) = file {
            std::fs::remove_file(folder.path().join(file)).expect("remove");
        }
    }
}

#[test]
fn without_a_config_matrices_stand_alone() {
    let config = base("LlamaForCausalLM", "llama");
    let folder = tempfile::tempdir().expect("dir");
    write(folder.path(), &config, &tensors_of(&config));
    std::fs::remove_file(folder.path().join("config.json")).expect("remove");
    let file = folder.path().join("model.safetensors");
    let imported = import(&file).expect("imports");
    assert_eq!(roles(&imported.module), DENSE_TIED);
    assert!(
        imported.notes[0].contains("no config.json"),
        "{:?}",
        imported.notes
    );
    assert_eq!(
        (imported.files, imported.sidecars),
        (vec![file.clone()], vec![])
    );
    assert_eq!(imported.module.base_dir, folder.path());
    assert_eq!(imported.module.name, "model");
    // One shard of several is imported for its matrices.
    let shard = folder.path().join("model-00001-of-00002.safetensors");
    std::fs::rename(&file, &shard).expect("rename");
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("write");
    let notes = import(&shard).expect("imports").notes;
    assert!(notes[0].contains("one shard of several"), "{notes:?}");
}
