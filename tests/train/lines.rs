//! Examples of JSON lines: what counts in them, and that nothing else does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use hlrc::exec::{Engine, Options, Tensor};
use hlrc::import::{Input, open};
use hlrc::text::Tokenizer;
use hlrc::weights::FileCache;
use serde_json::{Value, json};

use crate::{STORIES, arguments, coded, common, judged};

fn tokenizer() -> Tokenizer {
    Tokenizer::open(Path::new(STORIES)).unwrap_or_else(|e| panic!("{e}"))
}

/// A file with the same line some times.
fn repeated(folder: &Path, line: &Value) -> PathBuf {
    let path = folder.join("lines.jsonl");
    std::fs::write(&path, format!("{line}\n").repeat(6)).expect("written");
    path
}

fn history(model: &Path, folder: &Path, data: &Path, more: &[&str]) -> Value {
    let data = data.display().to_string();
    let usual = ["--json", "-q", "-f", "--steps", "2", "--judge-every", "2"];
    let more = [&usual[..], &["--data", &data, "--val", "2"], more].concat();
    let args = arguments(model, &folder.join("task.hlrc"), &more);
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    serde_json::from_str(&common::succeed(command.args(&args))).expect("JSON")
}

/// Tokens that counted in the first step, of one of its two examples.
fn counted(history: &Value) -> u64 {
    history["end_to_end"][1]["tokens"].as_u64().expect("tokens") / 2
}

/// Mean of `−log p` of the tokens from `first` on, by the model's own logits.
fn surprise(model: &Path, tokens: &[u32], first: usize) -> f64 {
    let files = FileCache::new();
    let imported = open(&Input::Path(model.to_path_buf()), &files);
    let module = imported.unwrap_or_else(|e| panic!("{e}")).module;
    let engine = Engine::new(&module, &files, &Options::default());
    let engine = engine.unwrap_or_else(|e| panic!("{e}"));
    let shape = [1, tokens.len()];
    let ids = tokens.iter().map(|&t| i64::from(t)).collect();
    let all: BTreeMap<&str, Tensor> = [
        ("input_ids", Tensor::i64(&shape, ids)),
        ("attention_mask", Tensor::i64(&shape, vec![1; tokens.len()])),
        (
            "position_ids",
            Tensor::i64(&shape, (0..tokens.len() as i64).collect()),
        ),
    ]
    .into();
    let takes = |name: &str| engine.inputs().iter().any(|p| p.name == name);
    let given: Vec<(&str, Tensor)> = all.into_iter().filter(|(name, _)| takes(name)).collect();
    let outputs = engine.run(&given).unwrap_or_else(|e| panic!("{e}"));
    let logits = outputs[0].1.floats().expect("logits");
    let width = logits.len() / tokens.len();
    let loss = |at: usize| {
        let row = &logits[(at - 1) * width..at * width];
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        sum.ln() - f64::from(row[tokens[at] as usize])
    };
    let losses: Vec<f64> = (first..tokens.len()).map(loss).collect();
    losses.iter().sum::<f64>() / losses.len() as f64
}

#[test]
fn of_a_prompt_and_a_response_the_response_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int4");
    let (prompt, response) = ("Tom saw two birds.", " He was happy.");
    let lines = repeated(
        folder.path(),
        &json!({"prompt": prompt, "response": response}),
    );
    let seen = history(&model, folder.path(), &lines, &[]);
    let tokenizer = tokenizer();
    // As the model meets the text: whole. The border lies between words.
    let mut tokens = tokenizer
        .encode_with_special(&format!("{prompt}{response}"))
        .expect("tokens");
    let asked = tokenizer.encode_with_special(prompt).expect("tokens");
    assert_eq!(tokens[..asked.len()], asked);
    tokens.extend(tokenizer.ends_at().take(1));
    assert_eq!(counted(&seen), (tokens.len() - asked.len()) as u64);
    // The held-out examples are the same two lines: what is said of them is their responses' loss.
    let want = surprise(&model, &tokens, asked.len());
    let have = judged(&seen, 0, "cross_entropy");
    assert!((have - want).abs() < 1e-4 * want, "{have}, {want}");
    let whole = surprise(&model, &tokens, 1);
    assert!(
        (whole - want).abs() > 1e-2,
        "the prompt makes no difference here"
    );
}

#[test]
fn of_messages_what_the_assistant_says_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int4");
    let place = folder.path().join("tokenizer");
    std::fs::create_dir(&place).expect("made");
    let from = |name: &str| Path::new(STORIES).join(name);
    std::fs::copy(from("tokenizer.json"), place.join("tokenizer.json")).expect("copied");
    let config = std::fs::read_to_string(from("tokenizer_config.json")).expect("read");
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    config["chat_template"] = json!(
        "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}\
         {% if add_generation_prompt %}assistant\n{% endif %}"
    );
    std::fs::write(place.join("tokenizer_config.json"), config.to_string()).expect("written");
    let says = |role: &str, text: &str| json!({"role": role, "content": text});
    let lines = repeated(
        folder.path(),
        &json!({"messages": [
            says("user", "Tell me of a bird."),
            says("assistant", "The bird was red."),
            says("user", "And then?"),
            says("assistant", "It flew away."),
        ]}),
    );
    let place = place.display().to_string();
    let seen = history(&model, folder.path(), &lines, &["--tokenizer", &place]);
    let tokenizer = tokenizer();
    let length = |text: &str| tokenizer.encode(text).expect("tokens").len() as u64;
    let asked = "user\nTell me of a bird.\nassistant\n";
    let told = format!("{asked}The bird was red.\n");
    let again = format!("{told}user\nAnd then?\nassistant\n");
    let end = format!("{again}It flew away.\n");
    // A line's end is a token of its own, so that beginnings of the text have beginnings of its tokens.
    let want = length(&told) - length(asked) + length(&end) - length(&again);
    assert_eq!(counted(&seen), want);
}

#[test]
fn of_a_text_everything_counts_and_the_end_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int4");
    let text = "Once upon a time there were three cats.";
    let lines = repeated(folder.path(), &json!({"text": text}));
    let seen = history(&model, folder.path(), &lines, &[]);
    let tokenizer = tokenizer();
    let tokens = tokenizer.encode_with_special(text).expect("tokens").len();
    let end = tokenizer.ends_at().take(1).count();
    // The first token is predicted by nothing.
    assert_eq!(counted(&seen), (tokens + end - 1) as u64);
}

#[test]
fn a_line_that_is_no_example_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int4");
    let lines = folder.path().join("lines.jsonl");
    let data = lines.display().to_string();
    let args = arguments(&model, &folder.path().join("task.hlrc"), &["--data", &data]);
    for (second, what) in [
        ("{\"prompt\":\"no response\"}", "has none of these fields"),
        (
            "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}",
            "chat template",
        ),
        ("[1]", "is no object"),
        ("{\"text\":", "is no JSON"),
    ] {
        std::fs::write(&lines, format!("{{\"text\":\"fine\"}}\n{second}\n")).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
        let failed = command.args(&args).output().expect("started");
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert_eq!(failed.status.code(), Some(3), "{said}");
        assert!(said.contains("line 2") && said.contains(what), "{said}");
    }
}

#[test]
fn lines_are_known_by_their_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "int4");
    let lines = folder.path().join("lines.txt");
    let line = "{ \"prompt\": \"Tom saw two birds.\", \"response\": \" He was happy.\" }\n";
    std::fs::write(&lines, line.repeat(6)).expect("written");
    let plain = history(&model, folder.path(), &lines, &[]);
    std::fs::write(&lines, format!("\u{feff}{}", line.repeat(6))).expect("written");
    let marked = history(&model, folder.path(), &lines, &[]);
    assert_eq!(plain["end_to_end"], marked["end_to_end"]);
    assert!(counted(&plain) < 12, "the response alone counts");
    std::fs::write(&lines, format!("[\n{line},{line}]")).expect("written");
    let data = lines.display().to_string();
    let args = arguments(
        &model,
        &folder.path().join("array.hlrc"),
        &["--data", &data],
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    let failed = command.args(&args).output().expect("started");
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(
        failed.status.code() == Some(3) && said.contains("JSON array"),
        "{said}"
    );
}
