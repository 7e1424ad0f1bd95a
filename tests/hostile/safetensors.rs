//! safetensors files and Hugging Face folders with something wrong in them.

use super::files::{safetensors, text, write};
use super::{Case, args, fixture};
use std::path::Path;

fn file(dir: &Path, header: &str, data: usize) -> Vec<String> {
    args(&[
        write(
            dir,
            "bad.safetensors",
            &safetensors(header.as_bytes(), &vec![0; data]),
        )
        .as_str(),
        "-p",
        "int4",
    ])
}

fn bytes(dir: &Path, content: &[u8]) -> Vec<String> {
    args(&[
        write(dir, "bad.safetensors", content).as_str(),
        "-p",
        "int4",
    ])
}

/// A copy of the fixture's folder with one file changed.
fn folder(dir: &Path, name: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> Vec<String> {
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let mut content = std::fs::read(fixture(file)).expect("the fixture is there");
        if file == name {
            content = change(content);
        }
        write(dir, &format!("model/{file}"), &content);
    }
    args(&[text(dir.join("model")).as_str(), "-p", "int4"])
}

fn config(dir: &Path, from: &str, to: &str) -> Vec<String> {
    folder(dir, "config.json", |content| {
        let text = String::from_utf8(content).expect("utf-8");
        assert!(text.contains(from), "the fixture's config has {from}");
        text.replace(from, to).into_bytes()
    })
}

/// The fixture with the last tensor's first value replaced.
fn poisoned(dir: &Path, value: f32) -> Vec<String> {
    folder(dir, "model.safetensors", |mut content| {
        let header = u64::from_le_bytes(content[..8].try_into().expect("8 bytes")) as usize;
        let parsed: serde_json::Value =
            serde_json::from_slice(&content[8..8 + header]).expect("JSON");
        let at = parsed["model.layers.2.self_attn.q_proj.weight"]["data_offsets"][0]
            .as_u64()
            .expect("offset");
        let at = 8 + header + at as usize;
        content[at..at + 4].copy_from_slice(&value.to_le_bytes());
        content
    })
}

fn index(dir: &Path, json: &str) -> Vec<String> {
    folder(dir, "", |content| content);
    std::fs::remove_file(dir.join("model/model.safetensors")).expect("it was just written");
    let shard = std::fs::read(fixture("model.safetensors")).expect("the fixture is there");
    write(dir, "model/model-00001-of-00001.safetensors", &shard);
    write(dir, "model/model.safetensors.index.json", json.as_bytes());
    args(&[text(dir.join("model")).as_str(), "-p", "int4"])
}

macro_rules! cases {
    ($($name:literal $make:expr, $exit:literal $says:expr;)*) => {
        &[$(Case { name: $name, make: $make, exit: $exit, says: &$says }),*]
    };
}

pub const CASES: &[Case] = cases! {
    "no such file" |_| args(&["none.safetensors", "-p", "int4"]), 3 ["none.safetensors"];
    "empty file" |d| bytes(d, b""), 3 ["bad.safetensors"];
    "seven bytes" |d| bytes(d, &[1; 7]), 3 ["bad.safetensors"];
    "header of 4 GB" |d| bytes(d, &[0, 0, 0, 0, 1, 0, 0, 0, b'{', b'}']), 3 ["bad.safetensors", "header"];
    "header length overflows" |d| bytes(d, &[0xff; 64]), 3 ["bad.safetensors", "header"];
    "header longer than the file" |d| bytes(d, &[200, 0, 0, 0, 0, 0, 0, 0, b'{']), 3 ["header"];
    "header is no JSON" |d| file(d, "{\"w\": ", 16), 3 ["bad.safetensors", "JSON"];
    "header is no text" |d| bytes(d, &safetensors(&[b'{', 0xff, 0xfe, b'}'], &[])), 3 ["bad.safetensors"];
    "header is a list" |d| file(d, "[1,2,3]", 0), 3 ["bad.safetensors"];
    "header nested deeply" |d| file(d, &format!("{{\"w\":{}", "[".repeat(100_000)), 0), 3 ["bad.safetensors"];
    "tensors overlap" |d| file(d, r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}"#, 24), 3 ["bad.safetensors", "tensor \"b\""];
    "hole between tensors" |d| file(d, r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[32,48]}}"#, 48), 3 ["bad.safetensors"];
    "tensor beyond the file" |d| file(d, r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 8), 3 ["bad.safetensors"];
    "bytes behind the last tensor" |d| file(d, r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 64), 3 ["bad.safetensors"];
    "offsets do not fit the shape" |d| file(d, r#"{"a":{"dtype":"F32","shape":[5],"data_offsets":[0,16]}}"#, 16), 3 ["tensor \"a\""];
    "offsets reversed" |d| file(d, r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#, 16), 3 ["tensor \"a\""];
    "offsets negative" |d| file(d, r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[-16,0]}}"#, 16), 3 ["bad.safetensors"];
    "shape overflows" |d| file(d, r#"{"a":{"dtype":"F32","shape":[9223372036854775807,8],"data_offsets":[0,16]}}"#, 16), 3 ["tensor \"a\""];
    "shape is text" |d| file(d, r#"{"a":{"dtype":"F32","shape":"4","data_offsets":[0,16]}}"#, 16), 3 ["bad.safetensors"];
    "unknown element type" |d| file(d, r#"{"a":{"dtype":"F33","shape":[4],"data_offsets":[0,16]}}"#, 16), 3 ["F33", "tensor \"a\""];
    "name twice" |d| file(d, r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[16,32]}}"#, 32), 3 ["tensor \"a\""];
    "truncated shard" |d| folder(d, "model.safetensors", |c| c[..c.len() - 1000].to_vec()), 3 ["model.safetensors"];
    "NaN in a weight" |d| poisoned(d, f32::NAN), 1 ["layers.2.self_attn.q_proj", "NaN"];
    "infinity in a weight" |d| poisoned(d, f32::INFINITY), 1 ["layers.2.self_attn.q_proj"];
    "folder without a model" |d| args(&[text(d.to_owned()).as_str(), "-p", "int4"]), 3 ["safetensors"];
    "config is no JSON" |d| folder(d, "config.json", |_| b"{".to_vec()), 3 ["config.json"];
    "config is a list" |d| folder(d, "config.json", |_| b"[]".to_vec()), 3 ["config.json"];
    "config with another width" |d| config(d, "\"hidden_size\": 64", "\"hidden_size\": 65"), 3 ["[64"];
    "config with no heads" |d| config(d, "\"num_attention_heads\": 8", "\"num_attention_heads\": 0"), 3 ["config.json"];
    "config with a billion layers" |d| config(d, "\"num_hidden_layers\": 5", "\"num_hidden_layers\": 1000000000"), 3 ["layers"];
    "config with a negative width" |d| config(d, "\"hidden_size\": 64", "\"hidden_size\": -64"), 3 ["hidden_size"];
    "index is no JSON" |d| index(d, "{"), 3 ["model.safetensors.index.json"];
    "index names a shard that is not there" |d| index(d, r#"{"weight_map":{"w":"gone.safetensors"}}"#), 3 ["gone.safetensors"];
    "index leaves the folder" |d| index(d, r#"{"weight_map":{"w":"../../../../etc/passwd"}}"#), 3 ["passwd", "model.safetensors.index.json"];
    "index names an absolute path" |d| index(d, r#"{"weight_map":{"w":"/etc/passwd"}}"#), 3 ["passwd"];
    "index promises another tensor" |d| index(d, r#"{"weight_map":{"w":"model-00001-of-00001.safetensors"}}"#), 3 ["tensor \"w\""];
};
