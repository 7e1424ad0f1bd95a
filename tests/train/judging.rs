//! What held-out examples decide, and what decay pulls at.

use std::collections::BTreeMap;
use std::path::Path;

use hlrc::exec::{Engine, Options};
use hlrc::import::{Input, open};
use hlrc::store::Reader;
use hlrc::train::checkpoint::Store;
use hlrc::train::data::Example;
use hlrc::train::end_to_end::{Job, Teacher, Trained, train};
use hlrc::train::parameters::{Choice, Kind, choose};
use hlrc::train::ranks::{Alone, Ranks};
use hlrc::train::{Place, Record, Settings, Watch};
use hlrc::weights::FileCache;
use serde_json::Value;

use crate::{STORIES, TEXT, arguments, coded, common, run, tool, trained};

#[test]
fn blocks_that_make_the_whole_worse_are_put_back() {
    let folder = tempfile::tempdir().expect("a folder");
    // A good model learns from a bad one: what brings layers nearer to theirs makes the whole worse.
    let teacher = folder.path().join("teacher.hlrc");
    std::fs::rename(coded(folder.path(), "int2"), &teacher).expect("renamed");
    let model = coded(folder.path(), "int8");
    let out = folder.path().join("blocks.hlrc");
    let teacher = teacher.display().to_string();
    let more = [
        "--teacher",
        &teacher,
        "--mode",
        "blocks",
        "--block-steps",
        "30",
        "--lr",
        "1e-2",
        "--kl",
        "0",
        "--ce",
        "1",
        "--json",
    ];
    let args = arguments(&model, &out, &more);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = run(&args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let history: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let loss = |what: &str| history[what]["cross_entropy"].as_f64().expect("a loss");
    assert!(
        loss("behind_blocks") > loss("untrained"),
        "{} to {}: the case that this is about",
        loss("untrained"),
        loss("behind_blocks")
    );
    assert!(said.contains("the untrained state is kept"), "{said}");
    // Shards may hold their tensors in another order.
    let tensors = |path: &Path| -> BTreeMap<String, Vec<u8>> {
        let file = std::fs::read(path.join("model.safetensors")).expect("weights");
        let head = u64::from_le_bytes(file[..8].try_into().expect("a length")) as usize;
        let header: BTreeMap<String, Value> =
            serde_json::from_slice(&file[8..8 + head]).expect("JSON");
        let at = |v: &Value| 8 + head + v.as_u64().expect("an offset") as usize;
        let named = header
            .into_iter()
            .filter(|(name, _)| name != "__metadata__");
        named
            .map(|(name, entry)| {
                let place = &entry["data_offsets"];
                (name, file[at(&place[0])..at(&place[1])].to_vec())
            })
            .collect()
    };
    assert!(
        tensors(&model) == tensors(&out),
        "the weights are as they were"
    );
}

#[test]
fn decay_pulls_at_matrices_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = coded(folder.path(), "lowrank{rank=4 factors=f32},int4");
    // Steps of next to nothing with a decay that takes a tenth each.
    let perplexity = |kinds: &str| {
        let out = folder.path().join("out.hlrc");
        let more = [
            "--params", kinds, "--val", "0", "--lr", "1e-6", "--decay", "1e5", "-f",
        ];
        trained(&model, &out, &more);
        let mut eval = tool();
        eval.arg("eval").arg(&model).arg(&out);
        eval.args([
            "--data",
            TEXT,
            "--ctx",
            "64",
            "--windows",
            "8",
            "--json",
            "--no-cache",
        ]);
        let judged: Value = serde_json::from_str(&common::succeed(&mut eval)).expect("JSON");
        let of = |i: usize| {
            judged["models"][i]["perplexity"]
                .as_f64()
                .expect("a number")
        };
        of(1) / of(0)
    };
    let vectors = perplexity("norms,scales");
    assert!((vectors - 1.0).abs() < 1e-3, "{vectors}");
    let factors = perplexity("lowrank");
    assert!(factors > 1.1, "{factors}");
}

struct Deaf;

impl Watch for Deaf {
    fn record(&mut self, _: Place, _: &Record) {}
    fn interrupt(&self) -> &'static std::sync::atomic::AtomicBool {
        static NEVER: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
        &NEVER
    }
}

/// Trains the norms of a model on four short examples, judged by five others, to be like the original;
/// what came of it, and how often the original ran.
pub fn norms(
    path: &Path,
    (batch, accumulate): (usize, usize),
    ranks: &dyn Ranks,
) -> (Trained, u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let files = FileCache::new();
    let module = |path: &Path| {
        let opened = open(&Input::Path(path.to_path_buf()), &files);
        opened.unwrap_or_else(|e| panic!("{e}")).module
    };
    let (student, original) = (module(path), module(Path::new(STORIES)));
    let options = Options::default();
    let engine = Engine::new(&original, &files, &options).unwrap_or_else(|e| panic!("{e}"));
    let teacher = Teacher::new(engine, None);
    let choice = Choice {
        kinds: [Kind::Norms].into(),
        only: Vec::new(),
    };
    let trainables = choose(&student, &Reader::new(&files), &choice);
    let trainables = trainables.unwrap_or_else(|e| panic!("{e}"));
    let example = |i: u32| Example::whole((0..12).map(|t| (i * 31 + t * 7) % 512).collect());
    let (train_on, judge_by): (Vec<_>, Vec<_>) =
        ((0..4).map(example).collect(), (4..9).map(example).collect());
    let settings = Settings {
        choice,
        cross_entropy: 0.0,
        kl: 1.0,
        top: None,
        steps: 6,
        block_steps: 1,
        schedule: hlrc::train::optimizer::Schedule::default(),
        batch,
        accumulate,
        judge_every: 2,
        patience: 8,
        checkpoint_every: 100,
        recompute: false,
        seed: 0,
    };
    let job = Job {
        module: &student,
        files: &files,
        trainables: &trainables,
        teacher: Some(&teacher),
        examples: &train_on,
        validation: &judge_by,
        settings: &settings,
        options: &options,
        store: &Store::new(folder.path(), String::new()),
        ranks,
    };
    let done = train(&job, &mut Deaf).unwrap_or_else(|e| panic!("{e}"));
    (done, teacher.runs())
}

#[test]
fn the_original_runs_once_over_the_examples_to_judge_by() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = coded(folder.path(), "int2");
    let (done, runs) = norms(&path, (2, 1), &Alone);
    let judgements = done.records.iter().filter(|r| r.judged.is_some()).count();
    assert_eq!(judgements, 4);
    // Three batches to judge by, once, and one for each step.
    assert_eq!(runs, 3 + 6);
}
