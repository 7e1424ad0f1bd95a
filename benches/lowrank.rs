//! Time of the randomized decomposition beside a bare sketch on faer.
//!
//! `cargo bench --bench lowrank [ROWS COLS RANK]`, 4096 11008 512 by default.
//! The bare sketch is the least that a decomposition of that rank does on this
//! library: one power iteration, oversampling 32, a product and a QR each time,
//! the small singular value decomposition, both factors multiplied out. One
//! thread; the runs alternate, medians are compared.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use hlrc::numeric::lowrank::hierarchy::{Hierarchy, Ranks};
use hlrc::numeric::lowrank::svd::truncated;
use hlrc::numeric::lowrank::{FactorFormat, LowRank, Options, Rank, hierarchy};
use hlrc::numeric::matrix;
use std::hint::black_box;
use std::time::Instant;

const RUNS: usize = 3;
const OVERSAMPLING: usize = 32;

fn product(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> Mat<f32> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    out
}

/// Factors `[rows, rank]` and `[cols, rank]` without any of the library.
fn bare_sketch(a: MatRef<'_, f32>, rank: usize) -> (Mat<f32>, Mat<f32>) {
    let width = rank + OVERSAMPLING;
    let mut state = 1u64;
    let sketch = Mat::from_fn(a.ncols(), width, |_, _| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    });
    let q = product(a, sketch.as_ref()).qr().compute_thin_Q();
    let z = product(a.transpose(), q.as_ref()).qr().compute_thin_Q();
    let q = product(a, z.as_ref()).qr().compute_thin_Q();
    let qr = product(a.transpose(), q.as_ref()).qr();
    let svd = qr.thin_R().thin_svd().expect("converges");
    let u = product(q.as_ref(), svd.V().subcols(0, rank));
    let v = product(qr.compute_thin_Q().as_ref(), svd.U().subcols(0, rank));
    (u, v)
}

/// A matrix of decaying spectrum plus noise.
fn test_matrix(rows: usize, cols: usize) -> Vec<f32> {
    let mut state = 7u64;
    let mut next = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    let inner = 64.min(rows).min(cols);
    let left = Mat::from_fn(rows, inner, |_, j| next() / (1.0 + j as f32));
    let right = Mat::from_fn(inner, cols, |_, _| next());
    let low = product(left.as_ref(), right.as_ref());
    let mut out = Vec::with_capacity(rows * cols);
    for i in 0..rows {
        for j in 0..cols {
            out.push(low[(i, j)] + 0.02 * next());
        }
    }
    out
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let given: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let [rows, cols, rank] = given[..] else {
        return bench(4096, 11008, 512);
    };
    bench(rows, cols, rank);
}

fn bench(rows: usize, cols: usize, rank: usize) {
    let a = test_matrix(rows, cols);
    let faer_a = MatRef::from_row_major_slice(&a, rows, cols);
    let view = matrix::MatRef::new(&a, rows, cols).expect("shape");
    let options = Options::default();
    let (mut bare, mut ours, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        bare.push(seconds(|| {
            black_box(bare_sketch(faer_a, rank));
        }));
        ours.push(seconds(|| {
            black_box(truncated(view, Rank::Fixed(rank), &options).expect("finite"));
        }));
        whole.push(seconds(|| {
            let flat = flat(rank, FactorFormat::F16);
            let done = hierarchy::decompose(&a, rows, cols, &flat, &options);
            black_box(done.expect("finite"));
        }));
    }
    let (bare, ours, whole) = (median(bare), median(ours), median(whole));
    println!("{rows}x{cols} rank {rank}, one thread, median of {RUNS}");
    println!("bare GEMM + QR + small SVD sketch  {bare:8.3} s");
    println!(
        "svd::truncated                     {ours:8.3} s  {:.3}x",
        ours / bare
    );
    println!(
        "hierarchy::decompose, f16 factors  {whole:8.3} s  {:.3}x",
        whole / bare
    );
    errors(&a, rows, cols, rank);
}

/// A plain decomposition.
fn flat(rank: usize, format: FactorFormat) -> Hierarchy {
    Hierarchy {
        depth: 0,
        rank: Rank::Fixed(rank),
        ranks: Ranks::Even,
        format,
    }
}

/// Relative errors, so that speed isn't bought with accuracy.
fn errors(a: &[f32], rows: usize, cols: usize, rank: usize) {
    let total = matrix::norm2(a);
    for format in [FactorFormat::F32, FactorFormat::F16, FactorFormat::Int8] {
        let done = hierarchy::decompose(a, rows, cols, &flat(rank, format), &Options::default());
        let low_rank: LowRank = done.expect("finite").low_rank;
        let mut residual = a.to_vec();
        let time = seconds(|| low_rank.subtract_from(&mut residual));
        let error = (matrix::norm2(&residual) / total).sqrt();
        println!(
            "relative error with {format:?} factors: {error:.6}  (subtracting took {time:.3} s)"
        );
    }
}
