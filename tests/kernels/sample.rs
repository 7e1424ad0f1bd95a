//! Sampling against a plain sort in f64, and its distribution.

use crate::data::Random;
use crate::emulate::{Kernel, Launch, Schedule};

/// The token that the rules give (`kernels/sample.cu`), and whether it is clear of rounding.
fn want(logits: &[f32], temperature: f32, top_p: f32, top_k: usize, u: f32) -> (usize, bool) {
    let rows = logits.len();
    let mut order: Vec<usize> = (0..rows).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let largest = f64::from(logits[order[0]]);
    if temperature == 0.0 {
        return (order[0], true);
    }
    let weight = |i: usize| ((f64::from(logits[i]) - largest) / f64::from(temperature)).exp();
    let mut clear = true;
    let cut = (top_k > 0 && top_k < rows) || top_p < 1.0;
    if top_k > 0 {
        order.truncate(top_k);
    }
    if top_p < 1.0 {
        let total: f64 = order.iter().map(|&i| weight(i)).sum();
        let (enough, mut sum, mut kept) = (f64::from(top_p) * total, 0.0, 0);
        while kept < order.len() && (kept == 0 || sum < enough) {
            clear &= kept == 0 || (sum - enough).abs() > 1e-5 * total;
            sum += weight(order[kept]);
            kept += 1;
        }
        order.truncate(kept);
    }
    if !cut {
        order.sort_unstable();
    }
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    let (target, mut sum) = (f64::from(u) * total, 0.0);
    for &i in &order {
        let w = weight(i);
        if target < sum + w {
            clear &= target - sum > 1e-5 * total || sum == 0.0;
            return (i, clear && sum + w - target > 1e-5 * total);
        }
        sum += w;
    }
    (order[order.len() - 1], false)
}

/// One launch of `params.len()` tokens.
fn run(
    kernel: &Kernel,
    logits: &[f32],
    rows: usize,
    params: &[(f32, f32, f32, usize)],
    schedule: Schedule,
) -> Vec<i32> {
    let flat: Vec<f32> = params.iter().flat_map(|p| [p.0, p.1, p.2]).collect();
    let top_k: Vec<i32> = params.iter().map(|p| p.3 as i32).collect();
    let launch = Launch::new([params.len(), 1, 1], 1024)
        .input("logits", logits)
        .output::<i32>("token", params.len())
        .input("params", &flat)
        .input("top_k", &top_k)
        .ints(&[rows, logits.len() / params.len()]);
    kernel
        .run(&launch, schedule)
        .unwrap_or_else(|e| panic!("{e}"))
        .get("token")
}

#[test]
fn tokens_are_those_of_a_sort() {
    let Some(kernel) = Kernel::compile("sample", &[]) else {
        return;
    };
    let mut random = Random(50);
    let mut unclear = 0;
    for (rows, ld) in [(1, 1), (37, 48), (1000, 1008), (4099, 4112)] {
        let settings = [
            (0.0, 1.0, 0),
            (1.0, 1.0, 0),
            (0.7, 1.0, 5),
            (1.5, 0.9, 0),
            (1.0, 0.5, 40),
            (0.3, 0.99, 900),
            (1.0, 1e-6, 0),
            (2.0, 1.0, 1),
        ];
        let params: Vec<_> = settings
            .iter()
            .map(|&(t, p, k)| (t, p, random.unit() as f32, k))
            .collect();
        let mut logits = random.normals(params.len() * ld, 3.0);
        for logit in &mut logits {
            match random.below(8) {
                0 => *logit = f32::NEG_INFINITY,
                1 | 2 => *logit = (*logit * 2.0).round() / 2.0, // many equals
                _ => {}
            }
        }
        (0..params.len()).for_each(|t| logits[t * ld] = 1.0); // at least one above -inf
        for schedule in [Schedule::Forward, Schedule::Random(3)] {
            let tokens = run(&kernel, &logits, rows, &params, schedule);
            for (t, (token, &(temperature, top_p, u, top_k))) in
                tokens.iter().zip(&params).enumerate()
            {
                let (want, clear) = want(&logits[t * ld..][..rows], temperature, top_p, top_k, u);
                unclear += usize::from(!clear);
                assert!(
                    !clear || *token == want as i32,
                    "{rows} rows, {:?}: {token}, not {want}",
                    params[t]
                );
            }
        }
    }
    assert!(unclear <= 6, "{unclear} of 64 cases tell nothing");
}

#[test]
fn what_is_no_number_is_told() {
    let Some(kernel) = Kernel::compile("sample", &[]) else {
        return;
    };
    let rows = 40;
    let mut logits = vec![0.5f32; 4 * rows];
    logits[7] = f32::NAN;
    logits[rows + 9] = f32::INFINITY;
    logits[2 * rows..3 * rows].fill(f32::NEG_INFINITY);
    let params = [
        (0.0, 1.0, 0.5, 0),
        (1.0, 1.0, 0.5, 0),
        (1.0, 0.9, 0.5, 3),
        (0.0, 1.0, 0.5, 0),
    ];
    assert_eq!(
        run(&kernel, &logits, rows, &params, Schedule::Reverse),
        [-1, -1, -1, 0]
    );
}

#[test]
fn shares_are_those_of_the_weights() {
    let Some(kernel) = Kernel::compile("sample", &[]) else {
        return;
    };
    // Weights 1, 2, 3, 4 at temperature 1; u sweeps.
    let logits = [1f32.ln(), 2f32.ln(), 3f32.ln(), 4f32.ln()];
    let params: Vec<_> = (0..50)
        .map(|i| (1.0, 1.0, (i as f32 + 0.5) / 50.0, 0))
        .collect();
    let all: Vec<f32> = params.iter().flat_map(|_| logits).collect();
    let tokens = run(&kernel, &all, 4, &params, Schedule::Forward);
    let count = |id: i32| tokens.iter().filter(|&&t| t == id).count();
    assert_eq!([count(0), count(1), count(2), count(3)], [5, 10, 15, 20]);
}
