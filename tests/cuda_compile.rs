//! Every kernel compiles for every architecture, within the registers and shared memory of
//! `kernels/resources.txt`, without spills, and with the instructions that it is built on.
//!
//! Needs NVIDIA's compiler, no GPU: `nvcc` in `PATH`, or the packages that `.ci/run` installs into
//! `target/cuda-venv`. Skipped with a message where it is absent, unless `HLRC_REQUIRE_NVCC` is set.
//! `HLRC_BLESS_RESOURCES=1` writes the table anew; read its diff.

use regex::Regex;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Compute capabilities: Ampere (A100, then consumer), Ada, Hopper, consumer Blackwell.
const ARCHITECTURES: [&str; 5] = ["80", "86", "89", "90", "120"];
const TABLE: &str = "kernels/resources.txt";
/// Registers that another compiler version may add.
const SLACK: u32 = 8;

/// A line of `kernels/variants.txt`.
struct Variant {
    kernel: String,
    defines: Vec<String>,
    patterns: Vec<Regex>,
}

impl Variant {
    fn name(&self) -> String {
        let words = std::iter::once(&self.kernel).chain(&self.defines);
        words.map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}

/// What a variant takes, on all architectures.
#[derive(Debug, PartialEq, Eq)]
struct Resources {
    registers: Vec<u32>,
    /// Static, bytes: the largest of all.
    shared_bytes: u32,
}

fn variants() -> Vec<Variant> {
    let text = std::fs::read_to_string("kernels/variants.txt").expect("kernels/variants.txt");
    let lines = text
        .lines()
        .filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    let parse = |line: &str| {
        let (variant, patterns) = line.split_once(" : ").unwrap_or((line, ""));
        let mut words = variant.split_whitespace().map(str::to_string);
        Variant {
            kernel: words.next().expect("a kernel"),
            defines: words.collect(),
            patterns: patterns
                .split_whitespace()
                .map(|p| Regex::new(p).expect("a pattern"))
                .collect(),
        }
    };
    lines.map(parse).collect()
}

/// The folder of nvcc and cuobjdump.
fn tools() -> Option<PathBuf> {
    let in_venv = |base: &Path| {
        let pythons = std::fs::read_dir(base.join("lib"))
            .into_iter()
            .flatten()
            .flatten();
        let nvidia = pythons.map(|p| p.path().join("site-packages/nvidia"));
        let toolkits = nvidia.flat_map(|n| std::fs::read_dir(n).into_iter().flatten().flatten());
        toolkits
            .map(|t| t.path().join("bin"))
            .find(|bin| bin.join("nvcc").exists())
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .find(|bin| bin.join("nvcc").exists() && bin.join("cuobjdump").exists())
        .or_else(|| in_venv(Path::new("target/cuda-venv")));
    if found.is_none() {
        let message =
            "no nvcc with cuobjdump in PATH, nor in target/cuda-venv (.ci/run installs it)";
        assert!(std::env::var_os("HLRC_REQUIRE_NVCC").is_none(), "{message}");
        eprintln!("skipped: {message}");
    }
    found
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{command:?}\n{out}{err}");
    format!("{out}{err}")
}

fn version(tools: &Path) -> String {
    let text = run(Command::new(tools.join("nvcc")).arg("--version"));
    let version = Regex::new(r"V([0-9.]+)").expect("a pattern");
    let found = version.captures(&text).and_then(|c| c.get(1));
    found.map_or_else(|| text.clone(), |m| m.as_str().to_string())
}

/// Feeds a source and what it includes to a hash, each file once.
fn hash_source(path: &Path, seen: &mut Vec<PathBuf>, hash: &mut Sha256) {
    if seen.iter().any(|p| p == path) {
        return;
    }
    seen.push(path.to_path_buf());
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    hash.update(&text);
    let folder = path.parent().expect("a folder");
    let quoted = |l: &str| {
        Some(
            l.trim()
                .strip_prefix("#include \"")?
                .strip_suffix('"')?
                .to_string(),
        )
    };
    for header in text.lines().filter_map(quoted) {
        // The emulation's header is not part of what nvcc sees.
        if !header.starts_with("../") {
            hash_source(&folder.join(header), seen, hash);
        }
    }
}

/// The compiler's report and the machine code, from the last time where nothing has changed.
fn compile(tools: &Path, salt: &str, variant: &Variant) -> (String, String) {
    let source = format!("kernels/{}.cu", variant.kernel);
    let mut hash = Sha256::new();
    hash.update(salt);
    hash_source(Path::new(&source), &mut Vec::new(), &mut hash);
    hash.update(variant.name());
    let key: String = hash.finalize()[..10]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda");
    std::fs::create_dir_all(&folder).expect("a folder");
    let kept = folder.join(format!("{}-{key}.txt", variant.kernel));
    if let Some((report, code)) = std::fs::read_to_string(&kept)
        .ok()
        .as_deref()
        .and_then(|t| t.split_once("\n=====\n"))
    {
        return (report.to_string(), code.to_string());
    }
    let binary = folder.join(format!("{key}.fatbin"));
    let mut command = Command::new(tools.join("nvcc"));
    command
        .args([
            "-std=c++17",
            "-O3",
            "-fatbin",
            "-Xptxas",
            "-v",
            "-Ikernels",
            "-o",
        ])
        .arg(&binary)
        .arg(&source);
    command.args(variant.defines.iter().map(|d| format!("-D{d}")));
    for a in ARCHITECTURES {
        command.args(["-gencode", &format!("arch=compute_{a},code=sm_{a}")]);
    }
    let report = run(&mut command);
    assert!(!report.contains("warning"), "{}\n{report}", variant.name());
    let code = run(Command::new(tools.join("cuobjdump"))
        .arg("-sass")
        .arg(&binary));
    // Addresses and encodings make megabytes; instructions are what counts.
    let keep = |l: &&str| l.contains("arch = ") || l.contains(';');
    let code: Vec<&str> = code
        .lines()
        .filter(keep)
        .map(|l| l.split("/* 0x").next().unwrap_or(l).trim_end())
        .collect();
    let code = code.join("\n");
    std::fs::remove_file(&binary).expect("removed");
    let partial = kept.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&partial, format!("{report}\n=====\n{code}")).expect("written");
    std::fs::rename(&partial, &kept).expect("renamed");
    (report, code)
}

/// Registers and shared memory; spills, stack frames and missing instructions are errors.
fn examine(variant: &Variant, report: &str, code: &str) -> Result<Resources, String> {
    let name = variant.name();
    let entry = Regex::new(r"Compiling entry function '(\w+)' for 'sm_(\d+)'").expect("a pattern");
    let spills =
        Regex::new(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
            .expect("a pattern");
    let used = Regex::new(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?").expect("a pattern");
    let number = |c: &regex::Captures, i: usize| {
        c.get(i)
            .and_then(|m| m.as_str().parse::<u32>().ok())
            .unwrap_or(0)
    };
    let mut found = Resources {
        registers: Vec::new(),
        shared_bytes: 0,
    };
    let (mut kernel, mut architecture) = (String::new(), String::new());
    for line in report.lines() {
        if let Some(c) = entry.captures(line) {
            (kernel, architecture) = (c[1].to_string(), c[2].to_string());
        } else if let Some(c) = spills.captures(line) {
            if (1..=3).any(|i| number(&c, i) > 0) {
                return Err(format!("{name}, sm_{architecture}: {}", line.trim()));
            }
        } else if let Some(c) = used.captures(line) {
            if kernel != variant.kernel
                || ARCHITECTURES.get(found.registers.len()) != Some(&architecture.as_str())
            {
                return Err(format!(
                    "{name}: the report is of {kernel} for sm_{architecture}"
                ));
            }
            found.registers.push(number(&c, 1));
            found.shared_bytes = found.shared_bytes.max(number(&c, 2));
        }
    }
    if found.registers.len() != ARCHITECTURES.len() {
        return Err(format!(
            "{name}: the compiler reports {} architectures\n{report}",
            found.registers.len()
        ));
    }
    let parts: Vec<&str> = code.split("arch = sm_").skip(1).collect();
    for a in ARCHITECTURES {
        let part = parts.iter().find(|p| {
            p.lines()
                .next()
                .is_some_and(|l| l.trim_end_matches('a') == a)
        });
        let part = part.ok_or_else(|| format!("{name}: no machine code for sm_{a}"))?;
        for pattern in &variant.patterns {
            if !part.lines().any(|l| pattern.is_match(l)) {
                return Err(format!("{name}: no {pattern} in the code for sm_{a}"));
            }
        }
    }
    Ok(found)
}

#[test]
fn kernels_compile_within_their_resources() {
    let Some(tools) = tools() else { return };
    let (variants, version) = (variants(), version(&tools));
    let salt = format!("{version} {ARCHITECTURES:?}");
    let results = Mutex::new(BTreeMap::new());
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(variant) = variants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (report, code) = compile(&tools, &salt, variant);
                    let result = examine(variant, &report, &code);
                    results
                        .lock()
                        .expect("results")
                        .insert(variant.name(), result);
                }
            });
        }
    });
    let mut results = results.into_inner().expect("results");
    let problems: Vec<String> = results
        .values()
        .filter_map(|r| r.as_ref().err().cloned())
        .collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let in_order = variants.iter().map(|v| {
        (
            v.name(),
            results
                .remove(&v.name())
                .expect("once each")
                .expect("no problem"),
        )
    });
    let measured: Vec<(String, Resources)> = in_order.collect();
    if std::env::var_os("HLRC_BLESS_RESOURCES").is_some() {
        assert!(
            std::env::var_os("CI").is_none(),
            "resources are not blessed in CI"
        );
        std::fs::write(TABLE, table(&version, &measured)).expect("written");
        return;
    }
    compare(&version, &measured);
}

fn table(version: &str, measured: &[(String, Resources)]) -> String {
    let mut text = format!(
        "# Registers of a thread on sm_{}, and static shared memory of a block in bytes, by nvcc {version}.\n",
        ARCHITECTURES.join(", ")
    );
    text.push_str("# No variant spills. HLRC_BLESS_RESOURCES=1 cargo test --release --test cuda_compile writes this file.\n");
    for (name, r) in measured {
        let registers: Vec<String> = r.registers.iter().map(u32::to_string).collect();
        let _ = writeln!(
            text,
            "{name} : {} : {}",
            registers.join(" "),
            r.shared_bytes
        );
    }
    text
}

/// The same compiler gives the same figures; another one hardly more.
fn compare(version: &str, measured: &[(String, Resources)]) {
    let text = std::fs::read_to_string(TABLE).expect("kernels/resources.txt");
    if text.contains(&format!("by nvcc {version}.")) {
        let now = table(version, measured);
        for (old, new) in text.lines().zip(now.lines()) {
            assert_eq!(old, new, "{TABLE} (HLRC_BLESS_RESOURCES=1 writes it)");
        }
        assert_eq!(
            text.lines().count(),
            now.lines().count(),
            "lines of {TABLE}"
        );
        return;
    }
    for (name, resources) in measured {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(&format!("{name} : ")));
        let line = line.unwrap_or_else(|| panic!("{TABLE} has no {name}"));
        let (registers, shared) = line.split_once(" : ").expect("registers : shared");
        let allowed = registers
            .split_whitespace()
            .map(|r| r.parse::<u32>().expect("registers"));
        for ((allowed, got), a) in allowed.zip(&resources.registers).zip(ARCHITECTURES) {
            assert!(
                *got <= allowed + SLACK,
                "{name}, sm_{a}: {got} registers, {allowed} in {TABLE}"
            );
        }
        let shared: u32 = shared.parse().expect("bytes");
        assert!(
            resources.shared_bytes <= shared + 64,
            "{name}: {} bytes of shared memory",
            resources.shared_bytes
        );
    }
}

#[test]
fn every_kernel_has_a_variant() {
    let listed: Vec<String> = variants().into_iter().map(|v| v.kernel).collect();
    let entries = std::fs::read_dir("kernels").expect("kernels").flatten();
    for file in entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "cu"))
    {
        let stem = file.file_stem().and_then(|s| s.to_str()).expect("a name");
        assert!(
            listed.iter().any(|k| k == stem),
            "{stem} is not in kernels/variants.txt"
        );
    }
}
