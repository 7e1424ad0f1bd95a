use super::super::float::tests::noise;
use super::*;

/// Attention in `f64`, query by query.
fn reference(shape: &AttentionShape, sequence: &Sequence<'_>) -> Vec<f64> {
    let dim = shape.head_dim;
    let (width, kv_width) = (shape.heads * dim, shape.kv_heads * dim);
    let Keys::Rows(all) = sequence.keys else {
        return Vec::new();
    };
    let keys = all.len() / kv_width;
    let mut out = Vec::new();
    for (i, query) in sequence.queries.chunks(width).enumerate() {
        let position = sequence.past + i;
        for (h, query) in query.chunks(dim).enumerate() {
            let kv = h / (shape.heads / shape.kv_heads) * dim;
            let sees = |j: usize| {
                (!shape.causal || j <= position)
                    && shape.window.is_none_or(|window| j + window > position)
                    && sequence.mask.is_none_or(|mask| mask[j] != 0.0)
            };
            let seen: Vec<usize> = (0..keys).filter(|&j| sees(j)).collect();
            let score = |&j: &usize| {
                let key = &all[j * kv_width + kv..][..dim];
                let dot = query.iter().zip(key);
                let dot: f64 = dot.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let score = dot * f64::from(shape.scale);
                let cap = shape.softcap.map(f64::from);
                cap.map_or(score, |cap| cap * (score / cap).tanh())
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..dim {
                let value = |&j: &usize| f64::from(sequence.values[j * kv_width + kv + d]);
                let sum: f64 = seen.iter().zip(&weights).map(|(j, w)| w * value(j)).sum();
                out.push(if total > 0.0 { sum / total } else { 0.0 });
            }
        }
    }
    out
}

struct Case {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    past: usize,
    mask: Option<Vec<f32>>,
}

fn case(shape: &AttentionShape, seed: u64, queries: usize, past: usize, masked: bool) -> Case {
    let count = if shape.causal {
        past + queries
    } else {
        queries
    };
    let kv = count * shape.kv_heads * shape.head_dim;
    let queries = noise(seed, queries * shape.heads * shape.head_dim);
    let hide = |m: f32| if m > 0.3 { 0.0 } else { 1.0 };
    Case {
        queries: queries.iter().map(|x| x * 4.0).collect(),
        keys: noise(seed + 1, kv),
        values: noise(seed + 2, kv),
        past,
        mask: masked.then(|| noise(seed + 3, count).into_iter().map(hide).collect()),
    }
}

fn check(shape: &AttentionShape, cases: &[Case]) {
    let sequences: Vec<Sequence<'_>> = cases
        .iter()
        .map(|case| Sequence {
            queries: &case.queries,
            keys: Keys::Rows(&case.keys),
            values: &case.values,
            past: case.past,
            mask: case.mask.as_deref(),
        })
        .collect();
    let want: Vec<f64> = sequences.iter().flat_map(|s| reference(shape, s)).collect();
    let mut first = None;
    for threads in 1..=3 {
        let mut out = vec![f32::NAN; want.len()];
        attention(&Pool::new(threads), shape, &sequences, &mut out);
        for (i, (got, want)) in out.iter().zip(&want).enumerate() {
            let error = (f64::from(*got) - want).abs();
            assert!(error <= 3e-6, "{shape:?} {i}: {got} {want}");
        }
        let first = first.get_or_insert_with(|| out.clone());
        assert!(first == &out, "threads differ");
        check_cached(shape, cases, &sequences, threads, &out);
    }
}

/// Keys out of a cache that was filled in two parts give the same bits.
fn check_cached(
    shape: &AttentionShape,
    cases: &[Case],
    sequences: &[Sequence<'_>],
    threads: usize,
    want: &[f32],
) {
    let width = shape.kv_heads * shape.head_dim;
    let cached = |case: &Case| {
        let mut cache = KeyCache::new(shape.kv_heads, shape.head_dim);
        let first = case.keys.len() / width * 2 / 3;
        cache.push(&case.keys[..first * width]);
        cache.push(&case.keys);
        cache.truncate(first);
        cache.push(&case.keys[first * width..]);
        cache
    };
    let caches: Vec<KeyCache> = cases.iter().map(cached).collect();
    let sequences: Vec<Sequence<'_>> = sequences
        .iter()
        .zip(&caches)
        .map(|(s, cache)| Sequence {
            keys: Keys::Cache(cache),
            ..*s
        })
        .collect();
    let mut out = vec![f32::NAN; want.len()];
    attention(&Pool::new(threads), shape, &sequences, &mut out);
    assert!(out == want, "{shape:?}: a cache changes bits");
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        causal: true,
        window: None,
        softcap: None,
    }
}

#[test]
fn decoders_match_f64() {
    for (heads, kv_heads, dim) in [(1, 1, 4), (4, 2, 16), (9, 3, 20), (8, 1, 64), (2, 2, 7)] {
        for (queries, past) in [(1, 0), (1, 300), (5, 0), (70, 3), (130, 200)] {
            for window in [None, Some(1), Some(37), Some(250)] {
                let base = shape(heads, kv_heads, dim);
                let softcap = (window == Some(37)).then_some(2.0);
                let shape = AttentionShape {
                    window,
                    softcap,
                    ..base
                };
                let masked = window == Some(250);
                check(&shape, &[case(&shape, 5, queries, past, masked)]);
            }
        }
    }
}

#[test]
fn encoders_match_f64() {
    let shape = AttentionShape {
        causal: false,
        ..shape(3, 3, 32)
    };
    for queries in [1, 17, 128, 260] {
        check(&shape, &[case(&shape, 9, queries, 0, true)]);
    }
}

#[test]
fn sequences_are_apart() {
    let shape = shape(6, 2, 16);
    let decode: Vec<Case> = (0..5u64)
        .map(|i| case(&shape, i, 1, 10 * i as usize, i % 2 == 0))
        .collect();
    check(&shape, &decode);
    let mixed: Vec<Case> = (0..4u64)
        .map(|i| case(&shape, i, 30 * i as usize, 50, i % 2 == 0))
        .collect();
    check(&shape, &mixed);
}

#[test]
fn nothing_to_attend_to_gives_zeros() {
    for softcap in [None, Some(30.0)] {
        let shape = AttentionShape {
            causal: false,
            softcap,
            ..shape(2, 1, 16)
        };
        let mut case = case(&shape, 1, 5, 0, true);
        case.mask = Some(vec![0.0; 5]);
        check(&shape, std::slice::from_ref(&case));
        // The first keys only: the rest of the rows' tiles hold nothing.
        case.mask = Some(vec![1.0, 0.0, 0.0, 0.0, 0.0]);
        check(&shape, &[case]);
    }
}

/// What is no number reaches the output, however the keys are cut.
#[test]
fn no_number_is_lost() {
    let shape = AttentionShape {
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        scale: 0.25,
        causal: true,
        window: None,
        softcap: None,
    };
    // Many keys and a single query are cut into stretches; more queries are not.
    for (queries, past) in [(1, 3000), (40, 3000), (5, 0)] {
        for part in 0..3 {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut case = case(&shape, 7, queries, past, false);
                match part {
                    0 => case.queries.fill(bad),
                    1 => case.keys[..shape.head_dim].fill(bad),
                    _ => case.values[..shape.head_dim].fill(bad),
                }
                let sequence = Sequence {
                    queries: &case.queries,
                    keys: Keys::Rows(&case.keys),
                    values: &case.values,
                    past,
                    mask: None,
                };
                let mut out = vec![0.0; case.queries.len()];
                attention(&Pool::new(2), &shape, &[sequence], &mut out);
                let lost = out.iter().filter(|x| x.is_finite()).count();
                assert_eq!(lost, 0, "{queries} queries, part {part}, {bad}");
            }
        }
    }
}
