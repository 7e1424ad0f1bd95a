//! What is read off the logits of one position.

use crate::exec::kernels::math::exp;
use crate::exec::kernels::vector::{Isa, LANES, Vector, dispatch};

/// One model's prediction of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// -ln p(token), nats.
    pub nll: f64,
    /// The likeliest token; the first of several.
    pub top: usize,
}

/// Two models' predictions of the same token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The reference's.
    pub reference: Prediction,
    /// The candidate's.
    pub candidate: Prediction,
    /// KL(reference ‖ candidate), nats; at least 0.
    pub divergence: f64,
}

/// Sums over the vocabulary: Σ e^(r - max r), Σ e^(c - max c), Σ e^(r - max r) (r - c), maxima taken off.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    reference: f64,
    candidate: f64,
    cross: f64,
}

/// Scores one position of one model; `None` where the logits are not finite.
///
/// ln Σ e^x is taken with the maximum subtracted: exponentials in f32 (a few units in the last
/// place), their sum in f64. A logit of -∞ is a token that is impossible.
pub fn score(logits: &[f32], token: usize) -> Option<Prediction> {
    let isa = Isa::detect();
    let top = largest(isa, logits);
    let sums = sums(isa, logits, logits, top, top);
    prediction(logits, token, top, sums.reference)
}

/// Scores one position of two models; `None` where logits are not finite or lengths differ.
///
/// KL = Σ p_r (ln p_r - ln p_c), with p_r the reference's probabilities: exactly 0 for equal logits,
/// right to about 1e-7 otherwise. Infinite where the candidate rules out what the reference does not.
pub fn score_pair(reference: &[f32], candidate: &[f32], token: usize) -> Option<Pair> {
    if reference.len() != candidate.len() {
        return None;
    }
    let isa = Isa::detect();
    let (top_r, top_c) = (largest(isa, reference), largest(isa, candidate));
    let s = sums(isa, reference, candidate, top_r, top_c);
    let divergence = s.cross / s.reference - (s.reference.ln() - s.candidate.ln());
    Some(Pair {
        reference: prediction(reference, token, top_r, s.reference)?,
        candidate: prediction(candidate, token, top_c, s.candidate)?,
        divergence: divergence.max(0.0),
    })
}

fn prediction(logits: &[f32], token: usize, top: f32, sum: f64) -> Option<Prediction> {
    if !top.is_finite() || !sum.is_finite() {
        return None;
    }
    let logit = *logits.get(token)?;
    Some(Prediction {
        nll: sum.ln() - (f64::from(logit) - f64::from(top)),
        top: logits.iter().position(|&x| x == top)?,
    })
}

dispatch! {
    fn largest(x: &[f32]) -> f32 = largest_body;
}

#[inline(always)]
fn largest_body<S: Vector>(s: S, x: &[f32]) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut top = s.splat(f32::NEG_INFINITY);
    for chunk in whole {
        top = s.max(s.load_array(chunk), top);
    }
    rest.iter()
        .fold(s.largest(top), |m, &x| if x > m { x } else { m })
}

dispatch! {
    fn sums(reference: &[f32], candidate: &[f32], top_r: f32, top_c: f32) -> Sums = sums_body;
}

#[inline(always)]
fn sums_body<S: Vector>(
    s: S,
    reference: &[f32],
    candidate: &[f32],
    top_r: f32,
    top_c: f32,
) -> Sums {
    let mut lanes = [[0.0f64; LANES]; 3];
    let (whole_r, rest_r) = reference.as_chunks::<LANES>();
    let (whole_c, rest_c) = candidate.as_chunks::<LANES>();
    for (r, c) in whole_r.iter().zip(whole_c) {
        add(s, r, c, top_r, top_c, &mut lanes);
    }
    // What is left is padded with tokens that are impossible in both.
    let pad = |rest: &[f32]| {
        let mut out = [f32::NEG_INFINITY; LANES];
        for (o, &x) in out.iter_mut().zip(rest) {
            *o = x;
        }
        out
    };
    if !rest_r.is_empty() {
        add(s, &pad(rest_r), &pad(rest_c), top_r, top_c, &mut lanes);
    }
    let sum = |lane: &[f64; LANES]| lane.iter().sum();
    Sums {
        reference: sum(&lanes[0]),
        candidate: sum(&lanes[1]),
        cross: sum(&lanes[2]),
    }
}

#[inline(always)]
fn add<S: Vector>(
    s: S,
    r: &[f32; LANES],
    c: &[f32; LANES],
    top_r: f32,
    top_c: f32,
    lanes: &mut [[f64; LANES]; 3],
) {
    let r = s.sub(s.load_array(r), s.splat(top_r));
    let c = s.sub(s.load_array(c), s.splat(top_c));
    let (er, ec) = (s.to_array(exp(s, r)), s.to_array(exp(s, c)));
    let difference = s.to_array(s.sub(r, c));
    let [reference, candidate, cross] = lanes;
    for i in 0..LANES {
        let weight = f64::from(er[i]);
        reference[i] += weight;
        candidate[i] += f64::from(ec[i]);
        // What the reference rules out weighs nothing, whatever the difference.
        cross[i] += if er[i] == 0.0 {
            0.0
        } else {
            weight * f64::from(difference[i])
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything in f64, the textbook's way.
    fn exact(r: &[f32], c: &[f32], token: usize) -> (f64, f64, f64) {
        let log_p = |x: &[f32]| -> Vec<f64> {
            let top = x
                .iter()
                .fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
            let z: f64 = x.iter().map(|&x| (f64::from(x) - top).exp()).sum();
            x.iter().map(|&x| f64::from(x) - top - z.ln()).collect()
        };
        let (r, c) = (log_p(r), log_p(c));
        let kl = r.iter().zip(&c).map(|(r, c)| r.exp() * (r - c)).sum();
        (-r[token], -c[token], kl)
    }

    #[test]
    fn by_hand() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = ln 2 / 4.
        let ln2 = std::f32::consts::LN_2;
        let pair = score_pair(&[ln2, 0.0, 0.0], &[5.0, 5.0 + ln2, 5.0], 0).expect("finite");
        assert!((pair.reference.nll - 2f64.ln()).abs() < 1e-7);
        assert!((pair.candidate.nll - 4f64.ln()).abs() < 1e-7);
        assert!((pair.divergence - 2f64.ln() / 4.0).abs() < 1e-7);
        assert_eq!((pair.reference.top, pair.candidate.top), (0, 1));
    }

    #[test]
    fn impossible_tokens_and_broken_logits() {
        let never = f32::NEG_INFINITY;
        let pair = score_pair(&[0.0, never], &[0.0, never], 0).expect("finite");
        assert_eq!((pair.divergence, pair.reference.nll), (0.0, 0.0));
        let pair = score_pair(&[0.0, 0.0], &[0.0, never], 1).expect("finite");
        assert_eq!(
            (pair.divergence, pair.candidate.nll),
            (f64::INFINITY, f64::INFINITY)
        );
        assert_eq!(score(&[0.0, f32::NAN, 1.0], 0), None);
        assert_eq!(score(&[f32::INFINITY, 1.0], 0), None);
        assert_eq!(score(&[never, never], 0), None);
        assert_eq!(score(&[0.0], 1), None);
        assert_eq!(score(&[], 0), None);
        assert_eq!(score_pair(&[0.0], &[0.0, 1.0], 0), None);
    }

    proptest! {
        #[test]
        fn close_to_f64(
            logits in prop::collection::vec((-30f32..30.0, -30f32..30.0), 1..200), at in any::<prop::sample::Index>(),
        ) {
            let (r, c): (Vec<f32>, Vec<f32>) = logits.into_iter().unzip();
            let token = at.index(r.len());
            let (nll_r, nll_c, kl) = exact(&r, &c, token);
            let pair = score_pair(&r, &c, token).expect("finite");
            prop_assert!((pair.reference.nll - nll_r).abs() < 1e-5);
            prop_assert!((pair.candidate.nll - nll_c).abs() < 1e-5);
            prop_assert!((pair.divergence - kl).abs() < 1e-5 * (1.0 + kl));
            prop_assert_eq!(score(&r, token), Some(pair.reference));
            prop_assert_eq!(score_pair(&r, &r, token).map(|p| p.divergence), Some(0.0));
        }
    }
}
