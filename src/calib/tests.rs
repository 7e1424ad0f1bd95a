//! The library on the small trained model that the repository ships.

use super::*;
use crate::exec::{Engine, Options};
use crate::import::Input;
use crate::ir::Module;
use crate::weights::FileCache;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn stories() -> (Module, Engine) {
    open("stories260K")
}

fn open(fixture: &str) -> (Module, Engine) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(fixture);
    let files = FileCache::new();
    let input = crate::import::open(&Input::Path(path), &files).expect("the fixture imports");
    let options = Options {
        threads: 2,
        ..Options::default()
    };
    let engine = Engine::new(&input.module, &files, &options).expect("the fixture runs");
    (input.module, engine)
}

fn windows(from: u32, count: usize) -> Vec<Vec<u32>> {
    let token = |i: usize| (from + (i * i % 509) as u32) % 512;
    (0..count)
        .map(|w| (0..40).map(|i| token(w * 40 + i)).collect())
        .collect()
}

fn job<'a>(module: &'a Module, engine: &'a Engine, windows: &'a [Vec<u32>]) -> Job<'a> {
    Job {
        module,
        engine,
        model: ModelId {
            name: "stories".to_string(),
            fingerprint: fingerprint(module, &[]),
        },
        data: Vec::new(),
        tokenizer: None,
        protocol: Protocol {
            context: 40,
            windows: windows.len(),
            lines: false,
            bos: None,
            seed: 0,
        },
        windows,
        mem_limit: None,
    }
}

#[test]
fn a_site_has_its_sums() {
    let (module, engine) = stories();
    let dir = tempfile::tempdir().expect("a folder");
    let (path, windows) = (dir.path().join("stats"), windows(3, 60));
    calibrate(&job(&module, &engine, &windows), &path, false, &mut |_| {}).expect("calibrates");
    let found = Statistics::open(&path).expect("opens");
    assert!(is_statistics(&path));
    assert_eq!(found.sites().count(), 5 * 7 + 1);
    let site = |name: &str| found.site(name).expect("reads").expect("is known");
    let q = site("model.layers.2.self_attn.q_proj");
    assert_eq!(q, site("model.layers.2.self_attn.v_proj"));
    assert_eq!(
        (q.tokens, q.diag.len(), q.dead(), q.borrowed),
        (2400, 64, 0, 0)
    );
    let h = q.hessian.expect("a matrix");
    assert!((0..64).all(|i| h[i * 65] == q.diag[i] && h[i * 64 + 3] == h[3 * 64 + i]));
    // The head's input is that of the tied table.
    assert_eq!(found.width("model.embed_tokens"), Some(64));
    assert_eq!(found.width("model.layers.0.mlp.down_proj"), Some(172));
    assert!(found.site("nothing").expect("reads").is_none());
    let summary = Summary::new(&found).expect("sums up");
    assert_eq!(summary.roles.iter().map(|r| r.sites).sum::<usize>(), 36);
    assert!(
        summary
            .roles
            .iter()
            .all(|r| r.mean_square > 0.0 && r.dead == 0 && r.short == 0)
    );
}

#[test]
fn an_interrupted_run_goes_on() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let (module, mut engine) = stories();
    let dir = tempfile::tempdir().expect("a folder");
    let windows = windows(9, 120);
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    calibrate(&job(&module, &engine, &windows), &whole, false, &mut |_| {}).expect("calibrates");
    engine.set_interrupt(&STOP);
    for segment in [2, 4] {
        let mut stop = |at: &Progress| STOP.store(at.segment == segment, Ordering::Relaxed);
        let job = job(&module, &engine, &windows);
        let stopped = calibrate(&job, &parts, segment > 2, &mut stop);
        assert!(stopped.is_err_and(|e| e.is_interrupt()));
        STOP.store(false, Ordering::Relaxed);
    }
    // A torn line at the end of the journal was not written.
    let journal = dir.path().join("parts.partial").join(crate::store::JOURNAL);
    let mut text = std::fs::read(&journal).expect("a journal");
    text.extend_from_slice(b"{\"segment\":4,\"entr");
    std::fs::write(&journal, text).expect("written");
    let others = self::windows(10, 120);
    let other = calibrate(&job(&module, &engine, &others), &parts, true, &mut |_| {});
    assert!(matches!(other, Err(CalibError::Other { .. })));
    calibrate(&job(&module, &engine, &windows), &parts, true, &mut |_| {}).expect("goes on");
    assert!(std::fs::read(whole).expect("there") == std::fs::read(parts).expect("there"));
    assert!(!dir.path().join("parts.partial").exists());
}

#[test]
fn no_file_makes_it_panic() {
    let (module, engine) = stories();
    let dir = tempfile::tempdir().expect("a folder");
    let (path, windows) = (dir.path().join("stats"), windows(3, 2));
    calibrate(&job(&module, &engine, &windows), &path, false, &mut |_| {}).expect("calibrates");
    let whole = std::fs::read(&path).expect("there");
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
    let broken = dir.path().join("broken");
    let mut seed = 1u64;
    for round in 0..300 {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let mut bytes = whole.clone();
        let at = (seed >> 33) as usize % if round % 4 == 0 { bytes.len() } else { header };
        bytes[at] = (seed >> 20) as u8;
        if round % 7 == 0 {
            bytes.truncate(at);
        }
        std::fs::write(&broken, &bytes).expect("written");
        if let Ok(found) = Statistics::open(&broken) {
            let names: Vec<String> = found.sites().map(str::to_string).collect();
            for name in names {
                let _ = found.site(&name);
            }
        }
    }
}

#[test]
fn files_add_up() {
    let (module, engine) = stories();
    let dir = tempfile::tempdir().expect("a folder");
    let (a, b) = (windows(3, 50), windows(77, 10));
    let both = [a.as_slice(), b.as_slice()].concat();
    let open = |name: &str, windows: &[Vec<u32>]| {
        let path = dir.path().join(name);
        calibrate(&job(&module, &engine, windows), &path, false, &mut |_| {}).expect("calibrates");
        Statistics::open(&path).expect("opens")
    };
    let whole = open("both", &both);
    let path = dir.path().join("sum");
    merge(&[open("a", &a), open("b", &b)], &path).expect("adds up");
    let sum = Statistics::open(&path).expect("opens");
    assert_eq!(sum.metadata().runs.len(), 2);
    for name in whole.sites() {
        let read = |s: &Statistics| s.site(name).expect("reads").expect("is known");
        let (x, y) = (read(&whole), read(&sum));
        assert_eq!((x.tokens, y.tokens), (2400, 2400));
        let (x, y) = (x.hessian.expect("whole"), y.hessian.expect("whole"));
        let top = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(
            x.iter().zip(&y).all(|(a, b)| (a - b).abs() <= 1e-5 * top),
            "{name}"
        );
    }
    let imatrix = Statistics::open(Path::new(IMATRIX)).expect("opens");
    let refused = merge(&[whole, imatrix], &dir.path().join("no"));
    assert!(matches!(refused, Err(CalibError::Unlike { .. })));
}

const IMATRIX: &str = "tests/fixtures/imatrix/tiny.gguf";

#[test]
fn an_importance_matrix_has_diagonals() {
    let found = Statistics::open(Path::new(IMATRIX)).expect("opens");
    assert!(is_statistics(Path::new(IMATRIX)));
    let site = |name: &str| found.site(name).expect("reads");
    let q = site("model.layers.0.self_attn.q_proj").expect("is known");
    assert_eq!((q.tokens, q.diag.len(), q.dead()), (100, 64, 1));
    assert!(q.hessian.is_none() && q.diag[9] == 9.0 / 8.0);
    let expert = site("model.layers.1.mlp.experts.2.down_proj").expect("is known");
    assert_eq!((expert.tokens, expert.routed), (114, Some(114)));
    assert_eq!(expert.diag[1], 345.0 / 8.0);
    assert!(
        found
            .site("model.layers.1.mlp.experts.9.down_proj")
            .is_err()
    );
    assert!(site("model.layers.4.self_attn.q_proj").is_none());
    let (module, _) = stories();
    let sites = crate::ir::site::sites(&module);
    let without = found.check("stories", &sites).expect("two are known");
    assert_eq!(without.len(), 36 - 2);
    let none = found
        .check("stories", &sites[20..])
        .expect_err("none is known");
    assert!(
        none.to_string().contains("none of the model's linears"),
        "{none}"
    );
}

#[test]
fn a_model_writes_text_for_itself() {
    let (_, engine) = stories();
    let protocol = Protocol {
        context: 24,
        windows: 18,
        lines: false,
        bos: Some(1),
        seed: 7,
    };
    let write = |protocol: &Protocol| write_own(&engine, "stories", protocol, &mut |_| {});
    let windows = write(&protocol).expect("writes");
    assert_eq!((windows.list.len(), windows.tokens()), (18, 18 * 24));
    assert!(
        windows
            .list
            .iter()
            .all(|w| w[0] == 1 && w.iter().all(|&t| t < 512))
    );
    assert_eq!(windows, write(&protocol).expect("writes"));
    assert_ne!(
        windows,
        write(&Protocol {
            seed: 8,
            ..protocol
        })
        .expect("writes")
    );
    let mut different = windows.list.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 18);
}

#[test]
fn numbers_that_are_none_are_told_with_their_place() {
    let (module, engine) = stories();
    let segments = engine.segments();
    let plan = super::plan::plan(&module, &segments);
    let mut gather = super::gather::Gather::new(&plan.segments[0], engine.pool());
    gather.at(8, 10);
    let op = segments.list[0].inputs[0].first;
    let mut x = vec![1f32; 30 * 64];
    x[64 * 25 + 3] = f32::NAN;
    crate::exec::segments::Tap::see(&mut gather, op, &x, 64);
    let fault = gather.check().expect_err("told").to_string();
    assert!(
        fault.contains(
            "layers.0.self_attn.q_proj: what goes into it in window 10, position 5, is NaN"
        ),
        "{fault}"
    );
}

#[test]
fn experts_have_their_own_sums_and_borrow_from_all() {
    for (fixture, down, up) in [
        (
            "families/mixtral",
            "block_sparse_moe.experts.N.w2",
            "block_sparse_moe.experts.N.w1",
        ),
        (
            "families/qwen3_moe",
            "mlp.experts.N.down_proj",
            "mlp.experts.N.up_proj",
        ),
    ] {
        let (module, engine) = open(fixture);
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("stats");
        let windows = vec![(0..12).map(|i| i * 7 % 90).collect::<Vec<u32>>(); 1];
        calibrate(&job(&module, &engine, &windows), &path, false, &mut |_| {}).expect("calibrates");
        let found = Statistics::open(&path).expect("opens");
        let sites = crate::ir::site::sites(&module);
        assert!(found.check(fixture, &sites).expect("fits").is_empty());
        let layer = |pattern: &str, e: usize| {
            let name = format!("model.layers.0.{}", pattern.replace('N', &e.to_string()));
            found.site(&name).expect("reads")
        };
        let (mut tokens, mut experts) = (0, 0);
        while let Some(site) = layer(down, experts) {
            let width = site.diag.len() as u64;
            assert_eq!(site.routed, Some(site.tokens));
            assert_eq!(site.borrowed, width.saturating_sub(site.tokens));
            let h = site.hessian.expect("a matrix");
            assert!((0..site.diag.len()).all(|i| h[i * (site.diag.len() + 1)] == site.diag[i]));
            // Gate and up share the router's input, which is all tokens'.
            let outer = layer(up, experts).expect("is known");
            assert_eq!(
                (outer.tokens, outer.routed, outer.borrowed),
                (12, site.routed, 0)
            );
            tokens += site.tokens;
            experts += 1;
        }
        assert!(experts >= 4, "{fixture}: {experts}");
        assert_eq!(tokens, 12 * 2, "{fixture}: each token goes to two experts");
        let summary = Summary::new(&found).expect("sums up");
        assert!(summary.short_experts > 0);
        let twice = dir.path().join("twice");
        let again = || Statistics::open(&path).expect("opens");
        merge(&[again(), again()], &twice).expect("adds up");
        let twice = Statistics::open(&twice).expect("opens");
        let name = format!("model.layers.0.{}", down.replace('N', "0"));
        let read = |s: &Statistics| s.site(&name).expect("reads").expect("is known");
        let (one, two) = (read(&found), read(&twice));
        assert_eq!(
            (two.tokens, two.routed),
            (2 * one.tokens, one.routed.map(|n| 2 * n))
        );
    }
}

/// Everything that a file is asked for.
fn read_all(bytes: &[u8]) -> std::result::Result<(), CalibError> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bytes).expect("written");
    let found = Statistics::open(file.path())?;
    let names: Vec<String> = found.sites().map(str::to_string).collect();
    for name in names {
        found.diagonal(&name)?;
        if let Some(site) = found.site(&name)? {
            let n = site.diag.len();
            assert!(site.hessian.is_none_or(|h| h.len() == n * n));
        }
    }
    Summary::new(&found).map(|_| ())
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]
    #[test]
    fn damage_is_an_error_or_nothing(at in 0usize..4500, value: u8, cut in 0usize..4500) {
        for seed in ["tiny.safetensors", "tiny.gguf"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/statistics").join(seed);
            let mut bytes = std::fs::read(path).expect("the seed");
            read_all(&bytes).expect("sound");
            let at = at % bytes.len();
            bytes[at] = value;
            let told = |error: CalibError| assert!(!error.to_string().is_empty());
            let _ = read_all(&bytes).map_err(told);
            bytes.truncate(cut);
            let _ = read_all(&bytes).map_err(told);
        }
    }
}
