//! `plugin new`: what it writes builds, and its golden test passes as it is.

use std::path::Path;
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
    if !has(&["make", "cc", "diff"]) {
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
    // A schema that contradicts itself is found by the check.
    let source = here.join("my-pass/my_pass.c");
    let written = std::fs::read_to_string(&source).expect("the source");
    for (properties, says) in [
        (
            r#"\"n\":{\"type\":\"integer\",\"default\":\"x\",\"description\":\"n\"}"#,
            "option `n` takes whole number, and its default is \"x\"",
        ),
        (
            r#"\"a b\":{\"type\":\"integer\",\"description\":\"n\"}"#,
            "option `a b` can't be written in a pipeline",
        ),
    ] {
        let empty = r#"\"properties\":{}"#;
        assert!(written.contains(empty), "{written}");
        let full = empty.replace("{}", &format!("{{{properties}}}"));
        std::fs::write(&source, written.replace(empty, &full)).expect("written");
        let made = Command::new("make")
            .arg("-B")
            .current_dir(here.join("my-pass"))
            .output();
        assert!(made.expect("make runs").status.success());
        let library = format!("my-pass/libmy_pass.{}", std::env::consts::DLL_EXTENSION);
        fails(here, &["plugin", "check", &library], 1, &["my-pass", says]);
    }
}

/// Commands of the book: fenced blocks without a language in one of its sections.
fn commands(section: &str) -> Vec<String> {
    let book = std::fs::read_to_string("docs/plugins.md").expect("the book");
    let section = book
        .split("\n## ")
        .find(|s| s.starts_with(section))
        .expect("a section");
    let fences = section.split("```").skip(1).step_by(2);
    fences
        .filter_map(|f| f.strip_prefix('\n').map(str::to_string))
        .collect()
}

/// Runs commands as somebody would who has the program in the path and its sources in `HLRC`.
fn shell(folder: &Path, script: &str) -> String {
    let root = std::env::current_dir().expect("a folder");
    let release = program().parent().expect("a folder").to_path_buf();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-e", "-c", script])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", release.display()))
        .env("HLRC", root)
        .env(
            "CARGO_TARGET_DIR",
            release.parent().expect("a target folder").join("scaffold"),
        )
        .env_remove("PYTHONPATH")
        .output()
        .expect("sh runs");
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{script}: {said}{told}");
    said
}

/// The commands with the model that they are tried on.
fn on(model: &Path, commands: &str) -> String {
    commands.replace("MODEL", &format!("'{}'", model.display()))
}

#[test]
fn the_tutorial_works_as_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let blocks = commands("Tutorial");
    let [first, second] = blocks.as_slice() else {
        panic!("the tutorial has two blocks of commands: {blocks:?}");
    };
    let root = std::env::current_dir().expect("a folder");
    // Nothing of it is measured: it is compiled as fast as can be.
    std::fs::create_dir(here.join(".cargo")).expect("a folder");
    let config = "[profile.release]\nopt-level = 0\ndebug = false\n\n[net]\noffline = true\n";
    std::fs::write(here.join(".cargo/config.toml"), config).expect("written");
    let model = super::common::small(here);
    // The lock file keeps versions that are there.
    let lock = format!("cp '{}' Cargo.lock", root.join("Cargo.lock").display());
    let entered = "cd zero-small\n";
    assert!(first.contains(entered), "{first}");
    shell(
        here,
        &first.replace(
            entered,
            &format!("{entered}{lock}\nln -s \"$CARGO_TARGET_DIR\" target\n"),
        ),
    );
    let said = shell(here, &format!("{entered}{}", on(&model, second)));
    for part in [
        "sparse(@q.values",
        "the same bytes for 1 and 3 threads",
        "Share of the entries",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert!(here.join("zero-small/m.hlrc").exists());
}

#[test]
fn the_tutorial_in_c_works_as_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    if !has(&["make", "cc", "diff"]) {
        return;
    }
    let model = super::common::small(here);
    let blocks = commands("In C");
    let said = shell(here, &on(&model, &blocks[0]));
    assert!(
        said.contains("the same bytes for 1 and 3 threads"),
        "{said}"
    );
    assert!(here.join("mean-of-rows/m.hlrc").exists());
}

#[test]
fn the_tutorial_in_python_works_as_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    if !has(&["cc", "diff", "sed"]) {
        return;
    }
    // In the place of the environment that it makes, the tests' own, which needs no network.
    let venv = std::path::absolute("target/venv").expect("a path");
    let asked = Command::new(venv.join("bin/python"))
        .args(["-c", LACKS])
        .output();
    let Ok(asked) = asked else {
        println!("skipped: target/venv is not there; .ci/run makes it");
        return;
    };
    assert!(asked.status.success(), "{}", text(&asked.stderr));
    let lacks = text(&asked.stdout);
    if !lacks.trim().is_empty() {
        println!("skipped: the Python of target/venv lacks {}", lacks.trim());
        return;
    }
    let blocks = commands("In C");
    let (made, rest) = blocks[1].split_once("\ncp ").expect("an environment");
    assert!(
        made.contains("pip install cffi setuptools"),
        "{}",
        blocks[1]
    );
    let link = format!("ln -s '{}' venv\ncp {rest}", venv.display());
    let said = shell(here, &link);
    assert!(
        said.contains("the same bytes for 1 and 3 threads"),
        "{said}"
    );
}

/// What a Python lacks to be embedded by cffi.
const LACKS: &str = "import importlib.util, os, sysconfig
lacks = [name for name in ('cffi', 'setuptools') if importlib.util.find_spec(name) is None]
if not os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')):
    lacks.append('its header Python.h (python3-dev has it)')
if not sysconfig.get_config_var('Py_ENABLE_SHARED'):
    lacks.append('its shared library')
print(', '.join(lacks))";

/// Whether these tools are there.
fn has(tools: &[&str]) -> bool {
    let all = tools
        .iter()
        .all(|t| Command::new(t).arg("--version").output().is_ok());
    if !all {
        println!("skipped: {} are needed", tools.join(", "));
    }
    all
}
