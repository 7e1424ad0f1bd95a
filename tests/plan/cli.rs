//! `--emit plan` as it is typed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::model::{STORIES, family};
use hlrc::plan::folder;

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.args(args).output().expect("started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn done(args: &[&str]) -> String {
    let output = run(args);
    assert!(
        output.status.success(),
        "{args:?}\n{}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn refused(args: &[&str], code: i32, told: &str) {
    let output = run(args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}\n{stderr}");
    assert!(
        stderr.contains(told),
        "{args:?}: `{told}` is not told:\n{stderr}"
    );
}

#[test]
fn a_folder_has_all_that_a_runtime_needs() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("plan");
    let place = out.to_str().expect("UTF-8");
    let args = [
        STORIES,
        "-p",
        "int4",
        "--emit",
        "plan",
        "--target",
        "sm_86",
        "-o",
        place,
        "--ctx",
        "64",
        "--summary",
    ];
    let summary = done(&args);
    for part in ["RTX 3090", "bytes per token", "launches", "fused:"] {
        assert!(summary.contains(part), "{part} is not in\n{summary}");
    }
    let opened = folder::open(&out).unwrap_or_else(|e| panic!("{e}"));
    let blob = opened.blob.expect("weights");
    assert_eq!(Some(blob.len()), opened.plan.blob.as_ref().map(|b| b.bytes));
    assert!(out.join("plan.txt").is_file() && out.join("kernels").is_dir());
    assert!(!dir.path().join("plan.model").exists() && !dir.path().join("plan.partial").exists());
    // Every section is what its hash says.
    for section in opened.plan.weights.iter().flat_map(|w| &w.sections) {
        let bytes = blob
            .slice(section.offset, section.bytes)
            .unwrap_or_else(|e| panic!("{e}"));
        let hash = hlrc::weights::Digest::of(bytes).to_hex();
        assert_eq!(
            section.sha256.as_deref(),
            Some(hash.as_str()),
            "{}",
            section.name
        );
    }
    refused(&args, 1, "is there already");
    done(&[&args[..], &["--force"]].concat());
    // Damage is told.
    std::fs::OpenOptions::new()
        .write(true)
        .open(out.join("weights.bin"))
        .and_then(|f| f.set_len(1000))
        .expect("cut");
    assert!(folder::open(&out).is_err());
    let json = std::fs::read_to_string(out.join("plan.json")).expect("a plan");
    std::fs::write(out.join("plan.json"), &json[..json.len() / 2]).expect("written");
    assert!(folder::open(&out).is_err());
}

#[test]
fn the_same_plan_for_any_number_of_threads() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut all = Vec::new();
    for threads in ["1", "2"] {
        let out = dir.path().join(threads);
        let place = out.to_str().expect("UTF-8");
        done(&[
            STORIES,
            "-p",
            "lowrank,outlier,int4",
            "--emit",
            "plan",
            "--threads",
            threads,
            "-o",
            place,
            "--ctx",
            "64",
        ]);
        all.push(["plan.json", "weights.bin"].map(|f| std::fs::read(out.join(f)).expect("a file")));
    }
    assert_eq!(all[0][1], all[1][1], "the blob");
}

#[test]
fn a_configuration_alone_is_enough() {
    let folder = "../shared/models/configs/llama-3.1-70b";
    if !Path::new(folder).is_dir() {
        eprintln!("skipped: {folder} is not there");
        return;
    }
    let json = done(&[
        folder,
        "-p",
        "int3{group=128}",
        "--emit",
        "plan",
        "--dry-run",
        "--json",
        "--ctx",
        "4096",
    ]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let bytes = json["weight_bytes"].as_u64().expect("bytes");
    // 70.6 B weights: 68.5 B at 3.156 bits, the table and the head in bf16.
    assert!((29_000_000_000..33_000_000_000).contains(&bytes), "{bytes}");
    let launches = &json["programs"][0]["launches_per_layer"][0];
    assert!(
        launches["launches"].as_u64().expect("a number") <= 7,
        "{json}"
    );
    assert_eq!(launches["layers"], 80);
    let tight = [
        folder, "-p", "int4", "--emit", "plan", "-S", "--vram", "24GiB", "--ctx", "4096",
    ];
    refused(&tight, 4, "what would fit");
}

/// What would fit is said in options that can be given as they are.
#[test]
fn advice_can_be_followed() {
    let mixture = family("qwen3_moe");
    for (model, kept) in [
        (STORIES, "layers."),
        (mixture.to_str().expect("UTF-8"), ".experts."),
    ] {
        let plan = |more: &[&str]| -> Vec<String> {
            let args = [
                model,
                "-p",
                "int4",
                "--emit",
                "plan",
                "--dry-run",
                "--ctx",
                "40",
            ];
            args.iter().chain(more).map(|s| (*s).to_string()).collect()
        };
        let run = |args: &[String]| run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let json = run(&plan(&["--json"]));
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
        let of = |key: &str| json[key].as_u64().expect("a number");
        let vram = (of("device_bytes") - of("weight_bytes") / 8).to_string();
        let tight = ["--vram", &vram, "--reserve", "0"];
        let refused = run(&plan(&tight));
        assert_eq!(refused.status.code(), Some(4), "{model}");
        let told = text(&refused.stderr);
        assert!(told.contains("bits each on average"), "{told}");
        let placement = told
            .split("--placement '")
            .nth(1)
            .and_then(|t| t.split('\'').next());
        let placement = placement.unwrap_or_else(|| panic!("no placement in {told}"));
        let followed = run(&plan(
            &[&tight[..], &["--placement", placement, "--json"]].concat(),
        ));
        assert!(
            followed.status.success(),
            "{placement}: {}",
            text(&followed.stderr)
        );
        let json: serde_json::Value = serde_json::from_slice(&followed.stdout).expect("JSON");
        assert!(json["host_weight_bytes"].as_u64().expect("a number") > 0);
        assert!(placement.contains("=host"), "{placement}");
        let own = placement.contains("experts") == kept.contains("experts");
        assert!(own, "{placement}");
    }
}

/// nvcc of `PATH`, or of the packages that `.ci/run` installs.
fn nvcc() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path);
    let found = folders.map(|f| f.join("nvcc")).find(|nvcc| nvcc.is_file());
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|e| e.path()).collect()
    };
    let venv = below(Path::new("target/cuda-venv/lib"));
    let kits = venv.iter().map(|p| p.join("site-packages/nvidia"));
    let mut kits = kits.flat_map(|p| below(&p));
    found.or_else(|| kits.find_map(|k| Some(k.join("bin/nvcc")).filter(|n| n.is_file())))
}

#[test]
fn machine_code_comes_along() {
    let Some(nvcc) = nvcc() else {
        let told = "no nvcc in PATH, nor in target/cuda-venv (.ci/run installs it)";
        assert!(std::env::var_os("HLRC_REQUIRE_NVCC").is_none(), "{told}");
        eprintln!("skipped: {told}");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("plan");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command
        .args([
            STORIES,
            "-p",
            "int4",
            "--emit",
            "plan",
            "--compile",
            "--target",
            "sm_86",
        ])
        // A prompt in small pieces takes fewer kernels.
        .args(["--ctx", "64", "--chunk", "1", "-o"])
        .arg(&out)
        .env("NVCC", &nvcc);
    super::common::succeed(&mut command);
    let opened = folder::open(&out).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(opened.cubins.len(), opened.plan.kernels.len());
    for (variant, cubin) in opened.plan.kernels.iter().zip(&opened.cubins) {
        let cubin = cubin.as_deref().expect("machine code");
        assert!(cubin.starts_with(b"\x7fELF"), "{}", variant.kernel);
        let name = variant.kernel.as_bytes();
        let named = cubin.windows(name.len()).any(|w| w == name);
        assert!(named, "{} is not in its machine code", variant.kernel);
    }
    // What is missing, or lies elsewhere, is told.
    let first = opened.plan.kernels[0].cubin.clone().expect("a file");
    std::fs::remove_file(out.join(&first)).expect("removed");
    let told = folder::open(&out).err().expect("refused").to_string();
    assert!(told.contains("cubin"), "{told}");
    let json = std::fs::read_to_string(out.join("plan.json")).expect("a plan");
    std::fs::write(out.join("plan.json"), json.replace(&first, "cubin/../x")).expect("written");
    let told = folder::open(&out).err().expect("refused").to_string();
    assert!(told.contains("is not a file of cubin/"), "{told}");
}

#[test]
fn without_a_compiler_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("plan");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command
        .args([STORIES, "--emit", "plan", "--compile", "--ctx", "64", "-o"])
        .arg(&out);
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "LD_LIBRARY_PATH"] {
        command.env_remove(name);
    }
    let output = command.env("PATH", "").output().expect("started");
    if output.status.success() {
        eprintln!("skipped: NVRTC is installed");
        return;
    }
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(
        told.contains("no compiler of CUDA kernels") && told.contains("nvcc"),
        "{told}"
    );
    assert!(!out.exists());
    command.env("NVCC", "");
    let empty = text(&command.output().expect("started").stderr);
    assert_eq!(empty, told, "an empty NVCC is none");
    command.env("NVCC", "/nowhere/nvcc");
    let told = text(&command.output().expect("started").stderr);
    assert!(told.contains("/nowhere/nvcc"), "{told}");
    refused(
        &[STORIES, "--emit", "plan", "--compile", "-S"],
        2,
        "no plan is written",
    );
}

#[test]
fn mistakes_are_told() {
    refused(
        &[STORIES, "--emit", "plan", "--target", "sm_99", "-S"],
        2,
        "sm_89",
    );
    refused(
        &[STORIES, "--emit", "plan", "--batch", "9", "-S"],
        2,
        "at most 8",
    );
    refused(&[STORIES, "--emit", "plan", "--kv", "q4", "-S"], 2, "q8");
    refused(
        &[STORIES, "--emit", "plan", "--ctx", "100000", "-S"],
        3,
        "512 tokens",
    );
    refused(
        &[
            STORIES,
            "--emit",
            "plan",
            "--placement",
            "experts=host",
            "-S",
        ],
        2,
        "no weight",
    );
    refused(
        &[STORIES, "--emit", "plan", "--placement", "experts", "-S"],
        2,
        "no place",
    );
    refused(&[STORIES, "--emit", "plan", "-o", "-"], 2, "-S");
    refused(&[STORIES, "--summary"], 2, "--emit");
    refused(&[STORIES, "-p", "int4", "--ctx", "64"], 2, "--vram");
    let bert = family("bert");
    refused(
        &[bert.to_str().expect("UTF-8"), "--emit", "plan", "-S"],
        3,
        "KV cache",
    );
    refused(
        &[
            STORIES,
            "--emit",
            "plan",
            "-S",
            "--vram",
            "1MB",
            "--reserve",
            "0",
        ],
        4,
        "what would fit",
    );
}

/// Rows of trellis codes so long that activations in 8 bits, four times each, have no room.
#[test]
fn a_long_trellis_keeps_its_activations() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config.json");
    let text = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1024,
        "intermediate_size": 53248, "num_hidden_layers": 1, "num_attention_heads": 8,
        "num_key_value_heads": 8, "vocab_size": 1024, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"}"#;
    std::fs::write(&config, text).expect("a configuration");
    let said = done(&[
        config.to_str().expect("UTF-8"),
        "-p",
        "trellis{bits=2}",
        "--emit",
        "plan",
        "--dry-run",
        "--target",
        "sm_90",
    ]);
    assert!(said.contains("activations stay f16"), "{said}");
    assert!(said.contains("mlp.down_proj"), "{said}");
}
