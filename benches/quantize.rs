//! Weights per second of the quantizers on one core, beside `memcpy`.
//!
//! `cargo bench --bench quantize`. Each figure is the median of several runs
//! over a matrix that doesn't fit the caches. `memcpy` copies the bytes of the
//! `bf16` weights, so its figure is in weights per second too.

use hlrc::numeric::float::{Float, encode_bf16, encode_f16};
use hlrc::numeric::quant::{Group, ScaleMethod, Scheme, Source, quantize, quantize_source};
use std::hint::black_box;
use std::time::Instant;

const ROWS: usize = 4096;
const COLS: usize = 11008;
const RUNS: usize = 7;

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

fn report(name: &str, seconds: f64, memcpy: f64) {
    let rate = (ROWS * COLS) as f64 / seconds / 1e9;
    println!(
        "{name:<44} {rate:>7.3} G weights/s {:>6.2}x memcpy's time",
        seconds / memcpy
    );
}

fn main() {
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
    println!("{ROWS}x{COLS}, one core, median of {RUNS}");
    report("memcpy of bf16", memcpy, memcpy);

    let sources = [
        ("bf16", Source::Bytes(Float::Bf16, &bf16)),
        ("f16", Source::Bytes(Float::F16, &f16)),
        ("f32", Source::F32(&weights)),
    ];
    for bits in [4, 8, 3, 2] {
        for group in [
            Group::Size(32),
            Group::Size(64),
            Group::Size(128),
            Group::Row,
        ] {
            for (name, source) in sources {
                if (bits, group) != (4, Group::Size(32)) && name != "bf16" {
                    continue;
                }
                let scheme = Scheme::symmetric(bits);
                let seconds = median_seconds(|| {
                    let done =
                        quantize_source(source, ROWS, COLS, scheme, group, ScaleMethod::AbsMax);
                    black_box(done.expect("finite weights"));
                });
                report(
                    &format!("int{bits} {group:?} absmax from {name}"),
                    seconds,
                    memcpy,
                );
            }
        }
    }
    let four = Scheme::symmetric(4);
    let group = Group::Size(32);
    for (name, scheme, group, method) in [
        (
            "int4 asymmetric Size(32) absmax",
            Scheme::asymmetric(4),
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
            Scheme::asymmetric(4),
            group,
            ScaleMethod::Lsq,
        ),
    ] {
        let seconds = median_seconds(|| {
            let source = Source::Bytes(Float::Bf16, &bf16);
            black_box(quantize_source(source, ROWS, COLS, scheme, group, method).expect("finite"));
        });
        report(&format!("{name} from bf16"), seconds, memcpy);
    }
    let mut residual = weights.clone();
    let seconds = median_seconds(|| {
        residual.copy_from_slice(&weights);
        let done = quantize(&mut residual, ROWS, COLS, four, group, ScaleMethod::AbsMax);
        black_box(done.expect("finite weights"));
    });
    report(
        "int4 Size(32) absmax in place, with a copy",
        seconds,
        memcpy,
    );
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
    let seconds = median_seconds(|| {
        matrix.decode_rows(0..ROWS, black_box(&mut residual));
    });
    report("int4 Size(32) decode to f32", seconds, memcpy);
}
