use super::*;
use proptest::prelude::*;

fn pick(sampling: Sampling, logits: &[f32]) -> u32 {
    let mut sampler = Sampler::new(sampling).expect("valid settings");
    sampler.pick(logits, &[]).expect("finite logits")
}

/// Which tokens turn up, and how often, in many draws.
fn counts(sampling: Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(sampling).expect("valid settings");
    let mut counts = vec![0; logits.len()];
    for _ in 0..draws {
        counts[sampler.pick(logits, &[]).expect("finite logits") as usize] += 1;
    }
    counts
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    assert_eq!(pick(Sampling::default(), &[0.0, 3.0, 1.0, 3.0]), 1);
    let masked = [f32::NEG_INFINITY, f32::NEG_INFINITY, -5.0];
    assert_eq!(pick(Sampling::default(), &masked), 2);
}

#[test]
fn frequencies_follow_the_softmax() {
    let logits = [2.0f32, 1.0, 0.0, -1.0];
    let sampling = Sampling {
        temperature: 0.5,
        seed: 7,
        ..Sampling::default()
    };
    let counts = counts(sampling, &logits, 20_000);
    let weights: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / 0.5).exp()).collect();
    let total: f64 = weights.iter().sum();
    for (&count, weight) in counts.iter().zip(weights) {
        let (p, n) = (weight / total, 20_000.0);
        let deviation = (count as f64 / n - p) / (p * (1.0 - p) / n).sqrt();
        assert!(deviation.abs() < 4.0, "{counts:?}");
    }
}

#[test]
fn filters_leave_what_they_say() {
    let warm = Sampling {
        temperature: 1.0,
        ..Sampling::default()
    };
    // Probabilities 0.5, 0.25, 0.15, 0.1.
    let logits: Vec<f32> = [0.5f32, 0.25, 0.15, 0.1].iter().map(|p| p.ln()).collect();
    let kept = |sampling| {
        let counts = counts(sampling, &logits, 2000);
        counts.iter().filter(|&&c| c > 0).count()
    };
    assert_eq!(kept(warm.clone()), 4);
    assert_eq!(
        kept(Sampling {
            top_k: 1,
            ..warm.clone()
        }),
        1
    );
    assert_eq!(
        kept(Sampling {
            top_k: 3,
            ..warm.clone()
        }),
        3
    );
    assert_eq!(
        kept(Sampling {
            top_p: 0.4,
            ..warm.clone()
        }),
        1
    );
    assert_eq!(
        kept(Sampling {
            top_p: 0.7,
            ..warm.clone()
        }),
        2
    );
    assert_eq!(
        kept(Sampling {
            top_p: 0.8,
            ..warm.clone()
        }),
        3
    );
    assert_eq!(
        kept(Sampling {
            min_p: 0.45,
            ..warm.clone()
        }),
        2
    );
    assert_eq!(
        kept(Sampling {
            min_p: 1.0,
            ..warm.clone()
        }),
        1
    );
    // Top-p looks at what top-k left: 0.5 of 0.75 is two thirds.
    assert_eq!(
        kept(Sampling {
            top_k: 2,
            top_p: 0.65,
            ..warm.clone()
        }),
        1
    );
    assert_eq!(
        kept(Sampling {
            top_k: 3,
            top_p: 0.9,
            min_p: 0.4,
            ..warm
        }),
        2
    );
}

#[test]
fn repetition_is_penalised_on_both_sides_of_zero() {
    let sampling = Sampling {
        repeat_penalty: 2.0,
        ..Sampling::default()
    };
    let mut sampler = Sampler::new(sampling).expect("valid settings");
    assert_eq!(sampler.pick(&[3.0, 2.0], &[0, 0]), Ok(1));
    // Twice in the context counts once: 3 / 2 is above 1.4.
    assert_eq!(sampler.pick(&[3.0, 1.4], &[0, 0]), Ok(0));
    assert_eq!(sampler.pick(&[-1.0, -1.5], &[0]), Ok(1));
    // Unknown ids are passed over.
    assert_eq!(sampler.pick(&[1.0, 0.0], &[77]), Ok(0));
}

#[test]
fn what_cannot_be_used_is_refused() {
    let set = |f: fn(&mut Sampling)| {
        let mut sampling = Sampling::default();
        f(&mut sampling);
        Sampler::new(sampling)
            .expect_err("out of range")
            .to_string()
    };
    assert!(set(|s| s.temperature = -1.0).contains("temperature is -1"));
    assert!(set(|s| s.temperature = f32::NAN).contains("temperature"));
    assert!(set(|s| s.top_p = 0.0).contains("top-p"));
    assert!(set(|s| s.min_p = 1.5).contains("min-p"));
    assert!(set(|s| s.repeat_penalty = 0.0).contains("repeat-penalty"));
    let mut sampler = Sampler::new(Sampling::default()).expect("valid settings");
    let nan = sampler.pick(&[0.0, f32::NAN], &[]).expect_err("NaN");
    assert!(nan.to_string().contains("token 1 is NaN"));
    let nothing = sampler.pick(&[f32::NEG_INFINITY; 3], &[]);
    assert_eq!(nothing, Err(SamplingError::Nothing(3)));
    assert_eq!(sampler.pick(&[], &[]), Err(SamplingError::Nothing(0)));
}

/// What is left after top-k, top-p and min-p, the slow and plain way.
fn reference(s: &Sampling, logits: &[f32]) -> BTreeSet<u32> {
    let mut order: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
    order.sort_by(by_logit);
    order.truncate(if s.top_k == 0 { order.len() } else { s.top_k });
    let weight = weight_of(order[0].0, s.temperature);
    let total: f64 = order.iter().map(|&(l, _)| weight(l)).sum();
    let mut sum = 0.0;
    let mut kept = BTreeSet::new();
    for (at, &(logit, id)) in order.iter().enumerate() {
        let p = weight(logit) / total;
        if at > 0 && (sum >= f64::from(s.top_p) || weight(logit) < f64::from(s.min_p)) {
            break;
        }
        sum += p;
        kept.insert(id);
    }
    kept
}

fn settings() -> impl Strategy<Value = Sampling> {
    (
        0.05f32..4.0,
        0usize..50,
        0.05f32..=1.0,
        0.0f32..=1.0,
        any::<u64>(),
    )
        .prop_map(|(temperature, top_k, top_p, min_p, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            ..Sampling::default()
        })
}

proptest! {
    #[test]
    fn draws_are_repeatable_and_from_what_is_left(
        s in settings(),
        logits in prop::collection::vec(-20.0f32..20.0, 1..40),
    ) {
        let (mut a, mut b) = (Sampler::new(s.clone()).unwrap(), Sampler::new(s.clone()).unwrap());
        let kept = reference(&s, &logits);
        for _ in 0..8 {
            let token = a.pick(&logits, &[]).unwrap();
            prop_assert_eq!(token, b.pick(&logits, &[]).unwrap());
            prop_assert!(kept.contains(&token), "{} of {:?}", token, kept);
        }
    }

    #[test]
    fn long_tails_are_cut_where_the_plain_way_cuts(
        s in settings(),
        seed in any::<u64>(),
    ) {
        let s = Sampling { top_k: s.top_k * 40, top_p: s.top_p, ..s };
        let mut random = SplitMix64(seed);
        let logits: Vec<f32> = (0..3000).map(|_| random.unit() as f32 * 4.0).collect();
        let mut sampler = Sampler::new(s.clone()).unwrap();
        sampler.scaled.clone_from(&logits);
        let weight = weight_of(largest(&logits).1, s.temperature);
        let kept = sampler.keep(&weight);
        // Where the sum ends exactly at p, rounding may decide either way.
        prop_assert!(kept.abs_diff(reference(&s, &logits).len()) <= 1);
    }

    #[test]
    fn filters_that_keep_all_change_nothing(
        logits in prop::collection::vec(-5.0f32..5.0, 1..40),
        seed in any::<u64>(),
    ) {
        let plain = Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let open = Sampling { top_k: 1000, ..plain.clone() };
        prop_assert_eq!(pick(plain, &logits), pick(open, &logits));
    }

    #[test]
    fn nothing_panics(
        logits in prop::collection::vec(prop::num::f32::ANY, 0..20),
        context in prop::collection::vec(any::<u32>(), 0..5),
        s in settings(),
        repeat_penalty in prop::num::f32::POSITIVE,
    ) {
        if let Ok(mut sampler) = Sampler::new(Sampling { repeat_penalty, ..s }) {
            let _ = sampler.pick(&logits, &context);
        }
    }
}
