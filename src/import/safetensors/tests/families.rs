//! What the families without a golden file do differently, and the spellings of experts.

use super::*;

fn text(config: &Value) -> String {
    text_of(config, &tensors_of(config))
}

fn text_of(config: &Value, tensors: &[Tensor]) -> String {
    let imported = imported(config, tensors).unwrap_or_else(|e| panic!("{e}"));
    assert!(imported.notes.is_empty(), "{:?}", imported.notes);
    print(&imported.module)
}

/// The lines of attention, or of another op.
fn lines<'a>(text: &'a str, op: &str) -> Vec<&'a str> {
    let op = format!(" = {op} ");
    text.lines().filter(|l| l.contains(&op)).collect()
}

/// Which layers have this window.
fn windowed(text: &str, window: u64) -> Vec<bool> {
    let mark = format!("window={window},");
    let attention = lines(text, "attention");
    attention.iter().map(|l| l.contains(&mark)).collect()
}

#[test]
fn mistral_slides_unless_null() {
    let config = base("MistralForCausalLM", "mistral");
    // The class's default counts where the field is absent.
    assert_eq!(windowed(&text(&config), 4096), [true, true]);
    let none = with(&config, json!({"sliding_window": null}));
    assert_eq!(windowed(&text(&none), 4096), [false, false]);
    assert!(!text(&none).contains("window"));
}

#[test]
fn qwen2_has_biases_and_late_windows() {
    let config = base("Qwen2ForCausalLM", "qwen2");
    let plain = text(&config);
    assert!(!plain.contains("window="));
    assert!(plain.contains("bias(@model.layers.0.self_attn.k_proj.bias)"));
    assert!(!plain.contains("o_proj.bias"));
    let sliding = json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 1});
    assert_eq!(windowed(&text(&with(&config, sliding)), 9), [false, true]);
    let listed = json!({"use_sliding_window": true, "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention"]});
    assert_eq!(windowed(&text(&with(&config, listed)), 9), [true, false]);
    // Tied: one weight, two roles.
    let tied = with(&config, json!({"tie_word_embeddings": true}));
    let tied = imported(&tied, &tensors_of(&tied)).expect("imports");
    let sites = crate::ir::site::sites(&tied.module);
    assert_eq!(
        sites.first().map(|s| (s.users.len(), s.is_body())),
        Some((2, false))
    );
}

#[test]
fn qwen3_norms_heads_before_rotating() {
    let text = text(&base("Qwen3ForCausalLM", "qwen3"));
    let norms: Vec<&str> = text.lines().filter(|l| l.contains("slice=6")).collect();
    assert_eq!(norms.len(), 4);
    assert!(norms[0].contains("@model.layers.0.self_attn.q_norm.weight {eps=1e-6, slice=6}"));
    let number = |l: &str| {
        l.trim()
            .split(' ')
            .next()
            .map(str::to_string)
            .unwrap_or_default()
    };
    assert!(lines(&text, "rope")[0].contains(&format!("rope {},", number(norms[0]))));
}

#[test]
fn gemma3_rotates_local_layers_by_themselves() {
    let mut config = base("Gemma3ForCausalLM", "gemma3_text");
    config["num_hidden_layers"] = json!(7);
    config["sliding_window"] = json!(5);
    config["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0});
    let old = text(&config);
    let all_but_sixth = [true, true, true, true, true, false, true];
    assert_eq!(windowed(&old, 5), all_but_sixth);
    let ropes = lines(&old, "rope");
    for (layer, slides) in all_but_sixth.into_iter().enumerate() {
        let line = ropes[2 * layer];
        assert_eq!(line.contains("theta=10000.0}"), slides, "{line}");
        let full = r#"theta=1000000.0, scaling={type="linear", factor=8.0}}"#;
        assert_eq!(line.contains(full), !slides, "{line}");
    }
    assert_eq!(old.matches("unit_offset=true, slice=6").count(), 14);
    assert!(!old.contains("softcap"));
    // The newer way to say the same.
    config
        .as_object_mut()
        .expect("object")
        .remove("rope_scaling");
    config["rope_parameters"] = json!({
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}});
    assert_eq!(text(&config), old);
}

#[test]
fn gemma3_with_images_is_read_for_its_text() {
    let mut inner = base("", "gemma3_text");
    inner
        .as_object_mut()
        .expect("object")
        .remove("architectures");
    let plain = with(&inner, json!({"architectures": ["Gemma3ForCausalLM"]}));
    let config = json!({"architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3", "text_config": inner});
    let mut tensors = tensors_of(&plain);
    for (name, ..) in &mut tensors {
        *name = format!("language_model.{name}");
    }
    let patch = "vision_tower.vision_model.embeddings.patch_embedding.weight";
    tensors.push((patch.into(), DType::BF16, vec![4, 4]));
    let imported = imported(&config, &tensors).expect("imports");
    assert_eq!(roles(&imported.module), DENSE_TIED);
    let note = "1 tensors have no place in Gemma3ForConditionalGeneration";
    assert!(
        imported.notes.len() == 1 && imported.notes[0].starts_with(note),
        "{:?}",
        imported.notes
    );
    assert!(
        imported.module.weights.iter().any(|w| w.name == patch),
        "kept"
    );
}

fn moe() -> Value {
    let changes = json!({"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 10,
        "norm_topk_prob": true, "mlp_only_layers": [1], "num_hidden_layers": 3});
    with(&base("Qwen3MoeForCausalLM", "qwen3_moe"), changes)
}

#[test]
fn qwen3_moe_mixes_where_it_should() {
    let imported = imported(&moe(), &tensors_of(&moe())).expect("imports");
    assert_eq!(roles(&imported.module), [12 + 3, 2 * 9, 1, 1, 2]);
    let text = print(&imported.module);
    assert_eq!(text.matches("{top_k=2, normalize=true} experts").count(), 2);
    assert!(text.contains("dense(@model.layers.1.mlp.gate_proj.weight)"));
    let every_second = with(
        &moe(),
        json!({"decoder_sparse_step": 2, "mlp_only_layers": []}),
    );
    let module = implied(&parsed(&every_second)).expect("implied");
    assert_eq!(roles(&module)[4], 1);
}

/// The same model with the experts of each layer stacked.
fn stacked(fused: bool, transposed: bool) -> Vec<Tensor> {
    let mut tensors = tensors_of(&moe());
    tensors.retain(|(name, ..)| !name.contains(".experts."));
    let (count, inner, hidden) = (3, 10, 16);
    let shape = |out, inp| match transposed {
        true => vec![count, inp, out],
        false => vec![count, out, inp],
    };
    for layer in [0, 2] {
        let path = format!("model.layers.{layer}.mlp.experts");
        let mut add = |name: &str, out, inp| {
            tensors.push((format!("{path}.{name}"), DType::BF16, shape(out, inp)));
        };
        if fused {
            add("gate_up_proj", 2 * inner, hidden);
        } else {
            add("gate_proj", inner, hidden);
            add("up_proj", inner, hidden);
        }
        add("down_proj", hidden, inner);
    }
    tensors
}

#[test]
fn experts_may_be_stacked() {
    let separate = text_of(&moe(), &stacked(false, false));
    assert!(separate.contains("dense(@model.layers.2.mlp.experts.up_proj, index=2)"));
    let fused = text_of(&moe(), &stacked(true, false));
    assert!(fused.contains("[20,16] { dense(@model.layers.0.mlp.experts.gate_up_proj, index=1) }"));
    assert!(fused.contains("name(\"model.layers.0.mlp.experts.1.gate_up_proj\")"));
    // Gate rows come first.
    let slices = lines(&fused, "slice");
    assert!(
        slices[0].ends_with("{start=0, width=10}") && slices[1].ends_with("{start=10, width=10}")
    );
    let turned = text_of(&moe(), &stacked(true, true));
    assert!(turned.contains("dense(@model.layers.0.mlp.experts.down_proj, index=2, transposed)"));
}

#[test]
fn gpt2_of_the_hub_has_bare_names_and_masks() {
    let config = json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 16, "n_layer": 2,
        "n_head": 4, "n_positions": 64, "vocab_size": 32, "scale_attn_by_inverse_layer_idx": true,
    });
    let mut tensors = tensors_of(&config);
    for (name, ..) in &mut tensors {
        *name = name.trim_start_matches("transformer.").to_string();
    }
    for layer in [0, 1] {
        tensors.push((
            format!("h.{layer}.attn.bias"),
            DType::F32,
            vec![1, 1, 64, 64],
        ));
    }
    let imported = imported(&config, &tensors).expect("imports");
    assert_eq!(roles(&imported.module), [8, 0, 2, 1, 0]);
    assert!(
        imported.notes[0].contains("h.*.attn.bias (×2)"),
        "{:?}",
        imported.notes
    );
    assert!(print(&imported.module).contains("scale=0.25, causal=true, cache=1"));
}

#[test]
fn bert_heads_and_old_names() {
    let mut config = base("BertForMaskedLM", "bert");
    config["num_hidden_layers"] = json!(1);
    let mut tensors = tensors_of(&with(&config, json!({"architectures": ["BertModel"]})));
    tensors.retain(|(name, ..)| !name.starts_with("pooler"));
    for (name, ..) in &mut tensors {
        *name = format!("bert.{name}")
            .replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta");
    }
    let head = "cls.predictions";
    for (name, dims) in [
        ("transform.dense.weight", vec![16, 16]),
        ("transform.dense.bias", vec![16]),
        ("transform.LayerNorm.gamma", vec![16]),
        ("transform.LayerNorm.beta", vec![16]),
        ("bias", vec![32]),
    ] {
        tensors.push((format!("{head}.{name}"), DType::BF16, dims));
    }
    let text = text_of(&config, &tensors);
    assert!(text.contains("-> (%last_hidden_state, %logits)"));
    let tied = "[32,16] { dense(@bert.embeddings.word_embeddings.weight) } \
                bias(@cls.predictions.bias) role(head)";
    assert!(text.contains(tied), "{text}");
    assert!(
        text.contains(
            "@bert.embeddings.LayerNorm.gamma, @bert.embeddings.LayerNorm.beta {eps=1e-12}"
        )
    );
}

#[test]
fn bases_without_a_head_give_their_last_state() {
    let config = base("LlamaModel", "llama");
    let mut tensors = tensors_of(&config);
    tensors.retain(|(name, ..)| name != "lm_head.weight");
    for (name, ..) in &mut tensors {
        *name = name.trim_start_matches("model.").to_string();
    }
    assert!(text_of(&config, &tensors).contains("-> (%last_hidden_state)"));
}

#[test]
fn rope_settings() {
    let rope = |changes: Value| {
        let config = with(&base("LlamaForCausalLM", "llama"), changes);
        lines(&text(&config), "rope")[0]
            .split('{')
            .skip(1)
            .collect::<String>()
    };
    let dynamic = rope(json!({"rope_scaling": {"type": "dynamic", "factor": 4}}));
    assert!(
        dynamic.contains(r#"type="dynamic", factor=4.0, original_context=128"#),
        "{dynamic}"
    );
    let yarn = rope(
        json!({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5,
        "original_max_position_embeddings": 32}}),
    );
    assert!(yarn.contains("theta=500000.0"), "{yarn}");
    assert!(
        yarn.contains("beta_fast=32.0, beta_slow=1.0, original_context=32"),
        "{yarn}"
    );
    let factor = 0.1 * 4f64.ln() + 1.0;
    assert!(
        yarn.contains(&format!("attention_factor={factor}")),
        "{yarn}"
    );
    let default = rope(json!({"rope_scaling": {"rope_type": "default"}, "rope_theta": 77}));
    assert!(default.contains("theta=77.0}"), "{default}");
}

#[test]
fn what_the_ir_cannot_say_is_imported_as_matrices() {
    for (changes, what) in [
        (
            json!({"rope_scaling": {"rope_type": "longrope", "factor": 4}}),
            "rope_type `longrope`",
        ),
        (json!({"hidden_act": "mish"}), "hidden_act `mish`"),
        (
            json!({"architectures": ["NovelForCausalLM"], "model_type": "novel"}),
            "NovelForCausalLM is not known",
        ),
    ] {
        let plain = base("LlamaForCausalLM", "llama");
        let imported = imported(&with(&plain, changes), &tensors_of(&plain)).expect("imports");
        assert_eq!(imported.notes.len(), 1, "{:?}", imported.notes);
        assert!(imported.notes[0].contains(what), "{:?}", imported.notes);
        assert_eq!(roles(&imported.module), DENSE_TIED);
    }
}

#[test]
fn unknown_architectures_keep_biases_and_stacks() {
    let config = json!({"model_type": "novel"});
    let float = |name: &str, dims: &[u64]| (name.to_string(), DType::F16, dims.to_vec());
    let tensors = [
        float("tok_embeddings.weight", &[32, 8]),
        float("layers.0.wq.weight", &[8, 8]),
        float("layers.0.wq.bias", &[8]),
        float("layers.0.experts.w1", &[3, 6, 8]),
        float("layers.0.moe.gate.weight", &[3, 8]),
        float("layers.0.norm.weight", &[8]),
        float("output.weight", &[32, 8]),
        ("mask.weight".to_string(), DType::Bool, vec![4, 4]),
    ];
    let imported = imported(&config, &tensors).expect("imports");
    assert_eq!(roles(&imported.module), [1, 3, 1, 1, 1]);
    let text = print(&imported.module);
    let linear = r#"%layers.0.wq.out = linear %layers.0.wq.in [8,8] { dense(@layers.0.wq.weight) } bias(@layers.0.wq.bias)"#;
    assert!(text.contains(linear), "{text}");
    assert_eq!(imported.module.weights.len(), tensors.len());
    // Names of no usual form: shape alone counts.
    let imported =
        super::imported(&config, &[float("a", &[4, 6]), float("b", &[4])]).expect("imports");
    assert_eq!(roles(&imported.module), [1, 0, 0, 0, 0]);
}
