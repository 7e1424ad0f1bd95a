//! `plugin new`: what it writes builds, and its golden test passes as it is.

use std::process::Command;

use super::common::{fails, program, text, works};

#[test]
fn a_new_plugin_in_c_passes_its_test() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    works(here, &["plugin", "new", "my-pass", "--lang", "c"]);
    fails(
        here,
        &["plugin", "new", "my-pass", "--lang", "c"],
        1,
        &["is there already"],
    );
    fails(
        here,
        &["plugin", "new", "int4"],
        2,
        &["there is a pass of that name"],
    );
    let tools = ["make", "cc", "diff"]
        .iter()
        .all(|t| Command::new(t).arg("--version").output().is_ok());
    if !tools {
        println!("skipped: make, cc and diff are needed");
        return;
    }
    let made = Command::new("make")
        .arg("test")
        .current_dir(here.join("my-pass"))
        .env("HLRC_OPT", program())
        .output()
        .expect("make runs");
    assert!(
        made.status.success(),
        "{}{}",
        text(&made.stdout),
        text(&made.stderr)
    );
}

/// The commands of the tutorial: fenced blocks without a language in its section.
fn tutorial() -> Vec<String> {
    let book = std::fs::read_to_string("docs/plugins.md").expect("the book");
    let section = book
        .split("\n## ")
        .find(|s| s.starts_with("Tutorial"))
        .expect("a tutorial");
    let fences = section.split("```").skip(1).step_by(2);
    fences
        .filter_map(|f| f.strip_prefix('\n').map(str::to_string))
        .collect()
}

#[test]
fn the_tutorial_works_as_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let blocks = tutorial();
    assert_eq!(
        blocks.len(),
        2,
        "the tutorial has two blocks of commands: {blocks:?}"
    );
    let root = std::env::current_dir().expect("a folder");
    let release = program().parent().expect("a folder").to_path_buf();
    // Nothing of it is measured: it is compiled as fast as can be.
    std::fs::create_dir(here.join(".cargo")).expect("a folder");
    let config = "[profile.release]\nopt-level = 0\ndebug = false\n\n[net]\noffline = true\n";
    std::fs::write(here.join(".cargo/config.toml"), config).expect("written");
    let path = std::env::var("PATH").unwrap_or_default();
    let shell = |script: &str| {
        let output = Command::new("sh")
            .args(["-e", "-c", script])
            .current_dir(here)
            .env("PATH", format!("{}:{path}", release.display()))
            .env(
                "CARGO_TARGET_DIR",
                release.parent().expect("a target folder").join("scaffold"),
            )
            .output()
            .expect("sh runs");
        let (said, told) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{script}: {said}{told}");
        said
    };
    let model = super::common::small(here);
    let sdk = root.join("passes/sdk");
    // Outside of the sources the SDK has to be named; the lock file keeps versions that are there.
    let first = blocks[0].replace(
        "new zero-small",
        &format!("new zero-small --sdk '{}'", sdk.display()),
    );
    let lock = format!("cp '{}' Cargo.lock", root.join("Cargo.lock").display());
    let first = first.replace(
        "cd zero-small\n",
        &format!("cd zero-small\n{lock}\nln -s \"$CARGO_TARGET_DIR\" target\n"),
    );
    shell(&first);
    let example = root.join("passes/examples/zero-small/src/zero_small.rs");
    std::fs::copy(example, here.join("zero-small/src/zero_small.rs")).expect("copied");
    let second = blocks[1].replace("MODEL", &format!("'{}'", model.display()));
    let said = shell(&format!("cd zero-small\n{second}"));
    for part in [
        "sparse(@q.values",
        "the same bytes for 1 and 3 threads",
        "Share of the entries",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert!(here.join("zero-small/m.hlrc").exists());
}
