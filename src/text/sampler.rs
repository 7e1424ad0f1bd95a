//! From logits to the next token.
//!
//! Steps, in this order (that of `transformers`):
//! 1. repetition penalty: the logit of every token that the context has is divided by the penalty where
//!    it is positive and multiplied where it is negative (Keskar et al. 2019, CTRL);
//! 2. temperature 0: the token with the largest logit, the lowest id of equals; nothing else counts;
//! 3. temperature: logits are divided by it;
//! 4. top-k: the k largest stay;
//! 5. softmax over what stayed;
//! 6. top-p: the fewest largest whose probabilities add up to p stay (Holtzman et al. 2019);
//! 7. min-p: those stay that have at least `min_p` times the largest probability (Nguyen et al. 2024);
//! 8. one is drawn by its share of what stayed.
//!
//! Equal logits are ordered by id, sums run in a fixed order in f64, and the generator is SplitMix64:
//! the same logits, settings and seed give the same token everywhere.

use std::cmp::Ordering;
use std::collections::BTreeSet;

/// Candidates that are sorted at first; eight times more whenever they don't do.
const CHUNK: usize = 256;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; above 0, logits are divided by it.
    pub temperature: f32,
    /// Only so many of the largest; 0 keeps all.
    pub top_k: usize,
    /// Only the fewest with this share of the probability; 1 keeps all.
    pub top_p: f32,
    /// Only those with this share of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// What logits of tokens in the context are divided by; 1 leaves them.
    pub repeat_penalty: f32,
    /// Where the random numbers start.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            seed: 0,
        }
    }
}

/// Why no token can be chosen, or a setting cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SamplingError {
    /// A setting outside of its range.
    #[error("{name} is {value}; {range}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// A logit that is not a number, or infinitely large.
    #[error("the logit of token {token} is {value}: the model's weights or activations overflow")]
    NotFinite {
        /// The token.
        token: usize,
        /// `NaN` or `inf`.
        value: String,
    },
    /// No token has a probability.
    #[error("the model gives no token a probability ({0} logits)")]
    Nothing(usize),
}

/// Chooses tokens; keeps its random numbers and its scratch memory from one to the next.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: SplitMix64,
    scaled: Vec<f32>,
    order: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler with these settings.
    ///
    /// # Errors
    /// [`SamplingError::Setting`] for a value outside of its range.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        check(
            "temperature",
            sampling.temperature,
            0.0..=f32::MAX,
            "it is 0 or more",
        )?;
        check(
            "top-p",
            sampling.top_p,
            f32::MIN_POSITIVE..=1.0,
            "it is above 0 and at most 1",
        )?;
        check("min-p", sampling.min_p, 0.0..=1.0, "it is from 0 to 1")?;
        check(
            "repeat-penalty",
            sampling.repeat_penalty,
            f32::MIN_POSITIVE..=f32::MAX,
            "it is above 0; 1 means none",
        )?;
        Ok(Self {
            random: SplitMix64(sampling.seed),
            sampling,
            scaled: Vec::new(),
            order: Vec::new(),
        })
    }

    /// Chooses the token that follows `context`, by its `logits` `[vocabulary]`.
    ///
    /// Cost: one pass over the logits; where top-p or top-k cut, a partial sort.
    ///
    /// # Errors
    /// A logit that is NaN or +∞; no logit above -∞.
    pub fn pick(&mut self, logits: &[f32], context: &[u32]) -> Result<u32, SamplingError> {
        let bad = |l: &f32| l.is_nan() || *l == f32::INFINITY;
        if let Some(token) = logits.iter().position(bad) {
            let value = logits.get(token).map(f32::to_string).unwrap_or_default();
            return Err(SamplingError::NotFinite { token, value });
        }
        self.scaled.clear();
        self.scaled.extend_from_slice(logits);
        self.penalise(context);
        let (best, largest) = largest(&self.scaled);
        if largest == f32::NEG_INFINITY {
            return Err(SamplingError::Nothing(logits.len()));
        }
        if self.sampling.temperature == 0.0 {
            return Ok(best);
        }
        let weight = weight_of(largest, self.sampling.temperature);
        let u = self.random.unit();
        let s = &self.sampling;
        let whole = s.top_k == 0 || s.top_k >= logits.len();
        if whole && s.top_p >= 1.0 && s.min_p <= 0.0 {
            let weights = self.scaled.iter().zip(0..).map(|(&l, id)| (weight(l), id));
            return Ok(draw(weights, u).unwrap_or(best));
        }
        let kept = self.keep(&weight);
        let kept = self.order.get(..kept).unwrap_or(&[]);
        let weights = kept.iter().map(|&(l, id)| (weight(l), id));
        Ok(draw(weights, u).unwrap_or(best))
    }

    fn penalise(&mut self, context: &[u32]) {
        let penalty = self.sampling.repeat_penalty;
        if penalty == 1.0 {
            return;
        }
        let seen: BTreeSet<u32> = context.iter().copied().collect();
        for token in seen {
            let slot = usize::try_from(token).ok();
            if let Some(logit) = slot.and_then(|i| self.scaled.get_mut(i)) {
                let with = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
                // A penalty of 1e38 must not make a token certain, nor break the sum.
                *logit = if with.is_nan() {
                    f32::NEG_INFINITY
                } else {
                    with.min(f32::MAX)
                };
            }
        }
    }

    /// Brings the candidates that top-k, top-p and min-p leave to the front of `order`; how many.
    fn keep(&mut self, weight: &impl Fn(f32) -> f64) -> usize {
        let s = &self.sampling;
        self.order.clear();
        self.order.extend(self.scaled.iter().copied().zip(0u32..));
        let all = self.order.len();
        let top_k = if s.top_k == 0 { all } else { s.top_k.min(all) };
        if top_k < all {
            self.order.select_nth_unstable_by(top_k, by_logit);
            self.order.truncate(top_k);
            // A fixed order of the sum, whatever the selection left.
            self.order.sort_unstable_by_key(|&(_, id)| id);
        }
        let total: f64 = self.order.iter().map(|&(l, _)| weight(l)).sum();
        let (enough, least) = (f64::from(s.top_p) * total, f64::from(s.min_p));
        let (mut sorted, mut sum) = (0, 0.0);
        let mut size = CHUNK;
        while sorted < top_k {
            let rest = self.order.get_mut(sorted..).unwrap_or(&mut []);
            let take = size.min(rest.len());
            if take < rest.len() {
                rest.select_nth_unstable_by(take, by_logit);
            }
            let chunk = rest.get_mut(..take).unwrap_or(&mut []);
            chunk.sort_unstable_by(by_logit);
            for (at, &(logit, _)) in chunk.iter().enumerate() {
                let w = weight(logit);
                let first = sorted + at == 0;
                // The largest weight is 1: a share of it is the weight itself.
                if !first && (w < least || (s.top_p < 1.0 && sum >= enough)) {
                    return sorted + at;
                }
                sum += w;
            }
            sorted += take;
            size = size.saturating_mul(8);
        }
        top_k
    }
}

fn check(
    name: &'static str,
    value: f32,
    allowed: std::ops::RangeInclusive<f32>,
    range: &'static str,
) -> Result<(), SamplingError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    let value = value.to_string();
    Err(SamplingError::Setting { name, value, range })
}

/// Largest first, the lower id first of equals.
fn by_logit(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The first of the largest logits.
fn largest(logits: &[f32]) -> (u32, f32) {
    let start = (0, f32::NEG_INFINITY);
    let larger = |best: (u32, f32), (&l, id): (&f32, u32)| if l > best.1 { (id, l) } else { best };
    logits.iter().zip(0..).fold(start, larger)
}

/// Unnormalised probability at a temperature: 1 for the largest logit.
fn weight_of(largest: f32, temperature: f32) -> impl Fn(f32) -> f64 {
    let (largest, temperature) = (f64::from(largest), f64::from(temperature));
    move |logit| ((f64::from(logit) - largest) / temperature).exp()
}

/// The candidate at the share `u` of the sum of weights.
fn draw(weights: impl Iterator<Item = (f64, u32)> + Clone, u: f64) -> Option<u32> {
    let total: f64 = weights.clone().map(|(w, _)| w).sum();
    let mut left = u * total;
    let mut last = None;
    for (w, id) in weights {
        if w > 0.0 {
            if left < w {
                return Some(id);
            }
            last = Some(id);
        }
        left -= w;
    }
    // Rounding may leave a little at the end.
    last
}

/// Steele, Lea, Flood (2014): Fast splittable pseudorandom number generators.
#[derive(Clone, Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [0, 1), a multiple of 2⁻⁵³.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests;
