//! `hlrc-opt run` as users meet it, on the model that the repository ships.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::model;
use serde_json::Value;

const STORIES: &str = "tests/fixtures/stories260K";
const START: &str = "Once upon a time";

fn tool(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.arg("run").args(args).stdin(Stdio::null());
    command
}

fn output(args: &[&str]) -> Output {
    tool(args).output().expect("the binary runs")
}

/// Runs, expects success, gives stdout.
fn ok(args: &[&str]) -> String {
    let output = output(args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).expect("whole characters")
}

/// Runs, expects this exit code, gives stderr.
fn fails(code: i32, args: &[&str]) -> String {
    let output = output(args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    assert!(output.stdout.is_empty(), "{args:?}");
    errors
}

/// A copy of the fixture with files added, or taken away where the content is empty.
fn copy(changes: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a scratch folder");
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(Path::new(STORIES).join(name), dir.path().join(name)).expect("copied");
    }
    for (name, content) in changes {
        let path = dir.path().join(name);
        match content.is_empty() {
            true => std::fs::remove_file(path).expect("removed"),
            false => std::fs::write(path, content).expect("written"),
        }
    }
    dir
}

fn named(dir: &tempfile::TempDir) -> String {
    dir.path().to_str().expect("UTF-8").to_owned()
}

fn story(more: &[&str]) -> String {
    ok(&[&[STORIES, "-q", "--prompt", START, "-n", "80"], more].concat())
}

#[test]
fn greedy_text_is_a_story_and_always_the_same() {
    let text = story(&["--threads", "1"]);
    assert!(text.starts_with(", there was a little"), "{text}");
    assert_eq!(text, story(&["--threads", "1"]));
    assert_eq!(text, story(&["--threads", "2"]));
    assert_eq!(text, story(&["--temp", "0", "--seed", "5"]));
}

#[test]
fn draws_follow_the_seed() {
    let draw = |seed: &str, threads: &str| {
        story(&[
            "--temp",
            "1",
            "--top-k",
            "40",
            "--top-p",
            "0.95",
            "--min-p",
            "0.02",
            "--seed",
            seed,
            "--repeat-penalty",
            "1.1",
            "--threads",
            threads,
        ])
    };
    assert_eq!(draw("1", "1"), draw("1", "2"));
    assert_ne!(draw("1", "1"), draw("2", "1"));
    assert_eq!(story(&["--temp", "1", "--top-k", "1"]), story(&[]));
}

#[test]
fn stop_strings_are_cut_wherever_they_begin() {
    let text = story(&[]);
    // In the middle of words, over several tokens.
    let stop: String = text.chars().skip(41).take(9).collect();
    let cut = story(&["--stop", "not in there", "--stop", &stop]);
    assert_eq!(
        Some(cut.as_str()),
        text.split_once(&stop).map(|(before, _)| before)
    );
}

#[test]
fn prompts_come_from_files_and_pipes() {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let path = dir.path().join("prompt.txt");
    std::fs::write(&path, START).expect("written");
    let path = path.to_str().expect("UTF-8");
    let expected = story(&[]);
    assert_eq!(
        ok(&[STORIES, "-q", "-n", "80", "--prompt-file", path]),
        expected
    );
    for source in [&["-"] as &[&str], &["--prompt-file", "-"]] {
        let mut child = tool(&[&[STORIES, "-q", "-n", "80"], source].concat());
        let mut child = child
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("runs");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(START.as_bytes()).expect("written");
        drop(stdin);
        let output = child.wait_with_output().expect("ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
}

#[test]
fn what_was_done_is_told_on_stderr() {
    let output = output(&[STORIES, "--prompt", START, "-n", "5"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in [
        "load",
        "prefill",
        "decode",
        "tokens/s",
        "5 tokens: as many as allowed",
        "peak RSS",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_peak_is_of_this_program_alone() {
    // Whoever starts it may be large: what getrusage tells goes on counting that.
    let large = vec![1u8; 600 << 20];
    let object: Value = serde_json::from_str(&story(&["--json"])).expect("one object");
    assert_eq!(
        large
            .iter()
            .step_by(4096)
            .map(|&b| usize::from(b))
            .sum::<usize>(),
        large.len() / 4096
    );
    let peak = object["peak_rss_bytes"].as_u64().expect("a peak");
    assert!(peak > 1 << 20 && peak < 300 << 20, "{peak}");
}

#[test]
fn json_is_one_object_or_lines() {
    let text = story(&[]);
    let object: Value = serde_json::from_str(&story(&["--json"])).expect("one object");
    assert_eq!(object["text"], text);
    assert_eq!(object["finish"], "length");
    assert_eq!(object["tokens"].as_array().map(Vec::len), Some(80));
    for key in [
        "load_s",
        "prefill_s",
        "prefill_tokens_per_s",
        "decode_s",
        "decode_tokens_per_s",
        "peak_rss_bytes",
        "prompt_tokens",
    ] {
        assert!(
            object[key].as_f64().is_some_and(|n| n > 0.0),
            "{key}: {object}"
        );
    }
    let lines = story(&["--json=lines", "--stop", "little"]);
    let lines: Vec<Value> = lines
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let (last, tokens) = lines.split_last().expect("some lines");
    let told: String = tokens
        .iter()
        .filter_map(|line| line["text"].as_str())
        .collect();
    assert_eq!(last["text"], told);
    assert_eq!(
        (&last["finish"], &last["stop"]),
        (&Value::from("stop"), &Value::from("little"))
    );
    let ids: Vec<&Value> = tokens.iter().map(|line| &line["token"]).collect();
    assert_eq!(
        ids,
        last["tokens"]
            .as_array()
            .expect("ids")
            .iter()
            .collect::<Vec<_>>()
    );
}

#[test]
fn an_output_folder_runs_like_its_source() {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let out = dir.path().join("m.hlrc");
    let out = out.to_str().expect("UTF-8");
    let opt = |pipeline: &str| {
        let args = ["-q", STORIES, "-p", pipeline, "-f", "-o", out];
        let done = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
            .args(args)
            .status();
        assert!(done.expect("runs").success());
    };
    let run = |more: &[&str]| ok(&[&[out, "-q", "--prompt", START, "-n", "40"], more].concat());
    opt("canonicalize");
    assert_eq!(
        run(&[]),
        ok(&[STORIES, "-q", "--prompt", START, "-n", "40"])
    );
    opt("lowrank{rank=8},outlier,int8");
    for precision in ["exact", "int8"] {
        let text = run(&["--precision", precision]);
        assert!(text.starts_with(", there was a"), "{precision}: {text}");
        assert_eq!(text, run(&["--precision", precision, "--threads", "2"]));
    }
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}\
    {{ raise_exception('no') }}{% endif %}{{ m['content'] }}{% endfor %}";

#[test]
fn chat_templates_make_the_prompt() {
    let dir = copy(&[("chat_template.jinja", TEMPLATE)]);
    let model = named(&dir);
    let chat = ok(&[&model, "-q", "--chat", "--prompt", START, "-n", "80"]);
    assert_eq!(chat, story(&[]));
    let chat = ok(&[
        &model,
        "-q",
        "--chat",
        "--system",
        "Once upon",
        "--prompt",
        " a time",
        "-n",
        "80",
    ]);
    assert_eq!(chat, story(&[]));
    let elsewhere = ok(&[
        STORIES,
        "-q",
        "--tokenizer",
        &model,
        "--chat",
        "-p",
        START,
        "-n",
        "80",
    ]);
    assert_eq!(elsewhere, story(&[]));
}

#[test]
fn what_is_missing_is_told() {
    let told = fails(3, &[STORIES, "--chat", "--prompt", "x"]);
    assert!(
        told.contains("no chat template") && told.contains("leave --chat out"),
        "{told}"
    );
    let dir = copy(&[("tokenizer.json", "")]);
    let told = fails(3, &[&named(&dir), "--prompt", "x"]);
    assert!(
        told.contains("no tokenizer.json") && told.contains("--tokenizer"),
        "{told}"
    );
    let dir = copy(&[("tokenizer.json", "{}")]);
    assert!(fails(3, &[&named(&dir), "--prompt", "x"]).contains("is no tokenizer"));
    let dir = copy(&[("chat_template.jinja", "{{ raise_exception('never') }}")]);
    assert!(fails(3, &[&named(&dir), "--chat", "--prompt", "x"]).contains("never (line 1)"));
    let dir = copy(&[("chat_template.jinja", "{% if %}")]);
    assert!(fails(3, &[&named(&dir), "--chat", "--prompt", "x"]).contains("chat_template.jinja"));
    assert!(fails(3, &["not/there", "--prompt", "x"]).contains("not/there"));
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (args, part) in [
        (&[] as &[&str], "there is no prompt"),
        (&["--chat"], "needs a terminal"),
        (&["-p", "x", "--top-p", "0.5"], "no effect at temperature 0"),
        (&["-p", "x", "--temp", "-1"], "temperature is -1"),
        (
            &["-p", "x", "--temp", "1", "--top-p", "1.5"],
            "top-p is 1.5",
        ),
        (
            &["-p", "x", "--temp", "1", "--min-p", "-0.5"],
            "min-p is -0.5",
        ),
        (&["-p", "x", "--repeat-penalty", "0"], "repeat-penalty is 0"),
        (&["-p", "x", "--stop", ""], "--stop is empty"),
        (&["-p", "x", "--system", "y"], "--chat"),
        (&["-p", "x", "--ctx", "0"], "--ctx"),
        (&["-p", "x", "--threads", "0"], "--threads"),
        (&["-p", "x", "--prompt-file", "y"], "cannot be used with"),
        (&["-p", "x", "--json=xml"], "xml"),
    ] {
        let told = fails(2, &[&[STORIES], args].concat());
        assert!(told.contains(part), "{args:?}: {told}");
    }
}

#[test]
fn the_context_is_a_limit() {
    let told = fails(4, &[STORIES, "-p", START, "--ctx", "513"]);
    assert!(told.contains("512 positions"), "{told}");
    let told = fails(4, &[STORIES, "-p", START, "--ctx", "3"]);
    assert!(
        told.contains("the context 3") && told.contains("--ctx"),
        "{told}"
    );
    let object = ok(&[STORIES, "-q", "-p", START, "--ctx", "20", "--json"]);
    let object: Value = serde_json::from_str(&object).expect("JSON");
    assert_eq!(object["finish"], "context");
    let count = object["tokens"].as_array().map_or(0, Vec::len) as u64;
    assert_eq!(
        count + object["prompt_tokens"].as_u64().expect("a count"),
        20
    );
}

#[test]
fn encoders_are_refused_with_what_to_use() {
    let bert = "tests/fixtures/families/bert";
    let told = fails(3, &[bert, "--tokenizer", STORIES, "-p", "x"]);
    assert!(
        told.contains("language model") && told.contains("hlrc-opt eval"),
        "{told}"
    );
}

#[test]
fn the_model_is_looked_at_first() {
    let told = fails(3, &["not/there.onnx", "--tokenizer", "nor/this", "-p", "x"]);
    assert!(
        told.contains("not/there.onnx") && !told.contains("nor/this"),
        "{told}"
    );
}

#[test]
fn a_refusal_names_what_was_not_raised() {
    let neox = "tests/fixtures/raise/neox.script.onnx";
    let args = [neox, "--tokenizer", STORIES, "-p", "x"];
    let told = fails(3, &args);
    assert!(told.contains("missed: raise: "), "{told}");
    let told = fails(3, &[&args[..], &["-v"]].concat());
    assert!(told.matches("missed: raise: ").count() > 4, "{told}");
    let told = fails(3, &[&args[..], &["-q"]].concat());
    assert!(told.matches("missed: raise: ").count() <= 4, "{told}");
}

/// Tells the child to stop once it has told a token; its exit code, and what it printed.
#[cfg(unix)]
fn interrupted() -> (Option<i32>, Vec<String>, String) {
    let args = [
        STORIES,
        "-p",
        START,
        "-n",
        "500",
        "--ignore-eos",
        "--json=lines",
    ];
    let mut child = tool(&args);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut told: Vec<String> = lines
        .next()
        .into_iter()
        .map(|l| l.expect("UTF-8"))
        .collect();
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(kill.expect("kill runs").success());
    told.extend(lines.map(|l| l.expect("UTF-8")));
    let output = child.wait_with_output().expect("ends");
    (
        output.status.code(),
        told,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_with_what_there_is() {
    // A fast machine may be done before the signal arrives.
    let mut tries = (0..5).map(|_| interrupted());
    let stopped = tries.find(|(code, ..)| *code != Some(0));
    let (code, lines, told) = stopped.expect("one of five is interrupted");
    assert_eq!(code, Some(130), "{told}");
    let last: Value = serde_json::from_str(lines.last().expect("an object")).expect("JSON");
    assert_eq!(last["finish"], "interrupted");
    assert!(last["text"].as_str().is_some_and(|text| !text.is_empty()));
    assert!(
        told.contains("interrupted") && told.contains("tokens/s"),
        "{told}"
    );
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = tool(&[STORIES, "-q", "-p", START, "-n", "400", "--ignore-eos"]);
    let mut child = child
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.is_empty(), "{told}");
}

#[test]
fn a_real_model_knows_its_facts() {
    let Some(path) = model("smollm2-135m") else {
        return;
    };
    let path = path.to_str().expect("UTF-8");
    let text = ok(&[path, "-q", "-p", "The capital of France is", "-n", "3"]);
    assert!(text.contains("Paris"), "{text}");
}

#[test]
fn a_model_that_cannot_run_is_named_before_its_tokenizer() {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let path = dir.path().join("nothing.onnx");
    std::fs::write(&path, b"not a model").expect("written");
    let said = fails(3, &[path.to_str().expect("UTF-8"), "--prompt", "x"]);
    assert!(said.contains("nothing.onnx"), "{said}");
    assert!(!said.contains("tokenizer"), "{said}");
}

#[test]
fn what_was_not_raised_is_named_where_a_model_is_refused() {
    let Some(model) = model("paraphrase-MiniLM-L3-v2.onnx") else {
        return;
    };
    let said = fails(3, &[model.to_str().expect("UTF-8"), "--prompt", "x"]);
    assert!(said.contains("missed: raise"), "{said}");
}
