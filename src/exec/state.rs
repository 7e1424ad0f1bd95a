//! Keys and values of the tokens that a decoder has seen.

/// The KV caches of some sequences.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) sequences: Vec<Sequence>,
    /// Width of keys (and of values) in each slot; attention ops name their slot.
    pub(super) widths: Vec<usize>,
}

/// The cache of one sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Sequence {
    /// Tokens seen.
    pub(super) len: usize,
    /// One per slot.
    pub(super) slots: Vec<Slot>,
}

/// Keys and values of one attention op, `[len, width]` each.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

impl State {
    pub(super) fn new(sequences: usize, widths: &[usize]) -> Self {
        let sequence = Sequence {
            len: 0,
            slots: vec![Slot::default(); widths.len()],
        };
        Self {
            sequences: vec![sequence; sequences],
            widths: widths.to_vec(),
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
        for (slot, width) in s.slots.iter_mut().zip(&self.widths) {
            slot.keys.truncate(s.len * width);
            slot.values.truncate(s.len * width);
        }
    }

    /// Bytes that the caches hold.
    pub fn bytes(&self) -> usize {
        let slot = |s: &Slot| (s.keys.len() + s.values.len()) * size_of::<f32>();
        let slots = self.sequences.iter().flat_map(|s| &s.slots);
        slots.map(slot).sum()
    }
}
