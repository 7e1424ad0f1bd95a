//! Routing, sorting and combining of experts.

use crate::data::{Random, assert_close};
use crate::emulate::{Kernel, Launch};

#[test]
fn routes_match_f64() {
    for normalize in [0, 1] {
        let Some(kernel) = Kernel::compile("moe_route", &[("NORMALIZE", normalize)]) else {
            return;
        };
        let mut random = Random(40);
        for (tokens, experts, top_k, ld) in [
            (1, 8, 2, 16),
            (5, 128, 8, 128),
            (2, 3, 3, 16),
            (2, 40, 1, 48),
            (1, 1024, 10, 1024),
        ] {
            let mut logits = random.normals(tokens * ld, 2.0);
            if experts >= 8 {
                logits[5] = logits[2]; // equals: the lower index first
                logits[7] = logits[2];
            }
            let launch = Launch::new([tokens + 1, 1, 1], 32)
                .input("logits", &logits)
                .output::<i32>("ids", tokens * top_k)
                .output::<f32>("weights", tokens * top_k)
                .input("scalars", &[tokens as i32])
                .ints(&[experts, top_k, ld]);
            kernel.run_all(&launch, |outcome| {
                let ids: Vec<i32> = outcome.get("ids");
                let weights: Vec<f32> = outcome.get("weights");
                for t in 0..tokens {
                    let row: Vec<f64> = logits[t * ld..][..experts]
                        .iter()
                        .map(|&v| f64::from(v))
                        .collect();
                    let mut order: Vec<usize> = (0..experts).collect();
                    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
                    order.truncate(top_k);
                    let got: Vec<usize> = ids[t * top_k..][..top_k]
                        .iter()
                        .map(|&i| i as usize)
                        .collect();
                    assert_eq!(got, order, "token {t} of {experts} experts");
                    let total: f64 = row.iter().map(|v| v.exp()).sum();
                    let mut want: Vec<f64> = order.iter().map(|&e| row[e].exp() / total).collect();
                    if normalize == 1 {
                        let sum: f64 = want.iter().sum();
                        want.iter_mut().for_each(|w| *w /= sum);
                    }
                    assert_close(&weights[t * top_k..][..top_k], &want, 2e-6, "weights");
                }
            });
        }
    }
}

#[test]
fn slots_are_grouped_by_expert() {
    let Some(kernel) = Kernel::compile("moe_sort", &[]) else {
        return;
    };
    let mut random = Random(41);
    for (tokens, experts, top_k) in [
        (1usize, 8usize, 2usize),
        (33, 4, 1),
        (700, 128, 8),
        (40, 1100, 3),
    ] {
        let ids: Vec<i32> = (0..tokens * top_k)
            .map(|_| random.below(experts) as i32)
            .collect();
        let launch = Launch::new([1, 1, 1], 1024)
            .input("ids", &ids)
            .output::<i32>("slots", tokens * top_k)
            .output::<i32>("starts", experts + 1)
            .null()
            .ints(&[tokens, experts, top_k]);
        let mut want: Vec<i32> = (0..(tokens * top_k) as i32).collect();
        want.sort_by_key(|&s| (ids[s as usize], s));
        let starts: Vec<i32> = (0..=experts as i32)
            .map(|e| ids.iter().filter(|&&i| i < e).count() as i32)
            .collect();
        kernel.run_all(&launch, |outcome| {
            assert_eq!(outcome.get::<i32>("slots"), want);
            assert_eq!(outcome.get::<i32>("starts"), starts);
        });
    }
}

#[test]
fn experts_are_combined() {
    let Some(kernel) = Kernel::compile("moe_combine", &[]) else {
        return;
    };
    let mut random = Random(42);
    for (tokens, width, top_k, with_residual) in [(1, 300, 2, true), (3, 64, 8, false)] {
        let (ldx, ldy) = (width + 4, width + 8);
        let x = random.normals(tokens * top_k * ldx, 1.0);
        let (weights, residual) = (
            random.normals(tokens * top_k, 1.0),
            random.normals(tokens * ldy, 1.0),
        );
        let launch = Launch::new([tokens, 2, 1], 256)
            .input("x", &x)
            .input("weights", &weights);
        let launch = if with_residual {
            launch.input("residual", &residual)
        } else {
            launch.null()
        };
        let launch = launch
            .output::<f32>("y", tokens * ldy)
            .null()
            .ints(&[width, top_k, ldx, ldy, ldy]);
        kernel.run_all(&launch, |outcome| {
            let y: Vec<f32> = outcome.get("y");
            for t in 0..tokens {
                let want: Vec<f64> = (0..width)
                    .map(|k| {
                        let slot = |j: usize| {
                            f64::from(weights[t * top_k + j])
                                * f64::from(x[(t * top_k + j) * ldx + k])
                        };
                        let sum: f64 = (0..top_k).map(slot).sum();
                        sum + if with_residual {
                            f64::from(residual[t * ldy + k])
                        } else {
                            0.0
                        }
                    })
                    .collect();
                assert_close(&y[t * ldy..][..width], &want, 1e-6, "combined");
            }
        });
    }
}
