//! Decompositions against an independent reference, and their properties.

use super::hierarchy::{Hierarchy, Ranks};
use super::multilevel::{self, Budget, Levels};
use super::svd::truncated;
use super::*;
use crate::numeric::matrix::{MatRef, norm2};
use crate::numeric::quant::packed_len;

mod blocks;

const FORMATS: [FactorFormat; 4] = [
    FactorFormat::F32,
    FactorFormat::F16,
    FactorFormat::Int8,
    FactorFormat::Int4,
];

/// Uniform values in -1..1.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// A matrix whose singular values fall off, like trained weights.
fn decaying(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut out = noise(rows * cols, seed);
    out.iter_mut().for_each(|x| *x *= 0.01);
    for k in 0..rows.min(cols).min(40) {
        let (u, v) = (
            noise(rows, seed + 100 + k as u64),
            noise(cols, seed + 200 + k as u64),
        );
        let size = 0.8f32.powi(k as i32);
        for i in 0..rows {
            for j in 0..cols {
                out[i * cols + j] += size * u[i] * v[j];
            }
        }
    }
    out
}

/// Leaves of even ranks.
fn decompose(
    a: &[f32],
    rows: usize,
    cols: usize,
    depth: usize,
    rank: Rank,
    options: &Options,
    format: FactorFormat,
) -> Result<Decomposition, LowRankError> {
    let hierarchy = Hierarchy {
        depth,
        rank,
        ranks: Ranks::Even,
        format,
    };
    hierarchy::decompose(a, rows, cols, &hierarchy, options)
}

fn view(a: &[f32], rows: usize, cols: usize) -> MatRef<'_> {
    MatRef::new(a, rows, cols).unwrap()
}

fn options(method: Method) -> Options {
    Options {
        method,
        ..Options::default()
    }
}

fn residual(a: &[f32], term: &LowRank) -> f64 {
    let mut left = a.to_vec();
    term.subtract_from(&mut left);
    norm2(&left)
}

fn flat(a: &[f32], rows: usize, cols: usize, rank: usize, format: FactorFormat) -> Decomposition {
    decompose(
        a,
        rows,
        cols,
        0,
        Rank::Fixed(rank),
        &Options::default(),
        format,
    )
    .unwrap()
}

#[test]
fn exact_matches_the_reference() {
    for (rows, cols) in [(1, 1), (7, 7), (20, 33), (40, 12), (1, 9), (9, 1)] {
        let a = decaying(rows, cols, 3);
        let reference = nalgebra::DMatrix::from_row_slice(rows, cols, &a).svd(true, true);
        let mut want: Vec<f32> = reference.singular_values.iter().copied().collect();
        want.sort_by(|x, y| y.total_cmp(x));
        let svd = truncated(view(&a, rows, cols), Rank::Fixed(100), &Options::default()).unwrap();
        assert_eq!(svd.rank(), rows.min(cols));
        for (got, want) in svd.s.iter().zip(&want) {
            assert!(
                (got - want).abs() < 1e-5 * want.max(svd.s[0] * 0.1),
                "{got} {want}"
            );
        }
        assert!((svd.kept - svd.total).abs() < 1e-5 * svd.total);
        let rank = svd.rank();
        for i in 0..rank {
            for j in 0..rank {
                let dot: f32 = (0..rows)
                    .map(|r| svd.u[r * rank + i] * svd.u[r * rank + j])
                    .sum();
                assert!((dot - f32::from(u8::from(i == j))).abs() < 1e-5);
            }
            let largest = (0..rows)
                .map(|r| svd.u[r * rank + i])
                .fold(0f32, |m, x| if x.abs() > m.abs() { x } else { m });
            assert!(largest > 0.0);
        }
    }
}

#[test]
fn randomized_is_close_to_the_optimum() {
    let (rows, cols) = (90, 160);
    let a = decaying(rows, cols, 5);
    for rank in [1, 5, 20, 40] {
        let left = |method| {
            let svd = truncated(view(&a, rows, cols), Rank::Fixed(rank), &options(method)).unwrap();
            svd.total - svd.kept
        };
        let (exact, randomized) = (left(Method::Exact), left(Method::Randomized));
        assert!(
            randomized <= exact * 1.06 + 1e-6,
            "rank {rank}: {randomized} {exact}"
        );
    }
}

#[test]
fn error_falls_with_rank_and_matches_what_is_kept() {
    for (rows, cols) in [(60, 85), (85, 60)] {
        let a = decaying(rows, cols, 9);
        let mut before = f64::INFINITY;
        for rank in [0, 1, 2, 4, 8, 16, 32, 60, 90] {
            let done = flat(&a, rows, cols, rank, FactorFormat::F32);
            let error = residual(&a, &done.low_rank);
            assert!(error < before || rank == 90, "rank {rank}");
            assert!((error - (done.total - done.kept)).abs() < 1e-4 * done.total);
            before = error;
            assert_eq!(done.low_rank.params(), rank.min(60) * (rows + cols));
        }
        assert!(before < 1e-9 * norm2(&a));
    }
}

#[test]
fn energy_takes_the_fewest() {
    let (rows, cols) = (70, 50);
    let a = decaying(rows, cols, 2);
    let all = truncated(view(&a, rows, cols), Rank::Fixed(50), &Options::default()).unwrap();
    for method in [Method::Exact, Method::Randomized] {
        for energy in [0.0, 0.3, 0.9, 0.99] {
            let rank = Rank::Energy {
                energy,
                max_rank: 50,
            };
            let svd = truncated(view(&a, rows, cols), rank, &options(method)).unwrap();
            assert!(svd.reached);
            assert!(svd.kept >= energy * svd.total * (1.0 - 1e-5));
            let without_last: f64 = all.s[..svd.rank().saturating_sub(1)]
                .iter()
                .map(|s| f64::from(s * s))
                .sum();
            assert!(svd.rank() == 0 || without_last < energy * svd.total);
        }
    }
    let short = Rank::Energy {
        energy: 0.999,
        max_rank: 3,
    };
    let svd = truncated(view(&a, rows, cols), short, &Options::default()).unwrap();
    assert!(!svd.reached && svd.rank() == 3);
    let bad = Rank::Energy {
        energy: 1.5,
        max_rank: 3,
    };
    let error = truncated(view(&a, rows, cols), bad, &Options::default()).unwrap_err();
    assert_eq!(error, LowRankError::Energy { energy: 1.5 });
}

#[test]
fn threads_change_nothing() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build()
        .unwrap();
    let (rows, cols) = (2100, 530);
    let mut a = noise(rows * cols, 4);
    for (i, x) in a.iter_mut().enumerate() {
        *x += (i / cols % 7) as f32 * 0.3;
    }
    let run = |threads, depth| {
        let options = Options {
            method: Method::Randomized,
            threads,
            seed: 3,
            ..Options::default()
        };
        let rank = Rank::Fixed(24);
        decompose(&a, rows, cols, depth, rank, &options, FactorFormat::F32).unwrap()
    };
    for depth in [0, 1] {
        let alone = run(1, depth);
        assert_eq!(pool.install(|| run(2, depth)), alone);
        let mut left = a.clone();
        alone.low_rank.subtract_from(&mut left);
        let mut left_threads = a.clone();
        pool.install(|| alone.low_rank.subtract_from_threads(&mut left_threads, 2));
        assert_eq!(left, left_threads);
    }
    let other = Options {
        method: Method::Randomized,
        seed: 4,
        ..Options::default()
    };
    let other = decompose(
        &a,
        rows,
        cols,
        0,
        Rank::Fixed(24),
        &other,
        FactorFormat::F32,
    )
    .unwrap();
    assert_ne!(other, run(1, 0));
}

#[test]
fn unusual_matrices() {
    for (rows, cols) in [(5, 8), (1, 1), (0, 4), (4, 0)] {
        let zeros = vec![0.0; rows * cols];
        for rank in [
            Rank::Fixed(3),
            Rank::Energy {
                energy: 0.9,
                max_rank: 3,
            },
        ] {
            let done = decompose(
                &zeros,
                rows,
                cols,
                1,
                rank,
                &Options::default(),
                FactorFormat::Int4,
            );
            let done = done.unwrap();
            assert!(done.reached && done.low_rank.max_rank() == 0);
            assert_eq!(done.low_rank.decode(), zeros);
            assert_eq!(done.low_rank.bytes(), 0);
        }
    }
}

#[test]
fn extreme_and_bad_weights() {
    for size in [1e30f32, 1e-30] {
        let a: Vec<f32> = decaying(12, 9, 1).iter().map(|x| x * size).collect();
        let done = flat(&a, 12, 9, 9, FactorFormat::F32);
        assert!(residual(&a, &done.low_rank) < 1e-9 * done.total, "{size:e}");
    }
    let large: Vec<f32> = decaying(12, 9, 1).iter().map(|x| x * 1e30).collect();
    let run = |format| {
        decompose(
            &large,
            12,
            9,
            0,
            Rank::Fixed(2),
            &Options::default(),
            format,
        )
    };
    assert!(matches!(
        run(FactorFormat::F16),
        Err(LowRankError::Range { side: Side::V, .. })
    ));
    assert!(matches!(
        run(FactorFormat::Int8),
        Err(LowRankError::Quant { side: Side::V, .. })
    ));
    let mut bad = decaying(40, 30, 1);
    bad[35 * 30 + 20] = f32::NAN;
    let rank = Rank::Fixed(2);
    let error = decompose(
        &bad,
        40,
        30,
        2,
        rank,
        &Options::default(),
        FactorFormat::F16,
    );
    assert_eq!(error, Err(LowRankError::NotFinite { row: 35, col: 20 }));
    let levels = Levels {
        depth: 2,
        budget: Budget::Rank(2),
        max_rank: 4,
        format: FORMATS[1],
    };
    let error = multilevel::decompose(&bad, 40, 30, &levels, &Options::default());
    assert_eq!(error, Err(LowRankError::NotFinite { row: 35, col: 20 }));
    let error = decompose(
        &bad,
        40,
        31,
        2,
        rank,
        &Options::default(),
        FactorFormat::F16,
    );
    assert!(matches!(error, Err(LowRankError::Shape(_))));
}

#[test]
fn formats_round_and_count_bytes() {
    let (rows, cols) = (48, 75);
    let a = decaying(rows, cols, 8);
    for format in FORMATS {
        let done = decompose(
            &a,
            rows,
            cols,
            2,
            Rank::Fixed(10),
            &Options::default(),
            format,
        );
        let term = done.unwrap().low_rank;
        let bytes: usize = term
            .blocks
            .iter()
            .map(|block| format.bytes(Side::U, block) + format.bytes(Side::V, block))
            .sum();
        assert_eq!(term.bytes(), bytes);
        assert_eq!((term.u.format(), term.v.format()), (format, format));
        let again = LowRank::new(
            rows,
            cols,
            term.blocks.clone(),
            term.u.clone(),
            term.v.clone(),
        )
        .unwrap();
        assert_eq!(again, term);
        // Subtracting and adding back are the same dense matrix.
        let dense = term.decode();
        let mut left = a.clone();
        term.subtract_from(&mut left);
        for i in 0..a.len() {
            assert!((a[i] - dense[i] - left[i]).abs() < 1e-5);
        }
        let mut tiles = vec![0.0; rows * cols];
        for first in (0..rows).step_by(7) {
            let last = (first + 7).min(rows);
            term.add_rows(first..last, &mut tiles[first * cols..last * cols]);
        }
        for (x, y) in tiles.iter().zip(&dense) {
            assert!((x - y).abs() < 1e-5);
        }
    }
}

#[test]
fn coarser_factors_cost_accuracy_and_follow_the_layout() {
    let (rows, cols) = (48, 75);
    let a = decaying(rows, cols, 8);
    let mut before = 0.0;
    for format in FORMATS {
        let error = residual(&a, &flat(&a, rows, cols, 20, format).low_rank);
        assert!(error >= before * 0.999, "{format:?}");
        before = error;
    }
    assert!(before < 0.05 * norm2(&a));
    // As in the layout: 8-bit U has a scale per row, V one per 64 values.
    let term = flat(&a, rows, cols, 20, FactorFormat::Int8).low_rank;
    let Factor::Coded { codes, scales, .. } = &term.u else {
        panic!("not coded")
    };
    assert_eq!((codes.len(), scales.len()), (rows * 20, rows));
    let Factor::Coded { codes, scales, .. } = &term.v else {
        panic!("not coded")
    };
    assert_eq!(
        (codes.len(), scales.len()),
        (20 * packed_len(8, cols), 20 * 2)
    );
}

#[test]
fn stored_parts_are_checked() {
    let block = Block {
        row0: 1,
        rows: 3,
        col0: 0,
        cols: 4,
        rank: 2,
    };
    let u = || Factor::F32(vec![0.5; 6]);
    let v = || Factor::F32(vec![0.5; 8]);
    assert!(LowRank::new(4, 4, vec![block], u(), v()).is_ok());
    assert!(matches!(
        LowRank::new(3, 4, vec![block], u(), v()),
        Err(LowRankError::Outside { index: 0, .. })
    ));
    let wild = Block {
        row0: usize::MAX,
        rank: usize::MAX,
        ..block
    };
    assert!(LowRank::new(4, 4, vec![wild], u(), v()).is_err());
    assert!(LowRank::new(4, 4, vec![block, block], u(), v()).is_err());
    assert!(LowRank::new(4, 4, vec![block], v(), u()).is_err());
    let scheme = crate::numeric::quant::Scheme::symmetric(3);
    let coded = Factor::Coded {
        scheme,
        codes: vec![],
        scales: vec![],
    };
    assert!(LowRank::new(4, 4, vec![], coded, Factor::F32(vec![])).is_err());
}
