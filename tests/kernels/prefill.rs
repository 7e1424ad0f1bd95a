//! rope_append and attention_prefill against f64.

use crate::attention::{Cache, Case, EPS, FACTOR, PAGE, Places, attend, prepare, visible};
use crate::data::{Random, assert_close};
use crate::emulate::{Kernel, Launch, SCHEDULES};

fn flag(on: bool) -> usize {
    usize::from(on)
}

/// Appends `tokens` behind `past`, then attends; `None` without a compiler.
fn check(case: &Case, past: usize, tokens: usize, seed: u64) -> Option<()> {
    let append = Kernel::compile(
        "rope_append",
        &[
            ("HEAD_DIM", case.head_dim),
            ("KV", flag(case.q8)),
            ("PAGED", flag(case.paged)),
            ("QK_NORM", flag(case.norm)),
            ("ROPE", case.rope),
        ],
    )?;
    let attention = Kernel::compile(
        "attention_prefill",
        &[
            ("HEAD_DIM", case.head_dim),
            ("GROUP_Q", case.group),
            ("KV", flag(case.q8)),
            ("PAGED", flag(case.paged)),
            ("SOFTCAP", flag(case.softcap > 0.0)),
        ],
    )?;
    let mut random = Random(seed);
    let (hd, heads, sequence) = (case.head_dim, case.heads(), 1);
    let places = Places::new(case, 2);
    let width = (heads + 2 * case.kv_heads) * hd;
    let (k_offset, v_offset) = (heads * hd, (heads + case.kv_heads) * hd);
    let (q_gain, k_gain) = (random.normals(hd, 1.0), random.normals(hd, 1.0));
    let all = past + tokens;
    let rows = random.normals(all * width, 1.2);
    let (mut keys, mut values) = (
        Cache::poisoned(case, places.rows),
        Cache::poisoned(case, places.rows),
    );
    let run_append = |from: usize, count: usize, keys: &Cache, values: &Cache| {
        let grid = [heads + 2 * case.kv_heads, count.div_ceil(4) + 1, 1];
        let launch = Launch::new(grid, 128)
            .in_out("qkv", &rows[from * width..(from + count) * width])
            .input("q_gain", &q_gain)
            .input("k_gain", &k_gain)
            .input("inv_freq", &case.inv_freq())
            .in_out("k_cache", &keys.values)
            .in_out("v_cache", &values.values)
            .in_out("k_scales", &keys.scales)
            .in_out("v_scales", &values.scales)
            .input("pages", &places.pages)
            .input("scalars", &[count as i32, from as i32, sequence])
            .ints(&[
                width,
                0,
                k_offset,
                v_offset,
                heads,
                case.kv_heads,
                case.rotary_dim,
                case.capacity,
                PAGE,
                places.max_pages,
            ])
            .floats(&[EPS, FACTOR]);
        append
            .run(&launch, SCHEDULES[2])
            .unwrap_or_else(|e| panic!("{case:?}: {e}"))
    };
    if past > 0 {
        let outcome = run_append(0, past, &keys, &values);
        (keys, values) = (Cache::of(&outcome, "k"), Cache::of(&outcome, "v"));
    }
    let outcome = run_append(past, tokens, &keys, &values);
    (keys, values) = (Cache::of(&outcome, "k"), Cache::of(&outcome, "v"));
    let qkv: Vec<f32> = outcome.get("qkv");
    let tolerance = if case.q8 { 4.5e-3 } else { 6e-4 };
    for t in 0..tokens {
        let (position, token) = (past + t, &rows[(past + t) * width..][..width]);
        for h in 0..heads {
            let want = prepare(case, &token[h * hd..][..hd], &q_gain, position);
            assert_close(
                &qkv[t * width + h * hd..][..hd],
                &want,
                3e-6,
                "a rotated query",
            );
        }
        for kv in 0..case.kv_heads {
            let row = places.row(case, sequence as usize, position);
            let want = prepare(case, &token[k_offset + kv * hd..][..hd], &k_gain, position);
            let got: Vec<f32> = keys.head(case, row, kv).iter().map(|&v| v as f32).collect();
            assert_close(&got, &want, tolerance, "a key in the cache");
            assert_eq!(
                qkv[t * width + k_offset..(t + 1) * width],
                token[k_offset..],
                "keys of the input stay"
            );
        }
    }
    let dim = hd.next_multiple_of(16);
    let tile = if dim <= 128 { 64 } else { 32 };
    let scale = 1.0 / (hd as f32).sqrt();
    let ldy = heads * hd;
    let launch = Launch::new([tokens.div_ceil(64) + 1, heads, 1], 128)
        .shared(2 * (2 * tile + 64) * (dim + 8))
        .input("qkv", &qkv)
        .input("k_cache", &keys.values)
        .input("v_cache", &values.values)
        .input("k_scales", &keys.scales)
        .input("v_scales", &values.scales)
        .input("pages", &places.pages)
        .input("scalars", &[tokens as i32, past as i32, sequence])
        .output::<f32>("y", tokens * ldy)
        .ints(&[
            width,
            0,
            ldy,
            heads,
            case.kv_heads,
            case.capacity,
            PAGE,
            places.max_pages,
            case.window,
        ])
        .floats(&[scale, case.softcap]);
    let mut first: Option<Vec<u8>> = None;
    for schedule in SCHEDULES {
        let outcome = attention
            .run(&launch, schedule)
            .unwrap_or_else(|e| panic!("{case:?}: {e}"));
        let y: Vec<f32> = outcome.get("y");
        for t in 0..tokens {
            for h in 0..heads {
                let q: Vec<f64> = qkv[t * width + h * hd..][..hd]
                    .iter()
                    .map(|&v| f64::from(v))
                    .collect();
                let seen: Vec<_> = visible(case, past + t)
                    .map(|p| {
                        let row = places.row(case, sequence as usize, p);
                        (
                            keys.head(case, row, h / case.group),
                            values.head(case, row, h / case.group),
                        )
                    })
                    .collect();
                let want = attend(case, &q, f64::from(scale), &seen);
                assert_close(
                    &y[t * ldy + h * hd..][..hd],
                    &want,
                    2e-3,
                    &format!("{case:?} {schedule:?} token {t} head {h}"),
                );
            }
        }
        let bits: Vec<u8> = outcome.get("y");
        assert_eq!(
            *first.get_or_insert_with(|| bits.clone()),
            bits,
            "schedules differ"
        );
    }
    Some(())
}

#[test]
fn prefill_matches_f64_at_every_length() {
    let case = Case {
        capacity: 240,
        ..Case::PLAIN
    };
    for (past, tokens) in [(0, 1), (0, 64), (0, 70), (63, 2), (130, 65)] {
        if check(&case, past, tokens, 3).is_none() {
            return;
        }
    }
}

#[test]
fn prefill_matches_f64_in_every_variant() {
    let p = Case {
        capacity: 160,
        ..Case::PLAIN
    };
    let cases = [
        (
            Case {
                head_dim: 128,
                rotary_dim: 128,
                kv_heads: 1,
                group: 2,
                q8: true,
                paged: true,
                norm: true,
                ..p
            },
            20,
            50,
        ),
        (
            Case {
                head_dim: 256,
                rotary_dim: 256,
                kv_heads: 1,
                group: 1,
                norm: true,
                softcap: 20.0,
                window: 24,
                capacity: 80,
                ..p
            },
            40,
            40,
        ),
        (
            Case {
                head_dim: 20,
                rotary_dim: 12,
                kv_heads: 1,
                group: 3,
                rope: 2,
                q8: true,
                ..p
            },
            5,
            20,
        ),
        (
            Case {
                head_dim: 8,
                rotary_dim: 8,
                kv_heads: 2,
                group: 1,
                rope: 0,
                paged: true,
                window: 50,
                ..p
            },
            70,
            66,
        ),
    ];
    for (i, (case, past, tokens)) in cases.iter().enumerate() {
        if check(case, *past, *tokens, 30 + i as u64).is_none() {
            return;
        }
    }
}
