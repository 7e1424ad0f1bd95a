//! Trellis-coded quantization of Gaussian samples: mean squared error and speed.
//!
//! `cargo bench --bench trellis -- table` prints the error for all bits and some sizes of state,
//! `scales` finds the best scales, `products` times products of one token with packed matrices
//! beside those of int4, and without arguments the bars of 2 bits are measured on 10^6
//! samples. With `TRELLIS_PEER` set to a program made by `benches/trellis_peer.sh`, that encoder
//! takes turns with ours. Threads: `TRELLIS_THREADS`, or all cores.

use hlrc::exec::Pool;
use hlrc::exec::kernels::Write;
use hlrc::exec::kernels::quant::{self, Int8Activations, QuantRows};
use hlrc::exec::kernels::trellis::{self, TrellisRows};
use hlrc::numeric::quant::{Group, Scheme, packed_len};
use hlrc::numeric::trellis::{Encoder, SEQUENCE, TILE, TrellisMatrix, best_scale, tile_bytes};
use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Gaussian samples, by Box and Muller from a splitmix64 stream.
fn gaussian(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut sample = || {
        let (u, v) = (1.0 - uniform(), uniform());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    };
    (0..n).map(|_| sample()).collect()
}

/// What coding samples gave.
struct Figure {
    /// By the mean square of the samples.
    distortion: f64,
    /// Microseconds per weight, of all threads together.
    time: f64,
}

fn measure(
    (states_log2, bits, seams): (u8, u8, u8),
    x: &[f32],
    scale: f32,
    threads: usize,
) -> Figure {
    let next = AtomicUsize::new(0);
    let tiles: Vec<&[f32]> = x.chunks_exact(SEQUENCE).collect();
    let start = Instant::now();
    let work = || {
        let Ok(mut encoder) = Encoder::new(states_log2) else {
            unreachable!("supported states");
        };
        let (mut code, mut recon) = (vec![0; tile_bytes(bits)], [0.0; SEQUENCE]);
        let mut sum = 0.0;
        while let Some(x) = tiles.get(next.fetch_add(1, Ordering::Relaxed)) {
            let scaled: Vec<f32> = x.iter().map(|x| x / scale).collect();
            encoder.encode(bits, seams, &scaled, &mut code, &mut recon);
            let errors = x.iter().zip(&recon);
            sum += errors
                .map(|(x, y)| f64::from(x - y * scale).powi(2))
                .sum::<f64>();
        }
        sum
    };
    let error: f64 = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles
            .into_iter()
            .map(|h| h.join().unwrap_or(f64::NAN))
            .sum()
    });
    let seconds = start.elapsed().as_secs_f64();
    let square: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    Figure {
        distortion: error / square,
        time: seconds * 1e6 / x.len() as f64,
    }
}

/// Samples by which a table entry is measured.
fn samples(states_log2: u8) -> usize {
    SEQUENCE * [2048, 2048, 2048, 2048, 1024, 512, 256, 128, 96][usize::from(states_log2) - 8]
}

fn table(threads: usize) {
    println!("| states | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | µs per weight at 2 bits |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for states_log2 in [8, 10, 12, 14, 16] {
        let x = gaussian(4321, samples(states_log2));
        print!("| 2^{states_log2} |");
        let mut time = 0.0;
        for bits in 1..=8 {
            let scale = best_scale(states_log2, bits);
            let figure = measure((states_log2, bits, 1), &x, scale, threads);
            print!(" {:.3e} |", figure.distortion);
            if bits == 2 {
                time = figure.time;
            }
        }
        println!(" {time:.3} |");
    }
}

/// The scale of least error, by golden section.
fn search(states_log2: u8, bits: u8, x: &[f32], threads: usize) -> f32 {
    let error = |scale| measure((states_log2, bits, 1), x, scale, threads).distortion;
    let golden = 0.618_034;
    let (mut low, mut high) = (0.7, 1.4);
    let (mut a, mut b) = (high - golden * (high - low), low + golden * (high - low));
    let (mut at_a, mut at_b) = (error(a), error(b));
    while high - low > 0.01 {
        if at_a < at_b {
            (high, b, at_b) = (b, a, at_a);
            a = high - golden * (high - low);
            at_a = error(a);
        } else {
            (low, a, at_a) = (a, b, at_b);
            b = low + golden * (high - low);
            at_b = error(b);
        }
    }
    f32::midpoint(low, high)
}

fn scales(threads: usize) {
    for states_log2 in 8..=16 {
        let x = gaussian(8765, samples(states_log2) / 2);
        let row: Vec<_> = (1..=8)
            .map(|bits| (search(states_log2, bits, &x, threads) * 1000.0).round())
            .collect();
        println!("    {row:?}, // 2^{states_log2}");
    }
}

fn bars(threads: usize) {
    let x = gaussian(1, 3907 * SEQUENCE);
    println!("2 bits, {} Gaussian samples, {threads} threads", x.len());
    let peer = std::env::var_os("TRELLIS_PEER");
    let (mut ours, mut theirs) = (f64::INFINITY, f64::INFINITY);
    for round in 0..3 {
        let figure = measure((12, 2, 1), &x, best_scale(12, 2), threads);
        ours = ours.min(figure.time);
        if round == 0 {
            println!("2^12 states: distortion {:.5}", figure.distortion);
        }
        let Some(peer) = &peer else { continue };
        let mut command = Command::new(peer);
        command.env("OMP_NUM_THREADS", threads.to_string());
        let Ok(output) = command.output() else {
            println!("the peer does not run");
            continue;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        print!("peer, 2^12 states: {text}");
        let time = text.split_whitespace().next().and_then(|t| t.parse().ok());
        theirs = theirs.min(time.unwrap_or(f64::INFINITY));
    }
    println!("2^12 states: {ours:.3} µs per weight, the best of 3 runs");
    if theirs.is_finite() {
        println!("peer: {theirs:.3}; ours takes {:.2} of that", ours / theirs);
    }
    for seams in [1, 2, 3, 4, 8] {
        for states_log2 in [12, 16] {
            let scale = best_scale(states_log2, 2);
            let figure = measure((states_log2, 2, seams), &x, scale, threads);
            let Figure { distortion, time } = figure;
            println!(
                "2^{states_log2} states, {seams} seams: distortion {distortion:.5}, {time:.3} µs per weight"
            );
        }
    }
}

/// Rows and columns of a matrix of [`products`].
const SIDE: usize = 4096;

/// Matrices that take turns, so that none stays in a cache.
const MATRICES: usize = 12;

/// The least seconds of 40 calls; call `i` gets `i`.
fn least(mut call: impl FnMut(usize)) -> f64 {
    let mut time = |i| {
        let start = Instant::now();
        call(i);
        start.elapsed().as_secs_f64()
    };
    (0..40).map(&mut time).fold(f64::INFINITY, f64::min)
}

fn report(label: &str, bytes: usize, seconds: f64, base: f64) {
    let (weights, gigabytes) = ((SIDE * SIDE) as f64 / seconds, bytes as f64 / seconds);
    println!(
        "{label}: {:.1} us, {:.2} GB/s, {:.2} G weights/s, {:.2} of int4's time",
        seconds * 1e6,
        gigabytes / 1e9,
        weights / 1e9,
        seconds / base
    );
}

/// One token with int8 and exact activations, [4096, 4096].
fn products(threads: usize) {
    let pool = Pool::new(threads);
    let x = gaussian(3, SIDE);
    let rounded = Int8Activations::quantize(&pool, &x, 1, SIDE);
    let mut out = vec![0.0; SIDE];
    let mut state = 1u64;
    let mut random = |n: usize| -> Vec<u8> {
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        (0..n).map(|_| next()).collect()
    };
    let f16s = |n: usize| [0x00, 0x21].repeat(n);
    let (scheme, group) = (Scheme::symmetric(4), Group::Size(32));
    let scales = f16s(group.count(SIDE, SIDE));
    let codes: Vec<_> = (0..MATRICES)
        .map(|_| random(SIDE * packed_len(4, SIDE)))
        .collect();
    let base = least(|i| {
        let codes = &codes[i % MATRICES];
        if let Ok(w) = QuantRows::new((SIDE, SIDE), scheme, group, codes, &scales, None) {
            quant::matmul_int8(&pool, &w, &rounded, Write::Overwrite, &mut out);
            black_box(&out);
        }
    });
    report("int4 g32", codes[0].len() + scales.len(), base, base);
    let scales = f16s(SIDE / TILE);
    for bits in [2, 3, 4, 6] {
        let bits = vec![bits; SIDE / TILE];
        let size = SIDE / TILE * TrellisMatrix::stripe_bytes(&bits);
        let codes: Vec<_> = (0..MATRICES).map(|_| random(size)).collect();
        for exact in [false, true] {
            let time = least(|i| {
                let codes = &codes[i % MATRICES];
                let Ok(w) = TrellisRows::new((SIDE, SIDE), 12, &bits, codes, &scales) else {
                    return;
                };
                if exact {
                    trellis::matmul_exact(&pool, &w, &x, 1, Write::Overwrite, &mut out);
                } else {
                    trellis::matmul_int8(&pool, &w, &rounded, Write::Overwrite, &mut out);
                }
                black_box(&out);
            });
            let kind = if exact { "exact" } else { "int8" };
            report(&format!("trellis {} {kind}", bits[0]), size, time, base);
        }
    }
}

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = std::env::var("TRELLIS_THREADS").ok();
    let threads = threads.and_then(|t| t.parse().ok()).unwrap_or(cores).max(1);
    match std::env::args().nth(1).as_deref() {
        Some("table") => table(threads),
        Some("scales") => scales(threads),
        Some("products") => products(threads),
        _ => bars(threads),
    }
}
