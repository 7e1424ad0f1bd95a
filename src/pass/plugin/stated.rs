//! Matrix passes that are elsewhere: what the manager asks of them was stated once.

use super::borrow::Traits;
use crate::pass::interface::{
    Access, Calibration, Cost, MatrixPass, PassError, Peel, Peeled, PeeledStored, Place, Quantizer,
    Residual, Stored,
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
    /// As [`MatrixPass::cost`].
    fn cost(&self, rows: u64, cols: u64) -> Result<Cost, PassError>;

    /// As [`MatrixPass::peel`].
    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError>;

    /// As [`MatrixPass::peel_stored`].
    fn peel_stored(&self, _: Stored<'_>, _: Place<'_>) -> Option<Result<PeeledStored, PassError>> {
        None
    }
}

/// Cost of a pass that does not say: as much as the matrix in f32.
pub(crate) fn usual_cost(rows: u64, cols: u64) -> Cost {
    let entries = rows.saturating_mul(cols);
    Cost {
        workspace_bytes: entries.saturating_mul(4),
        term_bytes: entries.saturating_mul(4),
        nanos: 2.0 * entries as f64,
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

    // The manager asks for `cost`, which can fail.
    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        self.cost(rows, cols)
            .map_or(u64::MAX, |c| c.workspace_bytes)
    }

    fn nanos(&self, rows: u64, cols: u64) -> f64 {
        self.cost(rows, cols).map_or(f64::MAX, |c| c.nanos)
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        self.cost(rows, cols).map_or(u64::MAX, |c| c.term_bytes)
    }

    fn cost(&self, rows: u64, cols: u64) -> Result<Cost, PassError> {
        self.work.cost(rows, cols)
    }

    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        self.work.peel(peel)
    }

    fn peel_stored(
        &self,
        stored: Stored<'_>,
        place: Place<'_>,
    ) -> Option<Result<PeeledStored, PassError>> {
        self.work.peel_stored(stored, place)
    }
}

/// Of a pass that ran before this one, on the other side of a border: others may ask what it is, no more.
pub(crate) struct Elsewhere;

impl Work for Elsewhere {
    fn cost(&self, _: u64, _: u64) -> Result<Cost, PassError> {
        Ok(Cost::default())
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
