//! Processes that share the batches of each step, and add up what they found.
//!
//! Each rank has the whole model and runs its share of a step's batches; gradients, losses and
//! judgements are summed, and all ranks make the same step. So the result is that of one process up to
//! the order of sums. One rank writes.

#[cfg(feature = "mpi")]
pub mod mpi;

/// Who else trains.
pub trait Ranks {
    /// This process's number, from 0.
    fn rank(&self) -> usize;
    /// How many processes there are.
    fn size(&self) -> usize;
    /// Replaces values by their sums over all ranks: the same bits on each.
    fn sum(&self, values: &mut [f32]);
    /// The same of one number.
    fn total(&self, value: f64) -> f64;
    /// Waits until all ranks are here.
    fn wait(&self);
    /// Ends all ranks with an exit code.
    fn abort(&self, code: i32);

    /// Whether this one writes and tells.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }
}

/// One process.
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, _: &mut [f32]) {}

    fn total(&self, value: f64) -> f64 {
        value
    }

    fn wait(&self) {}

    fn abort(&self, _: i32) {}
}

/// This rank's share of a step's batches: every `size`-th.
pub(super) fn share<'a, T>(all: &'a [T], ranks: &dyn Ranks) -> impl Iterator<Item = &'a T> {
    all.iter().skip(ranks.rank()).step_by(ranks.size().max(1))
}

/// Whether any rank was asked to stop: all of them stop at the same step then.
pub(super) fn any(here: bool, ranks: &dyn Ranks) -> bool {
    ranks.total(f64::from(u8::from(here))) > 0.0
}
