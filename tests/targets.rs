//! What goes wrong on the way to a target: candidates that fail, limits of memory, interruptions.

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hlrc::budget::candidates::{candidates, errors, try_all};
use hlrc::budget::{Family, Group, groups};
use hlrc::ir::Module;
use hlrc::ir::site::sites;
use hlrc::ir::text::parse;
use hlrc::pass::manager::{RunError, RunOptions, Schedule, trial_workers};
use hlrc::pass::pipeline::Pipeline;
use hlrc::pass::{MomentSource, Moments};
use hlrc::store::Reader;
use hlrc::weights::FileCache;

/// Inputs of which each is as large as any other; counts who asks at the same time.
#[derive(Debug, Default)]
struct Counting {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl MomentSource for Counting {
    fn identity(&self) -> String {
        "test".to_string()
    }

    fn moments(&self, _: &str) -> Result<Option<Moments>, String> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        // Long enough that whoever may come meanwhile does.
        std::thread::sleep(Duration::from_millis(40));
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(Some(Moments {
            diagonal: vec![1.0; COLS],
            hessian: None,
            tokens: 1000,
        }))
    }
}

const COLS: usize = 192;

/// Eight layers of one linear: two to a group.
fn module() -> Module {
    let weight = |i: usize| {
        format!(
            "  weight @w{i} : f32[128,{COLS}] = synthetic(seed={i}, power=0.8, scale=0.02, outliers=0.001)\n"
        )
    };
    let op = |i: usize| {
        format!(
            "    %y{i} = linear %x [128,{COLS}] {{ dense(@w{i}) }} name(\"layers.{i}.up\") : f32[B,128]\n"
        )
    };
    let (weights, ops): (String, String) = ((0..8).map(weight).collect(), (0..8).map(op).collect());
    let text = format!(
        "hlir 1\nmodule \"m\" {{\n{weights}  graph @main(%x : f32[B,{COLS}]) -> (%y7) {{\n{ops}  }}\n}}\n"
    );
    parse(&text).expect("a module")
}

fn found() -> (Module, Vec<Group>) {
    let module = module();
    let groups = groups(&module);
    assert_eq!(groups.len(), 4);
    (module, groups)
}

#[test]
fn a_candidate_that_fails_is_none() {
    let (module, groups) = found();
    let (cache, interrupt) = (FileCache::default(), AtomicBool::new(false));
    let moments = Counting::default();
    let options = RunOptions {
        moments: Some(&moments),
        ..RunOptions::new(2, &interrupt)
    };
    let trellis = |bits: f64| format!("trellis{{bits={bits} states=8}}");
    let mut list = candidates(&[Family::Int], true, &trellis);
    // Refused by the pass on whatever matrix.
    list[1].pipeline = "rotate,rotate,int4".to_string();
    let reader = Reader::new(&cache);
    let run = |probe: &str, list| {
        let probe = (probe, &trellis as &dyn Fn(f64) -> String);
        try_all(&module, &groups, list, probe, (&reader, &options), &|_| {})
    };
    let tried = run("int3", list.clone()).expect("the others go on");
    assert_eq!(tried.candidates, list);
    for row in &tried.ratios {
        let had: Vec<bool> = row.iter().map(|ratio| ratio.is_finite()).collect();
        let expected: Vec<bool> = (0..list.len()).map(|at| at != 1).collect();
        assert_eq!(had, expected);
    }
    assert_eq!(tried.failed.len(), groups.len());
    for (pipeline, said) in &tried.failed {
        assert_eq!(pipeline, "rotate,rotate,int4");
        assert!(said.contains("it is rotated already"), "{said}");
    }
    // Without the probe there is nothing to compare with.
    let said = run("rotate,rotate,int4", list).expect_err("no probe");
    assert!(said.to_string().contains("can't be measured"), "{said}");
}

#[test]
fn no_more_are_tried_at_once_than_fit() {
    let (module, groups) = found();
    let cache = FileCache::default();
    let interrupt = AtomicBool::new(false);
    let reader = Reader::new(&cache);
    let text = "int3{group=64 method=gptq}";
    let limited = |mem_limit: Option<u64>, moments: &Counting| {
        let options = RunOptions {
            moments: Some(moments),
            mem_limit,
            ..RunOptions::new(4, &interrupt)
        };
        let texts = [text.to_string()];
        errors(&module, &groups, &texts, &reader, &options, &|_| {})
    };
    let free = Counting::default();
    let rows = limited(None, &free).expect("no limit").rows;
    assert!(free.most.load(Ordering::SeqCst) > 1);
    // The least limit within which one can run.
    let pipeline = Pipeline::parse(text).expect("a pipeline");
    let schedule = Schedule::new(&pipeline, &[], None).expect("a schedule");
    let mut middle = sites(&module);
    middle.retain(|site| {
        groups
            .iter()
            .any(|g| g.sites[g.sites.len() / 2] == site.name)
    });
    assert_eq!(middle.len(), groups.len());
    let workers = |limit: u64| {
        let options = RunOptions {
            mem_limit: Some(limit),
            ..RunOptions::new(4, &interrupt)
        };
        trial_workers(&module, &middle, &schedule, &options)
    };
    let mut limit = 1u64 << 20;
    while workers(limit).is_err() {
        limit += 1 << 16;
    }
    assert_eq!(workers(limit).expect("it fits"), 1);
    let narrow = Counting::default();
    let same = limited(Some(limit), &narrow).expect("it fits").rows;
    assert_eq!(narrow.most.load(Ordering::SeqCst), 1);
    assert_eq!(rows, same);
    match limited(Some(1 << 20), &narrow) {
        Err(RunError::Memory { .. }) => (),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_interrupt_is_seen_between_candidates() {
    let (module, groups) = found();
    let (cache, interrupt) = (FileCache::default(), AtomicBool::new(true));
    let options = RunOptions::new(2, &interrupt);
    let texts = ["int3".to_string()];
    let reader = Reader::new(&cache);
    match errors(&module, &groups, &texts, &reader, &options, &|_| {}) {
        Err(RunError::Interrupted { .. }) => (),
        other => panic!("{other:?}"),
    }
}

/// Groups are measured side by side where there is memory, and one by one where there is none.
#[test]
fn memory_does_not_change_what_groups_cost() {
    use hlrc::budget::sensitivities;
    use hlrc::cli::load::executable;
    use hlrc::exec::{Engine, Options};
    let dir = tempfile::tempdir().expect("a folder");
    let source = Path::new("tests/fixtures/stories260K");
    let output = dir.path().join("coded.hlrc");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.arg(source).args(["-q", "-p", "int3", "-o"]);
    common::succeed(command.arg(&output));
    let open = |path: &Path| -> Module {
        let mut module = executable(path).expect("a model").module;
        hlrc::store::rebase(&mut module, Path::new("."));
        module
    };
    let (original, coded) = (open(source), open(&output));
    let groups = groups(&original);
    let windows: Vec<Vec<u32>> = (0..2)
        .map(|at| (0..40).map(|i| (i * 7 + at * 31 + 3) % 512).collect())
        .collect();
    let options = Options::default();
    let costs = |memory: u64| {
        let told = &mut |_| {};
        sensitivities(&original, &coded, &groups, &windows, &options, memory, told)
            .expect("measured")
    };
    let cache = FileCache::new();
    let engine = Engine::new(&original, &cache, &options).expect("an engine");
    // Five layers, keys and values of four heads of eight, in f32.
    assert_eq!(engine.cache_bytes(40), 5 * 2 * 4 * 8 * 4 * 40);
    let together = costs(u64::MAX);
    assert_eq!(together.len(), groups.len());
    assert!(together.iter().all(|cost| *cost > 0.0), "{together:?}");
    assert_eq!(together, costs(0));
    assert_eq!(together, costs(4 * engine.cache_bytes(40)));
}

/// An interrupt while groups are measured, and while candidates are tried: exit code 130, and nothing stays.
#[cfg(unix)]
#[test]
fn an_interrupted_target_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().expect("a folder");
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).expect("made");
    let words = ["little", "girl", "found", "a", "red", "ball", "and", "sun"];
    let word = |i: usize| words[(i * i * 7 + i / 5) % words.len()];
    let all: Vec<&str> = (0..40_000).map(word).collect();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, all.join(" ")).expect("written");
    for stage in ["Measuring", "Trying"] {
        let output = dir.path().join("out.hlrc");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
        command.env("XDG_CACHE_HOME", dir.path());
        command.env("TMPDIR", &scratch);
        command.args(["opt", "tests/fixtures/stories260K", "--color", "never"]);
        // Many states: long enough to be interrupted.
        command.args(["--target-bpw", "4", "-p", "trellis{states=16}", "--calib"]);
        command.arg(&text).arg("-o").arg(&output);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let mut lines = BufReader::new(child.stderr.take().expect("piped"));
        let (mut said, mut begun) = (String::new(), 0);
        while !said[begun..].contains(stage) {
            begun = said.len();
            let read = lines.read_line(&mut said).expect("readable");
            assert!(read > 0, "ended before {stage}: {said}");
        }
        let id = child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &id]).status();
        assert!(sent.expect("a kill").success());
        while lines.read_line(&mut said).expect("readable") > 0 {}
        let code = child.wait().expect("ended").code();
        assert_eq!(code, Some(130), "{stage}: {said}");
        assert!(said.contains("the same command begins anew"), "{said}");
        let left = |folder: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(folder).expect("a folder").flatten();
            let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
            names.filter(|name| name.contains("hlrc")).collect()
        };
        assert_eq!(left(&scratch), Vec::<String>::new(), "{stage}");
        let left = left(dir.path());
        assert!(left.iter().all(|name| !name.starts_with("out")), "{left:?}");
    }
}
