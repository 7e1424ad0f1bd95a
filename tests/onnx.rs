//! ONNX in, ONNX out: identity without passes, and what exports must keep.
//!
//! That ONNX Runtime computes the same is checked by `tests/onnxruntime.rs`, which
//! needs its Python package.

use std::path::{Path, PathBuf};
use std::process::Command;

use hlrc::export::onnx::{ExportError, Options, QuantForm, export};
use hlrc::import::{self, Input};
use hlrc::ir::{Module, text};
use hlrc::weights::FileCache;

const STORIES: &str = "tests/fixtures/stories260K/stories260K.onnx";

fn models() -> Vec<PathBuf> {
    let root = std::env::var_os("HLRC_MODELS").map_or("target/models".into(), PathBuf::from);
    let mut found = vec![PathBuf::from(STORIES)];
    for folder in [root.clone(), root.join("silero-vad")] {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|e| e == "onnx")));
    }
    if found.len() == 1 {
        eprintln!(
            "no further models under {}: set HLRC_MODELS",
            root.display()
        );
    }
    found
}

fn tool(args: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"))
        .args(args)
        .output()
        .expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}\n{stderr}");
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn open(path: &Path) -> Module {
    let input = Input::named(path);
    import::open(&input, &FileCache::new())
        .unwrap_or_else(|e| panic!("{e}"))
        .module
}

#[test]
fn without_passes_the_bytes_come_back() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("out.onnx");
    for model in models() {
        let (from, to) = (model.to_str().expect("UTF-8"), out.to_str().expect("UTF-8"));
        tool(&[from, "-o", to, "-q", "--force"]);
        assert!(read(&model) == read(&out), "{from}");
    }
}

#[test]
fn text_in_between_keeps_the_bytes() {
    let folder = tempfile::tempdir().expect("folder");
    let (hlir, out) = (folder.path().join("m.hlir"), folder.path().join("out.onnx"));
    for model in models() {
        let from = model.to_str().expect("UTF-8");
        let (between, to) = (hlir.to_str().expect("UTF-8"), out.to_str().expect("UTF-8"));
        tool(&[from, "-S", "-o", between, "-q", "--force"]);
        tool(&[between, "-o", to, "-q", "--force"]);
        assert!(read(&model) == read(&out), "{from}");
    }
}

#[test]
fn raised_and_unchanged_is_written_as_it_was() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("out.onnx");
    let to = out.to_str().expect("UTF-8");
    tool(&[STORIES, "-p", "find-linears", "-o", to, "-q"]);
    assert!(read(STORIES) == read(&out), "linears that nothing changed");
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let folder = tempfile::tempdir().expect("folder");
    for pipeline in [
        "lowrank{depth=2},outlier,int4",
        "embeddings(int3{asymmetric=true}),int2",
    ] {
        let outs = ["1", "2"].map(|threads| {
            let out = folder.path().join(format!("{threads}.onnx"));
            let to = out.to_str().expect("UTF-8");
            tool(&[
                STORIES,
                "-p",
                pipeline,
                "-o",
                to,
                "-q",
                "--force",
                "--threads",
                threads,
            ]);
            read(&out)
        });
        assert!(outs[0] == outs[1], "{pipeline}");
        assert!(
            outs[0].len() < read(STORIES).len(),
            "{pipeline} is no smaller"
        );
    }
}

#[test]
fn external_data_goes_where_the_model_goes() {
    let folder = tempfile::tempdir().expect("folder");
    let (first, second) = (folder.path().join("a"), folder.path().join("b"));
    for folder in [&first, &second] {
        std::fs::create_dir(folder).expect("folder");
    }
    let cache = FileCache::new();
    let module = open(Path::new(STORIES));
    let external = Options {
        external: true,
        ..Options::default()
    };
    let done = export(&module, &cache, &first.join("m.onnx"), external).expect("export");
    assert_eq!(done.files.len(), 2, "model and data");
    // Without passes both files come back; where they are already, nothing moves.
    let again = open(&first.join("m.onnx"));
    export(&again, &cache, &second.join("m.onnx"), Options::default()).expect("export");
    for file in ["m.onnx", "m.onnx.data"] {
        assert!(read(first.join(file)) == read(second.join(file)), "{file}");
    }
    let beside = export(&again, &cache, &first.join("copy.onnx"), Options::default());
    assert_eq!(beside.expect("export").files, [first.join("copy.onnx")]);
    assert!(read(first.join("copy.onnx")) == read(first.join("m.onnx")));
}

#[test]
fn opset_upgrades_name_what_stands_in_the_way() {
    let source = r#"hlir 1
module "m" meta{format="onnx", ir_version=8, opset_import=[{domain="", version=17}]} {
  weight @q : u8[32,16] = none
  weight @s : f16[32,1] = none
  graph @main(%x : f32[B,32]) -> (%y) {
    %r = onnx.Resize(%x)
    %n = onnx.GridSample(%r)
    %y = linear %n [32,32] { quant(@q, @s, int4, group=32) }
  }
}
"#;
    let module = text::parse(source).expect("text");
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("out.onnx");
    let qdq = Options {
        quant: QuantForm::Qdq,
        ..Options::default()
    };
    match export(&module, &FileCache::new(), &out, qdq) {
        Err(ExportError::Opset {
            from: 17,
            to: 21,
            ops,
        }) => assert_eq!(ops, "GridSample, Resize"),
        other => panic!("{other:?}"),
    }
    assert!(!out.exists(), "nothing is left behind");
}

#[test]
fn a_failed_export_leaves_nothing() {
    let source = r#"hlir 1
module "m" meta{format="onnx", ir_version=8, opset_import=[{domain="", version=17}]} {
  weight @q : u8[32,16] = none
  weight @s : f16[32,1] = none
  graph @main(%x : f32[B,32]) -> (%y) {
    %y = linear %x [32,32] { quant(@q, @s, int4, group=32) }
  }
}
"#;
    let module = text::parse(source).expect("text");
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("out.onnx");
    let error = export(&module, &FileCache::new(), &out, Options::default());
    let error = error.expect_err("the codes have no bytes").to_string();
    assert!(error.contains("no bytes"), "{error}");
    let left = std::fs::read_dir(folder.path()).expect("folder").count();
    assert_eq!(left, 0, "files left behind");
}
