//! Formats told apart; text and `.hlrc` folders.

use std::path::{Path, PathBuf};

use super::{Format, Imported, Input, open};
use crate::ir::text::print;
use crate::weights::FileCache;

const MODULE: &str = r#"hlir 1
module "m" {
  weight @w : f32[4,4] = file("w.bin", 0x0, 64)
  graph @main(%x : f32[1,4]) -> (%y) {
    %y = linear %x [4,4] { dense(@w) }
  }
}
"#;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Folder(tempfile::tempdir().expect("dir"));
        folder.write("w.bin", &[0; 64]);
        folder
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("write");
        path
    }
}

fn import(path: &Path) -> Result<Imported, (String, String)> {
    let result = open(&Input::Path(path.to_path_buf()), &FileCache::new());
    result.map_err(|e| (e.to_string(), e.help().to_string()))
}

fn refused(path: &Path, part: &str) {
    let (message, help) = import(path).expect_err("must be refused");
    assert!(message.contains(part), "no {part:?} in: {message}\n{help}");
}

#[test]
fn text_is_read_with_its_files() {
    let folder = Folder::new();
    let path = folder.write("m.hlir", MODULE.as_bytes());
    let imported = import(&path).expect("imports");
    assert_eq!(imported.format, Format::Text);
    assert_eq!(imported.files, [path, folder.0.path().join("w.bin")]);
    assert_eq!(print(&imported.module), MODULE);
    // Without an extension, the first word tells.
    assert!(import(&folder.write("noname", MODULE.as_bytes())).is_ok());
}

#[test]
fn bad_text_is_located() {
    let folder = Folder::new();
    let text = |from: &str, to: &str| folder.write("m.hlir", MODULE.replace(from, to).as_bytes());
    refused(&text("hlir 1", "hlir 9"), "m.hlir:1:7: text form 9");
    refused(&text("w.bin", "gone.bin"), "weight @w: ");
    refused(&text("0x0, 64", "0x1, 64"), "w.bin: bytes 1..65");
    refused(&text("[4,4] {", "[4,5] {"), "breaks 1 invariant");
    refused(&folder.write("n.hlir", &[0xff, 0xfe]), "byte 0 is no UTF-8");
}

#[test]
fn outputs_are_read_back() {
    let folder = Folder::new();
    folder.write("module.hlir", MODULE.as_bytes());
    refused(folder.0.path(), "manifest.json: can't be read");
    folder.write("manifest.json", b"{");
    refused(folder.0.path(), "manifest.json: is no JSON");
    folder.write("manifest.json", br#"{"format_version": 7}"#);
    refused(
        folder.0.path(),
        "`format_version` is 7; this tool reads versions up to 1",
    );
    folder.write("manifest.json", br#"{"format_version": 1}"#);
    refused(folder.0.path(), "is no manifest: missing field");
    let manifest = br#"{"format": "hlrc", "format_version": 1, "tool": "t", "tool_version": "1",
        "pipelines": ["int4"], "seed": 0, "inputs": [], "outputs": []}"#;
    folder.write("manifest.json", manifest);
    folder.write("tokenizer.json", b"{}");
    let imported = import(folder.0.path()).expect("imports");
    assert_eq!(imported.format, Format::Hlrc);
    assert_eq!(imported.files.len(), 3);
    assert_eq!(imported.pipelines, ["int4"]);
    assert_eq!(imported.sidecars, [folder.0.path().join("tokenizer.json")]);
    for outside in ["../w.bin", "/etc/passwd", "a/../../w.bin"] {
        folder.write("module.hlir", MODULE.replace("w.bin", outside).as_bytes());
        refused(folder.0.path(), "outside of the folder");
    }
    std::fs::remove_file(folder.0.path().join("module.hlir")).expect("remove");
    refused(folder.0.path(), "module.hlir: can't be read");
}

#[test]
fn other_formats_are_named() {
    let folder = Folder::new();
    refused(&folder.0.path().join("none"), "none: can't be read");
    refused(&folder.write("a.gguf", b"GGUF"), "is GGUF");
    refused(&folder.write("a.bin", b"x"), "PyTorch pickle");
    refused(&folder.write("a.zip", b"x"), "archive");
    refused(
        &folder.write("config.json", b"{}"),
        "is JSON, but not the index",
    );
    refused(&folder.write("noname", b"PK\x03\x04"), "archive");
    refused(&folder.write("noname", b"hello"), "not known");
    refused(&folder.write("empty", b""), "not known");
    refused(folder.0.path(), "neither model.safetensors");
}

#[test]
fn a_dash_is_standard_input() {
    assert_eq!(Input::named(Path::new("-")), Input::Stdin);
    assert_eq!(Input::named(Path::new("x")), Input::Path("x".into()));
}
