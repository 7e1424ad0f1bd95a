//! Conditioning and objectives.

use super::*;

#[test]
fn objectives_are_what_they_say() {
    for (n, rows) in [(1, 1), (7, 3), (300, 5), (270, 600)] {
        let h = second_moment(n, if n > 100 { 40 } else { 2 * n + 3 }, &[], n as u64);
        let (metric, conditioning) = Metric::new(&h, n, 0.01).unwrap();
        assert_eq!(conditioning.damp_used, 0.01);
        assert_eq!((conditioning.dead, conditioning.tries), (0, 1));
        let e = Random(5).matrix(rows, n);
        let by_row = row_objectives(&metric, &e, rows).unwrap();
        for (r, got) in by_row.iter().enumerate().take(7) {
            let want = plain_objective(&h, &e[r * n..][..n], 1, n);
            assert!((got - want).abs() <= 1e-9 * want, "{got} {want}");
        }
        let sum = objective(&metric, &e, rows).unwrap();
        assert!((sum - by_row.iter().sum::<f64>()).abs() <= 1e-12 * sum);
        let half: Vec<f32> = e.iter().map(|x| x / 2.0).collect();
        let relative = relative_objective(&metric, &half, &e, rows).unwrap();
        assert!((relative - 0.25).abs() < 1e-9);
    }
}

#[test]
fn dead_channels_are_counted_and_isolated() {
    let n = 40;
    let h = second_moment(n, 200, &[3, 17], 1);
    let (metric, conditioning) = Metric::new(&h, n, 0.02).unwrap();
    assert_eq!(conditioning.dead, 2);
    let diagonal = metric.diagonal();
    let mean = diagonal.iter().sum::<f64>() / n as f64;
    assert!((diagonal[3] - mean).abs() < 1e-9 * mean);
    assert!((metric.shift() - mean / 1.02 * 0.02).abs() < 1e-9 * mean);
    // Nothing alive: plain rounding.
    let nothing = vec![0.0; n * n];
    let (metric, conditioning) = Metric::new(&nothing, n, 0.01).unwrap();
    assert_eq!(conditioning.dead, n);
    assert_eq!(metric.diagonal(), vec![1.01; n]);
    let e = vec![1.0; n];
    assert_eq!(objective(&metric, &e, 1).unwrap(), 0.0);
    assert_eq!(relative_objective(&metric, &e, &e, 1).unwrap(), 0.0);
}

#[test]
fn damping_rises_until_the_factorization_succeeds() {
    // Rank 3 of 32, no damping.
    let n = 32;
    let h = second_moment(n, 3, &[], 2);
    let (_, conditioning) = Metric::new(&h, n, 0.0).unwrap();
    assert!(conditioning.tries > 1 && conditioning.damp_used > 0.0);
    assert!(conditioning.damp_used < 1e-2, "{conditioning:?}");
    // Not positive semidefinite: a correlation above 1.
    let h = [1.0, 1.5, 1.5, 1.0];
    let (_, conditioning) = Metric::new(&h, 2, 0.01).unwrap();
    assert!(
        (conditioning.damp_used - 1.0).abs() < 1e-12,
        "{conditioning:?}"
    );
    let h = [1.0, 99.0, 99.0, 1.0];
    let error = Metric::new(&h, 2, 0.01).unwrap_err();
    assert_eq!(error, HessianError::NotPositive { damp: 10.0 });
}

#[test]
fn what_is_no_second_moment_is_refused() {
    let refused = |h: &[f32], n, damp| Metric::new(h, n, damp).map(|_| ()).unwrap_err();
    assert!(matches!(
        refused(&[1.0; 3], 2, 0.01),
        HessianError::Shape(_)
    ));
    assert!(matches!(
        refused(&[1.0], 1, -0.1),
        HessianError::Damping { .. }
    ));
    assert!(matches!(
        refused(&[1.0], 1, f64::NAN),
        HessianError::Damping { .. }
    ));
    let nan = [1.0, f32::NAN, 0.0, 1.0];
    assert!(matches!(
        refused(&nan, 2, 0.01),
        HessianError::NotFinite { row: 0, col: 1, .. }
    ));
    assert!(matches!(
        refused(&[-1.0], 1, 0.01),
        HessianError::Negative { index: 0, .. }
    ));
    let (metric, _) = Metric::new(&[1.0], 1, 0.01).unwrap();
    assert!(matches!(
        objective(&metric, &[1.0; 3], 2),
        Err(HessianError::Shape(_))
    ));
    assert!(Metric::new(&[], 0, 0.01).is_ok());
}
