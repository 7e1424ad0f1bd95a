//! The fused linear of decoding: every variant over shapes, tails, tokens and schedules against f64
//! (`linear/emulated.cpp` makes the cases and judges them), and mutants of its source.

use crate::toolchain;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "kernels/fused_linear.cu";
const DRIVER: &str = "tests/kernels/linear/emulated.cpp";

/// Defines of the plainest variant: int4 in groups of 64, one token.
const PLAIN: &[(&str, i64)] = &[
    ("FORMAT", 0),
    ("BITS", 4),
    ("GROUP", 64),
    ("ZEROS", 0),
    ("M", 1),
    ("ACT", 0),
    ("XIN", 0),
    ("XSCALE", 0),
    ("LOWRANK", 0),
    ("VFORMAT", 8),
    ("UFORMAT", 8),
    ("SPARSE", 0),
    ("ACTIVATION", 0),
    ("GLU", 0),
    ("BIAS", 0),
    ("RESIDUAL", 0),
    ("SOFTCAP", 0),
    ("EXPERTS", 0),
    ("SPLIT", 0),
    ("STAGES", 2),
    ("WARPS", 16),
    ("ROTATED", 0),
];

/// Shapes with and without tails, few and many blocks, all schedules.
const SHAPES: &[&str] = &[
    "rows=64 cols=256 grid=2",
    "rows=33 cols=100 grid=2 schedule=1 rank=5",
    "rows=96 cols=1100 grid=5 schedule=2 rank=20 blocks=3 per_mille=20",
    "rows=16 cols=37 grid=1 ldx_extra=2 rank=3 per_mille=100",
    "rows=80 cols=576 grid=4 schedule=2 seed=5 rank=17 blocks=2",
    "rows=160 cols=2300 grid=1 rank=16",
];

/// Splits `NAME=VALUE NAME=VALUE`.
fn settings(text: &str) -> Vec<(String, i64)> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').expect("NAME=VALUE");
        (name.to_string(), value.parse().expect("an integer"))
    };
    text.split_whitespace().map(pair).collect()
}

/// Defines of a variant: [`PLAIN`] but for what `variant` says.
fn defines(variant: &str) -> Vec<(String, i64)> {
    let given = settings(variant);
    let value = |name: &str, otherwise| {
        let found = given.iter().find(|(n, _)| n == name);
        found.map_or(otherwise, |(_, v)| *v)
    };
    let plain = PLAIN.iter();
    plain
        .map(|&(name, otherwise)| ((*name).to_string(), value(name, otherwise)))
        .collect()
}

fn flags(variant: &str) -> Vec<String> {
    let defines = defines(variant).into_iter();
    defines.map(|(name, v)| format!("-D{name}={v}")).collect()
}

/// Runs cases of a compiled variant; whether all are good, and what was printed.
fn run(program: &Path, library: &Path, variant: &str, cases: &[&str]) -> (bool, String) {
    let mut command = Command::new(program);
    command.arg(library);
    for (i, case) in cases.iter().enumerate() {
        if i > 0 {
            command.arg("--");
        }
        let all = defines(variant).into_iter().chain(settings(case));
        command.args(all.map(|(name, value)| format!("{name}={value}")));
    }
    let output = command.output().expect("the driver started");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    (output.status.success(), format!("{text}{errors}"))
}

/// Compiles variants and runs their cases; returns what was printed, nothing without a compiler.
pub(crate) fn check(variants: &[&str], cases: &[&str]) -> Vec<String> {
    let Some(program) = toolchain::program("linear", Path::new(DRIVER)) else {
        return Vec::new();
    };
    let mut printed = Vec::new();
    for variant in variants {
        let library = toolchain::shared_library("fused_linear", Path::new(SOURCE), &flags(variant))
            .expect("a compiler");
        let (good, text) = run(&program, &library, variant, cases);
        assert!(good, "{variant}\n{text}");
        assert_eq!(text.matches("ok ").count(), cases.len(), "{text}");
        printed.push(text);
    }
    printed
}

#[test]
fn every_width_of_codes() {
    let variants = [
        "BITS=4",
        "BITS=4 ZEROS=1 GROUP=32 M=3",
        "BITS=3 GROUP=128 M=8",
        "BITS=3 ZEROS=1 GROUP=0 M=2",
        "BITS=2 ZEROS=1 M=1",
        "BITS=2 GROUP=256 M=5",
        "BITS=8 GROUP=0 M=1",
        "BITS=8 ZEROS=1 GROUP=64 M=7",
    ];
    check(&variants, SHAPES);
}

#[test]
fn exact_activations_and_float_weights() {
    let variants = [
        "BITS=4 ACT=1 M=2 GROUP=64",
        "BITS=3 ACT=1 ZEROS=1 GROUP=32 M=1",
        "BITS=8 ACT=1 ZEROS=1 GROUP=0 M=5",
        "FORMAT=1 GROUP=0 M=1",
        "FORMAT=2 GROUP=0 M=3 XSCALE=1",
        "FORMAT=3 GROUP=0 M=2",
    ];
    check(&variants, SHAPES);
    let hard = [
        "rows=32 cols=300 grid=1 large_input=1",
        "rows=32 cols=300 grid=2 zero_input=1",
    ];
    check(&["BITS=4 ACT=1 M=2 GROUP=64"], &hard);
}

#[test]
fn norms_codes_and_column_scales_in_front() {
    let variants = [
        "XIN=1 M=2",
        "XIN=2 M=1 LOWRANK=1 SPARSE=1",
        "XIN=3 M=3",
        "XIN=3 M=1 LOWRANK=1",
        "XSCALE=1 GROUP=0 M=2",
    ];
    check(&variants, SHAPES);
}

#[test]
fn low_rank_and_sparse_terms() {
    let variants = [
        "LOWRANK=1 M=2",
        "LOWRANK=1 VFORMAT=4 UFORMAT=4 SPARSE=1 M=3",
        "LOWRANK=1 VFORMAT=16 UFORMAT=16",
        "LOWRANK=1 VFORMAT=32 UFORMAT=32 FORMAT=5 GROUP=0 SPARSE=1",
        "SPARSE=1 BITS=2 M=1 XIN=1",
        "LOWRANK=1 SPARSE=1 BITS=8 WARPS=5",
        "LOWRANK=1 M=2 FORMAT=1 GROUP=0 WARPS=6",
    ];
    check(&variants, SHAPES);
    check(
        &["SPARSE=1 BITS=2 M=1 XIN=1"],
        &["rows=32 cols=5000 grid=2 per_mille=5"],
    );
}

#[test]
fn epilogues() {
    let variants = [
        "ACTIVATION=1 BIAS=1 RESIDUAL=1 SOFTCAP=1 M=2",
        "ACTIVATION=2 GLU=1 BIAS=1 M=3",
        "ACTIVATION=3 GLU=1 LOWRANK=1 SPARSE=1",
    ];
    check(&variants, SHAPES);
}

/// All widths of a trellis in one matrix, and each alone: windows of every width at every place.
#[test]
fn trellis_codes() {
    let variants = [
        "FORMAT=4 GROUP=0 BITS=16 M=1",
        "FORMAT=4 GROUP=0 BITS=12 M=8 WARPS=5",
        "FORMAT=4 GROUP=0 BITS=8 M=2 ACT=1 BIAS=1",
        "FORMAT=4 GROUP=0 BITS=16 M=3 XIN=3",
        "FORMAT=4 GROUP=0 BITS=13 M=3 STAGES=3",
    ];
    check(&variants, SHAPES);
    let widths: Vec<String> = (1..=8)
        .map(|k| format!("rows=48 cols=1300 grid=2 widest={k} schedule=2"))
        .collect();
    let widths: Vec<&str> = widths.iter().map(String::as_str).collect();
    check(&["FORMAT=4 GROUP=0 BITS=16 M=1"], &widths);
    check(&["FORMAT=4 GROUP=0 BITS=10 M=4"], &widths);
}

/// Codes whose coordinates are not those of the terms beside them.
#[test]
fn rotated_codes_beside_terms() {
    let variants = [
        "ROTATED=1 FORMAT=4 GROUP=0 BITS=12 LOWRANK=1 SPARSE=1 M=1 RESIDUAL=1",
        "ROTATED=2 FORMAT=4 GROUP=0 BITS=16 LOWRANK=1 SPARSE=1 M=2 RESIDUAL=1",
        "ROTATED=2 BITS=4 SPARSE=1 M=3 XIN=3",
        "ROTATED=1 BITS=3 LOWRANK=1 M=8",
    ];
    check(&variants, SHAPES);
}

#[test]
fn row_tiles_that_blocks_share() {
    let cases = [
        "rows=64 cols=256 grid=3",
        "rows=48 cols=1100 grid=11 schedule=1",
        "rows=96 cols=1100 grid=7 schedule=2 rank=20 blocks=3",
        "rows=16 cols=2048 grid=9 schedule=2",
    ];
    check(&["SPLIT=1 M=2", "SPLIT=1 LOWRANK=1 SPARSE=1 GLU=1"], &cases);
}

#[test]
fn experts() {
    let cases: Vec<String> = SHAPES
        .iter()
        .map(|s| format!("{s} experts=5 tokens=3 top_k=2 rank=8 blocks=1"))
        .collect();
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    let variants = [
        "EXPERTS=1 GLU=1 ACTIVATION=1",
        "EXPERTS=1 LOWRANK=1 SPARSE=1",
        "EXPERTS=2 M=2 LOWRANK=1 SPARSE=1",
    ];
    check(&variants, &cases);
}

/// One change of one place of the sources, and a variant and case that must see it.
struct Mutant {
    file: String,
    from: String,
    to: String,
    variant: String,
    cases: Vec<String>,
}

/// Reads `linear/mutants.txt`.
fn mutants() -> Vec<Mutant> {
    let text = std::fs::read_to_string("tests/kernels/linear/mutants.txt").expect("the mutants");
    let mut out = Vec::new();
    let mut lines = text.lines().filter(|l| !l.starts_with('#'));
    while let Some(line) = lines.next() {
        let Some(file) = line.strip_prefix("@ ") else {
            assert!(line.trim().is_empty(), "`{line}` starts no mutant");
            continue;
        };
        let (file, variant) = file.split_once(' ').unwrap_or((file, ""));
        let mut field = |mark: char| {
            let line = lines.next().unwrap_or_default();
            let text = line.strip_prefix(mark);
            let text = text.unwrap_or_else(|| panic!("`{line}` does not start with `{mark}`"));
            text.strip_prefix(' ').unwrap_or(text).replace("\\n", "\n")
        };
        let (from, to, cases) = (field('-'), field('+'), field('='));
        out.push(Mutant {
            file: file.to_string(),
            from,
            to,
            variant: variant.to_string(),
            cases: cases.split(';').map(|c| c.trim().to_string()).collect(),
        });
    }
    out
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from)
        .expect("a folder of sources")
        .flatten()
    {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            copy_folder(&path, &to.join(name));
        } else {
            std::fs::copy(&path, to.join(name)).expect("copied");
        }
    }
}

/// Whether the checks see the mutant; what they said.
fn killed(mutant: &Mutant, program: &Path) -> (bool, String) {
    let folder = tempfile::tempdir().expect("a folder");
    copy_folder(Path::new("kernels"), folder.path());
    let file = folder.path().join(&mutant.file);
    let text = std::fs::read_to_string(&file).expect("the source");
    let places = text.matches(&mutant.from).count();
    assert_eq!(places, 1, "`{}` in {}", mutant.from, mutant.file);
    let changed = text.replace(&mutant.from, &mutant.to);
    std::fs::write(&file, changed).expect("written");
    let library: PathBuf = folder.path().join("mutant.so");
    let source = folder.path().join("fused_linear.cu");
    toolchain::compile(&source, &flags(&mutant.variant), &library);
    let cases: Vec<&str> = mutant.cases.iter().map(String::as_str).collect();
    let (good, text) = run(program, &library, &mutant.variant, &cases);
    (!good, text)
}

/// Each mutant is seen by some schedule: set `HLRC_MUTANTS=1`; it takes minutes.
#[test]
fn mutants_are_killed() {
    let all = mutants();
    assert!(all.len() >= 30, "{} mutants", all.len());
    if std::env::var_os("HLRC_MUTANTS").is_none() {
        eprintln!("skipped: {} mutants (set HLRC_MUTANTS=1)", all.len());
        return;
    }
    let Some(program) = toolchain::program("linear", Path::new(DRIVER)) else {
        return;
    };
    let next = std::sync::atomic::AtomicUsize::new(0);
    let survivors = std::sync::Mutex::new(Vec::new());
    let work = || {
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        while let Some(mutant) = all.get(next.fetch_add(1, relaxed)) {
            let (seen, text) = killed(mutant, &program);
            println!("{} `{}`: {}", mutant.file, mutant.to, text.trim());
            if !seen {
                let line = format!("{}: `{}` → `{}`", mutant.file, mutant.from, mutant.to);
                survivors.lock().expect("no panic").push(line);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let survivors = survivors.into_inner().expect("no panic");
    assert!(survivors.is_empty(), "alive:\n{}", survivors.join("\n"));
}
