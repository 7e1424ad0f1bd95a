//! linear_prefill and low_rank_inner over slots sorted by expert, against f64.

use crate::data::{Random, assert_close, from_f16};
use crate::emulate::{Kernel, Launch};
use crate::terms::{Base, Case, Factors, PLAIN, base, factors, sparse};
use half::f16;

/// The packs of all experts behind one another, and what each expert's matrix is: what codes stand for,
/// and the other terms.
struct Packed {
    base: Base,
    factors: Option<Factors>,
    v_index: Vec<u32>,
    sparse: Vec<u32>,
    sparse_offsets: Vec<u32>,
    matrices: Vec<Vec<f64>>,
}

fn pack(case: &Case, experts: usize, random: &mut Random) -> Packed {
    let mut all = Packed {
        base: Base {
            q: Vec::new(),
            scales: Vec::new(),
            zeros: Vec::new(),
            values: Vec::new(),
        },
        factors: None,
        v_index: vec![0],
        sparse: Vec::new(),
        sparse_offsets: vec![0],
        matrices: Vec::new(),
    };
    for _ in 0..experts {
        let own = base(case, random);
        all.base.q.extend(own.q);
        all.base.scales.extend(own.scales);
        all.base.zeros.extend(own.zeros);
        let mut values = own.values;
        if case.sparse {
            let (words, offsets) = sparse(case, &mut values, random);
            let start = all.sparse.len() as u32;
            all.sparse
                .extend(&words[..*offsets.last().expect("an end") as usize]);
            all.sparse_offsets
                .extend(offsets[1..].iter().map(|o| o + start));
        }
        if case.factors > 0 {
            let own = factors(case, random);
            values
                .iter_mut()
                .zip(&own.product)
                .for_each(|(v, p)| *v += p);
            let all_factors = &mut all.factors;
            match all_factors {
                None => *all_factors = Some(own),
                Some(f) => append(f, own, case.factors),
            }
            let f = all_factors.as_ref().expect("factors");
            all.v_index.push(f.v_tiles.len() as u32 / 6);
        }
        all.matrices.push(values);
    }
    all
}

fn append(f: &mut Factors, own: Factors, bits: usize) {
    let (v, v_scales) = (f.v.len() as u32 / 16, f.v_scales.len() as u32);
    for tile in own.v_tiles.chunks(6) {
        let moved = [
            tile[0],
            tile[1],
            tile[2],
            tile[3],
            tile[4] + v,
            tile[5] + v_scales,
        ];
        f.v_tiles.extend(moved);
    }
    let (steps, u_scales) = ((f.u.len() / (bits * 32)) as u32, f.u_scales.len() as u32);
    let entries = f.u_tiles.len() as u32 / 4;
    for tile in own.u_tiles.chunks(4) {
        f.u_tiles
            .extend([tile[0] + steps, tile[1], tile[2], tile[3] + u_scales]);
    }
    f.u_index
        .extend(own.u_index[1..].iter().map(|e| e + entries));
    f.v.extend(own.v);
    f.v_scales.extend(own.v_scales);
    f.u.extend(own.u);
    f.u_scales.extend(own.u_scales);
}

/// Runs a case: `kind` 1 has an input for each token, 2 one for each slot; `None` without a compiler.
fn check(case: &Case, kind: usize, seed: u64) -> Option<()> {
    let (experts, top_k) = (4, 2);
    let flag = usize::from;
    let lowrank = case.factors > 0;
    let defines = [
        ("FORMAT", case.format),
        ("BITS", case.bits),
        ("GROUP", case.group),
        ("ZEROS", flag(case.zeros)),
        ("XSCALE", 0),
        ("LOWRANK", flag(lowrank)),
        ("VFORMAT", case.factors),
        ("UFORMAT", case.factors),
        ("SPARSE", flag(case.sparse)),
        ("ACTIVATION", case.activation),
        ("GLU", flag(case.glu)),
        ("BIAS", flag(case.epilogue)),
        ("RESIDUAL", 0),
        ("SOFTCAP", 0),
        ("EXPERTS", kind),
    ];
    let kernel = Kernel::compile("linear_prefill", &defines)?;
    let mut random = Random(seed);
    let (rows, cols, tokens) = (case.rows, case.cols, case.tokens);
    let (tiles, ldx, slots) = (rows.div_ceil(16), cols.next_multiple_of(64), tokens * top_k);
    let packed = pack(case, experts, &mut random);
    // The first expert has a slot of every token, the second none.
    let ids: Vec<usize> = (0..slots)
        .map(|slot| {
            if slot % top_k == 1 {
                0
            } else {
                2 + random.below(experts - 2)
            }
        })
        .collect();
    let mut sorted: Vec<i32> = (0..slots as i32).collect();
    sorted.sort_by_key(|&slot| (ids[slot as usize], slot));
    let starts: Vec<i32> = (0..=experts)
        .map(|e| ids.iter().filter(|&&id| id < e).count() as i32)
        .collect();
    let x_rows = if kind == 1 { tokens } else { slots };
    let x: Vec<u16> = (0..x_rows * ldx)
        .map(|i| match i % ldx < cols {
            true => f16::from_f32(random.normal(1.0)).to_bits(),
            false => 0,
        })
        .collect();
    let row_of_x = |slot: usize| if kind == 1 { slot / top_k } else { slot };
    let bias = random.normals(experts * tiles * 16, 0.5);
    let rank = packed.factors.as_ref().map_or(0, |f| f.rank);
    let mut h = vec![0f32; 16];
    if let Some(f) = &packed.factors {
        let defines = [("VFORMAT", case.factors), ("EXPERTS", kind)];
        let inner = Kernel::compile("low_rank_inner", &defines)?;
        let launch = Launch::new([rank / 16, tokens.div_ceil(16) + 1, experts], 256)
            .input("x", &x)
            .input("v", &f.v)
            .input("v_scales", &f.v_scales)
            .input("v_tiles", &f.v_tiles)
            .input("v_index", &packed.v_index)
            .output::<f32>("h", slots * rank)
            .null()
            .input("slots", &sorted)
            .input("starts", &starts)
            .ints(&[ldx, rank, top_k]);
        inner.run_all(&launch, |outcome| h = outcome.get("h"));
    }
    let out_rows = tiles * 16 / if case.glu { 2 } else { 1 };
    let ldy = out_rows + 4;
    let grid = [tiles.div_ceil(8), tokens.div_ceil(64) + 1, experts];
    let launch = Launch::new(grid, 256)
        .input("x", &x)
        .null()
        .input("q", &packed.base.q)
        .input("scales", &packed.base.scales)
        .input("zeros", &packed.base.zeros)
        .nulls(4);
    let launch = match &packed.factors {
        Some(f) => launch
            .input("u", &f.u)
            .input("u_scales", &f.u_scales)
            .input("u_tiles", &f.u_tiles)
            .input("u_index", &f.u_index),
        None => launch.nulls(4),
    };
    let launch = match case.sparse {
        true => launch
            .input("s", &packed.sparse)
            .input("s_offsets", &packed.sparse_offsets),
        false => launch.nulls(2),
    };
    let launch = match case.epilogue {
        true => launch.input("bias", &bias).null(),
        false => launch.nulls(2),
    };
    let launch = launch
        .input("h", &h)
        .output::<f32>("y", slots * ldy)
        .null()
        .input("slots", &sorted)
        .input("starts", &starts)
        .ints(&[tiles * 16, cols, tiles, ldx, ldy, 0, rank, top_k])
        .floats(&[1.0, 0.0]);
    let tolerance = if lowrank { 1e-3 } else { 3e-5 };
    let mut first: Option<Vec<u8>> = None;
    kernel.run_all(&launch, |outcome| {
        let y: Vec<f32> = outcome.get("y");
        for slot in 0..slots {
            let expert = ids[slot];
            let product = |row: usize| {
                let added = match case.epilogue {
                    true => f64::from(bias[(expert * tiles * 16) + row]),
                    false => 0.0,
                };
                let Some(weights) = packed.matrices[expert].get(row * cols..(row + 1) * cols)
                else {
                    return added;
                };
                let x = &x[row_of_x(slot) * ldx..][..cols];
                let sum: f64 = weights.iter().zip(x).map(|(w, x)| w * from_f16(*x)).sum();
                sum + added
            };
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let want: Vec<f64> = (0..out_rows)
                .map(|row| match case.glu {
                    true => {
                        let gate = row / 16 * 32 + row % 16;
                        silu(product(gate)) * product(gate + 16)
                    }
                    false => product(row),
                })
                .collect();
            let row = &y[slot * ldy..][..ldy];
            assert_close(
                &row[..out_rows],
                &want,
                tolerance,
                &format!("{case:?} slot {slot} of expert {expert}"),
            );
            assert!(
                row[out_rows..].iter().all(|v| v.is_nan()),
                "beyond the rows"
            );
        }
        let bits: Vec<u8> = outcome.get("y");
        let before = first.get_or_insert_with(|| bits.clone());
        assert_eq!(*before, bits, "schedules differ");
    });
    Some(())
}

#[test]
fn many_tokens_of_experts_match_f64() {
    let all = Case {
        tokens: 70,
        rows: 48,
        cols: 100,
        ..PLAIN
    };
    let cases = [
        (
            Case {
                rows: 96,
                glu: true,
                activation: 1,
                ..all
            },
            1,
        ),
        (
            Case {
                bits: 3,
                zeros: true,
                epilogue: true,
                ..all
            },
            2,
        ),
        (
            Case {
                bits: 8,
                group: 0,
                factors: 8,
                sparse: true,
                ..all
            },
            1,
        ),
        (
            Case {
                bits: 2,
                zeros: true,
                factors: 4,
                sparse: true,
                tokens: 9,
                ..all
            },
            2,
        ),
        (
            Case {
                format: 2,
                bits: 0,
                group: 0,
                tokens: 20,
                ..all
            },
            2,
        ),
    ];
    for (i, (case, kind)) in cases.iter().enumerate() {
        if check(case, *kind, 130 + i as u64).is_none() {
            return;
        }
    }
}
