//! Examples, their order, and batches of them.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

/// Tokens with what each prediction counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Weight of predicting token `t + 1` at `t`: one less than tokens; 0 is not looked at.
    pub weights: Vec<f32>,
    /// Examples of the same number, if any, are pieces of one document.
    pub document: Option<usize>,
}

impl Example {
    /// An example of which every prediction counts.
    pub fn whole(tokens: Vec<u32>) -> Self {
        Self {
            weights: vec![1.0; tokens.len().saturating_sub(1)],
            tokens,
            document: None,
        }
    }

    /// Sum of the weights.
    pub fn weight(&self) -> f64 {
        self.weights.iter().map(|&w| f64::from(w)).sum()
    }
}

/// Examples that run at once, filled up to one length.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Numbers of the examples.
    pub examples: Vec<usize>,
    /// Length of the longest.
    pub len: usize,
    /// `[examples, len]`
    pub tokens: Vec<i64>,
    /// `[examples, len]`: the token that comes; −100 where nothing counts.
    pub labels: Vec<i64>,
    /// `[examples, len]`: weights, 0 for filling.
    pub weights: Vec<f32>,
}

impl Batch {
    /// Some of the examples, filled up with their last token, which nothing before it sees.
    pub fn new(all: &[Example], examples: &[usize]) -> Self {
        let some: Vec<&Example> = examples.iter().filter_map(|&i| all.get(i)).collect();
        let len = some.iter().map(|e| e.tokens.len()).max().unwrap_or(0);
        let mut batch = Self {
            examples: examples.to_vec(),
            len,
            tokens: Vec::with_capacity(len * some.len()),
            labels: Vec::with_capacity(len * some.len()),
            weights: Vec::with_capacity(len * some.len()),
        };
        for example in some {
            let fill = example.tokens.last().copied().unwrap_or(0);
            for t in 0..len {
                let token = example.tokens.get(t).copied().unwrap_or(fill);
                let weight = example.weights.get(t).copied().unwrap_or(0.0);
                let next = example.tokens.get(t + 1).filter(|_| weight != 0.0);
                batch.tokens.push(i64::from(token));
                batch
                    .labels
                    .push(next.map_or(-100, |&next| i64::from(next)));
                batch.weights.push(weight);
            }
        }
        batch
    }

    /// Sum of the weights.
    pub fn weight(&self) -> f64 {
        self.weights.iter().map(|&w| f64::from(w)).sum()
    }

    /// Predictions that count.
    pub fn counted(&self) -> u64 {
        self.weights.iter().filter(|w| **w != 0.0).count() as u64
    }
}

/// splitmix64
fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number below `most` that a seed and a number choose.
pub fn drawn(most: usize, seed: u64, number: u64) -> usize {
    let mut state = seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93);
    mix(&mut state);
    (mix(&mut state) % most.max(1) as u64) as usize
}

/// `0..count` in an order that a seed and a number choose.
pub fn shuffled(count: usize, seed: u64, number: u64) -> Vec<usize> {
    let mut state = seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93);
    mix(&mut state);
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        let j = (mix(&mut state) % (i as u64 + 1)) as usize;
        order.swap(i, j);
    }
    order
}

/// Splits examples into those to train on and those to judge by: `share` of them, at least one. Pieces of
/// one document go to one side.
pub fn split(examples: Vec<Example>, share: f64, seed: u64) -> (Vec<Example>, Vec<Example>) {
    let count = (examples.len() as f64 * share).round() as usize;
    let count = count.clamp(usize::from(share > 0.0), examples.len().saturating_sub(1));
    let mut known: HashMap<usize, usize> = HashMap::new();
    let mut documents: Vec<Vec<usize>> = Vec::new();
    for (i, example) in examples.iter().enumerate() {
        let new = documents.len();
        let at = example
            .document
            .map_or(new, |d| *known.entry(d).or_insert(new));
        match documents.get_mut(at) {
            Some(pieces) => pieces.push(i),
            None => documents.push(vec![i]),
        }
    }
    let mut chosen: HashSet<usize> = HashSet::new();
    for at in shuffled(documents.len(), seed, u64::MAX) {
        let pieces = &documents[at];
        let fits = chosen.len() + pieces.len() < examples.len();
        if chosen.len() < count && fits {
            chosen.extend(pieces);
        }
    }
    let (mut train, mut validation) = (Vec::new(), Vec::new());
    for (i, example) in examples.into_iter().enumerate() {
        match chosen.contains(&i) {
            true => validation.push(example),
            false => train.push(example),
        }
    }
    (train, validation)
}

/// The examples of one step (from 0): the examples, shuffled anew each time they are through.
pub fn of_step(count: usize, per_step: usize, seed: u64, step: u64) -> Vec<usize> {
    let mut order: Option<(u64, Vec<usize>)> = None;
    let (count_u, per_step_u) = (count.max(1) as u64, per_step as u64);
    let first = step.saturating_mul(per_step_u);
    let at = |place: u64| {
        let (round, within) = (place / count_u, (place % count_u) as usize);
        if order.as_ref().is_none_or(|(of, _)| *of != round) {
            order = Some((round, shuffled(count, seed, round)));
        }
        order
            .as_ref()
            .and_then(|(_, order)| order.get(within).copied())
            .unwrap_or(0)
    };
    (first..first.saturating_add(per_step_u)).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_comes_once_a_round() {
        let mut seen: Vec<usize> = (0..3).flat_map(|s| of_step(6, 2, 7, s)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
        assert_eq!(of_step(6, 2, 7, 1), of_step(6, 2, 7, 1));
        let rounds: Vec<Vec<usize>> = (0..4).map(|r| of_step(6, 6, 7, r)).collect();
        assert!(rounds.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn filling_counts_for_nothing() {
        let mut short = Example::whole(vec![5, 6]);
        short.weights = vec![1.0];
        let all = [Example::whole(vec![1, 2, 3]), short];
        let batch = Batch::new(&all, &[0, 1]);
        assert_eq!(batch.tokens, [1, 2, 3, 5, 6, 6]);
        assert_eq!(batch.labels, [2, 3, -100, 6, -100, -100]);
        assert_eq!(batch.weights, [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(batch.counted(), 3);
    }

    #[test]
    fn pieces_of_a_document_stay_together() {
        let piece = |i: u32| Example {
            document: Some(i as usize / 3),
            ..Example::whole(vec![i, i])
        };
        for seed in 0..20 {
            let (train, validation) = split((0..30).map(piece).collect(), 0.2, seed);
            assert_eq!(train.len() + validation.len(), 30);
            assert!(validation.len() >= 6);
            let of = |e: &Example| e.document;
            assert!(
                validation
                    .iter()
                    .all(|v| train.iter().all(|t| of(t) != of(v)))
            );
        }
    }

    #[test]
    fn a_split_takes_every_example_once() {
        let examples: Vec<Example> = (0..10).map(|i| Example::whole(vec![i, i])).collect();
        let (train, validation) = split(examples.clone(), 0.2, 3);
        assert_eq!((train.len(), validation.len()), (8, 2));
        assert!(
            examples
                .iter()
                .all(|e| train.contains(e) != validation.contains(e))
        );
    }
}
