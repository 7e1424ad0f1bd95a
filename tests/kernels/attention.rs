//! attention_decode against f64: caches of both kinds, pages, windows, splits, head shapes.

use crate::data::{Random, assert_close, from_f16};
use crate::emulate::{Kernel, Launch, Outcome, SCHEDULES};

/// What kind of attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) head_dim: usize,
    pub(crate) kv_heads: usize,
    pub(crate) group: usize,
    pub(crate) rotary_dim: usize,
    pub(crate) q8: bool,
    pub(crate) paged: bool,
    pub(crate) norm: bool,
    pub(crate) rope: usize,
    pub(crate) softcap: f32,
    pub(crate) window: usize,
    pub(crate) capacity: usize,
    pub(crate) splits: usize,
}

impl Case {
    pub(crate) const PLAIN: Self = Self {
        head_dim: 64,
        kv_heads: 2,
        group: 2,
        rotary_dim: 64,
        q8: false,
        paged: false,
        norm: false,
        rope: 1,
        softcap: 0.0,
        window: 0,
        capacity: 200,
        splits: 4,
    };

    pub(crate) fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// Scales of a head in a cache of 8 bits.
    fn blocks(&self) -> usize {
        self.head_dim.div_ceil(32)
    }

    pub(crate) fn inv_freq(&self) -> Vec<f32> {
        let pairs = self.rotary_dim / 2;
        (0..pairs)
            .map(|i| 10_000f32.powf(-(i as f32) / pairs as f32))
            .collect()
    }
}

pub(crate) const PAGE: usize = 8;
pub(crate) const EPS: f32 = 1e-6;
pub(crate) const FACTOR: f32 = 1.0;

/// RMS norm and rotation of a head, in f64.
pub(crate) fn prepare(case: &Case, x: &[f32], gain: &[f32], position: usize) -> Vec<f64> {
    let mut head: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
    if case.norm {
        let mean = head.iter().map(|v| v * v).sum::<f64>() / head.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
        head.iter_mut()
            .zip(gain)
            .for_each(|(v, &g)| *v *= scale * f64::from(g));
    }
    if case.rope > 0 {
        let pairs = case.rotary_dim / 2;
        for (i, f) in case.inv_freq().iter().enumerate() {
            let (sin, cos) = f64::from(position as f32 * f).sin_cos();
            let (a, b) = if case.rope == 1 {
                (i, i + pairs)
            } else {
                (2 * i, 2 * i + 1)
            };
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
        }
    }
    head
}

/// A cache: bytes and scales as the kernels keep them.
#[derive(Clone)]
pub(crate) struct Cache {
    pub(crate) values: Vec<u8>,
    pub(crate) scales: Vec<u16>,
}

impl Cache {
    pub(crate) fn poisoned(case: &Case, rows: usize) -> Self {
        let heads = rows * case.kv_heads;
        let each = if case.q8 {
            case.head_dim
        } else {
            2 * case.head_dim
        };
        Self {
            values: vec![0xff; heads * each],
            scales: vec![0xffff; if case.q8 { heads * case.blocks() } else { 8 }],
        }
    }

    fn random(case: &Case, rows: usize, random: &mut Random) -> Self {
        let mut cache = Self::poisoned(case, rows);
        for h in 0..rows * case.kv_heads {
            let head = random.normals(case.head_dim, 1.0);
            if case.q8 {
                for (b, block) in head.chunks(32).enumerate() {
                    let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
                    let scale = half::f16::from_f32(largest / 127.0);
                    cache.scales[h * case.blocks() + b] = scale.to_bits();
                    for (i, v) in block.iter().enumerate() {
                        let code = (v / scale.to_f32()).round().clamp(-127.0, 127.0) as i8;
                        cache.values[h * case.head_dim + 32 * b + i] = code.cast_unsigned();
                    }
                }
            } else {
                for (i, &v) in head.iter().enumerate() {
                    let at = 2 * (h * case.head_dim + i);
                    cache.values[at..at + 2].copy_from_slice(&half::f16::from_f32(v).to_le_bytes());
                }
            }
        }
        cache
    }

    /// Head `kv_head` of row `row`.
    pub(crate) fn head(&self, case: &Case, row: usize, kv_head: usize) -> Vec<f64> {
        let at = row * case.kv_heads + kv_head;
        let one = |d: usize| {
            let i = at * case.head_dim + d;
            if case.q8 {
                let code = f64::from(self.values[i].cast_signed());
                code * from_f16(self.scales[at * case.blocks() + d / 32])
            } else {
                from_f16(u16::from_le_bytes([
                    self.values[2 * i],
                    self.values[2 * i + 1],
                ]))
            }
        };
        (0..case.head_dim).map(one).collect()
    }

    pub(crate) fn of(outcome: &Outcome, which: &str) -> Self {
        Self {
            values: outcome.get(&format!("{which}_cache")),
            scales: outcome.get(&format!("{which}_scales")),
        }
    }
}

/// Rows of positions: pages are spread over a pool.
pub(crate) struct Places {
    pub(crate) pages: Vec<i32>,
    pub(crate) max_pages: usize,
    pub(crate) rows: usize,
}

impl Places {
    pub(crate) fn new(case: &Case, sequences: usize) -> Self {
        let max_pages = case.capacity.div_ceil(PAGE);
        let count = sequences * max_pages;
        // 7 is coprime to any count that is no multiple of it.
        let step = if count.is_multiple_of(7) { 1 } else { 7 };
        let pages = (0..count)
            .map(|i| ((i * step + 3) % count) as i32)
            .collect();
        let rows = if case.paged {
            count * PAGE
        } else {
            sequences * case.capacity
        };
        Self {
            pages,
            max_pages,
            rows,
        }
    }

    pub(crate) fn row(&self, case: &Case, sequence: usize, position: usize) -> usize {
        let slot = position % case.capacity;
        if case.paged {
            self.pages[sequence * self.max_pages + slot / PAGE] as usize * PAGE + slot % PAGE
        } else {
            sequence * case.capacity + slot
        }
    }
}

/// Softmax attention of a head that sees these keys.
pub(crate) fn attend(
    case: &Case,
    q: &[f64],
    scale: f64,
    keys: &[(Vec<f64>, Vec<f64>)],
) -> Vec<f64> {
    let score = |k: &[f64]| {
        let s = scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>();
        let cap = f64::from(case.softcap);
        if cap > 0.0 { cap * (s / cap).tanh() } else { s }
    };
    let scores: Vec<f64> = keys.iter().map(|(k, _)| score(k)).collect();
    let largest = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let total: f64 = weights.iter().sum();
    let value = |d: usize| {
        keys.iter()
            .zip(&weights)
            .map(|((_, v), w)| w * v[d])
            .sum::<f64>()
            / total
    };
    (0..case.head_dim).map(value).collect()
}

pub(crate) fn visible(case: &Case, position: usize) -> std::ops::RangeInclusive<usize> {
    let first = if case.window > 0 {
        (position + 1).saturating_sub(case.window)
    } else {
        0
    };
    first..=position
}

/// Runs a case; `None` without a compiler.
fn check(case: &Case, positions: &[usize], seed: u64) -> Option<()> {
    let kernel = Kernel::compile(
        "attention_decode",
        &[
            ("HEAD_DIM", case.head_dim),
            ("GROUP_Q", case.group),
            ("KV", usize::from(case.q8)),
            ("PAGED", usize::from(case.paged)),
            ("QK_NORM", usize::from(case.norm)),
            ("ROPE", case.rope),
            ("SOFTCAP", usize::from(case.softcap > 0.0)),
            ("SPLITS", case.splits),
        ],
    )?;
    let mut random = Random(seed);
    let (hd, heads, m) = (case.head_dim, case.heads(), positions.len());
    let places = Places::new(case, m);
    let (keys, values) = (
        Cache::random(case, places.rows, &mut random),
        Cache::random(case, places.rows, &mut random),
    );
    let (q_offset, k_offset, v_offset) = (0, heads * hd, (heads + case.kv_heads) * hd);
    let ldqkv = (heads + 2 * case.kv_heads) * hd;
    let qkv = random.normals(m * ldqkv, 1.5);
    let (q_gain, k_gain) = (random.normals(hd, 1.0), random.normals(hd, 1.0));
    let scale = 1.0 / (hd as f32).sqrt();
    let as_i32: Vec<i32> = positions.iter().map(|&p| p as i32).collect();
    let launch = Launch::new([case.kv_heads, case.splits, m], 256)
        .input("qkv", &qkv)
        .input("q_gain", &q_gain)
        .input("k_gain", &k_gain)
        .input("inv_freq", &case.inv_freq())
        .in_out("k_cache", &keys.values)
        .in_out("v_cache", &values.values)
        .in_out("k_scales", &keys.scales)
        .in_out("v_scales", &values.scales)
        .input("pages", &places.pages)
        .input("positions", &as_i32)
        .output::<f32>("partial", m * heads * case.splits * (hd + 2))
        .in_out("counter", &vec![3 * case.splits as u32; m * case.kv_heads]) // after three launches
        .output::<f32>("y", m * heads * hd)
        .ints(&[
            ldqkv,
            q_offset,
            k_offset,
            v_offset,
            heads * hd,
            heads,
            case.kv_heads,
            case.rotary_dim,
            case.capacity,
            PAGE,
            places.max_pages,
            case.window,
        ])
        .floats(&[EPS, FACTOR, scale, case.softcap]);
    let mut first: Option<Vec<u8>> = None;
    for schedule in SCHEDULES {
        let outcome = kernel
            .run(&launch, schedule)
            .unwrap_or_else(|e| panic!("{case:?}: {e}"));
        let (k_after, v_after) = (Cache::of(&outcome, "k"), Cache::of(&outcome, "v"));
        let y: Vec<f32> = outcome.get("y");
        for (s, &position) in positions.iter().enumerate() {
            let token = &qkv[s * ldqkv..][..ldqkv];
            let row = places.row(case, s, position);
            for kv in 0..case.kv_heads {
                let key = prepare(case, &token[k_offset + kv * hd..][..hd], &k_gain, position);
                let value: Vec<f64> = token[v_offset + kv * hd..][..hd]
                    .iter()
                    .map(|&v| f64::from(v))
                    .collect();
                let stored = |cache: &Cache| {
                    cache
                        .head(case, row, kv)
                        .iter()
                        .map(|&v| v as f32)
                        .collect::<Vec<_>>()
                };
                let tolerance = if case.q8 { 4.5e-3 } else { 6e-4 };
                assert_close(&stored(&k_after), &key, tolerance, "the key in the cache");
                assert_close(
                    &stored(&v_after),
                    &value,
                    tolerance,
                    "the value in the cache",
                );
                let seen: Vec<_> = visible(case, position)
                    .map(|p| {
                        let row = places.row(case, s, p);
                        (k_after.head(case, row, kv), v_after.head(case, row, kv))
                    })
                    .collect();
                for g in 0..case.group {
                    let h = kv * case.group + g;
                    let q = prepare(case, &token[h * hd..][..hd], &q_gain, position);
                    let want = attend(case, &q, f64::from(scale), &seen);
                    assert_close(
                        &y[(s * heads + h) * hd..][..hd],
                        &want,
                        2e-5,
                        &format!("{case:?} {schedule:?} sequence {s} head {h}"),
                    );
                }
            }
        }
        // Nothing else in the cache has changed.
        let rows: Vec<usize> = positions
            .iter()
            .enumerate()
            .map(|(s, &p)| places.row(case, s, p))
            .collect();
        for row in (0..places.rows).filter(|r| !rows.contains(r)) {
            for kv in 0..case.kv_heads {
                assert_eq!(
                    k_after.head(case, row, kv),
                    keys.head(case, row, kv),
                    "row {row}"
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
fn decode_matches_f64_at_every_length() {
    let case = Case::PLAIN;
    for positions in [&[0][..], &[1], &[62, 63], &[64, 127], &[150, 5, 199]] {
        if check(&case, positions, 1).is_none() {
            return;
        }
    }
}

#[test]
fn decode_matches_f64_in_every_variant() {
    let p = Case::PLAIN;
    let cases = [
        // Llama 3: 4 query heads a key head; one split.
        (
            Case {
                head_dim: 128,
                rotary_dim: 128,
                kv_heads: 1,
                group: 4,
                splits: 1,
                ..p
            },
            vec![100],
        ),
        // Qwen 3: norms of heads; 8 bits; pages.
        (
            Case {
                head_dim: 128,
                rotary_dim: 128,
                kv_heads: 1,
                group: 2,
                q8: true,
                paged: true,
                norm: true,
                splits: 2,
                ..p
            },
            vec![77, 130],
        ),
        // Gemma: wide heads, soft cap, window, cache that wraps around.
        (
            Case {
                head_dim: 256,
                rotary_dim: 256,
                kv_heads: 1,
                group: 2,
                norm: true,
                softcap: 20.0,
                window: 24,
                capacity: 32,
                splits: 2,
                ..p
            },
            vec![75, 10],
        ),
        // More than 8 query heads a key head.
        (
            Case {
                head_dim: 32,
                rotary_dim: 32,
                kv_heads: 1,
                group: 12,
                splits: 3,
                ..p
            },
            vec![90],
        ),
        // Interleaved, partial rotation, odd head.
        (
            Case {
                head_dim: 20,
                rotary_dim: 12,
                kv_heads: 3,
                group: 1,
                rope: 2,
                q8: true,
                paged: true,
                splits: 2,
                ..p
            },
            vec![70, 3],
        ),
        // Small heads (stories260K), no rotation (GPT-2), window of pages.
        (
            Case {
                head_dim: 8,
                rotary_dim: 8,
                kv_heads: 4,
                group: 2,
                rope: 0,
                paged: true,
                window: 50,
                capacity: 56,
                splits: 1,
                ..p
            },
            vec![120],
        ),
    ];
    for (i, (case, positions)) in cases.iter().enumerate() {
        if check(case, positions, 10 + i as u64).is_none() {
            return;
        }
    }
}
