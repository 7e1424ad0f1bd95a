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
        let levels = Levels {
            depth: 3,
            budget,
            max_rank: 16,
            format,
        };
        multilevel::decompose(&a, rows, cols, &levels, &Options::default()).unwrap()
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

#[test]
fn ranks_go_where_the_energy_is() {
    // Singular values that fall at another pace in each quarter.
    let (rows, cols) = (96, 64);
    let mut a: Vec<f32> = noise(rows * cols, 3).iter().map(|x| x * 0.02).collect();
    for (quarter, pace) in [0.95f32, 0.8, 0.6, 0.3].into_iter().enumerate() {
        let (row0, col0) = (quarter / 2 * 48, quarter % 2 * 32);
        for k in 0..20 {
            let (u, v) = (noise(48, k + 40), noise(32, k + 90));
            for i in 0..48 {
                for j in 0..32 {
                    a[(row0 + i) * cols + col0 + j] += pace.powi(k as i32) * u[i] * v[j];
                }
            }
        }
    }
    let run = |ranks, rank, format| {
        let hierarchy = Hierarchy {
            depth: 2,
            rank,
            ranks,
            format,
        };
        hierarchy::decompose(&a, rows, cols, &hierarchy, &Options::default()).unwrap()
    };
    for format in FORMATS {
        for rank in [2, 5, 9] {
            let even = run(Ranks::Even, Rank::Fixed(rank), format).low_rank;
            let done = run(Ranks::ByEnergy, Rank::Fixed(rank), format).low_rank;
            assert!(done.bytes() <= even.bytes(), "{format:?} {rank}");
            assert!(done.max_rank() <= 2 * rank);
            let (left, of_even) = (residual(&a, &done), residual(&a, &even));
            assert!(left < 0.95 * of_even, "{format:?} {rank}: {left} {of_even}");
        }
    }
    // Of all ways to share out as many, none is better: leaves have the same shape.
    let done = run(Ranks::ByEnergy, Rank::Fixed(5), FactorFormat::F32);
    let quarters: Vec<Vec<f64>> = (0..4)
        .map(|quarter| {
            let (row0, col0) = (quarter / 2 * 48, quarter % 2 * 32);
            let part = view(&a, rows, cols).block(row0..row0 + 48, col0..col0 + 32);
            let svd = truncated(part, Rank::Fixed(10), &options(Method::Exact)).unwrap();
            svd.s.iter().map(|&s| f64::from(s).powi(2)).collect()
        })
        .collect();
    let mut best = 0f64;
    for code in 0..11usize.pow(4) {
        let ranks: Vec<usize> = (0..4).map(|q| code / 11usize.pow(q) % 11).collect();
        if ranks.iter().sum::<usize>() == 20 {
            let held = quarters.iter().zip(&ranks);
            best = best.max(held.map(|(s, &r)| s[..r].iter().sum::<f64>()).sum());
        }
    }
    assert!(
        (done.kept - best).abs() < 1e-6 * best,
        "{} {best}",
        done.kept
    );
    // A share of all the energy for fewer bytes than one of each leaf's.
    let share = Rank::Energy {
        energy: 0.9,
        max_rank: 20,
    };
    let (all, each) = (
        run(Ranks::ByEnergy, share, FactorFormat::F16),
        run(Ranks::Even, share, FactorFormat::F16),
    );
    assert!(all.reached && each.reached);
    assert!(all.kept >= 0.9 * all.total);
    assert!(all.low_rank.bytes() < each.low_rank.bytes());
}
