//! Matrix passes that are elsewhere: what the manager asks of them was stated once.

use super::borrow::Traits;
use crate::pass::interface::{
    Access, Calibration, MatrixPass, PassError, Peel, Peeled, PeeledStored, Quantizer, Residual,
    Stored,
};

/// A pass by what it stated, and by who does its work.
pub(crate) struct Stated<W> {
    /// What it stated.
    pub(crate) traits: Traits,
    /// Who does its work.
    pub(crate) work: W,
}

/// The rest of a [`MatrixPass`].
pub(crate) trait Work: Send + Sync {
    /// What it takes for a matrix `[rows, cols]`.
    fn cost(&self, rows: u64, cols: u64) -> Cost;

    /// As [`MatrixPass::peel`].
    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError>;

    /// As [`MatrixPass::peel_stored`].
    fn peel_stored(&self, _: Stored<'_>) -> Option<Result<PeeledStored, PassError>> {
        None
    }
}

/// What a pass takes for a matrix.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// Working memory, bytes, without the residual.
    pub(crate) workspace_bytes: u64,
    /// Upper bound of the bytes of its term.
    pub(crate) term_bytes: u64,
    /// Time on one core, nanoseconds.
    pub(crate) nanos: f64,
}

impl Cost {
    /// Of a pass that does not say: as much as the matrix in f32.
    pub(crate) fn usual(rows: u64, cols: u64) -> Self {
        let entries = rows.saturating_mul(cols);
        Self {
            workspace_bytes: entries.saturating_mul(4),
            term_bytes: entries.saturating_mul(4),
            nanos: 2.0 * entries as f64,
        }
    }
}

impl<W: Work> MatrixPass for Stated<W> {
    fn access(&self) -> Access {
        self.traits.access
    }

    fn residual(&self) -> Residual {
        self.traits.residual
    }

    fn quantizer(&self) -> Option<Quantizer> {
        self.traits.quantizer
    }

    fn quantizes(&self) -> bool {
        self.traits.quantizes
    }

    fn calibration(&self) -> Calibration {
        self.traits.calibration
    }

    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        self.work.cost(rows, cols).workspace_bytes
    }

    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        self.work.cost(rows, cols).nanos
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        self.work.cost(rows, cols).term_bytes
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        self.work.peel(peel)
    }

    fn peel_stored(&self, stored: Stored<'_>) -> Option<Result<PeeledStored, PassError>> {
        self.work.peel_stored(stored)
    }
}

/// Of a pass that ran before this one, on the other side of a border: others may ask what it is, no more.
pub(crate) struct Elsewhere;

impl Work for Elsewhere {
    fn cost(&self, _: u64, _: u64) -> Cost {
        Cost::default()
    }

    fn peel(&self, _: &mut Peel<'_>) -> Result<Peeled, PassError> {
        Err(PassError::new("an earlier pass can't be run from here"))
    }
}

impl Stated<Elsewhere> {
    /// What stands for such a pass.
    pub(crate) fn earlier(traits: Traits) -> Self {
        Self {
            traits,
            work: Elsewhere,
        }
    }
}
