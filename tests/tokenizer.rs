//! Token ids against the `tokenizers` package for Python, which has another regular expression engine.
//!
//! It needs a Python with that package: `HLRC_PYTHON`, or `target/venv` as `.ci/run` makes it.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::python;
use hlrc::text::{Decode, Detokenizer, Tokenizer};

/// Lines that tokenizers trip over: scripts, joined emoji, spaces, digits, contractions, special tokens.
const LINES: [&str; 16] = [
    "",
    " ",
    "   three in front, two behind  ",
    "\ttab\u{a0}no-break\u{3000}wide",
    "It's we'll THEY'RE I'd've",
    "1234567890 3.14159 1e-5 0xff",
    "Grüße, naïve façade; Ωμέγα; Привет, мир!",
    "日本語の文章と漢字、한국어 문장",
    "مرحبا بالعالم שלום עולם",
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 ✓ e\u{301}",
    "<|im_start|>user\\n<|endoftext|></s><s>",
    "fn main() { println!(\"{}\", x->y && z); }  // …",
    "a\rb\u{85}c\u{2028}d",
    "\u{feff}mark \u{200b}zero width\u{200d}",
    "ﬁ ﷺ ½ ① Ⅻ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

/// Lines of each text in `../shared/text`, where that is there.
const MANY: usize = 300;

fn lines() -> Vec<String> {
    let mut lines: Vec<String> = LINES.map(str::to_owned).into();
    for name in [
        "wikitext2-test",
        "calib-code",
        "calib-c4",
        "calib-wiki",
        "tinystories-500",
    ] {
        let path = Path::new("../shared/text").join(name).with_extension("txt");
        let Ok(text) = std::fs::read_to_string(&path) else {
            eprintln!("left out: {} is not there", path.display());
            continue;
        };
        lines.extend(text.split('\n').take(MANY).map(str::to_owned));
    }
    lines
}

fn agrees(folder: &Path) {
    let Some(python) = python("tokenizers") else {
        return;
    };
    let lines = lines();
    let dir = tempfile::tempdir().expect("a scratch folder");
    let file = dir.path().join("lines.txt");
    std::fs::write(&file, lines.join("\n")).expect("written");
    let mut command = Command::new(python);
    command
        .arg("tests/peers/tokens.py")
        .arg(folder.join("tokenizer.json"))
        .arg(&file);
    let output = command.output().expect("started");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let expected: Vec<Vec<u32>> = serde_json::from_slice(&output.stdout).expect("lists of ids");
    assert_eq!(expected.len(), lines.len());
    let tokenizer = Tokenizer::open(folder).expect("a tokenizer");
    let mut count = 0;
    for (line, expected) in lines.iter().zip(&expected) {
        let ids = tokenizer.encode(line).expect("encoded");
        assert_eq!(&ids, expected, "{line:?}");
        // Told one by one, the text is the same as at once.
        let mut stream = Detokenizer::new(&tokenizer, &[]);
        let mut told: String = ids.iter().map(|&id| stream.push(id)).collect();
        told += &stream.finish();
        assert_eq!(told, tokenizer.text(&ids), "{line:?}");
        count += ids.len();
    }
    println!(
        "{}: {} lines, {count} tokens agree",
        folder.display(),
        lines.len()
    );
}

#[test]
fn stories260k() {
    agrees(Path::new("tests/fixtures/stories260K"));
}

#[test]
fn smollm2() {
    let homes: Vec<PathBuf> = std::env::var("HLRC_MODELS")
        .into_iter()
        .map(PathBuf::from)
        .collect();
    let homes = homes
        .into_iter()
        .chain(["target/models", "../shared/models"].map(PathBuf::from));
    let found = homes
        .map(|home| home.join("smollm2-135m"))
        .find(|f| f.join("tokenizer.json").exists());
    match found {
        Some(folder) => agrees(&folder),
        None => eprintln!(
            "skipped: smollm2-135m is in none of HLRC_MODELS, target/models, ../shared/models"
        ),
    }
}
