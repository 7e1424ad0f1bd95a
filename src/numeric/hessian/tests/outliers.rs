//! Entries left alone.

use super::*;
use crate::numeric::quant::{Group, ScaleMethod, Scheme};
use crate::numeric::sparse::{Sparse, select_by_magnitude};

#[test]
fn leave_one_out_is_the_diagonal_of_the_inverse() {
    let n = 90;
    let h = second_moment(n, 150, &[4], 31);
    for order in [Order::Natural, Order::Activation] {
        let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, order).unwrap();
        let damped = damped(&h, n, &metric);
        let wide = nalgebra::DMatrix::from_fn(n, n, |i, j| f64::from(damped[i * n + j]));
        let inverse = wide.try_inverse().unwrap();
        for (j, got) in feedback.leave_one_out().into_iter().enumerate() {
            let want = 1.0 / inverse[(j, j)];
            assert!((got - want).abs() < 1e-4 * want, "{j} {got} {want}");
        }
    }
}

#[test]
fn planted_entries_are_found_and_pay() {
    let (n, rows) = (128, 40);
    let h = second_moment(n, 500, &[], 32);
    let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, Order::Activation).unwrap();
    let weights = feedback.leave_one_out();
    let mut random = Random(33);
    let mut w = random.matrix(rows, n);
    let mut planted: Vec<usize> = (0..20).map(|i| i * 251 + 3).collect();
    planted.iter().for_each(|&at| w[at] = 30.0);
    planted.sort_unstable();
    let scheme = Scheme::asymmetric(3);
    let group = Group::Size(64);
    let density = 20.0 / (rows * n) as f64;
    for method in [ScaleMethod::AbsMax, ScaleMethod::Lsq] {
        let found = outliers(&w, rows, &weights, density, scheme, group, method).unwrap();
        assert_eq!(found, planted);
    }
    // Heavy tails: better than the largest by magnitude.
    w.iter_mut()
        .for_each(|x| *x = if x.abs() < 10.0 { *x * x.abs() } else { 1.0 });
    let left = |support: &[usize]| {
        let mut e = w.clone();
        Sparse::take(&mut e, rows, n, support).unwrap();
        let options = GptqOptions::plain();
        gptq(&mut e, rows, &metric, &feedback, scheme, group, &options).unwrap();
        objective(&metric, &e, rows).unwrap()
    };
    let found = outliers(&w, rows, &weights, 0.02, scheme, group, ScaleMethod::AbsMax).unwrap();
    assert!(found.windows(2).all(|f| f[0] < f[1]));
    assert_eq!(found.len(), (0.02 * (rows * n) as f64).round() as usize);
    let largest = select_by_magnitude(&w, 0.02).unwrap();
    let (found, largest, none) = (left(&found), left(&largest), left(&[]));
    assert!(
        found < largest && largest < none,
        "{found} {largest} {none}"
    );
}

#[test]
fn nothing_to_save_and_what_is_refused() {
    let weights = [1.0, 2.0, 0.5];
    let (scheme, group) = (Scheme::symmetric(4), Group::Size(32));
    let run = |w: &[f32], density, group| {
        outliers(w, 1, &weights, density, scheme, group, ScaleMethod::AbsMax)
    };
    assert!(run(&[0.0; 3], 1.0, group).unwrap().is_empty());
    assert!(run(&[1.0, 2.0, 3.0], 0.0, group).unwrap().is_empty());
    assert!(run(&[1.0, 2.1, 3.7], 1.0, Group::Row).unwrap().len() <= 3);
    assert!(matches!(
        run(&[0.0; 2], 0.1, group),
        Err(HessianError::Shape(_))
    ));
    assert!(matches!(
        run(&[0.0; 3], 1.1, group),
        Err(HessianError::Sparse(_))
    ));
    let nan = [0.0, f32::NAN, 0.0];
    assert!(matches!(
        run(&nan, 0.5, group),
        Err(HessianError::Sparse(_))
    ));
    assert_eq!(
        run(&[0.0; 3], 0.5, Group::Column),
        Err(HessianError::ColumnGroups)
    );
    // A group above the range of scales: what is too large goes first.
    let found = run(&[1e30, 1.0, 2.0], 0.34, group).unwrap();
    assert_eq!(found, [0]);
}
