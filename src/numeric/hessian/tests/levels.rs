//! Terms of blocks in the metric, against the optimum in `f64`.

use super::*;
use crate::numeric::lowrank::fit::Left;
use crate::numeric::lowrank::hierarchy::{Hierarchy, Ranks};
use crate::numeric::lowrank::multilevel::{Budget, Levels, decompose};
use crate::numeric::lowrank::{Block, FactorFormat, Method, Options, Rank};
use nalgebra::DMatrix;

fn exact() -> Options {
    Options {
        method: Method::Exact,
        ..Options::default()
    }
}

/// What a term of rank `r` in a block can take off the objective, for each `r`: sums of the
/// eigenvalues of `T H_CC⁻¹ Tᵀ` with `T = E_R H_C`, no root and no decomposition of weights.
fn energies(h: &[f32], e: &[f32], n: usize, block: &Block) -> Vec<f64> {
    let wide = |x: &f32| f64::from(*x);
    let h = DMatrix::from_row_iterator(n, n, h.iter().map(wide));
    let of_rows = e[block.row0 * n..][..block.rows * n].iter().map(wide);
    let e = DMatrix::from_row_iterator(block.rows, n, of_rows);
    let t = e * h.columns(block.col0, block.cols);
    let own = h.view((block.col0, block.col0), (block.cols, block.cols));
    let inverse = own.clone_owned().try_inverse().unwrap();
    let mut values: Vec<f64> = (&t * inverse * t.transpose())
        .symmetric_eigenvalues()
        .iter()
        .copied()
        .collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

#[test]
fn a_block_makes_up_for_all_that_it_can() {
    let (n, rows) = (60, 40);
    let h = second_moment(n, 150, &[7, 33], 31);
    let e = Random(32).matrix(rows, n);
    let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, Order::Activation).unwrap();
    let damped = damped(&h, n, &metric);
    let block = |row0, rows, col0, cols| Block {
        row0,
        rows,
        col0,
        cols,
        rank: 0,
    };
    let blocks = [
        block(0, 40, 0, 60),
        block(0, 20, 0, 30),
        block(20, 20, 30, 30),
        block(5, 17, 11, 23),
        block(0, 40, 12, 1),
    ];
    let all = blocks.iter().copied();
    let mut left = outputs::Outputs::new(&e, rows, &metric, feedback, all).unwrap();
    let before = plain_objective(&damped, &e, rows, n);
    assert!((left.energy() - before).abs() < 1e-5 * before);
    for (place, block) in blocks.into_iter().enumerate() {
        let want = energies(&damped, &e, n, &block);
        for rank in [1, 4, 100] {
            let rank = rank.min(block.rows).min(block.cols);
            let found = left.triplets(&block, Rank::Fixed(rank), &exact()).unwrap();
            assert_eq!(found.rank(), rank);
            let total: f64 = want.iter().sum();
            for (got, want) in found.energies.iter().zip(&want) {
                assert!(
                    (got - want).abs() < 1e-4 * want + 1e-6 * total,
                    "{got} {want}"
                );
            }
            let held: f64 = want[..rank].iter().sum();
            let block = Block { rank, ..block };
            let term = left.store(block, found, FactorFormat::F32).unwrap();
            let mut rest = e.clone();
            term.subtract_from(&mut rest);
            let falls = before - plain_objective(&damped, &rest, rows, n);
            assert!(
                (falls - held).abs() < 1e-4 * held,
                "block {place} rank {rank}: {falls} {held}"
            );
            // What is left is kept up to date, and can be had back.
            left.add(&term, -1.0);
            let got = left.energy();
            assert!((got - (before - falls)).abs() < 1e-4 * before);
            left.add(&term, 1.0);
            assert!((left.energy() - before).abs() < 1e-5 * before);
        }
    }
}

/// A matrix with a diagonal of blocks beside what all of it shares.
fn blocky(rows: usize, n: usize) -> Vec<f32> {
    let mut random = Random(41);
    let mut e: Vec<f32> = random.matrix(rows, n).iter().map(|x| 0.2 * x).collect();
    for (count, size) in [(1, 1.0), (2, 1.5), (4, 2.0)] {
        for b in 0..count {
            let (r, c) = (rows / count, n / count);
            let (u, v) = (random.matrix(r, 3), random.matrix(3, c));
            for (at, e) in e.iter_mut().enumerate() {
                let (i, j) = (at / n, at % n);
                if i / r == b && j / c == b {
                    *e += size
                        * (0..3)
                            .map(|k| u[(i % r) * 3 + k] * v[k * c + j % c])
                            .sum::<f32>();
                }
            }
        }
    }
    e
}

#[test]
fn levels_in_the_metric_leave_less() {
    let (n, rows) = (96, 64);
    let h = second_moment(n, 300, &[5], 42);
    let e = blocky(rows, n);
    let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, Order::Activation).unwrap();
    let damped = damped(&h, n, &metric);
    for format in [FactorFormat::F16, FactorFormat::Int8, FactorFormat::Int4] {
        let levels = Levels {
            depth: 2,
            budget: Budget::Rank(10),
            max_rank: 16,
            format,
        };
        let shape = (rows, n);
        let (done, _) = whitened_levels(&e, shape, &h, 0.01, &levels, &exact()).unwrap();
        let objective = |term: &crate::numeric::LowRank| {
            let mut left = e.clone();
            term.subtract_from(&mut left);
            plain_objective(&damped, &left, rows, n)
        };
        let left = objective(&done.low_rank);
        assert!((done.total - done.kept - left).abs() < 1e-5 * left);
        let by_weights = decompose(&e, rows, n, &levels, &exact()).unwrap();
        let weights = objective(&by_weights.low_rank);
        assert!(left < 0.8 * weights, "{format:?} {left} {weights}");
        let flat = whitened_low_rank(&e, rows, &metric, &feedback, 10, format, &exact());
        let (flat, of_flat) = flat.unwrap();
        // Scales of small coded blocks cost more than the blocks are worth here: flat is kept.
        let most = if format == FactorFormat::F16 {
            0.9
        } else {
            1.0 + 1e-6
        };
        assert!(left < most * of_flat, "{format:?} {left} {of_flat}");
        assert!(done.low_rank.bytes() <= flat.bytes());
        let again = whitened_levels(&e, shape, &h, 0.01, &levels, &exact()).unwrap();
        assert_eq!(done, again.0);
    }
    // A share of the energy.
    let levels = Levels {
        depth: 2,
        budget: Budget::Energy(0.9),
        max_rank: 40,
        format: FactorFormat::F16,
    };
    let (done, _) = whitened_levels(&e, (rows, n), &h, 0.01, &levels, &exact()).unwrap();
    assert!(done.reached && done.kept > 0.899 * done.total);
}

#[test]
fn leaves_settle_in_the_metric() {
    let (n, rows) = (96, 64);
    let h = second_moment(n, 300, &[5], 43);
    let e = blocky(rows, n);
    let shape = (rows, n);
    let run = |ranks, format, options: &Options| {
        let hierarchy = Hierarchy {
            depth: 3,
            rank: Rank::Fixed(5),
            ranks,
            format,
        };
        whitened_leaves(&e, shape, &h, 0.01, &hierarchy, options)
            .unwrap()
            .0
    };
    for format in [FactorFormat::F32, FactorFormat::Int4] {
        let even = run(Ranks::Even, format, &exact());
        let done = run(Ranks::ByEnergy, format, &exact());
        assert!(done.low_rank.bytes() <= even.low_rank.bytes());
        assert!(
            done.kept > even.kept,
            "{format:?} {} {}",
            done.kept,
            even.kept
        );
        // No leaf can take more off what the others leave.
        let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, Order::Activation).unwrap();
        let damped = damped(&h, n, &metric);
        let mut rest = e.clone();
        even.low_rank.subtract_from(&mut rest);
        let left = plain_objective(&damped, &rest, rows, n);
        assert!((even.total - even.kept - left).abs() < 1e-5 * left);
        drop(feedback);
        if format != FactorFormat::F32 {
            continue;
        }
        let (u, v) = even.low_rank.decode_factors();
        let (mut at_u, mut at_v) = (0, 0);
        for block in &even.low_rank.blocks {
            let (of_u, of_v) = (block.rows * block.rank, block.rank * block.cols);
            let (u, v) = (u[at_u..][..of_u].to_vec(), v[at_v..][..of_v].to_vec());
            (at_u, at_v) = (at_u + of_u, at_v + of_v);
            let one = vec![*block];
            let term = crate::numeric::LowRank::encode(rows, n, one, u, v, format).unwrap();
            let mut without = rest.clone();
            term.add_to(&mut without);
            let most: f64 = energies(&damped, &without, n, block)[..block.rank]
                .iter()
                .sum();
            let takes = plain_objective(&damped, &without, rows, n) - left;
            assert!(takes > 0.99 * most, "{takes} {most}");
        }
    }
    // With damping that is much, and inputs that say nothing of one another, leaves are on their own.
    let identity: Vec<f32> = (0..n * n)
        .map(|at| f32::from(u8::from(at / n == at % n)))
        .collect();
    let hierarchy = Hierarchy {
        depth: 2,
        rank: Rank::Fixed(6),
        ranks: Ranks::ByEnergy,
        format: FactorFormat::F32,
    };
    let (one, _) = whitened_leaves(&e, shape, &identity, 0.0, &hierarchy, &exact()).unwrap();
    let two = crate::numeric::lowrank::hierarchy::decompose(&e, rows, n, &hierarchy, &exact());
    let two = two.unwrap();
    assert!((one.kept - two.kept).abs() < 1e-5 * two.kept);
    let ranks = |d: &crate::numeric::lowrank::Decomposition| -> Vec<usize> {
        d.low_rank.blocks.iter().map(|b| b.rank).collect()
    };
    assert_eq!(ranks(&one), ranks(&two));
}
