//! `fit`, `opt --vram`, `quantize` from outside: counts as published, bytes that are those on disk, refusals.

mod common;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const STORIES: &str = "tests/fixtures/stories260K";

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.args(args).output().expect("started")
}

fn json(args: &[&str]) -> Value {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 4)), "{args:?}: {errors}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn refused(args: &[&str], code: i32, told: &str) {
    let output = run(args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    assert!(errors.contains(told), "{args:?}: {errors}");
}

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {value}"))
}

/// A configuration beside the repository or among the models.
fn configuration(name: &str) -> Option<PathBuf> {
    let path = format!("configs/{name}/config.json");
    let homes = [
        std::env::var("HLRC_MODELS").unwrap_or_else(|_| "target/models".to_string()),
        "../shared/models".to_string(),
    ];
    let found = homes.iter().map(|home| Path::new(home).join(&path));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: {path} is in neither HLRC_MODELS nor ../shared/models");
    }
    found
}

#[test]
fn large_configurations_are_weighed() {
    // Parameters as published; keys and values per token in f16: 2 · 2 · layers · heads · 128.
    for (name, parameters, per_token) in [
        ("llama-3.1-70b", 70_553_706_496, 4 * 80 * 8 * 128),
        ("llama-3.1-405b", 405_853_388_800, 4 * 126 * 8 * 128),
        ("mistral-large-123b", 122_610_069_504, 4 * 88 * 8 * 128),
        ("qwen3-235b-a22b", 235_093_634_560, 4 * 94 * 4 * 128),
    ] {
        let Some(path) = configuration(name) else {
            continue;
        };
        let path = path.to_str().expect("UTF-8");
        let told = json(&["fit", path, "--vram", "200GiB", "--ctx", "4096", "--json"]);
        assert_eq!(number(&told, "parameters"), parameters, "{name}");
        assert_eq!(number(&told, "cache_bytes"), per_token * 4096, "{name}");
        let rows = told["rows"].as_array().expect("rows");
        assert_eq!(number(&rows[0], "bytes"), 2 * parameters, "{name}: bf16");
        let room = number(&told, "bytes_for_weights");
        for row in rows {
            assert_eq!(row["fits"], number(row, "bytes") <= room, "{name}: {row}");
            assert_eq!(row["fits"], row["longest_context"].as_u64() >= Some(4096));
        }
        // Norms and routers aside, a trellis of K bits is K bits, and little for scales.
        let q4 = rows.iter().find(|row| row["weights"] == "@q4").expect("q4");
        let bits = q4["matrix_bits_per_weight"].as_f64().expect("bits");
        assert!((4.0..4.002).contains(&bits), "{name}: {bits}");
    }
}

/// A folder with this configuration alone.
fn alone(dir: &Path, config: &Value) -> String {
    let path = dir.join("config.json");
    std::fs::write(&path, config.to_string()).expect("written");
    path.to_str().expect("UTF-8").to_string()
}

#[test]
fn what_cannot_be_told_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let other = serde_json::json!({"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3"});
    let other = alone(dir.path(), &other);
    refused(
        &["fit", &other, "--vram", "24GiB"],
        3,
        "`architectures` names no architecture that is known",
    );
    let folder = dir.path().to_str().expect("UTF-8");
    refused(&["fit", folder, "--vram", "24GiB"], 3, "config.json");
    refused(&["fit", STORIES], 2, "--vram is missing");
    refused(&["fit", STORIES, "--ctx", "64"], 2, "--vram");
    refused(
        &["fit", STORIES, "--vram", "2GiB", "--ctx", "100000"],
        2,
        "512 tokens at most",
    );
    refused(
        &["fit", STORIES, "--vram", "1000"],
        4,
        "no room for weights",
    );
    let tight = [
        "fit",
        STORIES,
        "--vram",
        "100kB",
        "--reserve",
        "0",
        "--ctx",
        "16",
    ];
    refused(&tight, 4, "nothing fits");
    let bert = "tests/fixtures/families/bert";
    let kv = ["fit", bert, "--vram", "2GiB", "--kv", "q8"];
    refused(&kv, 2, "no effect");
    for option in [["--ctx", "64"], ["--kv", "q8"], ["--reserve", "0"]] {
        refused(
            &["opt", STORIES, "-p", "int4", option[0], option[1]],
            2,
            "--vram",
        );
    }
    refused(&["opt", STORIES, "--vram", "2GiB"], 2, "needs text");
    refused(
        &["opt", STORIES, "--vram", "2GiB", "--target-bpw", "4"],
        2,
        "--target-bpw",
    );
    refused(
        &["opt", STORIES, "--vram", "2GiB", "--dry-run"],
        2,
        "--dry-run",
    );
}

#[test]
fn formats_of_one_model_agree() {
    let weigh = |model: &str| json(&["fit", model, "--vram", "2GiB", "--ctx", "256", "--json"]);
    let checkpoint = weigh(STORIES);
    let onnx = weigh("tests/fixtures/stories260K/stories260K.onnx");
    // The ONNX file has the tied table twice.
    for key in ["cache_bytes", "matrix_parameters"] {
        assert_eq!(checkpoint[key], onnx[key], "{key}");
    }
    // 5 layers, 4 heads of 8, keys and values of 2 bytes.
    assert_eq!(number(&checkpoint, "cache_bytes"), 5 * 4 * 8 * 2 * 2 * 256);
    assert!(number(&checkpoint, "workspace_bytes") > 0);
}

#[test]
fn windows_and_experts_are_seen() {
    let weigh = |name: &str, more: &[&str]| {
        let model = format!("tests/fixtures/families/{name}");
        let args = [&["fit", &model, "--vram", "2GiB", "--json"], more].concat();
        json(&args)
    };
    let gemma = weigh("gemma3", &["--chunk", "1"]);
    let caches = gemma["caches"].as_array().expect("caches");
    assert!(caches.iter().any(|c| c["window"].is_u64()), "{gemma}");
    assert!(caches.iter().any(|c| c["window"].is_null()), "{gemma}");
    for name in ["bert", "gpt2", "mixtral", "qwen3_moe", "gemma2", "llama"] {
        let told = weigh(name, &[]);
        assert_eq!(name == "bert", number(&told, "cache_bytes") == 0, "{name}");
    }
}

/// Bytes of the tensors of a folder's shard: all but the header.
fn stored(folder: &Path) -> u64 {
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("a shard");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    bytes.len() as u64 - 8 - header
}

#[test]
fn bytes_are_those_on_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let told = json(&["fit", STORIES, "--vram", "2GiB", "--json"]);
    for row in told["rows"].as_array().expect("rows") {
        let Some(name) = row["weights"].as_str().and_then(|w| w.strip_prefix('@')) else {
            continue;
        };
        let output = dir.path().join(format!("{name}.hlrc"));
        let path = output.to_str().expect("UTF-8");
        let upper = name.to_uppercase();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
        command.args(["quantize", STORIES, path, &upper, "2"]);
        let said = common::succeed(&mut command);
        assert!(said.contains("norms, biases"), "{said}");
        assert_eq!(number(row, "bytes"), stored(&output), "{name}");
        // As it is now: the same bytes, and no preset to choose.
        let again = json(&["fit", path, "--vram", "2GiB", "--json"]);
        let rows = again["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), 1, "{again}");
        assert_eq!(number(&rows[0], "bytes"), stored(&output), "{name}");
    }
}

#[test]
fn types_of_quantize_are_checked() {
    let help = run(&["quantize", "--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for name in ["q8", "q6", "q5", "q4", "q3", "q2", "KL"] {
        assert!(help.contains(name), "{name}: {help}");
    }
    refused(
        &["quantize", STORIES, "Q4_K_M"],
        2,
        "the type of as many bits here is q4",
    );
    let onnx = "tests/fixtures/stories260K/stories260K.onnx";
    refused(&["quantize", onnx, "never.onnx", "q4"], 2, "no ONNX form");
    let coded = ["-p", "int4,head(trellis)", "-o", "never.onnx"];
    refused(&[&[onnx], &coded[..]].concat(), 2, "no ONNX form");
    for bits in ["nan", "0", "-3", "inf"] {
        let target = format!("--target-bpw={bits}");
        refused(&[STORIES, &target, "--calib", "x.txt"], 2, "above 0");
    }
    refused(
        &["quantize", STORIES, "q8", "--calib", "x.txt"],
        2,
        "no effect",
    );
    let output = run(&["quantize", STORIES, "q4", "--dry-run"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("trellis"),
        "{said}"
    );
    assert!(!Path::new("stories260K-q4.hlrc").exists());
}

#[test]
fn a_device_is_filled_and_not_more() {
    let dir = tempfile::tempdir().expect("a folder");
    let words = ["little", "girl", "found", "a", "red", "ball", "and", "sun"];
    let word = |i: usize| words[(i * i * 7 + i / 5) % words.len()];
    let all: Vec<&str> = (0..40_000).map(word).collect();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, all.join(" ")).expect("written");
    let load = [
        "--reserve",
        "0",
        "--ctx",
        "256",
        "--kv",
        "q8",
        "--batch",
        "2",
    ];
    let weigh =
        |vram: &str| json(&[&["fit", STORIES, "--json", "--vram", vram], &load[..]].concat());
    let taken = (1 << 30) - number(&weigh("1GiB"), "bytes_for_weights");
    let vram = (taken + 280_000).to_string();
    assert_eq!(number(&weigh(&vram), "bytes_for_weights"), 280_000);
    let output = dir.path().join("small.hlrc");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.env("XDG_CACHE_HOME", dir.path());
    command.args(["opt", STORIES, "--vram", &vram, "--json", "--calib"]);
    command.arg(&text).arg("-o").arg(&output).args(load);
    let done = command.output().expect("started");
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    assert!(
        said.contains("keys and values (2 x 256 tokens, q8)"),
        "{said}"
    );
    let bytes = stored(&output);
    assert!((265_000..=280_000).contains(&bytes), "{bytes}");
}
