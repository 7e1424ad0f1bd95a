//! Low-rank terms in the metric, alone and by turns with a quantizer.

use super::*;
use crate::numeric::lowrank::{FactorFormat, Method, Options};
use crate::numeric::quant::{Group, ScaleMethod, Scheme};

fn exact() -> Options {
    Options {
        method: Method::Exact,
        ..Options::default()
    }
}

/// `e - u v` of a whitened decomposition.
fn left(e: &[f32], found: &Whitened, n: usize) -> Vec<f32> {
    let mut out = e.to_vec();
    for (r, row) in out.chunks_mut(n).enumerate() {
        for k in 0..found.rank {
            let u = found.u[r * found.rank + k];
            row.iter_mut()
                .zip(&found.v[k * n..])
                .for_each(|(x, v)| *x -= u * v);
        }
    }
    out
}

#[test]
fn the_term_is_the_best_of_its_rank() {
    for (n, rows, tokens, dead) in [
        (1, 1, 3, &[][..]),
        (24, 60, 90, &[]),
        (60, 24, 20, &[3]),
        (33, 1, 70, &[]),
    ] {
        let h = second_moment(n, tokens, dead, 21);
        let e = Random(22).matrix(rows, n);
        for order in [Order::Natural, Order::Activation] {
            let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, order).unwrap();
            let damped = damped(&h, n, &metric);
            // By the symmetric root, in f64.
            let h = nalgebra::DMatrix::from_fn(n, n, |i, j| f64::from(damped[i * n + j]));
            let eigen = h.symmetric_eigen();
            let root = |power: f64| {
                let powers = eigen.eigenvalues.map(|x| x.powf(power));
                let d = nalgebra::DMatrix::from_diagonal(&powers);
                &eigen.eigenvectors * d * eigen.eigenvectors.transpose()
            };
            let wide = nalgebra::DMatrix::from_fn(rows, n, |i, j| f64::from(e[i * n + j]));
            let white = &wide * root(0.5);
            let mut svd = white.clone().svd(true, true);
            svd.sort_by_singular_values();
            for rank in [0, 1, 5, 100] {
                let kept = rank.min(n).min(rows);
                let (u, v) = (svd.u.as_ref().unwrap(), svd.v_t.as_ref().unwrap());
                let s = nalgebra::DMatrix::from_diagonal(
                    &svd.singular_values.rows(0, kept).into_owned(),
                );
                let want = u.columns(0, kept) * s * v.rows(0, kept) * root(-0.5);
                let rest: f64 = svd.singular_values.iter().skip(kept).map(|s| s * s).sum();
                let found = whitened_svd(&e, rows, &feedback, rank, &exact()).unwrap();
                assert_eq!(found.rank, kept);
                let total = plain_objective(&damped, &e, rows, n);
                assert!((found.total - total).abs() < 1e-5 * total);
                let left = left(&e, &found, n);
                let got = plain_objective(&damped, &left, rows, n);
                assert!(
                    (got - rest).abs() < 1e-4 * rest + 1e-9 * total,
                    "{got} {rest}"
                );
                assert!((found.total - found.kept - rest).abs() < 1e-4 * rest + 1e-5 * total);
                let size = want.norm();
                let difference: f64 = (0..rows * n)
                    .map(|at| f64::from(e[at] - left[at]) - want[(at / n, at % n)])
                    .map(|x| x * x)
                    .sum();
                assert!(
                    difference.sqrt() <= 1e-4 * size,
                    "{} {size}",
                    difference.sqrt()
                );
            }
        }
    }
}

#[test]
fn stored_factors_lose_little() {
    let (n, rows, rank) = (160, 90, 12);
    let h = second_moment(n, 500, &[8], 23);
    let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, Order::Activation).unwrap();
    let e = Random(24).matrix(rows, n);
    let ideal = whitened_svd(&e, rows, &feedback, rank, &exact()).unwrap();
    let limit = ideal.total - ideal.kept;
    let all = [
        (FactorFormat::F32, 1.0001),
        (FactorFormat::F16, 1.0001),
        (FactorFormat::Int8, 1.002),
        (FactorFormat::Int4, 1.1),
    ];
    for (format, bound) in all {
        let term = whitened_low_rank(&e, rows, &metric, &feedback, rank, format, &exact());
        let (term, told) = term.unwrap();
        assert_eq!(term.u.format(), format);
        let mut left = e.clone();
        term.subtract_from(&mut left);
        let got = damped_objective(&metric, &left, rows).unwrap();
        assert!((got - told).abs() < 1e-3 * got, "{format:?} {got} {told}");
        assert!(got < bound * limit, "{format:?} {got} {limit}");
        // Plain rounding of the same factors is no better.
        let block = term.blocks[0];
        let (u, v) = (ideal.u.clone(), ideal.v.clone());
        let plain = crate::numeric::LowRank::encode(rows, n, vec![block], u, v, format).unwrap();
        let mut left = e.clone();
        plain.subtract_from(&mut left);
        let plain = damped_objective(&metric, &left, rows).unwrap();
        assert!(got <= plain * 1.0001, "{format:?} {got} {plain}");
        assert_eq!(
            plain > 1.02 * got,
            format == FactorFormat::Int4,
            "{plain} {got}"
        );
    }
    let none = whitened_low_rank(
        &e,
        rows,
        &metric,
        &feedback,
        0,
        FactorFormat::Int8,
        &exact(),
    );
    let (none, told) = none.unwrap();
    assert_eq!((none.bytes(), none.max_rank()), (0, 0));
    assert!((told - ideal.total).abs() < 1e-9 * told);
    // One row, one column, more rank than there is.
    let h = [3.0];
    let (metric, feedback, _) = Metric::with_feedback(&h, 1, 0.01, Order::Natural).unwrap();
    for format in all.map(|(format, _)| format) {
        let term = whitened_low_rank(&[2.0], 1, &metric, &feedback, 9, format, &exact());
        assert!(term.unwrap().1 < 1e-3);
    }
}

#[test]
fn turns_never_raise_the_objective() {
    let (n, rows) = (130, 70);
    let h = second_moment(n, 300, &[], 25);
    let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, Order::Activation).unwrap();
    let w = Random(26).matrix(rows, n);
    let (scheme, group) = (Scheme::asymmetric(2), Group::Size(64));
    let run = |iterations, rank, format| {
        let options = RefineOptions {
            rank,
            format,
            svd: exact(),
            iterations,
        };
        refine(&w, rows, &metric, &feedback, &options, None, |target| {
            let mut left = target.to_vec();
            let plain = GptqOptions {
                scales: ScaleMethod::Lsq,
                ..GptqOptions::plain()
            };
            let done = gptq(&mut left, rows, &metric, &feedback, scheme, group, &plain)?;
            let decoded = done.matrix.decode();
            Ok::<_, HessianError>((done.matrix, decoded))
        })
        .unwrap()
    };
    let mut falls = 0;
    for format in [FactorFormat::F16, FactorFormat::Int4] {
        let done = run(6, 8, format);
        assert!(
            done.objectives.windows(2).all(|o| o[1] <= o[0]),
            "{:?}",
            done.objectives
        );
        falls += done.objectives.windows(2).filter(|o| o[1] < o[0]).count();
        let last = done.objectives[done.objectives.len() - 1];
        let got = damped_objective(&metric, &done.residual, rows).unwrap();
        assert!((got - last).abs() <= 1e-9 * got);
        let (quant, low_rank) = (done.code.decode(), done.low_rank.decode());
        for (i, w) in w.iter().enumerate() {
            assert!((w - quant[i] - low_rank[i] - done.residual[i]).abs() < 1e-4);
        }
        assert_eq!(run(1, 8, format).objectives.len(), 1);
    }
    assert!(falls > 2, "{falls}");
    // No low-rank term: the second turn changes nothing and is the last.
    assert_eq!(run(6, 0, FactorFormat::F16).objectives.len(), 2);
}
