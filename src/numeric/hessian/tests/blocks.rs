//! Block feedback and the spread of bits.

use super::*;

/// Rounds to a multiple of 0.5.
fn coarse(target: &[f32], out: &mut [f32]) {
    for (o, t) in out.iter_mut().zip(target) {
        *o = (t * 2.0).round() / 2.0;
    }
}

#[test]
fn factors_multiply_to_the_metric() {
    let n = 83;
    let h = second_moment(n, 200, &[5], 3);
    for order in [Order::Natural, Order::Activation] {
        let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, order).unwrap();
        let want = damped(&h, n, &metric);
        let (l, d) = (feedback.lower(), feedback.variances());
        for i in 0..n {
            for j in 0..n {
                let got: f64 = (0..=i.min(j))
                    .map(|k| f64::from(l[i * n + k]) * d[k] * f64::from(l[j * n + k]))
                    .sum();
                let (a, b) = (feedback.inputs()[i] as usize, feedback.inputs()[j] as usize);
                let size = (want[a * n + a] * want[b * n + b]).sqrt();
                assert!((got - f64::from(want[a * n + b])).abs() < 1e-5 * f64::from(size));
            }
        }
    }
    // The block factors of the same.
    let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, Order::Natural).unwrap();
    let want = damped(&h, n, &metric);
    let blocks = feedback.blocks(16);
    assert_eq!(blocks.count(), 6);
    let l = |i: usize, k: usize| f64::from(blocks.lower()[i * n + k]) + f64::from(u8::from(i == k));
    let d = |i: usize, k: usize| {
        let (b, w) = (i / 16, 16.min(n - i / 16 * 16));
        let same = b == k / 16;
        if same {
            blocks.variance(b)[i % 16 * w + k % 16]
        } else {
            0.0
        }
    };
    for i in 0..n {
        for j in 0..=i {
            let got: f64 = (0..n)
                .flat_map(|k| (k / 16 * 16..(k / 16 * 16 + 16).min(n)).map(move |m| (k, m)))
                .map(|(k, m)| l(i, k) * d(k, m) * l(j, m))
                .sum();
            let size = f64::from((want[i * n + i] * want[j * n + j]).sqrt());
            assert!(
                (got - f64::from(want[i * n + j])).abs() < 1e-5 * size,
                "{i} {j}"
            );
        }
    }
}

#[test]
fn ldlq_returns_the_damped_objective_and_beats_rounding() {
    for (n, rows, width) in [
        (1, 1, 16),
        (16, 3, 16),
        (83, 20, 16),
        (300, 37, 16),
        (300, 5, 200),
    ] {
        for order in [Order::Natural, Order::Activation] {
            let h = second_moment(n, 2 * n + 8, &[0], 4);
            let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, order).unwrap();
            let blocks = feedback.blocks(width);
            let w = Random(6).matrix(rows, n);
            let mut e = w.clone();
            let mut seen = Vec::new();
            let total = ldlq(&mut e, rows, &blocks, |block, target, out| {
                seen.push(block);
                assert_eq!(target.len(), rows * width.min(n - block * width));
                coarse(target, out);
                Ok::<(), HessianError>(())
            })
            .unwrap();
            assert!(seen.iter().rev().copied().eq(0..n.div_ceil(width)));
            // The reconstruction is on the grid.
            for (e, w) in e.iter().zip(&w) {
                assert!(((w - e) * 2.0 - ((w - e) * 2.0).round()).abs() < 1e-4);
            }
            let want = plain_objective(&damped(&h, n, &metric), &e, rows, n);
            assert!((total - want).abs() <= 2e-4 * want, "{n} {total} {want}");
            let mut plain = vec![0.0; w.len()];
            coarse(&w, &mut plain);
            plain.iter_mut().zip(&w).for_each(|(q, w)| *q = w - *q);
            if width == 16 && rows > 10 {
                let plain = objective(&metric, &plain, rows).unwrap();
                let got = objective(&metric, &e, rows).unwrap();
                assert!(got < 0.8 * plain, "{got} {plain}");
            }
        }
    }
}

#[test]
fn bits_are_spread_exactly() {
    let errors = [0.27, 0.0728, 0.0192, 0.0051];
    let all = |energies: &[f64], errors: &[f64], sum: usize| {
        let (k, mut best) = (errors.len(), f64::INFINITY);
        for code in 0..k.pow(energies.len() as u32) {
            let (mut rest, mut bits, mut cost) = (code, 0, 0.0);
            for e in energies {
                bits += rest % k;
                cost += e * errors[rest % k];
                rest /= k;
            }
            if bits == sum {
                best = best.min(cost);
            }
        }
        best
    };
    let mut random = Random(8);
    for errors in [&errors[..], &[1.0, 0.9, 0.1, 0.05]] {
        for _ in 0..20 {
            let energies: Vec<f64> = (0..5)
                .map(|_| f64::from(random.normal() * 2.0).exp())
                .collect();
            for sum in 0..=15 {
                let mean = 1.0 + sum as f64 / 5.0;
                let bits = water_fill(&energies, mean, 1, errors).unwrap();
                assert_eq!(bits.iter().map(|b| usize::from(*b) - 1).sum::<usize>(), sum);
                let cost: f64 = bits
                    .iter()
                    .zip(&energies)
                    .map(|(b, e)| e * errors[usize::from(*b) - 1])
                    .sum();
                let want = all(&energies, errors, sum);
                assert!((cost - want).abs() <= 1e-12 * want, "{cost} {want}");
            }
        }
    }
    assert_eq!(
        water_fill(&[1.0, 1.0, 1.0], 1.4, 1, &errors).unwrap(),
        [2, 1, 1]
    );
    assert!(matches!(
        water_fill(&[1.0], 0.4, 1, &errors),
        Err(WaterError::Mean { .. })
    ));
    assert!(matches!(
        water_fill(&[1.0], 9.0, 1, &errors),
        Err(WaterError::Mean { .. })
    ));
    assert!(matches!(
        water_fill(&[f64::NAN], 2.0, 1, &errors),
        Err(WaterError::Value { .. })
    ));
    assert!(water_fill(&[], 2.0, 1, &errors).unwrap().is_empty());
}
