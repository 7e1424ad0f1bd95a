//! Prefill and decode speed of models on the CPU.
//!
//! `cargo bench --bench tokens -- MODEL… [--threads N] [--prompt N] [--tokens N] [--int8]`
//! prints one line per model: tokens per second, bytes of weights read per second beside what
//! reading memory alone reaches in the same run, and peak memory. `benches/llama_bench.sh`
//! runs llama.cpp between these runs on the same machine.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use hlrc::exec::{Engine, Options, Pool, Precision, Rows};
use hlrc::import::Input;
use hlrc::weights::FileCache;

struct Choices {
    models: Vec<PathBuf>,
    threads: usize,
    prompt: usize,
    tokens: usize,
    repeats: usize,
    precision: Precision,
}

fn main() {
    let choices = choices();
    if choices.models.is_empty() {
        eprintln!("tokens: name at least one model: cargo bench --bench tokens -- MODEL");
        return;
    }
    let ceiling = bandwidth(choices.threads);
    println!(
        "{} threads, {:?}, reading memory: {:.1} GB/s",
        choices.threads,
        choices.precision,
        ceiling / 1e9
    );
    for model in &choices.models {
        measure(model, &choices, ceiling);
    }
}

fn choices() -> Choices {
    let mut choices = Choices {
        models: Vec::new(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        prompt: 512,
        tokens: 64,
        repeats: 5,
        precision: Precision::Exact,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse().ok());
        match arg.as_str() {
            "--threads" => choices.threads = number().unwrap_or(choices.threads),
            "--prompt" => choices.prompt = number().unwrap_or(choices.prompt),
            "--tokens" => choices.tokens = number().unwrap_or(choices.tokens),
            "--repeats" => choices.repeats = number().unwrap_or(choices.repeats),
            "--int8" => choices.precision = Precision::Int8,
            // What cargo adds.
            "--bench" => {}
            path => choices.models.push(PathBuf::from(path)),
        }
    }
    choices
}

fn measure(path: &Path, choices: &Choices, ceiling: f64) {
    // The peak begins anew: that of the bandwidth's buffer and of models before is not this one's.
    // Where the system has no such file, the peak is that of the process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let files = FileCache::new();
    let module = match hlrc::import::open(&Input::Path(path.to_path_buf()), &files) {
        Ok(input) => input.module,
        Err(e) => return eprintln!("tokens: {e}"),
    };
    let options = Options {
        threads: choices.threads,
        precision: choices.precision,
        ..Options::default()
    };
    let engine = match Engine::new(&module, &files, &options) {
        Ok(engine) => engine,
        Err(e) => return eprintln!("tokens: {}: {e}", path.display()),
    };
    let prompt: Vec<u32> = (0..choices.prompt as u32)
        .map(|i| 7 + i * 31 % 400)
        .collect();
    let mut prefill = Vec::new();
    let mut decode = Vec::new();
    for repeat in 0..=choices.repeats {
        let mut state = engine.state(1);
        let start = Instant::now();
        forward(&engine, &mut state, &prompt);
        let middle = start.elapsed().as_secs_f64();
        // Decoding starts from an empty context, as llama-bench's does.
        let mut state = engine.state(1);
        let start = Instant::now();
        for i in 0..choices.tokens as u32 {
            forward(&engine, &mut state, &[7 + i]);
        }
        // The first round warms caches.
        if repeat > 0 {
            prefill.push(choices.prompt as f64 / middle);
            decode.push(choices.tokens as f64 / start.elapsed().as_secs_f64());
        }
    }
    let bytes: u64 = module
        .walk()
        .iter()
        .filter_map(|at| module.op(*at))
        .filter_map(|op| {
            let hlrc::ir::OpKind::Linear(linear) = &op.kind else {
                return None;
            };
            Some(linear.matrix.bytes(&module.weights))
        })
        .sum();
    let (prefill, decode) = (median(&mut prefill), median(&mut decode));
    let read = bytes as f64 * decode;
    println!(
        "{}: prefill {} {prefill:.1} tok/s, decode {decode:.1} tok/s, {:.1} MB of weights a token, {:.1} GB/s = {:.2} of memory, peak {} MiB",
        path.display(),
        choices.prompt,
        bytes as f64 / 1e6,
        read / 1e9,
        read / ceiling,
        hlrc::report::resources::peak_rss() >> 20,
    );
}

fn forward(engine: &Engine, state: &mut hlrc::exec::State, tokens: &[u32]) {
    let mut sum = 0.0;
    let mut each = |_: usize, logits: &[f32]| {
        sum += logits[0];
        ControlFlow::Continue(())
    };
    if let Err(e) = engine.forward(state, tokens, Rows::Last, &mut each) {
        eprintln!("tokens: {e}");
        std::process::exit(1);
    }
    std::hint::black_box(sum);
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Bytes per second that all threads read from a buffer far larger than the caches.
fn bandwidth(threads: usize) -> f64 {
    let buffer = vec![1u64; 1 << 26];
    let pool = Pool::new(threads);
    let parts = 256;
    let len = buffer.len() / parts;
    let mut best = 0f64;
    for _ in 0..5 {
        let start = Instant::now();
        pool.run(parts, |i| {
            let part = &buffer[i * len..(i + 1) * len];
            let sum = part.iter().fold(0u64, |s, x| s.wrapping_add(*x));
            std::hint::black_box(sum);
        });
        best = best.max((buffer.len() * 8) as f64 / start.elapsed().as_secs_f64());
    }
    best
}
