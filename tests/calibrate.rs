//! `hlrc-opt calibrate` from outside: sums as an independent implementation has them, the same bytes
//! whatever the threads, the memory and the interruptions.

mod common;

use common::{python, succeed};
use std::path::{Path, PathBuf};
use std::process::Command;

const STORIES: &str = "tests/fixtures/stories260K";

fn refused(command: &mut Command, code: i32) -> String {
    let output = command.output().expect("started");
    assert_eq!(output.status.code(), Some(code), "{command:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn tool(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.env("XDG_CACHE_HOME", dir);
    command.args(["calibrate", "-q"]);
    command
}

/// A text in which all of the model's words occur somewhere.
fn text(dir: &Path, name: &str, skip: usize) -> PathBuf {
    let path = dir.join(name);
    let words = [
        "little", "girl", "found", "a", "red", "ball", "and", "took", "it", "home", "because",
        "sun",
    ];
    let mut out = String::new();
    for i in 0..4000usize {
        let word = words[(i * i * 7 + i * 3 + skip * (i % 5)) % words.len()];
        out.push_str(word);
        out.push(if i % 9 == 8 { '.' } else { ' ' });
    }
    std::fs::write(&path, out).expect("written");
    path
}

fn calibrate(dir: &Path, name: &str, extra: &[&str]) -> PathBuf {
    let data = text(dir, "text.txt", 0);
    let output = dir.join(name);
    let mut command = tool(dir);
    command.arg(STORIES).arg("--data").arg(data);
    command.args(["--ctx", "96", "--windows", "30", "--bos", "never", "-o"]);
    succeed(command.arg(&output).args(extra));
    output
}

#[test]
fn threads_and_memory_do_not_change_a_byte() {
    let dir = tempfile::tempdir().expect("a folder");
    let one = std::fs::read(calibrate(dir.path(), "one", &["--threads", "1"])).expect("written");
    let three =
        std::fs::read(calibrate(dir.path(), "three", &["--threads", "3"])).expect("written");
    // What lives between segments is 30 · 96 · 64 values; this leaves room for none of them.
    let mut command = tool(dir.path());
    command
        .arg(STORIES)
        .arg("--data")
        .arg(dir.path().join("text.txt"));
    command.args([
        "--ctx",
        "96",
        "--windows",
        "30",
        "--mem-limit",
        "1MiB",
        "-o",
    ]);
    let told = refused(command.arg(dir.path().join("no")), 4);
    assert!(told.contains("--mem-limit is 1.0 MiB"), "{told}");
    let need = told
        .split("take ")
        .nth(1)
        .and_then(|t| t.split(" MiB").next());
    let need: f64 = need.and_then(|n| n.parse().ok()).expect("a size in MiB");
    let limit = format!("{:.1}MiB", need + 0.2);
    let spilled = calibrate(dir.path(), "spilled", &["--mem-limit", &limit]);
    assert!(one == three && one == std::fs::read(spilled).expect("written"));
}

#[test]
fn sums_are_those_of_numpy() {
    let Some(python) = python("numpy") else {
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let stats = calibrate(dir.path(), "stats", &[]);
    let tokenizer = hlrc::text::Tokenizer::open(Path::new(STORIES)).expect("a tokenizer");
    let content = std::fs::read_to_string(dir.path().join("text.txt")).expect("text");
    let ids = tokenizer.encode(&content).expect("tokens");
    let windows: Vec<&[u32]> = ids.chunks_exact(96).take(30).collect();
    assert_eq!(windows.len(), 30);
    let tokens = dir.path().join("tokens.json");
    std::fs::write(&tokens, serde_json::to_vec(&windows).expect("json")).expect("written");
    let mut check = Command::new(python);
    check
        .arg("tests/peers/hessians.py")
        .args([STORIES.as_ref(), stats.as_path(), &tokens]);
    let said: serde_json::Value = serde_json::from_str(&succeed(&mut check)).expect("json");
    assert_eq!(said["compared"], 5 * 7 + 1);
    assert!(said["worst"].as_f64().expect("a number") < 1e-4, "{said}");
}

#[test]
fn what_is_there_is_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let stats = calibrate(dir.path(), "stats", &[]);
    let before = stats.metadata().expect("there").modified().expect("a time");
    calibrate(dir.path(), "stats", &[]);
    assert_eq!(
        stats.metadata().expect("there").modified().expect("a time"),
        before
    );
    let mut other = tool(dir.path());
    other
        .arg(STORIES)
        .arg("--data")
        .arg(dir.path().join("text.txt"));
    other.args(["--ctx", "48", "-o"]).arg(&stats);
    assert!(refused(&mut other, 1).contains("-f replaces it"));
    assert!(!dir.path().join("stats.partial").exists());
    let shown = succeed(tool(dir.path()).arg("--show").arg(&stats));
    assert!(
        shown.contains("mlp.down_proj") && shown.contains("2880 tokens in all"),
        "{shown}"
    );
    let resumed = refused(
        tool(dir.path())
            .arg(STORIES)
            .arg("--resume")
            .arg("--data")
            .arg(dir.path().join("text.txt"))
            .arg("-o")
            .arg(dir.path().join("none")),
        2,
    );
    assert!(resumed.contains("without --resume"), "{resumed}");
}

#[test]
fn statistics_behind_the_compressed_prefix() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = text(dir.path(), "text.txt", 0);
    let opt = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
        command.env("XDG_CACHE_HOME", dir.path());
        command.args([STORIES, "-q", "-p", "int2{method=gptq}", "--calib"]);
        command.arg(&data);
        command
    };
    let weights = |name: &str, extra: &[&str]| {
        let output = dir.path().join(name);
        succeed(opt().args(extra).arg("-o").arg(&output));
        let verify = [Path::new("verify"), &output];
        succeed(Command::new(env!("CARGO_BIN_EXE_hlrc-opt")).args(verify));
        std::fs::read(output.join("model.safetensors")).expect("weights")
    };
    let once = weights("once", &[]);
    let one = weights("one", &["--sequential", "--threads", "1"]);
    let two = weights("two", &["--sequential", "--threads", "2"]);
    assert!(one != once, "the statistics are the same");
    assert!(one == two, "threads make a difference");
    let alone = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
        .args([STORIES, "-p", "int4", "--sequential"])
        .output()
        .expect("started");
    assert_eq!(alone.status.code(), Some(2));
}

#[test]
fn a_folder_or_device_is_never_replaced() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = text(dir.path(), "text.txt", 0);
    let place = dir.path().join("place");
    std::fs::create_dir(&place).expect("a folder");
    let mut command = tool(dir.path());
    command.args([STORIES, "--force", "-o"]).arg(&place);
    command.arg("--data").arg(&data);
    let said = refused(&mut command, 1);
    assert!(
        said.contains("is no file, and is not replaced") && place.is_dir(),
        "{said}"
    );
}

/// `opt` on a model, with statistics or texts by commas; its exit code and what it said.
fn opt(dir: &Path, model: &Path, pipeline: &str, calib: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.env("XDG_CACHE_HOME", dir).arg(model);
    command.args(["-f", "-p", pipeline, "--calib", calib, "-o"]);
    let output = command.arg(dir.join("out.hlrc")).output().expect("started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn statistics_that_do_not_fit_are_refused_or_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let stats = calibrate(dir.path(), "stats", &[]);
    let stats = stats.to_str().expect("a path in UTF-8");
    let llama = Path::new("tests/fixtures/families/llama");
    let (code, said) = opt(dir.path(), llama, "trellis", stats);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("do not go together"), "{said}");
    assert!(!dir.path().join("out.hlrc").exists());
    let (code, said) = opt(
        dir.path(),
        Path::new(STORIES),
        "trellis",
        &format!("{stats},x.txt"),
    );
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("stands alone"), "{said}");
    // The same shapes, one other weight.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).expect("a folder");
    for entry in std::fs::read_dir(STORIES).expect("a folder").flatten() {
        let name = entry.file_name();
        if name.to_string_lossy() != "stories260K.onnx" {
            std::fs::copy(entry.path(), other.join(name)).expect("copied");
        }
    }
    let weights = other.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).expect("written");
    let (code, said) = opt(dir.path(), &other, "trellis", stats);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("whose weights are not those of"), "{said}");
    let (code, said) = opt(dir.path(), Path::new(STORIES), "trellis", stats);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("whose weights"), "{said}");
}

#[test]
fn damaged_statistics_are_bad_input() {
    let dir = tempfile::tempdir().expect("a folder");
    let stats = calibrate(dir.path(), "stats", &[]);
    let mut bytes = std::fs::read(&stats).expect("written");
    let at = bytes.len() / 2;
    // Sums of squares that are no numbers.
    bytes[at..at + 4096].fill(0xff);
    std::fs::write(&stats, bytes).expect("written");
    let path = stats.to_str().expect("a path in UTF-8");
    let (code, said) = opt(dir.path(), Path::new(STORIES), "trellis", path);
    assert_eq!(code, Some(3), "{said}");
}

/// Makes every second moment one that no inputs have: the first two agree more than they can.
fn make_indefinite(stats: &Path) {
    let mut bytes = std::fs::read(stats).expect("written");
    let head = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + head]).expect("JSON");
    for (name, tensor) in json.as_object().expect("tensors") {
        let Some(key) = name.strip_suffix(".hessian") else {
            continue;
        };
        let n = json[format!("{key}.diag")]["shape"][0]
            .as_u64()
            .expect("a width") as usize;
        let at = 8 + head + tensor["data_offsets"][0].as_u64().expect("a place") as usize;
        let entry = |bytes: &[u8], i: usize| {
            let four = &bytes[at + 4 * i..][..4];
            f32::from_le_bytes(four.try_into().expect("four"))
        };
        let value = 3.0 * (entry(&bytes, 0) * entry(&bytes, n)).sqrt();
        bytes[at + 4..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    std::fs::write(stats, bytes).expect("written");
}

#[test]
fn moments_that_no_inputs_have_are_helped_and_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let stats = calibrate(dir.path(), "stats", &[]);
    make_indefinite(&stats);
    for (pipeline, told) in [
        ("trellis", "a negative second moment when they are rotated"),
        ("int4{method=gptq}", "the damping was raised"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
        command.args([STORIES, "-f", "-p", pipeline, "--remarks", "--calib"]);
        command
            .arg(&stats)
            .arg("-o")
            .arg(dir.path().join("out.hlrc"));
        let output = command.output().expect("started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains(told), "{said}");
    }
}

#[test]
fn a_diagonal_is_used_by_trellises() {
    let dir = tempfile::tempdir().expect("a folder");
    let imatrix = "tests/fixtures/imatrix/tiny.gguf";
    let (code, said) = opt(dir.path(), Path::new(STORIES), "trellis", imatrix);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("nothing is known of the inputs of"), "{said}");
    let report = |folder: &str| -> serde_json::Value {
        let text = std::fs::read(dir.path().join(folder).join("report.json"));
        serde_json::from_slice(&text.expect("a report")).expect("JSON")
    };
    let with = report("out.hlrc");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.args([STORIES, "-q", "-p", "trellis", "-o"]);
    succeed(command.arg(dir.path().join("free.hlrc")));
    let (with, without) = (&with["sites"][0], &report("free.hlrc")["sites"][0]);
    assert_eq!(with["name"], without["name"]);
    assert!(with["rel_error"] != without["rel_error"], "{with}");
}

#[test]
fn what_has_no_effect_on_a_file_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let stats = calibrate(dir.path(), "stats", &[]);
    let copy = dir.path().join("copy");
    std::fs::copy(&stats, &copy).expect("copied");
    for again in [&stats, &copy] {
        let mut command = tool(dir.path());
        command.arg("--merge").args([&stats, again]);
        let said = refused(command.arg("-o").arg(dir.path().join("sum")), 2);
        assert!(said.contains("count twice"), "{said}");
    }
    for extra in [
        ["--ctx", "96"],
        ["--windows", "3"],
        ["--seed", "1"],
        ["--threads", "1"],
    ] {
        let mut command = tool(dir.path());
        refused(command.arg("--show").arg(&stats).args(extra), 2);
        let mut command = tool(dir.path());
        command.arg("--merge").arg(&stats).arg(&copy);
        refused(command.args(extra).arg("-o").arg(dir.path().join("sum")), 2);
    }
    // A text is the same whatever the seed.
    calibrate(dir.path(), "stats", &["--seed", "7"]);
}

/// A head for masked tokens has an output `logits`, and sees what comes behind a token.
#[test]
fn encoders_with_a_head_take_lines() {
    let dir = tempfile::tempdir().expect("a folder");
    let words: Vec<String> = (0..40).map(|id| format!("\"w{id}\": {id}")).collect();
    let words = words.join(", ");
    let tokenizer = format!(
        r#"{{"version": "1.0", "added_tokens": [], "pre_tokenizer": {{"type": "Whitespace"}},
        "model": {{"type": "WordLevel", "vocab": {{{words}}}, "unk_token": "w0"}}}}"#
    );
    let place = dir.path().join("tokenizer.json");
    std::fs::write(&place, tokenizer).expect("written");
    let data = dir.path().join("lines.txt");
    std::fs::write(&data, "w1 w2 w3\nw4 w5\n".repeat(40)).expect("written");
    let stats = dir.path().join("stats");
    let mut command = tool(dir.path());
    command.arg("tests/fixtures/families/bert_masked_lm");
    command
        .arg("--tokenizer")
        .arg(&place)
        .arg("--data")
        .arg(&data);
    let shape = ["--windows", "4", "--ctx", "16", "-o"];
    succeed(command.args(shape).arg(&stats));
    let mut command = tool(dir.path());
    let shown = command.arg("--show").arg(&stats).output().expect("started");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("lines of up to 16 tokens"), "{shown}");
}

#[test]
fn the_models_own_text_is_written_again_for_sequential_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let stats = dir.path().join("self.calibration");
    let mut command = tool(dir.path());
    command.args([
        STORIES,
        "--data",
        "self",
        "--windows",
        "8",
        "--ctx",
        "64",
        "-o",
    ]);
    succeed(command.arg(&stats));
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.args([STORIES, "-q", "-p", "int2{method=gptq}", "--sequential"]);
    command.arg("--calib").arg(&stats).arg("-o");
    succeed(command.arg(dir.path().join("out.hlrc")));
}

#[test]
fn a_diagonal_weighs_the_errors_of_integers() {
    let dir = tempfile::tempdir().expect("a folder");
    let scope = |codes: &str| format!("re:layers.0.self_attn.q_proj({codes})");
    let imatrix = "tests/fixtures/imatrix/tiny.gguf";
    let left = |pipeline: &str, calib: Option<&str>, name: &str| -> serde_json::Value {
        let output = dir.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
        command.args([STORIES, "-q", "--json", "-p", &scope(pipeline)]);
        command.args(calib.iter().flat_map(|path| ["--calib", path]));
        let told = succeed(command.arg("-o").arg(output));
        let report: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        report["sites"][0]["rel_error"].clone()
    };
    let weighed = left("int4{method=gptq}", Some(imatrix), "weighed.hlrc");
    let free = left("int4", None, "free.hlrc");
    assert!(
        weighed.as_f64() > free.as_f64(),
        "{weighed} of the weights, {free}"
    );
    // One of which the matrix says nothing is still an error of the input, told before anything is coded.
    let (code, said) = opt(dir.path(), Path::new(STORIES), "int4{method=gptq}", imatrix);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("nothing is known of the inputs of"), "{said}");
}
