//! Weights per second of the quantizers on one core, beside `memcpy`.
//!
//! `cargo bench --bench quantize`. Each figure is the median of several runs
//! over a matrix that doesn't fit the caches. `memcpy` copies the bytes of the
//! `bf16` weights, so its figure is in weights per second too.

use hlrc::numeric::float::{Float, encode_bf16, encode_f16};
use hlrc::numeric::quant::{Group, ScaleMethod, Scheme, Source, quantize, quantize_source};
use hlrc::numeric::sparse::{select_by_magnitude, select_by_saving};
use std::hint::black_box;
use std::time::Instant;

const ROWS: usize = 4096;
const COLS: usize = 11008;
const RUNS: usize = 7;
/// Rows per tile.
const TILE: usize = 128;

/// Runs what the command line names (a part of the label), or everything.
struct Bench {
    only: Option<String>,
    memcpy: f64,
}

impl Bench {
    fn run(&self, label: &str, run: impl FnMut()) {
        if self.only.as_ref().is_some_and(|only| !label.contains(only)) {
            return;
        }
        let seconds = median_seconds(run);
        let rate = (ROWS * COLS) as f64 / seconds / 1e9;
        println!(
            "{label:<46} {rate:>7.3} G weights/s {:>6.2}x memcpy's time",
            seconds / self.memcpy
        );
    }
}

fn median_seconds(mut run: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[RUNS / 2]
}

/// Quantizes in row tiles, as passes do; the result of each is dropped.
fn tiles(
    source: Source,
    bits_per_weight: usize,
    scheme: Scheme,
    group: Group,
    method: ScaleMethod,
) {
    for first in (0..ROWS).step_by(TILE) {
        let (start, end) = (first * COLS, (first + TILE) * COLS);
        let tile = match source {
            Source::F32(values) => Source::F32(&values[start..end]),
            Source::Bytes(float, bytes) => Source::Bytes(
                float,
                &bytes[start * bits_per_weight / 8..end * bits_per_weight / 8],
            ),
        };
        black_box(
            quantize_source(tile, TILE, COLS, scheme, group, method).expect("finite weights"),
        );
    }
}

fn main() {
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let mut state = 1u64;
    let weights: Vec<f32> = (0..ROWS * COLS)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let sum = (state >> 16 & 0xffff) + (state >> 32 & 0xffff) + (state >> 48);
            (sum as f32 - 98304.0) * 1e-6
        })
        .collect();
    let bf16 = encode_bf16(&weights);
    let f16 = encode_f16(&weights);
    let mut copy = vec![0u8; bf16.len()];
    let memcpy = median_seconds(|| {
        copy.copy_from_slice(black_box(&bf16));
        black_box(&copy);
    });
    let bench = Bench { only, memcpy };
    let giga = (ROWS * COLS) as f64 / memcpy / 1e9;
    println!("{ROWS}x{COLS} in tiles of {TILE} rows, one core, median of {RUNS}");
    println!("{:<46} {giga:>7.3} G weights/s", "memcpy of bf16");

    let sources = [
        ("bf16", Source::Bytes(Float::Bf16, &bf16), 16),
        ("f16", Source::Bytes(Float::F16, &f16), 16),
        ("f32", Source::F32(&weights), 32),
    ];
    for bits in [4, 8, 3, 2] {
        for group in [
            Group::Size(32),
            Group::Size(64),
            Group::Size(128),
            Group::Row,
        ] {
            for (name, source, width) in sources {
                if (bits, group) != (4, Group::Size(32)) && name != "bf16" {
                    continue;
                }
                bench.run(&format!("int{bits} {group:?} absmax from {name}"), || {
                    tiles(
                        source,
                        width,
                        Scheme::symmetric(bits),
                        group,
                        ScaleMethod::AbsMax,
                    );
                });
            }
        }
    }
    let four = Scheme::symmetric(4);
    let free = Scheme::asymmetric(4);
    let group = Group::Size(32);
    for (label, scheme, group, method) in [
        (
            "int4 asymmetric Size(32) absmax",
            free,
            group,
            ScaleMethod::AbsMax,
        ),
        (
            "int4 Column absmax",
            four,
            Group::Column,
            ScaleMethod::AbsMax,
        ),
        ("int4 Size(32) least squares", four, group, ScaleMethod::Lsq),
        (
            "int4 Size(128) least squares",
            four,
            Group::Size(128),
            ScaleMethod::Lsq,
        ),
        (
            "int4 asymmetric Size(32) least squares",
            free,
            group,
            ScaleMethod::Lsq,
        ),
        (
            "int2 Size(32) least squares",
            Scheme::symmetric(2),
            group,
            ScaleMethod::Lsq,
        ),
    ] {
        let source = Source::Bytes(Float::Bf16, &bf16);
        bench.run(&format!("{label} from bf16"), || {
            tiles(source, 16, scheme, group, method)
        });
    }
    let mut residual = weights.clone();
    bench.run("int4 Size(32) absmax in place, with a copy", || {
        residual.copy_from_slice(&weights);
        for tile in residual.chunks_mut(TILE * COLS) {
            let done = quantize(tile, TILE, COLS, four, group, ScaleMethod::AbsMax);
            black_box(done.expect("finite weights"));
        }
    });
    let matrix = quantize_source(
        Source::F32(&weights),
        ROWS,
        COLS,
        four,
        group,
        ScaleMethod::AbsMax,
    )
    .expect("finite weights")
    .matrix;
    bench.run("outliers by magnitude, 0.5 %, whole matrix", || {
        black_box(select_by_magnitude(&weights, 0.005).expect("a fraction"));
    });
    bench.run("outliers by saving under int4, 0.5 %", || {
        let method = ScaleMethod::AbsMax;
        let support = select_by_saving(&weights, ROWS, COLS, 0.005, four, group, method);
        black_box(support.expect("finite weights"));
    });
    bench.run("int4 Size(32) decode to f32", || {
        matrix.decode_rows(0..ROWS, black_box(&mut residual));
    });
}
