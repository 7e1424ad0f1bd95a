//! Golden tests: text IR in, a pipeline, text IR out.
//!
//! `tests/golden/PASS/CASE.hlir` starts with `// RUN: -p 'PIPELINE'`, in the options of the command
//! line; `CASE.out` beside it is what must come out: the canonical pipeline, the module, what each
//! pass did to each matrix, remarks; or the error. Content hashes are left out and errors have
//! three digits, so that a processor's rounding does not matter. Every case also runs with two
//! threads, must give the same hashes, and its output must parse and verify.
//!
//! `// RUN: verify` lists the invariants that a module breaks. `tests/golden/pipeline/*.txt` has a
//! pipeline on each line; its `.out` has the canonical forms, or the errors.
//!
//! New results are accepted with `UPDATE_GOLDENFILES=1 cargo test --release --test golden`, which
//! is refused where `CI=true`.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use clap::Parser as _;
use goldenfile::Mint;
use hlrc::cli::args::{Cli, OptArgs};
use hlrc::ir::patch::normalize;
use hlrc::ir::site::{Site, sites};
use hlrc::ir::text::{PrintOptions, parse, print, print_with};
use hlrc::ir::verify::verify;
use hlrc::ir::{Module, Storage};
use hlrc::pass::manager::{self, Outcome, RunOptions, Schedule};
use hlrc::pass::pipeline::{Override, Pipeline};
use hlrc::pass::{MomentSource, Moments};
use hlrc::report::SiteReport;

const BLESS: &str = "UPDATE_GOLDENFILES=1 cargo test --release --test golden";

#[test]
fn passes_do_what_their_goldens_say() {
    check_all("hlir", |text| {
        let run = text.lines().next().and_then(|l| l.strip_prefix("// RUN: "));
        match run {
            Some("verify") => verified(text),
            Some(run) => rewritten(text, run).unwrap_or_else(|error| format!("error: {error}\n")),
            None => panic!("the first line must be `// RUN: -p '…'` or `// RUN: verify`"),
        }
    });
}

#[test]
fn pipelines_have_canonical_forms() {
    check_all("txt", |text| {
        let mut out = String::new();
        for line in text.lines() {
            let _ = writeln!(out, "{line}");
            let canonical = Pipeline::parse(line)
                .map_err(|e| e.to_string())
                .and_then(|p| manager::canonical(&p).map_err(|e| e.to_string()));
            match canonical {
                Ok(canonical) => {
                    let _ = writeln!(out, "  = {canonical}");
                    let again = Pipeline::parse(&canonical.to_string()).map(|p| p.to_string());
                    assert_eq!(again.ok(), Some(canonical.to_string()), "of {line}");
                }
                Err(error) => error.lines().for_each(|l| {
                    let _ = writeln!(out, "  ! {l}");
                }),
            }
        }
        out
    });
}

/// Runs every case with this extension and compares; all failures are shown, not the first alone.
fn check_all(extension: &str, run: impl Fn(&str) -> String) {
    let on = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    let blessing = on("UPDATE_GOLDENFILES", "1") || on("REGENERATE_GOLDENFILES", "1");
    assert!(
        !(blessing && on("CI", "true")),
        "golden files are blessed by people, not under CI=true: unset UPDATE_GOLDENFILES"
    );
    let mut failed = Vec::new();
    let cases = cases(extension);
    assert!(!cases.is_empty(), "no case of .{extension}");
    for case in cases {
        let text = std::fs::read_to_string(&case).expect("a readable case");
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let got = run(&text);
            let mut mint = Mint::new(case.parent().expect("a case in a folder"));
            let name = Path::new(case.file_name().expect("a name")).with_extension("out");
            let mut file = mint.new_goldenfile(name).expect("a temporary file");
            file.write_all(got.as_bytes()).expect("writing to it");
        }));
        if let Err(panic) = checked {
            failed.push(format!("{}: {}", case.display(), message(&panic)));
        }
    }
    let all = failed.join("\n");
    assert!(
        failed.is_empty(),
        "{all}\nif the new results are right: {BLESS}"
    );
}

fn message(panic: &Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
        .unwrap_or_default()
}

fn cases(extension: &str) -> Vec<PathBuf> {
    let folders = std::fs::read_dir("tests/golden").expect("tests/golden");
    let mut found = Vec::new();
    // What importers make is checked beside them.
    let ours = |f: &std::fs::DirEntry| f.path().is_dir() && f.file_name() != "import";
    for folder in folders.flatten().filter(ours) {
        let files = std::fs::read_dir(folder.path()).expect("a readable folder");
        found.extend(files.flatten().map(|f| f.path()));
    }
    found.retain(|p| p.extension().is_some_and(|e| e == extension));
    found.sort();
    found
}

fn verified(text: &str) -> String {
    let module = match parse(text) {
        Ok(module) => module,
        Err(error) => return format!("{error}\n"),
    };
    match verify(&module) {
        Ok(()) => "no invariant is broken\n".to_string(),
        Err(violations) => violations.to_string(),
    }
}

/// What a pipeline makes of a module, as text.
fn rewritten(text: &str, run: &str) -> Result<String, String> {
    let args = arguments(run)?;
    let pipeline = Pipeline::parse(&args.pipeline).map_err(|e| e.to_string())?;
    let canonical = manager::canonical(&pipeline).map_err(|e| e.to_string())?;
    if canonical.calls().iter().any(|call| call.name == "train") {
        return trained(text, &canonical, &args.pipeline);
    }
    let mut shown = None;
    for threads in [1, 2] {
        let module = parse(text).map_err(|e| e.to_string())?;
        let (module, outcome) = apply(module, &pipeline, &args, threads)?;
        let full = print(&module);
        assert_eq!(
            parse(&full).as_ref(),
            Ok(&module),
            "the output must come back"
        );
        verify(&module).map_err(|e| e.to_string())?;
        match &shown {
            None => shown = Some((full, shorten(&canonical, &module, &outcome))),
            Some((first, _)) => assert_eq!(first, &full, "two threads must give the same bytes"),
        }
    }
    Ok(shown.map(|(_, text)| text).unwrap_or_default())
}

/// What the command makes of a module whose pipeline ends in `train`, which needs the files of the passes
/// before it.
fn trained(text: &str, canonical: &Pipeline, pipeline: &str) -> Result<String, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let case = folder.path().join("case.hlir");
    std::fs::write(&case, text).expect("written");
    let mut shown: Option<(String, String)> = None;
    for threads in ["1", "2"] {
        let out = folder.path().join(format!("{threads}.hlrc"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
        command.arg(&case).args(["-q", "-p", pipeline]);
        command.args(["--threads", threads, "-o"]).arg(&out);
        let done = command.output().expect("started");
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr).trim().to_string();
            return Err(said.trim_start_matches("error: ").to_string());
        }
        let read = |name: &str| std::fs::read_to_string(out.join(name)).expect("written");
        let full = read("module.hlir");
        let mut module = parse(&full).map_err(|e| e.to_string())?;
        verify(&module).map_err(|e| e.to_string())?;
        for weight in &mut module.weights {
            (weight.storage, weight.sha256) = (Storage::Absent, None);
        }
        let report: serde_json::Value = serde_json::from_str(&read("report.json")).expect("JSON");
        let shards = std::fs::read(out.join("model.safetensors")).expect("weights");
        let same = format!("{full}{}", hlrc::weights::Digest::of(&shards).to_hex());
        let mut text = format!("// pipeline: {canonical}\n{}", print(&normalize(&module)));
        let training = &report["training"];
        for (kind, tensors, values) in
            serde_json::from_value::<Vec<(String, u64, u64)>>(training["trained"].clone())
                .expect("what moved")
        {
            let _ = writeln!(text, "// {kind}: {tensors} tensors, {values} values");
        }
        let judged = training["end_to_end"].as_array().expect("records").iter();
        for record in judged.filter(|r| !r["judged"].is_null()) {
            let kl = record["judged"]["kl"].as_f64().unwrap_or(f64::NAN);
            let _ = writeln!(text, "// step {}: KL {kl:.2e}", record["step"]);
        }
        let _ = writeln!(text, "// kept: step {}", training["kept"]);
        match &shown {
            None => shown = Some((same, text)),
            Some((first, _)) => assert_eq!(first, &same, "two threads must give the same bytes"),
        }
    }
    Ok(shown.map(|(_, text)| text).unwrap_or_default())
}

fn arguments(run: &str) -> Result<OptArgs, String> {
    // Options as a shell would split them; only single quotes are known.
    let mut words = vec!["hlrc-opt".to_string(), "in.hlir".to_string()];
    for (index, part) in run.split('\'').enumerate() {
        match index % 2 {
            1 => words.push(part.to_string()),
            _ => words.extend(part.split_whitespace().map(str::to_string)),
        }
    }
    Ok(Cli::try_parse_from(words).map_err(|e| e.to_string())?.opt)
}

fn apply(
    mut module: Module,
    pipeline: &Pipeline,
    args: &OptArgs,
    threads: usize,
) -> Result<(Module, Outcome), String> {
    let overrides: Result<Vec<_>, _> = args.overrides.iter().map(|t| Override::parse(t)).collect();
    let overrides = overrides.map_err(|e| e.to_string())?;
    let schedule = Schedule::new(pipeline, &overrides, args.stop_after.as_deref());
    let schedule = schedule.map_err(|e| e.to_string())?;
    let calibrated = !args.calib.is_empty();
    let moments = Synthetic::of(&module);
    let interrupt = AtomicBool::new(false);
    let options = RunOptions {
        seed: args.seed,
        mem_limit: args.mem_limit,
        bisect_limit: args.bisect_limit,
        moments: calibrated.then_some(&moments as &dyn MomentSource),
        ..RunOptions::new(threads, &interrupt)
    };
    let outcome = manager::run_hashed(&mut module, &schedule, &options);
    let outcome = outcome.map_err(|e| e.to_string())?;
    Ok((normalize(&module), outcome))
}

/// Second moments for `--calib synthetic`: neighbours are correlated, every seventh input is large, the
/// last one is always zero.
#[derive(Debug)]
struct Synthetic {
    /// Width of each site's input.
    widths: HashMap<String, usize>,
}

impl Synthetic {
    fn of(module: &Module) -> Self {
        let width = |site: Site| (site.name, site.cols as usize);
        Self {
            widths: sites(module).into_iter().map(width).collect(),
        }
    }
}

impl MomentSource for Synthetic {
    fn identity(&self) -> String {
        "synthetic".to_string()
    }

    fn moments(&self, site: &str) -> Result<Option<Moments>, String> {
        let Some(&n) = self.widths.get(site) else {
            return Ok(None);
        };
        let deviation = |i: usize| match i {
            _ if i + 1 == n => 0.0,
            _ if i.is_multiple_of(7) => 8.0,
            _ => 1.0 + i as f32 / n as f32,
        };
        let entry = |at: usize| {
            let (i, j) = (at / n, at % n);
            let near = 0.5f32.powi((i.abs_diff(j) as i32).min(60));
            1000.0 * near * deviation(i) * deviation(j)
        };
        let hessian: Vec<f32> = (0..n * n).map(entry).collect();
        Ok(Some(Moments {
            diagonal: (0..n).map(|i| hessian[i * n + i]).collect(),
            hessian: Some(hessian),
            tokens: 1000,
        }))
    }
}

fn shorten(canonical: &Pipeline, module: &Module, outcome: &Outcome) -> String {
    let options = PrintOptions {
        elide_hashes: true,
        ..PrintOptions::default()
    };
    let mut out = format!("// pipeline: {canonical}\n");
    out.push_str(&print_with(module, &options));
    for site in &outcome.sites {
        describe(&mut out, site);
    }
    for remark in &outcome.remarks {
        let _ = writeln!(out, "// {remark}");
    }
    out
}

fn describe(out: &mut String, site: &SiteReport) {
    let [rows, cols] = site.shape;
    let (name, before, after) = (&site.name, site.bytes_before, site.bytes_after);
    let bits = site.bits_per_weight;
    let _ = writeln!(
        out,
        "// {name} [{rows},{cols}]: {before} -> {after} bytes, {bits:.3} bits per weight, error {:.2e}",
        site.rel_error
    );
    for step in &site.steps {
        let (pass, term, bytes) = (&step.pass, &step.term, step.bytes);
        let _ = writeln!(
            out,
            "//   {pass}: {term}, {bytes} bytes, leaves {:.2e}",
            step.rel_error
        );
    }
}
