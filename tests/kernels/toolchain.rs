//! Compiles kernels for emulation with the system's C++ compiler.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Flags of a kernel's translation unit: `kernels/README.md` says why.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-fsanitize=thread",
    "-fsanitize=alignment",
    "-fno-tree-vectorize",
    "-fno-store-merging",
    "-ffp-contract=off",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Werror",
    "-DHLRC_EMU",
    "-Ikernels",
];
/// Flags of the emulation's own sources.
const RUNTIME_FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Werror",
];
/// The shared library of a kernel with these defines, compiled where it is not there yet; `None`, with
/// a message, without a compiler.
pub(crate) fn shared_library(name: &str, source: &Path, defines: &[String]) -> Option<PathBuf> {
    let (compiler, runtime) = toolchain()?;
    let text = std::fs::read(source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    let mut hash = Sha256::new();
    hash.update(headers_hash());
    hash.update(text);
    hash.update(format!("{FLAGS:?} {defines:?} {compiler} {runtime:?}"));
    let path = folder().join(format!("{name}-{}.so", hex(&hash.finalize()[..10])));
    if !path.exists() {
        compile(source, defines, &path);
    }
    Some(path)
}

/// Compiles and links a kernel; there must be a compiler. Headers stand where the source's do.
pub(crate) fn compile(source: &Path, defines: &[String], path: &Path) {
    let (compiler, runtime) = toolchain().expect("a compiler");
    let partial = path.with_extension(format!("{}.partial", unique()));
    let object = path.with_extension(format!("{}.o", unique()));
    let mut command = Command::new(compiler);
    command.args(FLAGS).args(defines);
    command.args(["-x", "c++", "-c"]).arg(source);
    command.arg("-o").arg(&object);
    run_compiler(&mut command);
    // Linked without the sanitizers, so that their hooks are the emulation's.
    let mut command = Command::new(compiler);
    command.args(["-shared", "-o"]).arg(&partial).arg(&object);
    command.args(runtime);
    run_compiler(&mut command);
    std::fs::remove_file(&object).expect("removed");
    std::fs::rename(&partial, path).expect("renamed");
}

/// A program of the tests, compiled where it is not there yet; `None` without a compiler.
pub(crate) fn program(name: &str, source: &Path) -> Option<PathBuf> {
    let (compiler, _) = toolchain()?;
    let mut hash = Sha256::new();
    hash.update(headers_hash());
    for file in [
        source,
        Path::new("benches/gpu/linear_case.hpp"),
        Path::new("benches/gpu/linear_launch.hpp"),
    ] {
        hash.update(std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display())));
    }
    let path = folder().join(format!("{name}-{}", hex(&hash.finalize()[..10])));
    if !path.exists() {
        let partial = path.with_extension(format!("{}.partial", unique()));
        let mut command = Command::new(compiler);
        command.args(["-std=c++17", "-O2", "-Wall", "-Werror", "-o"]);
        command.arg(&partial).arg(source).arg("-ldl");
        run_compiler(&mut command);
        std::fs::rename(&partial, &path).expect("renamed");
    }
    Some(path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated");
    std::fs::create_dir_all(&folder).expect("a folder for compiled kernels");
    folder
}

fn run_compiler(command: &mut Command) {
    let output = command.output().expect("the compiler started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{text}");
}

/// Hash of what every kernel includes.
fn headers_hash() -> &'static [u8] {
    static HASH: OnceLock<Vec<u8>> = OnceLock::new();
    HASH.get_or_init(|| {
        let mut hash = Sha256::new();
        for folder in ["kernels/common", "kernels/emu"] {
            let entries = std::fs::read_dir(folder).expect("the kernels' headers");
            let mut files: Vec<_> = entries.flatten().map(|e| e.path()).collect();
            files.sort();
            for file in files {
                hash.update(std::fs::read(&file).expect("a readable header"));
            }
        }
        hash.finalize().to_vec()
    })
}

/// The compiler, and the emulation's objects.
fn toolchain() -> Option<&'static (String, Vec<PathBuf>)> {
    static FOUND: OnceLock<Option<(String, Vec<PathBuf>)>> = OnceLock::new();
    let find = || {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_string());
        let probe = Command::new(&compiler).arg("--version").output();
        let Ok(probe) = probe else {
            eprintln!("skipped: no C++ compiler {compiler} (set CXX)");
            return None;
        };
        let mut hash = Sha256::new();
        hash.update(headers_hash());
        hash.update(&probe.stdout);
        hash.update(format!("{RUNTIME_FLAGS:?}"));
        let key = hex(&hash.finalize()[..10]);
        let mut objects = Vec::new();
        for stem in ["runtime", "memory", "collective"] {
            let object = folder().join(format!("{stem}-{key}.o"));
            if !object.exists() {
                let partial = object.with_extension(format!("{}.partial", unique()));
                let source = format!("kernels/emu/{stem}.cpp");
                let mut command = Command::new(&compiler);
                command
                    .args(RUNTIME_FLAGS)
                    .args(["-c", &source, "-o"])
                    .arg(&partial);
                run_compiler(&mut command);
                std::fs::rename(&partial, &object).expect("renamed");
            }
            objects.push(object);
        }
        Some((compiler, objects))
    };
    FOUND.get_or_init(find).as_ref()
}
