//! Models with terms of plugins' kinds compute what their decoded matrices compute.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::process::Command;

use hlrc::exec::{Engine, Options, Rows};
use hlrc::ir::{Module, Term};
use hlrc::pass::PassError;
use hlrc::pass::kind::{CustomView, TermKind, find, register};
use hlrc::weights::FileCache;

use super::common::{hlrc, library, program, text, works};
use super::dense::{decoded, opened};

const STORIES: &str = "tests/fixtures/stories260K";

/// stories260K behind a pipeline, in a folder.
pub fn coded(folder: &Path, pipeline: &str, plugin: &str) -> PathBuf {
    let model = std::fs::canonicalize(STORIES).expect("the fixture");
    let plugin = library(plugin);
    let out = folder.join("coded.hlrc");
    works(
        folder,
        &[
            model.to_str().expect("utf-8"),
            "-p",
            pipeline,
            "-o",
            "coded.hlrc",
            "-q",
            "--load-pass-plugin",
            plugin.to_str().expect("utf-8"),
        ],
    );
    out
}

/// The same kind of term, without its kernel.
struct Decoding;

impl TermKind for Decoding {
    fn name(&self) -> &str {
        "decoding.codebook"
    }

    fn add_rows(
        &self,
        term: &CustomView<'_>,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), PassError> {
        let kind = find("kmeans4.codebook").expect("the plugin is loaded");
        kind.add_rows(term, rows, out)
    }
}

fn logits(module: &Module, files: &FileCache, threads: usize) -> Vec<f32> {
    let options = Options {
        threads,
        ..Options::default()
    };
    let engine = Engine::new(module, files, &options).unwrap_or_else(|e| panic!("{e}"));
    let tokens: Vec<u32> = (0..24).map(|i| (i * i * 7 + 3) % 500).collect();
    let mut all = Vec::new();
    let mut keep = |_: usize, logits: &[f32]| {
        all.extend_from_slice(logits);
        ControlFlow::Continue(())
    };
    let done = engine.forward(&mut engine.state(1), &tokens, Rows::All, &mut keep);
    done.unwrap_or_else(|e| panic!("{e}"));
    all
}

/// Largest difference, relative to the largest logit.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(largest > 1.0, "logits that say something");
    let each = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    each.fold(0f32, f32::max) / largest
}

#[test]
fn logits_are_those_of_the_decoded_matrices() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = coded(folder.path(), "lowrank{rank=4},kmeans4", "kmeans4");
    hlrc::pass::plugin::load(&library("kmeans4"), false).expect("it loads");
    register(&Decoding);
    let (module, files) = opened(&path);
    let mut others = module.clone();
    let mut count = 0;
    for op in others.graphs.iter_mut().flat_map(|g| &mut g.ops) {
        let terms = op.kind.matrix_mut().map(|m| &mut m.terms);
        for term in terms.into_iter().flatten() {
            if let Term::Custom(custom) = term {
                custom.kind = "decoding.codebook".to_string();
                count += 1;
            }
        }
    }
    assert!(count > 10, "{count} terms of the plugin");
    let dense = logits(&decoded(&module, &files), &files, 1);
    let (kernel, rows) = (logits(&module, &files, 1), logits(&others, &files, 1));
    assert!(difference(&kernel, &dense) < 1e-4, "by the kernel");
    assert!(difference(&rows, &dense) < 1e-4, "by decoded rows");
    assert_ne!(kernel, rows, "the two ways are not one");
    // The same bits for any number of threads.
    assert_eq!(kernel, logits(&module, &files, 3));
    assert_eq!(rows, logits(&others, &files, 3));
}

#[test]
fn a_kind_without_a_kernel_computes_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = coded(folder.path(), "outlier,row-scale", "row-scale");
    hlrc::pass::plugin::load(&library("row-scale"), false).expect("it loads");
    let (module, files) = opened(&path);
    let dense = logits(&decoded(&module, &files), &files, 2);
    assert!(difference(&logits(&module, &files, 2), &dense) < 1e-4);
}

#[test]
fn the_environment_is_enough_to_compute() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    coded(here, "kmeans4", "kmeans4");
    let plugin = library("kmeans4");
    let flag = plugin.to_str().expect("utf-8");
    let data = std::fs::canonicalize("tests/fixtures/text/stories.txt").expect("the fixture");
    let data = data.to_str().expect("utf-8");
    let model = std::fs::canonicalize(STORIES).expect("the fixture");
    let model = model.to_str().expect("utf-8");
    let run = [
        "run",
        "coded.hlrc",
        "-p",
        "Once upon",
        "--temperature",
        "0",
        "-n",
        "8",
        "-q",
    ];
    let eval = [
        "eval",
        "coded.hlrc",
        "--ref",
        model,
        "--data",
        data,
        "--ctx",
        "64",
        "--windows",
        "2",
        "--json",
        "-q",
        "--no-cache",
    ];
    for arguments in [&run[..], &eval[..]] {
        let with = works(here, &[arguments, &["--load-pass-plugin", flag]].concat());
        let mut command = Command::new(program());
        command
            .current_dir(here)
            .args(arguments)
            .env("HLRC_PLUGIN_PATH", plugin.parent().expect("a folder"));
        // The folder has other libraries too: those of the tests' own plugins among them.
        let folder = command.output().expect("it runs");
        command.env("HLRC_PLUGIN_PATH", &plugin);
        let file = command.output().expect("it runs");
        assert!(file.status.success(), "{}", text(&file.stderr));
        assert_eq!(without_times(&with), without_times(&text(&file.stdout)));
        // A folder of build products may hold libraries that are no plugins: code 6 then, and which.
        if !folder.status.success() {
            assert_eq!(folder.status.code(), Some(6), "{}", text(&folder.stderr));
        }
        let without = hlrc(here, arguments);
        assert_eq!(without.status.code(), Some(6), "{}", text(&without.stderr));
    }
}

/// Lines that say how long something took are left out.
fn without_times(text: &str) -> Vec<&str> {
    let timed = |line: &&str| !line.contains("seconds") && !line.contains("per_second");
    text.lines().filter(timed).collect()
}
