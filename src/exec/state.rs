//! Keys and values of the tokens that a decoder has seen.

use super::kernels::attention::KeyCache;

/// The KV caches of some sequences.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) sequences: Vec<Sequence>,
    /// Tokens that sequences will have once what is being read is read.
    expected: usize,
}

/// The cache of one sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Sequence {
    /// Tokens seen.
    pub(super) len: usize,
    /// One per slot.
    pub(super) slots: Vec<Slot>,
}

/// Keys and values of one attention op.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) keys: KeyCache,
    /// `[len, width]`
    pub(super) values: Vec<f32>,
    width: usize,
}

impl State {
    /// `caches` are the heads of keys and their width; attention ops name their slot.
    pub(super) fn new(sequences: usize, caches: &[(usize, usize)]) -> Self {
        let slot = |&(heads, head_dim): &(usize, usize)| Slot {
            keys: KeyCache::new(heads, head_dim),
            values: Vec::new(),
            width: heads.saturating_mul(head_dim),
        };
        let sequence = Sequence {
            len: 0,
            slots: caches.iter().map(slot).collect(),
        };
        Self {
            sequences: vec![sequence; sequences],
            expected: 0,
        }
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Tokens that a sequence has seen; 0 for one that is not there.
    pub fn len(&self, sequence: usize) -> usize {
        self.sequences.get(sequence).map_or(0, |s| s.len)
    }

    /// Says how many tokens a sequence will have, before the first of them is run: a prompt's length, a
    /// window's.
    ///
    /// A rotary base that grows with the length (`dynamic` scaling) takes it from here, so that it does
    /// not depend on how the tokens are cut into calls. Behind them it grows token by token; keys that are
    /// cached keep theirs, as in `transformers`.
    pub fn expect(&mut self, tokens: usize) {
        self.expected = tokens;
    }

    /// Tokens that sequences will have.
    pub(super) fn expected(&self) -> usize {
        self.expected
    }

    /// Whether no sequence has seen a token.
    pub fn is_empty(&self) -> bool {
        self.sequences.iter().all(|s| s.len == 0)
    }

    /// Forgets what a sequence saw behind its first `len` tokens.
    pub fn truncate(&mut self, sequence: usize, len: usize) {
        let Some(s) = self.sequences.get_mut(sequence) else {
            return;
        };
        s.len = s.len.min(len);
        for slot in &mut s.slots {
            slot.keys.truncate(s.len);
            slot.values.truncate(s.len * slot.width);
        }
    }

    /// Bytes that the caches hold.
    pub fn bytes(&self) -> usize {
        let slot = |s: &Slot| (s.keys.values() + s.values.len()) * size_of::<f32>();
        let slots = self.sequences.iter().flat_map(|s| &s.slots);
        slots.map(slot).sum()
    }
}
