//! What a dense term keeps beside its mapped bytes.

use crate::exec::Pool;
use crate::exec::kernels::float::{FloatRows, Panels};
use std::sync::{Arc, Mutex, PoisonError};

/// Most tokens of products that do not look for panels.
const FEW_TOKENS: usize = 16;

/// The panels of a matrix, from its second product of many tokens on: one product is not worth
/// packing for.
#[derive(Default)]
pub(super) struct Kept(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Unused,
    Used,
    /// None: there is no room, or the matrix is of another kind.
    Packed(Option<Arc<Panels>>),
}

impl Kept {
    /// Panels for a product of so many tokens, packed now where that is due.
    pub(super) fn panels(
        &self,
        pool: &Pool,
        w: &FloatRows<'_>,
        tokens: usize,
    ) -> Option<Arc<Panels>> {
        if tokens <= FEW_TOKENS || !w.transposed {
            return None;
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Unused => {
                *state = State::Used;
                None
            }
            State::Used => {
                let panels = Panels::new(pool, w).map(Arc::new);
                *state = State::Packed(panels.clone());
                panels
            }
            State::Packed(panels) => panels.clone(),
        }
    }

    /// Panels that are there already.
    pub(super) fn ready(&self, tokens: usize) -> Option<Arc<Panels>> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Packed(panels) if tokens > FEW_TOKENS => panels.clone(),
            _ => None,
        }
    }

    /// Gives the memory back.
    pub(super) fn release(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State::Unused;
    }
}
