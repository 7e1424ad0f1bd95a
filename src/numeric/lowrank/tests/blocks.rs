//! Hierarchies and levels.

use super::super::hierarchy::leaves;
use super::*;

#[test]
fn leaves_tile_and_stop() {
    for (rows, cols, depth, max_rank) in [
        (64, 64, 2, 4),
        (100, 30, 5, 4),
        (7, 200, 3, 1),
        (16, 16, 9, 8),
        (1, 1, 3, 1),
    ] {
        let blocks = leaves(rows, cols, depth, max_rank);
        let mut covered = vec![0; rows * cols];
        for b in &blocks {
            for r in b.row0..b.row0 + b.rows {
                for c in b.col0..b.col0 + b.cols {
                    covered[r * cols + c] += 1;
                }
            }
        }
        assert!(covered.iter().all(|&n| n == 1), "{rows}x{cols}");
        assert!(blocks.len() <= 1 << depth);
    }
    // A side of at most twice the largest rank is a leaf.
    assert_eq!(leaves(16, 16, 9, 8).len(), 1);
    assert_eq!(leaves(64, 64, 2, 4).len(), 4);
    assert!(
        leaves(64, 64, 2, 4)
            .iter()
            .all(|b| (b.rows, b.cols) == (32, 32))
    );
}

#[test]
fn hierarchy_adapts_ranks_to_leaves() {
    // One quarter of rank 6, one of rank 1, zeros elsewhere.
    let (rows, cols) = (64, 64);
    let mut a = vec![0.0; rows * cols];
    for k in 0..6 {
        let (u, v) = (noise(32, k), noise(32, 50 + k));
        for i in 0..32 {
            for j in 0..32 {
                a[i * cols + j] += u[i] * v[j];
                if k == 0 {
                    a[(i + 32) * cols + j + 32] = u[i] * v[j];
                }
            }
        }
    }
    let rank = Rank::Energy {
        energy: 0.9999,
        max_rank: 12,
    };
    let done = decompose(
        &a,
        rows,
        cols,
        2,
        rank,
        &Options::default(),
        FactorFormat::F32,
    )
    .unwrap();
    let mut ranks: Vec<usize> = done.low_rank.blocks.iter().map(|b| b.rank).collect();
    ranks.sort_unstable();
    assert_eq!(ranks, [0, 0, 1, 6]);
    assert!(done.reached && residual(&a, &done.low_rank) < 2e-4 * done.total);
}

#[test]
fn multilevel_keeps_its_budget_and_finds_blocks() {
    // A global part of rank 2 and eight diagonal blocks of rank 2.
    let (rows, cols) = (96, 128);
    let mut a: Vec<f32> = noise(rows * cols, 6).iter().map(|x| x * 0.01).collect();
    for k in 0..2 {
        let (u, v) = (noise(rows, k), noise(cols, 9 + k));
        for i in 0..rows {
            for j in 0..cols {
                let near = i / 12 == j / 16;
                let (p, q) = (
                    noise(1, 1000 + k + i as u64)[0],
                    noise(1, 5000 + k + j as u64)[0],
                );
                a[i * cols + j] += u[i] * v[j] + if near { 2.0 * p * q } else { 0.0 };
            }
        }
    }
    let run = |budget, format| {
        multilevel::decompose(&a, rows, cols, 3, budget, 16, &Options::default(), format).unwrap()
    };
    let mut before = f64::INFINITY;
    for rank in [0, 1, 2, 4, 8] {
        let done = run(Budget::Rank(rank), FactorFormat::F16);
        let bytes = 2 * rank * (rows + cols);
        assert!(
            done.low_rank.bytes() <= bytes,
            "{} of {bytes}",
            done.low_rank.bytes()
        );
        let error = residual(&a, &done.low_rank);
        assert!(error < before, "rank {rank}");
        before = error;
    }
    let levels = run(Budget::Rank(4), FactorFormat::F32).low_rank;
    assert!(levels.blocks.iter().any(|b| b.rows == rows));
    assert!(levels.blocks.iter().any(|b| b.rows == rows / 8));
    let alone = flat(&a, rows, cols, 4, FactorFormat::F32).low_rank;
    assert!(residual(&a, &levels) < 0.9 * residual(&a, &alone));
    for format in FORMATS {
        let done = run(Budget::Bytes(3000), format);
        assert!(done.low_rank.bytes() <= 3000, "{format:?}");
    }
}
