//! linear_prefill and low_rank_inner against f64: every scheme, terms, tails of rows, columns and tokens.

use crate::data::{Random, assert_close, from_f16};
use crate::emulate::{Kernel, Launch};
use crate::terms::{Case, PLAIN, base, factors, sparse};
use half::f16;

fn activate(kind: usize, x: f64) -> f64 {
    match kind {
        1 => x / (1.0 + (-x).exp()),
        _ => x,
    }
}

/// Runs a case; `None` without a compiler.
fn check(case: &Case, seed: u64) -> Option<()> {
    let flag = usize::from;
    let lowrank = case.factors > 0;
    let defines = [
        ("FORMAT", case.format),
        ("BITS", case.bits),
        ("GROUP", case.group),
        ("ZEROS", flag(case.zeros)),
        ("XSCALE", flag(case.xscale)),
        ("LOWRANK", flag(lowrank)),
        ("VFORMAT", case.factors),
        ("UFORMAT", case.factors),
        ("SPARSE", flag(case.sparse)),
        ("ACTIVATION", case.activation),
        ("GLU", flag(case.glu)),
        ("BIAS", flag(case.epilogue)),
        ("RESIDUAL", flag(case.epilogue)),
        ("SOFTCAP", flag(case.epilogue)),
    ];
    let kernel = Kernel::compile("linear_prefill", &defines)?;
    let mut random = Random(seed);
    let (rows, cols, tokens) = (case.rows, case.cols, case.tokens);
    let (tiles, ldx) = (rows.div_ceil(16), cols.next_multiple_of(64));
    let x: Vec<u16> = (0..tokens * ldx)
        .map(|i| {
            if i % ldx < cols {
                f16::from_f32(random.normal(1.0)).to_bits()
            } else {
                0
            }
        })
        .collect();
    let xscale: Vec<f32> = (0..cols).map(|_| 0.5 + random.unit() as f32).collect();
    let base = base(case, &mut random);
    // Row by row: what codes and the other terms see.
    let see = |t: usize, k: usize| from_f16(x[t * ldx + k]);
    let scaled = |t: usize, k: usize| match case.xscale {
        true => f16::from_f32(f16::from_bits(x[t * ldx + k]).to_f32() * xscale[k]).to_f64(),
        false => see(t, k),
    };
    let mut others = vec![0.0; rows * cols];
    let (s, s_offsets) = match case.sparse {
        true => sparse(case, &mut others, &mut random),
        false => (vec![0; 8], vec![0; 8]),
    };
    let scalars = [tokens as i32, 0, 0];
    let mut h = vec![0f32; 16];
    let factors = lowrank.then(|| factors(case, &mut random));
    if let Some(f) = &factors {
        let inner = Kernel::compile("low_rank_inner", &[("VFORMAT", case.factors)])?;
        let launch = Launch::new([f.rank / 16, tokens.div_ceil(16) + 1, 1], 256)
            .input("x", &x)
            .input("v", &f.v)
            .input("v_scales", &f.v_scales)
            .input("v_tiles", &f.v_tiles)
            .null()
            .output::<f32>("h", tokens * f.rank)
            .input("scalars", &scalars)
            .nulls(2)
            .ints(&[ldx, f.rank, 0]);
        inner.run_all(&launch, |outcome| h = outcome.get("h"));
        others.iter_mut().zip(&f.product).for_each(|(o, p)| *o += p);
    }
    let out_rows = tiles * 16 / if case.glu { 2 } else { 1 };
    let (ldy, ldr) = (out_rows + 4, out_rows + 8);
    let bias = random.normals(tiles * 16, 0.5);
    let residual = random.normals(tokens * ldr, 1.0);
    let (scale, softcap) = (0.75f32, 30.0f32);
    let launch = Launch::new([tiles.div_ceil(8), tokens.div_ceil(64) + 1, 1], 256).input("x", &x);
    let launch = if case.xscale {
        launch.input("xscale", &xscale)
    } else {
        launch.null()
    };
    let launch = launch
        .input("q", &base.q)
        .input("scales", &base.scales)
        .input("zeros", &base.zeros)
        .nulls(4);
    let launch = match &factors {
        Some(f) => launch
            .input("u", &f.u)
            .input("u_scales", &f.u_scales)
            .input("u_tiles", &f.u_tiles)
            .input("u_index", &f.u_index),
        None => launch.nulls(4),
    };
    let launch = launch.input("s", &s).input("s_offsets", &s_offsets);
    let launch = if case.epilogue {
        launch.input("bias", &bias).input("residual", &residual)
    } else {
        launch.nulls(2)
    };
    let rank = factors.as_ref().map_or(0, |f| f.rank);
    let launch = launch
        .input("h", &h)
        .output::<f32>("y", tokens * ldy)
        .input("scalars", &scalars)
        .nulls(2)
        .ints(&[tiles * 16, cols, tiles, ldx, ldy, ldr, rank, 0])
        .floats(&[scale, softcap]);
    // Gates multiply what sums of large products have lost.
    let tolerance = match (lowrank, case.glu) {
        (true, true) => 1e-3,
        (true, false) => 1e-4,
        (false, _) => 3e-5,
    };
    let mut first: Option<Vec<u8>> = None;
    kernel.run_all(&launch, |outcome| {
        let y: Vec<f32> = outcome.get("y");
        for t in 0..tokens {
            let product = |row: usize| {
                let sum = |w: &[f64], x: &dyn Fn(usize, usize) -> f64| {
                    (0..cols).map(|k| w[row * cols + k] * x(t, k)).sum::<f64>()
                };
                let all = if row < rows {
                    sum(&base.values, &scaled) + sum(&others, &see)
                } else {
                    0.0
                };
                all + if case.epilogue {
                    f64::from(bias[row])
                } else {
                    0.0
                }
            };
            let want: Vec<f64> = (0..out_rows)
                .map(|row| {
                    let mut v = match case.glu {
                        true => {
                            let gate = row / 16 * 32 + row % 16;
                            activate(case.activation, product(gate)) * product(gate + 16)
                        }
                        false => activate(case.activation, product(row)),
                    } * f64::from(scale);
                    if case.epilogue {
                        v = f64::from(softcap) * (v / f64::from(softcap)).tanh()
                            + f64::from(residual[t * ldr + row]);
                    }
                    v
                })
                .collect();
            // A trellis has codes for the rows that fill its last tile too; nobody reads those.
            let told = if case.format == 4 { rows } else { out_rows };
            assert_close(
                &y[t * ldy..][..told],
                &want[..told],
                tolerance,
                &format!("{case:?} token {t}"),
            );
            assert!(
                y[t * ldy + out_rows..(t + 1) * ldy]
                    .iter()
                    .all(|v| v.is_nan()),
                "beyond the rows"
            );
        }
        let bits: Vec<u8> = outcome.get("y");
        assert_eq!(
            *first.get_or_insert_with(|| bits.clone()),
            bits,
            "schedules differ"
        );
    });
    Some(())
}

#[test]
fn many_tokens_of_codes_match_f64() {
    let cases = [
        PLAIN,
        Case {
            bits: 8,
            group: 32,
            zeros: true,
            rows: 50,
            cols: 100,
            tokens: 70,
            ..PLAIN
        },
        Case {
            bits: 3,
            zeros: true,
            rows: 80,
            cols: 320,
            tokens: 33,
            ..PLAIN
        },
        Case {
            bits: 3,
            group: 0,
            cols: 520,
            tokens: 5,
            ..PLAIN
        },
        Case {
            bits: 2,
            group: 128,
            zeros: true,
            cols: 200,
            tokens: 65,
            ..PLAIN
        },
        Case {
            group: 32,
            zeros: true,
            rows: 200,
            cols: 300,
            tokens: 150,
            ..PLAIN
        },
        Case {
            bits: 8,
            group: 0,
            zeros: true,
            rows: 130,
            cols: 200,
            tokens: 129,
            ..PLAIN
        },
        Case {
            group: 0,
            xscale: true,
            cols: 130,
            tokens: 16,
            ..PLAIN
        },
    ];
    for (i, case) in cases.iter().enumerate() {
        if check(case, 90 + i as u64).is_none() {
            return;
        }
    }
}

#[test]
fn many_tokens_of_floats_match_f64() {
    for format in [1, 2, 3] {
        let case = Case {
            format,
            bits: 0,
            group: 0,
            rows: 40,
            cols: 150,
            tokens: 20,
            ..PLAIN
        };
        if check(&case, 100 + format as u64).is_none() {
            return;
        }
    }
}

#[test]
fn many_tokens_of_trellis_codes_match_f64() {
    let plain = Case {
        format: 4,
        bits: 16,
        group: 0,
        ..PLAIN
    };
    let cases = [
        plain,
        Case {
            bits: 12,
            rows: 50,
            cols: 600,
            tokens: 70,
            epilogue: true,
            ..plain
        },
        Case {
            rows: 150,
            cols: 80,
            tokens: 133,
            ..plain
        },
        Case {
            bits: 9,
            cols: 37,
            tokens: 5,
            ..plain
        },
    ];
    for (i, case) in cases.iter().enumerate() {
        if check(case, 120 + i as u64).is_none() {
            return;
        }
    }
}

#[test]
fn many_tokens_of_all_terms_match_f64() {
    let all = Case {
        factors: 8,
        sparse: true,
        epilogue: true,
        tokens: 66,
        rows: 96,
        ..PLAIN
    };
    let cases = [
        Case {
            activation: 1,
            glu: true,
            ..all
        },
        Case {
            factors: 4,
            bits: 3,
            zeros: true,
            cols: 4200,
            tokens: 20,
            rows: 40,
            ..all
        },
        Case {
            factors: 16,
            sparse: false,
            group: 256,
            cols: 300,
            ..all
        },
        Case {
            format: 5,
            bits: 0,
            group: 0,
            factors: 32,
            tokens: 9,
            ..all
        },
        Case {
            factors: 8,
            sparse: false,
            rows: 176,
            tokens: 140,
            cols: 200,
            ..all
        },
        Case {
            rows: 144,
            cols: 200,
            tokens: 40,
            ..all
        },
    ];
    for (i, case) in cases.iter().enumerate() {
        if check(case, 110 + i as u64).is_none() {
            return;
        }
    }
}
