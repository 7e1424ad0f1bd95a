//! Products with quantized matrices: GB/s of codes and scales read, and GMAC/s.
//!
//! `cargo bench --bench kernels [-- FILTER]`, where FILTER is a part of a label such as `int4 g32`.
//! Matrices take turns until they are larger than the caches together, as those of a model do, so
//! that one token's product reads memory. The ceiling is a plain read of a large buffer by the same
//! threads, measured next to each figure. Figures are medians.

use hlrc::exec::Pool;
use hlrc::exec::kernels::Write;
use hlrc::exec::kernels::quant::{Int8Activations, QuantRows, matmul_exact, matmul_int8};
use hlrc::numeric::quant::{Group, Scheme, packed_len};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes that no cache holds.
const LARGE: usize = 192 << 20;

/// How long a figure is measured for.
const TIME: Duration = Duration::from_millis(150);

const SHAPES: [(usize, usize); 5] = [
    (576, 1536),
    (1536, 576),
    (576, 576),
    (4096, 4096),
    (49152, 576),
];

const TOKENS: [usize; 3] = [1, 8, 512];

/// Codes, scales, zero points.
type Stored = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

/// Matrices of one shape that are larger than the caches together.
struct Matrices {
    label: String,
    shape: (usize, usize),
    scheme: Scheme,
    group: Group,
    /// Codes, scales, zero points.
    parts: Vec<Stored>,
}

impl Matrices {
    fn new((rows, cols): (usize, usize), scheme: Scheme, group: Group, total: usize) -> Self {
        let codes = rows * packed_len(scheme.bits, cols);
        let scales = group.count(rows, cols);
        let zeros = if group == Group::Column { 1 } else { rows }
            * packed_len(scheme.bits, group.per_row(cols));
        let mut state = 1u64;
        let mut random = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        let parts = (0..total.div_ceil(codes).max(1)).map(|_| {
            let mut bytes = |count: usize| (0..count).map(|_| random()).collect::<Vec<u8>>();
            let codes = bytes(codes);
            // f16 of about 0.01
            let scales = bytes(scales)
                .into_iter()
                .flat_map(|low| [low, 0x21])
                .collect();
            (codes, scales, (!scheme.symmetric).then(|| bytes(zeros)))
        });
        let kind = if scheme.symmetric { "" } else { " asymmetric" };
        let size = match group {
            Group::Size(size) => format!("g{size}"),
            other => other.to_string(),
        };
        Matrices {
            label: format!("int{}{kind} {size} {rows}x{cols}", scheme.bits),
            shape: (rows, cols),
            scheme,
            group,
            parts: parts.collect(),
        }
    }

    fn bytes(&self) -> usize {
        self.parts.first().map_or(0, |(codes, scales, zeros)| {
            codes.len() + scales.len() + zeros.as_ref().map_or(0, Vec::len)
        })
    }

    fn get(&self, i: usize) -> QuantRows<'_> {
        let (codes, scales, zeros) = &self.parts[i % self.parts.len()];
        QuantRows::new(
            self.shape,
            self.scheme,
            self.group,
            codes,
            scales,
            zeros.as_deref(),
        )
        .unwrap_or_else(|e| unreachable!("{e}"))
    }
}

/// Median seconds of calls that together take [`TIME`]; call `i` gets `i`.
fn median(mut call: impl FnMut(usize)) -> f64 {
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < TIME || times.len() < 5 {
        let one = Instant::now();
        call(times.len());
        times.push(one.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Bytes per second of a plain read of a large buffer, a few MiB at a time.
fn ceiling(pool: &Pool, buffer: &[u64]) -> f64 {
    const PART: usize = 1 << 13;
    const PARTS: usize = 64;
    let turns: Vec<&[u64]> = buffer.chunks_exact(PART * PARTS).collect();
    let sum = AtomicU64::new(0);
    let seconds = median(|turn| {
        let parts = turns[turn % turns.len()].as_chunks::<PART>().0;
        pool.run(PARTS, |i| {
            let part = parts[i].iter().fold(0u64, |a, &b| a ^ b);
            sum.fetch_xor(part, Ordering::Relaxed);
        });
    });
    black_box(sum);
    (PART * PARTS * 8) as f64 / seconds
}

fn report(
    matrices: &Matrices,
    way: &str,
    tokens: usize,
    pool: &Pool,
    buffer: &[u64],
    seconds: f64,
) {
    let (rows, cols) = matrices.shape;
    let read = matrices.bytes() as f64 / seconds;
    let ceiling = ceiling(pool, buffer);
    println!(
        "{:<32} {way:<5} {tokens:>4} tokens {} threads {:>9.1} us {:>6.1} GB/s ({:>3.0}% of {:>5.1}) {:>7.1} GMAC/s",
        matrices.label,
        pool.threads(),
        seconds * 1e6,
        read / 1e9,
        100.0 * read / ceiling,
        ceiling / 1e9,
        (rows * cols * tokens) as f64 / seconds / 1e9,
    );
}

fn bench(matrices: &Matrices, pool: &Pool, buffer: &[u64]) {
    let (rows, cols) = matrices.shape;
    for tokens in TOKENS {
        if rows * tokens > 1 << 22 {
            continue; // the output alone would be larger than the caches
        }
        let x: Vec<f32> = (0..tokens * cols)
            .map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0)
            .collect();
        let mut out = vec![0.0; tokens * rows];
        let seconds = median(|i| {
            let a = Int8Activations::quantize(pool, &x, tokens, cols);
            matmul_int8(pool, &matrices.get(i), &a, Write::Overwrite, &mut out);
        });
        report(matrices, "int8", tokens, pool, buffer, seconds);
        let seconds = median(|i| {
            matmul_exact(
                pool,
                &matrices.get(i),
                &x,
                tokens,
                Write::Overwrite,
                &mut out,
            );
        });
        report(matrices, "exact", tokens, pool, buffer, seconds);
        black_box(&out);
    }
}

fn main() {
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let buffer: Vec<u64> = (0..LARGE as u64 / 8).collect();
    let schemes = [
        (Scheme::symmetric(4), Group::Size(32)),
        (Scheme::symmetric(8), Group::Size(32)),
        (Scheme::symmetric(8), Group::Row),
        (Scheme::asymmetric(4), Group::Size(32)),
        (Scheme::symmetric(3), Group::Size(32)),
        (Scheme::symmetric(2), Group::Size(32)),
        (Scheme::symmetric(4), Group::Size(128)),
        (Scheme::symmetric(4), Group::Column),
    ];
    for (scheme, group) in schemes {
        for shape in SHAPES {
            let probe = Matrices::new(shape, scheme, group, 0);
            if only
                .as_ref()
                .is_some_and(|only| !probe.label.contains(only))
            {
                continue;
            }
            let matrices = Matrices::new(shape, scheme, group, LARGE / 2);
            for threads in [1, 2] {
                bench(&matrices, &Pool::new(threads), &buffer);
            }
        }
    }
}
