//! Integer codes with feedback.

use super::*;
use crate::numeric::quant::{Group, QuantMatrix, ScaleMethod, Scheme, quantize};

const SCHEMES: [(u8, bool); 8] = [
    (8, true),
    (8, false),
    (4, true),
    (4, false),
    (3, true),
    (3, false),
    (2, true),
    (2, false),
];

fn schemes() -> impl Iterator<Item = Scheme> {
    SCHEMES
        .map(|(bits, symmetric)| Scheme { bits, symmetric })
        .into_iter()
}

fn options(scales: ScaleMethod, rounds: usize) -> GptqOptions {
    GptqOptions {
        scales,
        sweeps: if rounds > 0 { 2 } else { 1 },
        rounds,
        tolerance: 0.0,
    }
}

/// GPTQ as published: the upper Cholesky factor of the damped inverse, columns
/// in the order of the feedback, scales as given. Returns what it decodes to.
fn reference(w: &[f32], rows: usize, h: &[f32], order: &[usize], q: &QuantMatrix) -> Vec<f64> {
    let n = order.len();
    let damped = nalgebra::DMatrix::from_fn(n, n, |i, j| f64::from(h[order[i] * n + order[j]]));
    let inverse = damped.cholesky().unwrap().inverse();
    let upper = inverse.cholesky().unwrap().l().transpose();
    let mut out = vec![0.0; rows * n];
    let max = f64::from(q.scheme.max_code());
    let min = if q.scheme == Scheme::symmetric(8) {
        1.0
    } else {
        0.0
    };
    for r in 0..rows {
        let mut row: Vec<f64> = order.iter().map(|&i| f64::from(w[r * n + i])).collect();
        for j in 0..n {
            let scale = f64::from(q.scales[q.scale_index(r, order[j])].to_f32());
            let zero = f64::from(q.zero(r, order[j]));
            let code = (row[j] / scale + zero).round_ties_even().clamp(min, max);
            let value = (code - zero) * scale;
            out[r * n + order[j]] = value;
            let error = (row[j] - value) / upper[(j, j)];
            for k in j..n {
                row[k] -= error * upper[(j, k)];
            }
        }
    }
    out
}

#[test]
fn feedback_equals_gptq_through_the_inverse() {
    let (n, rows) = (150, 21);
    let h = second_moment(n, 400, &[7], 9);
    let w = Random(10).matrix(rows, n);
    for order in [Order::Natural, Order::Activation] {
        let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, order).unwrap();
        let damped = damped(&h, n, &metric);
        let positions: Vec<usize> = feedback
            .inputs()
            .iter()
            .rev()
            .map(|&i| i as usize)
            .collect();
        for scheme in schemes() {
            for group in [Group::Size(32), Group::Size(64), Group::Row] {
                let mut e = w.clone();
                let plain = GptqOptions::plain();
                let done = gptq(&mut e, rows, &metric, &feedback, scheme, group, &plain).unwrap();
                let want = reference(&w, rows, &damped, &positions, &done.matrix);
                let want: Vec<f32> = want.iter().zip(&w).map(|(q, w)| w - *q as f32).collect();
                let (got, want) = (
                    objective(&metric, &e, rows).unwrap(),
                    objective(&metric, &want, rows).unwrap(),
                );
                assert!(
                    (got - want).abs() < 1e-3 * want,
                    "{scheme:?} {group} {got} {want}"
                );
            }
        }
    }
}

#[test]
fn rounds_never_raise_the_objective_and_it_is_what_is_left() {
    for (n, rows, tokens, dead) in [
        (1, 1, 5, &[][..]),
        (1, 20, 5, &[0]),
        (37, 5, 100, &[]),
        (150, 33, 20, &[3, 4]),
        (260, 17, 600, &[]),
        (33, 1050, 90, &[]),
    ] {
        let h = second_moment(n, tokens, dead, 11);
        let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, Order::Activation).unwrap();
        let damped = damped(&h, n, &metric);
        let w = Random(12).matrix(rows, n);
        for scheme in schemes() {
            for group in [Group::Size(32), Group::Size(128), Group::Row] {
                let mut plain = w.clone();
                quantize(&mut plain, rows, n, scheme, group, ScaleMethod::AbsMax).unwrap();
                let plain = plain_objective(&damped, &plain, rows, n);
                let whole = plain_objective(&damped, &w, rows, n);
                for scales in [ScaleMethod::AbsMax, ScaleMethod::Lsq] {
                    let mut e = w.clone();
                    let all = options(scales, 3);
                    let done = gptq(&mut e, rows, &metric, &feedback, scheme, group, &all).unwrap();
                    assert!(
                        done.trace.windows(2).all(|t| t[1] <= t[0]),
                        "{:?}",
                        done.trace
                    );
                    let decoded = done.matrix.decode();
                    for ((e, w), q) in e.iter().zip(&w).zip(&decoded) {
                        assert_eq!(*e, w - q);
                    }
                    let got = plain_objective(&damped, &e, rows, n);
                    let told = done.trace[done.trace.len() - 1];
                    assert!(
                        (got - told).abs() <= 2e-3 * got + 1e-7 * whole,
                        "{scheme:?} {group} {got} {told}"
                    );
                    assert!(
                        got <= plain * 1.001 + 1e-7 * whole,
                        "{scheme:?} {group} {got} {plain}"
                    );
                    // Same again, same bytes.
                    let mut again = w.clone();
                    let same = gptq(&mut again, rows, &metric, &feedback, scheme, group, &all);
                    assert_eq!(same.unwrap(), done);
                }
            }
        }
    }
}

#[test]
fn fitted_scales_and_codes_pay() {
    let (n, rows) = (256, 48);
    let h = second_moment(n, 900, &[], 13);
    let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, Order::Activation).unwrap();
    let w = Random(14).matrix(rows, n);
    for scheme in [
        Scheme::asymmetric(4),
        Scheme::symmetric(3),
        Scheme::asymmetric(2),
    ] {
        let run = |scales, rounds| {
            let mut e = w.clone();
            let options = options(scales, rounds);
            gptq(
                &mut e,
                rows,
                &metric,
                &feedback,
                scheme,
                Group::Size(64),
                &options,
            )
            .unwrap();
            objective(&metric, &e, rows).unwrap()
        };
        let (plain, fitted) = (run(ScaleMethod::AbsMax, 0), run(ScaleMethod::Lsq, 3));
        assert!(fitted < 0.9 * plain, "{scheme:?} {plain} {fitted}");
    }
}

#[test]
fn refusals() {
    let (metric, feedback, _) =
        Metric::with_feedback(&[2.0, 0.5, 0.5, 1.0], 2, 0.01, Order::Natural).unwrap();
    let scheme = Scheme::symmetric(4);
    let run = |w: &mut [f32], rows, scheme, group| {
        let options = GptqOptions::default();
        gptq(w, rows, &metric, &feedback, scheme, group, &options).unwrap_err()
    };
    let mut w = [1.0, f32::NAN, 0.0, 2.0];
    assert_eq!(
        run(&mut w, 2, scheme, Group::Column),
        HessianError::ColumnGroups
    );
    assert!(matches!(
        run(&mut w, 2, Scheme::symmetric(5), Group::Row),
        HessianError::Quant(_)
    ));
    assert!(matches!(
        run(&mut w, 2, scheme, Group::Size(0)),
        HessianError::Quant(_)
    ));
    assert!(matches!(
        run(&mut w, 3, scheme, Group::Row),
        HessianError::Shape(_)
    ));
    let found = run(&mut w, 2, scheme, Group::Size(32)).to_string();
    assert!(found.contains("[0, 1] is NaN"), "{found}");
    let found = run(&mut [1e30, 0.0], 1, scheme, Group::Row).to_string();
    assert!(found.contains("above the largest f16"), "{found}");
    let other = Metric::with_feedback(&[1.0], 1, 0.01, Order::Natural)
        .unwrap()
        .1;
    let mut w = [1.0, 2.0];
    let options = GptqOptions::default();
    let error = gptq(&mut w, 1, &metric, &other, scheme, Group::Row, &options).unwrap_err();
    assert_eq!(error, HessianError::Width { cols: 1, n: 2 });
    assert!(gptq(&mut [], 0, &metric, &feedback, scheme, Group::Row, &options).is_ok());
}
