//! `plugin new`: a plugin to start from, with a golden test that passes as it is written.

use std::path::{Path, PathBuf};

use super::super::new_pass::{Name, TEMPLATE};
use super::super::opt::write_text;
use super::super::{Exit, Failure};
use super::args::Language;

const HEADER: &str = include_str!("../../../passes/sdk/include/hlrc_pass.h");
const MANIFEST: &str = include_str!("template/Cargo.toml.txt");
const ROOT: &str = include_str!("template/lib.rs.txt");
const GOLDEN: &str = include_str!("template/golden.rs.txt");
const CASE: &str = include_str!("template/default.hlir");
const EXPECTED_RUST: &str = include_str!("template/rust.out");
const EXPECTED_C: &str = include_str!("template/c.out");
const SOURCE: &str = include_str!("template/pass.c.txt");
const MAKEFILE: &str = include_str!("template/Makefile.txt");

/// Writes the plugin; what to do next.
pub(super) fn run(
    name: &str,
    lang: Language,
    dir: Option<&Path>,
    sdk: Option<&Path>,
) -> Result<String, Failure> {
    let name = Name::new(name)?;
    let dir = dir.map_or_else(|| PathBuf::from(&name.pass), Path::to_path_buf);
    let taken = std::fs::read_dir(&dir).is_ok_and(|mut files| files.next().is_some());
    if taken {
        let what = format!("{}: is there already, and not empty", dir.display());
        return Err(
            Failure::new(Exit::Failure, what).help("choose another name, or a folder with --dir")
        );
    }
    let fill = |template: &str| {
        template
            .replace("{name}", &name.pass)
            .replace("{module}", &name.module)
    };
    let mut text = String::new();
    let files = match lang {
        Language::Rust => {
            let found = dependency(sdk)?;
            if found.starts_with("git") {
                text.push_str(&format!(
                    "note: no sources of hlrc-opt are here or around the program, so the SDK is {found}; --sdk DIR \
                     names their passes/sdk\n"
                ));
            }
            let manifest = fill(MANIFEST).replace("{sdk}", &found);
            vec![
                ("Cargo.toml".to_string(), manifest),
                ("src/lib.rs".to_string(), fill(ROOT)),
                (format!("src/{}.rs", name.module), name.fill(TEMPLATE)),
                ("tests/golden.rs".to_string(), fill(GOLDEN)),
                ("tests/default.hlir".to_string(), CASE.to_string()),
                ("tests/default.out".to_string(), EXPECTED_RUST.to_string()),
            ]
        }
        Language::C => vec![
            (format!("{}.c", name.module), fill(SOURCE)),
            ("hlrc_pass.h".to_string(), HEADER.to_string()),
            ("Makefile".to_string(), fill(MAKEFILE)),
            ("tests/default.hlir".to_string(), CASE.to_string()),
            ("tests/default.out".to_string(), EXPECTED_C.to_string()),
        ],
    };
    for (file, content) in files {
        let path = dir.join(file);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| Failure::write(parent, &error))?;
        }
        write_text(&path, &content)?;
        text.push_str(&format!("wrote {}\n", path.display()));
    }
    let (shown, pass, module) = (dir.display(), &name.pass, &name.module);
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    text.push_str(&match lang {
        Language::Rust => format!(
            "\nIt builds and its golden test passes as it is. Then:\n  cd {shown}\n  \
             cargo test --release                # BLESS=1 accepts a new result\n  \
             hlrc-opt MODEL --load-pass-plugin target/release/{prefix}{module}{suffix} -p {pass}\n"
        ),
        Language::C => format!(
            "\nIt builds and its golden test passes as it is. Then:\n  cd {shown}\n  \
             make test                           # make bless accepts a new result\n  \
             hlrc-opt MODEL --load-pass-plugin ./lib{module}{suffix} -p {pass}\n"
        ),
    });
    Ok(text)
}

/// Where the generated crate gets the SDK from, in Cargo's words.
fn dependency(sdk: Option<&Path>) -> Result<String, Failure> {
    let is_sdk = |dir: &Path| {
        let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap_or_default();
        manifest.contains("name = \"hlrc-pass\"")
    };
    let found = match sdk {
        Some(dir) if !is_sdk(dir) => {
            let what = format!("{}: is not the SDK", dir.display());
            return Err(
                Failure::new(Exit::Usage, what).help("it is passes/sdk in hlrc-opt's sources")
            );
        }
        Some(dir) => Some(dir.to_path_buf()),
        None => {
            let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
            let folders = starts.iter().flatten().flat_map(|start| start.ancestors());
            folders
                .map(|dir| dir.join("passes/sdk"))
                .find(|dir| is_sdk(dir))
        }
    };
    Ok(match found {
        Some(dir) => {
            let dir = std::fs::canonicalize(&dir).unwrap_or(dir);
            format!("path = {:?}", dir.display().to_string())
        }
        None => format!("git = {:?}", env!("CARGO_PKG_REPOSITORY")),
    })
}
