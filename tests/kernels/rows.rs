//! Kernels on rows: quantize, normalize, elementwise, hadamard, embed.

use crate::data::{Random, assert_close, f16_bits, from_f16};
use crate::emulate::{Kernel, Launch, Outcome};

/// Codes, scales and sums of a row, as the executor rounds them; in plain order.
fn q8(x: &[f32]) -> (Vec<i8>, Vec<f32>, Vec<i32>) {
    let padded = x.len().next_multiple_of(64);
    let mut codes = vec![0i8; padded];
    let (mut scales, mut sums) = (vec![0f32; padded / 32], vec![0i32; padded / 32]);
    for (b, block) in x.chunks(32).enumerate() {
        let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
        if largest < 1e-30 {
            continue;
        }
        let inverse = 127.0 / largest;
        for (q, v) in codes[32 * b..].iter_mut().zip(block) {
            *q = (v * inverse).round_ties_even() as i8;
        }
        scales[b] = largest / 127.0;
        sums[b] = codes[32 * b..][..32].iter().map(|&q| i32::from(q)).sum();
    }
    (codes, scales, sums)
}

/// Plain order from that of lanes.
fn plain(codes: &[i8]) -> Vec<i8> {
    let mut out = vec![0; codes.len()];
    for (k, q) in out.iter_mut().enumerate() {
        let (base, w) = (k / 64 * 64, k % 64);
        *q = codes[base + (w % 16 / 4) * 16 + (w / 16) * 4 + w % 4];
    }
    out
}

fn check_q8(outcome: &Outcome, rows: &[Vec<f32>]) {
    let width = rows[0].len();
    let padded = width.next_multiple_of(64);
    let codes: Vec<i8> = outcome.get("yq");
    let scales: Vec<f32> = outcome.get("ys");
    let sums: Vec<i32> = outcome.get("ysum");
    for (t, row) in rows.iter().enumerate() {
        let (q, s, n) = q8(row);
        assert_eq!(plain(&codes[t * padded..][..padded]), q, "codes of {t}");
        assert_eq!(scales[t * padded / 32..][..padded / 32], s, "scales of {t}");
        assert_eq!(sums[t * padded / 32..][..padded / 32], n, "sums of {t}");
    }
}

#[test]
fn quantize_rounds_as_the_executor_does() {
    let mut random = Random(1);
    let Some(q8) = Kernel::compile("quantize", &[("OUT", 2)]) else {
        return;
    };
    let Some(f16) = Kernel::compile("quantize", &[("OUT", 1)]) else {
        return;
    };
    for (tokens, width, ldx, scaled) in [
        (1usize, 64usize, 64usize, false),
        (3, 100, 104, true),
        (2, 1, 16, false),
        (5, 576, 576, true),
        (1, 2049, 2064, false),
    ] {
        let mut x = random.normals(tokens * ldx, 2.0);
        x[0] = 0.0;
        x[..32.min(width)].fill(0.0); // a block of nothing
        let xscale = random.normals(width, 1.0);
        let rows: Vec<Vec<f32>> = (0..tokens)
            .map(|t| {
                (0..width)
                    .map(|k| x[t * ldx + k] * if scaled { xscale[k] } else { 1.0 })
                    .collect()
            })
            .collect();
        let padded = width.next_multiple_of(64);
        let arguments = |launch: Launch| {
            let launch = launch.input("x", &x);
            if scaled {
                launch.input("xscale", &xscale)
            } else {
                launch.null()
            }
        };
        let launch = arguments(Launch::new([tokens, 1, 1], 256))
            .null()
            .output::<i8>("yq", tokens * padded);
        let launch = launch
            .output::<f32>("ys", tokens * padded / 32)
            .output::<i32>("ysum", tokens * padded / 32);
        let launch = launch.null().ints(&[width, ldx, 0]);
        q8.run_all(&launch, |outcome| check_q8(outcome, &rows));
        // A token beyond the device's count is left alone.
        let launch = arguments(Launch::new([tokens + 1, 1, 1], 256))
            .output::<u16>("y16", tokens * padded)
            .nulls(3);
        let launch = launch
            .input("scalars", &[tokens as i32, 0, 0])
            .ints(&[width, ldx, padded]);
        f16.run_all(&launch, |outcome| {
            let y: Vec<u16> = outcome.get("y16");
            for (t, row) in rows.iter().enumerate() {
                assert_eq!(y[t * padded..][..width], f16_bits(row), "token {t}");
                assert!(
                    y[t * padded + width..(t + 1) * padded]
                        .iter()
                        .all(|&v| v == 0)
                );
            }
        });
    }
}

fn normal(
    x: &[f32],
    gain: Option<&[f32]>,
    beta: Option<&[f32]>,
    layer: bool,
    eps: f32,
) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = if layer {
        x.iter().map(|&v| f64::from(v)).sum::<f64>() / n
    } else {
        0.0
    };
    let var = x
        .iter()
        .map(|&v| (f64::from(v) - mean).powi(2))
        .sum::<f64>()
        / n;
    let factor = 1.0 / (var + f64::from(eps)).sqrt();
    x.iter()
        .enumerate()
        .map(|(k, &v)| {
            let y = (f64::from(v) - mean) * factor * gain.map_or(1.0, |g| f64::from(g[k]));
            y + beta.filter(|_| layer).map_or(0.0, |b| f64::from(b[k]))
        })
        .collect()
}

#[test]
fn normalize_matches_f64() {
    let mut random = Random(2);
    for (kind, residual, out) in [
        (0, 0, 0),
        (0, 1, 0),
        (1, 0, 0),
        (0, 0, 1),
        (1, 0, 2),
        (0, 0, 2),
    ] {
        let defines = [("KIND", kind), ("RESIDUAL", residual), ("OUT", out)];
        let Some(kernel) = Kernel::compile("normalize", &defines) else {
            return;
        };
        for (tokens, width, with_gain) in [
            (1usize, 64usize, true),
            (4, 8, true),
            (2, 300, false),
            (1, 1500, true),
        ] {
            let ld = width.next_multiple_of(16);
            let mut x = random.normals(tokens * ld, 3.0);
            x.iter_mut().for_each(|v| *v += 1.0);
            let (gain, beta) = (random.normals(width, 1.0), random.normals(width, 1.0));
            let other = random.normals(tokens * ld, 1.0);
            let padded = width.next_multiple_of(64);
            let launch = Launch::new([tokens, 1, 1], 256).input("x", &x);
            let launch = if with_gain {
                launch.input("gain", &gain).input("beta", &beta)
            } else {
                launch.nulls(2)
            };
            let launch = if residual == 1 {
                launch.input("residual", &other)
            } else {
                launch.null()
            };
            let launch = match out {
                0 => launch.output::<f32>("y", tokens * ld).nulls(4),
                1 => launch.null().output::<u16>("y16", tokens * padded).nulls(3),
                _ => launch
                    .nulls(2)
                    .output::<i8>("yq", tokens * padded)
                    .output::<f32>("ys", tokens * padded / 32)
                    .output::<i32>("ysum", tokens * padded / 32),
            };
            let ldy = if out == 1 { padded } else { ld };
            let launch = launch.null().ints(&[width, ld, ldy]).floats(&[1e-5]);
            let gain = with_gain.then_some(&gain[..]);
            let beta = with_gain.then_some(&beta[..]);
            let mut first: Option<Vec<u8>> = None;
            kernel.run_all(&launch, |outcome| {
                for t in 0..tokens {
                    let mut want = normal(&x[t * ld..][..width], gain, beta, kind == 1, 1e-5);
                    if residual == 1 {
                        want.iter_mut()
                            .zip(&other[t * ld..])
                            .for_each(|(w, &r)| *w += f64::from(r));
                    }
                    match out {
                        0 => assert_close(
                            &outcome.get::<f32>("y")[t * ld..][..width],
                            &want,
                            3e-6,
                            "norm",
                        ),
                        1 => {
                            let y = outcome.get::<u16>("y16");
                            let got: Vec<f32> = y[t * padded..][..width]
                                .iter()
                                .map(|&b| from_f16(b) as f32)
                                .collect();
                            assert_close(&got, &want, 6e-4, "norm to f16");
                            assert!(
                                y[t * padded + width..(t + 1) * padded]
                                    .iter()
                                    .all(|&v| v == 0)
                            );
                        }
                        _ => {
                            let codes = plain(&outcome.get::<i8>("yq")[t * padded..][..padded]);
                            let scales =
                                &outcome.get::<f32>("ys")[t * padded / 32..][..padded / 32];
                            let got: Vec<f32> = (0..width)
                                .map(|k| f32::from(codes[k]) * scales[k / 32])
                                .collect();
                            assert_close(&got, &want, 5e-3, "norm to 8 bits");
                            assert!(codes[width..].iter().all(|&q| q == 0));
                            let sums =
                                &outcome.get::<i32>("ysum")[t * padded / 32..][..padded / 32];
                            for (b, sum) in sums.iter().enumerate() {
                                assert_eq!(
                                    *sum,
                                    codes[32 * b..][..32]
                                        .iter()
                                        .map(|&q| i32::from(q))
                                        .sum::<i32>()
                                );
                            }
                        }
                    }
                }
                let bytes = outcome.get::<u8>(["y", "y16", "yq"][out]);
                assert_eq!(
                    *first.get_or_insert_with(|| bytes.clone()),
                    bytes,
                    "schedules differ"
                );
            });
        }
    }
}

fn activate(kind: usize, x: f64) -> f64 {
    match kind {
        1 => x / (1.0 + (-x).exp()),
        2 => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        3 => {
            0.5 * x
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        4 => x.max(0.0),
        5 => x.tanh(),
        _ => x,
    }
}

/// By its series and continued fraction.
fn erf(x: f64) -> f64 {
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let mut fraction = 0.0;
    for n in (1..60).rev() {
        fraction = f64::from(n) / 2.0 / (x.abs() + fraction);
    }
    let tail = (-x * x).exp() / (x.abs() + fraction) / std::f64::consts::PI.sqrt();
    if x > 0.0 { 1.0 - tail } else { tail - 1.0 }
}

#[test]
fn elementwise_matches_f64() {
    let mut random = Random(3);
    let cases = [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 1),
        (4, 2),
        (4, 3),
        (4, 4),
        (4, 5),
        (5, 1),
        (5, 3),
        (6, 0),
        (7, 0),
    ];
    for (op, kind) in cases {
        let Some(kernel) = Kernel::compile("elementwise", &[("OP", op), ("ACTIVATION", kind)])
        else {
            return;
        };
        let (tokens, width, ld) = (3, 301, 304);
        let (a, b) = (
            random.normals(tokens * ld, 3.0),
            random.normals(tokens * ld, 1.0),
        );
        // Operation 7 makes one row of the last.
        let rows = if op == 7 { 0 } else { tokens };
        let launch = Launch::new([rows + 1, 2, 1], 256).input("a", &a);
        let launch = if matches!(op, 0 | 1 | 5 | 6) {
            launch.input("b", &b)
        } else {
            launch.null()
        };
        let launch = launch
            .output::<f32>("y", tokens * ld)
            .input("scalars", &[tokens as i32]);
        let launch = launch.ints(&[width, ld, ld, ld]).floats(&[2.5]);
        kernel.run_all(&launch, |outcome| {
            let y: Vec<f32> = outcome.get("y");
            for t in 0..if op == 7 { 1 } else { tokens } {
                let last = if op == 7 { tokens - 1 } else { t };
                let want: Vec<f64> = (0..width)
                    .map(|k| {
                        let (a, b) = (f64::from(a[last * ld + k]), f64::from(b[t * ld + k]));
                        match op {
                            0 => a + b,
                            1 => a * b,
                            2 => 2.5 * a,
                            3 => 2.5 * (a / 2.5).tanh(),
                            4 => activate(kind, a),
                            5 => activate(kind, a) * b,
                            6 => 2.5 * a + b,
                            _ => a,
                        }
                    })
                    .collect();
                assert_close(
                    &y[t * ld..][..width],
                    &want,
                    1e-6,
                    &format!("op {op}, activation {kind}"),
                );
                assert!(
                    y[t * ld + width..(t + 1) * ld].iter().all(|v| v.is_nan()),
                    "beyond the width"
                );
            }
        });
    }
}

#[test]
fn hadamard_matches_f64_and_inverts() {
    let mut random = Random(4);
    for (inverse, extra, out, activation) in
        [(0, 0, 0, 0), (0, 0, 1, 0), (1, 0, 0, 0), (1, 1, 0, 1)]
    {
        let defines = [
            ("INVERSE", inverse),
            ("BIAS", extra),
            ("RESIDUAL", extra),
            ("ACTIVATION", activation),
            ("OUT", out),
        ];
        let Some(kernel) = Kernel::compile("hadamard", &defines) else {
            return;
        };
        for (tokens, width, block) in [
            (2usize, 64usize, 64usize),
            (1, 1536, 512),
            (3, 96, 32),
            (1, 1100, 4),
            (2, 7, 1),
        ] {
            let ld = width + 3;
            let x = random.normals(tokens * ld, 1.0);
            let signs: Vec<u32> = (0..width.div_ceil(32))
                .map(|_| random.next() as u32)
                .collect();
            let (bias, residual) = (random.normals(width, 1.0), random.normals(tokens * ld, 1.0));
            let launch = Launch::new([tokens, width.div_ceil(1024), 1], 256)
                .input("x", &x)
                .input("signs", &signs);
            let launch = if extra == 1 {
                launch.input("bias", &bias).input("residual", &residual)
            } else {
                launch.nulls(2)
            };
            let launch = match out {
                0 => launch.output::<f32>("y", tokens * ld).null(),
                _ => launch.null().output::<u16>("y16", tokens * ld),
            };
            let launch = launch.null().ints(&[width, ld, ld, ld, block]);
            let sign = |k: usize| {
                if signs[k / 32] >> (k % 32) & 1 == 1 {
                    -1.0
                } else {
                    1.0
                }
            };
            kernel.run_all(&launch, |outcome| {
                for t in 0..tokens {
                    let want: Vec<f64> = (0..width)
                        .map(|k| {
                            let (base, i) = (k / block * block, k % block);
                            let sum: f64 = (0..block)
                                .map(|j| {
                                    let h = if (i & j).count_ones() % 2 == 1 {
                                        -1.0
                                    } else {
                                        1.0
                                    };
                                    let v = f64::from(x[t * ld + base + j]);
                                    h * v * if inverse == 1 { 1.0 } else { sign(base + j) }
                                })
                                .sum::<f64>()
                                / (block as f64).sqrt();
                            let y = if inverse == 1 { sum * sign(k) } else { sum };
                            if extra == 1 {
                                activate(activation, y + f64::from(bias[k]))
                                    + f64::from(residual[t * ld + k])
                            } else {
                                y
                            }
                        })
                        .collect();
                    if out == 0 {
                        assert_close(
                            &outcome.get::<f32>("y")[t * ld..][..width],
                            &want,
                            2e-6,
                            "hadamard",
                        );
                    } else {
                        let y: Vec<u16> = outcome.get("y16");
                        let got: Vec<f32> = y[t * ld..][..width]
                            .iter()
                            .map(|&b| from_f16(b) as f32)
                            .collect();
                        assert_close(&got, &want, 6e-4, "hadamard to f16");
                        assert!(y[t * ld + width..(t + 1) * ld].iter().all(|&b| b == 0));
                    }
                }
            });
        }
    }
}
