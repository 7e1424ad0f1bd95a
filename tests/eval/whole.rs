//! Models without a cache: on whole windows where they are language models, else by their outputs.

use super::*;

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use hlrc::weights::{Header, MappedFile};

const MASKS: &str = "tests/fixtures/masks";

/// A file in the scratch folder; tests run side by side, so each call has a folder of its own.
fn file(name: &str, content: &[u8]) -> String {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let own = CALLS.fetch_add(1, Ordering::Relaxed).to_string();
    let folder = MADE.1.join(own);
    std::fs::create_dir_all(&folder).expect("made");
    let path = folder.join(name);
    std::fs::write(&path, content).expect("written");
    path.to_string_lossy().into_owned()
}

/// A tokenizer of so many words: `w0`, `w1`, …
fn words(count: usize) -> String {
    let vocabulary: Vec<String> = (0..count).map(|id| format!("\"w{id}\": {id}")).collect();
    let vocabulary = vocabulary.join(", ");
    let json = format!(
        r#"{{"version": "1.0", "added_tokens": [], "pre_tokenizer": {{"type": "Whitespace"}},
        "model": {{"type": "WordLevel", "vocab": {{{vocabulary}}}, "unk_token": "w0"}}}}"#
    );
    file(&format!("words{count}.json"), json.as_bytes())
}

/// A tensor's bytes, by four or eight.
fn tensor<const N: usize>(path: &str, name: &str) -> Vec<[u8; N]> {
    let file = MappedFile::open(Path::new(path)).expect("opened");
    let header = Header::read(&file).expect("a header");
    let info = header.tensors.iter().find(|t| t.name == name);
    let info = info.expect("a tensor");
    let bytes = file.slice(info.offset, info.bytes).expect("inside");
    bytes.as_chunks().0.to_vec()
}

#[test]
fn a_model_raised_in_part_is_judged_on_whole_windows() {
    let expected = format!("{MASKS}/expected.safetensors");
    for name in ["conv", "bias", "causal", "window"] {
        let ids: Vec<usize> = tensor::<8>(&expected, &format!("{name}/input_ids"))
            .into_iter()
            .map(|b| i64::from_le_bytes(b) as usize)
            .collect();
        let logits: Vec<f64> = tensor::<4>(&expected, &format!("{name}/logits"))
            .into_iter()
            .map(|b| f64::from(f32::from_le_bytes(b)))
            .collect();
        let rows = logits.chunks(40).zip(&ids[1..]);
        let lost =
            rows.map(|(row, &next)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[next]);
        let perplexity = (lost.sum::<f64>() / (ids.len() - 1) as f64).exp();
        let mut text = String::new();
        for id in &ids {
            let _ = write!(text, "w{id} ");
        }
        let text = file(&format!("{name}.txt"), text.as_bytes());
        let found = ok(&[
            "eval",
            "--json",
            "-q",
            "--ctx",
            "50",
            &format!("{MASKS}/{name}.onnx"),
            "--tokenizer",
            &words(40),
            "--data",
            &text,
        ]);
        let found: Value = serde_json::from_str(&found).expect("JSON");
        let own = number(&found, "/models/0/perplexity");
        assert!(
            (own / perplexity - 1.0).abs() < 1e-4,
            "{name}: {own} {perplexity}"
        );
    }
}

/// GPT-2 has a table of positions besides that of tokens, with another number of rows.
#[test]
fn an_exported_model_knows_its_tokens() {
    let source = "tests/fixtures/families/gpt2";
    let out = file("gpt2.onnx", b"");
    let text = file(
        "tokens.txt",
        b"w95 w1 w2 w60 w61 w62 w94 w3 w95 w90 w89 w7 w8",
    );
    let tokenizer = words(96);
    ok(&[source, "-q", "-f", "-o", &out, "--onnx-cache"]);
    let own = |model: &str| {
        let shape = ["eval", "--json", "-q", "--ctx", "13", model];
        let given = ["--tokenizer", &tokenizer, "--data", &text];
        let found = ok(&[&shape[..], &given].concat());
        let found: Value = serde_json::from_str(&found).expect("JSON");
        number(&found, "/models/0/perplexity")
    };
    let (a, b) = (own(source), own(&out));
    assert!((a / b - 1.0).abs() < 1e-5, "{a} {b}");
}

#[test]
fn a_model_raised_in_part_does_not_generate() {
    let model = format!("{MASKS}/conv.onnx");
    let said = fails(
        3,
        &[
            "run",
            &model,
            "--tokenizer",
            &words(40),
            "--prompt",
            "w1 w2",
        ],
    );
    assert!(
        said.contains("layer1.turned") && said.contains("whole windows"),
        "{said}"
    );
}

#[test]
fn encoders_with_a_head_are_compared_by_their_outputs() {
    let masked = "tests/fixtures/families/bert_masked_lm";
    let near = format!("{MASKS}/near.onnx");
    let conv = format!("{MASKS}/conv.onnx");
    let leak = "tests/fixtures/lengths/leak.onnx";
    let text = file("lines.txt", b"w1 w2 w3\nw4 w5\n");
    for (model, tokens, why) in [
        (masked, 40, "tokens before depend on token"),
        (near.as_str(), 40, "tokens before depend on token"),
        (leak, 32, "tokens before depend on token 3"),
        (conv.as_str(), 41, "40 columns, the tokenizer 41 tokens"),
    ] {
        let tokenizer = words(tokens);
        let args = ["eval", model, "--tokenizer", &tokenizer, "--data", &text];
        let found = ok(&[&args[..], &["--json", "-q", "--ref", model]].concat());
        let found: Value = serde_json::from_str(&found).expect("JSON");
        assert_eq!(found["kind"], "outputs", "{found:#}");
        let note = found["notes"][0].as_str().expect("a note");
        assert!(note.contains(why), "{note}");
        assert_eq!(number(&found, "/models/0/outputs/0/cosine_mean"), 1.0);
        let said = fails(2, &args);
        assert!(said.contains("--ref") && said.contains(why), "{said}");
    }
}

fn npy(shape: &[u64], values: &[i64]) -> Vec<u8> {
    use npyz::WriterBuilder as _;
    let mut bytes = Vec::new();
    let options = npyz::WriteOptions::new().default_dtype().shape(shape);
    let mut writer = options.writer(&mut bytes).begin_nd().expect("begun");
    writer.extend(values.iter().copied()).expect("written");
    writer.finish().expect("finished");
    bytes
}

/// An archive of integers in the scratch folder.
fn npz(name: &str, arrays: &[(&str, &[u64], &[i64])]) -> String {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, shape, values) in arrays {
        let bytes = npy(shape, values);
        let options = zip::write::SimpleFileOptions::default();
        zip.start_file(format!("{name}.npy"), options)
            .expect("started");
        zip.write_all(&bytes).expect("written");
    }
    file(name, &zip.finish().expect("finished").into_inner())
}

#[test]
fn arrays_are_the_models_own_inputs() {
    let model = "tests/fixtures/raise/llama.dynamo.onnx";
    // Of five positions, one is padding.
    let arrays = npz(
        "padded.npz",
        &[
            ("input_ids", &[1, 5], &[3, 5, 7, 2, 4]),
            ("attention_mask", &[1, 5], &[0, 1, 1, 1, 1]),
        ],
    );
    let found = ok(&[
        "eval", "--json", "-q", model, "--ref", model, "--inputs", &arrays,
    ]);
    let found: Value = serde_json::from_str(&found).expect("JSON");
    let outputs = found.pointer("/models/0/outputs").and_then(Value::as_array);
    assert_eq!(outputs.map(Vec::len), Some(1), "{found:#}");
}
