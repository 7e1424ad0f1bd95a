//! Keeps the largest entries of a matrix and drops the others.
//!
//! Before: `linear %x { dense(@w) }`
//! After:  `linear %x { sparse(@w.values, @w.columns, @w.offsets, nnz=410) }`
//!
//! Cost: a selection in linear time. An entry takes 4 bytes (6 above 65536 columns), a row 4.
//! Source: magnitude pruning, as in S. Han et al., arXiv 1506.02626.

use hlrc_pass::numeric::Sparse;
use hlrc_pass::numeric::sparse::select_by_magnitude;
use hlrc_pass::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Options of `zero-small`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ZeroSmall {
    /// Share of the entries that is kept, as a fraction (0.1) or in percent (10%).
    #[schemars(range(min = 0.0, max = 1.0))]
    pub keep: f64,
}

impl Default for ZeroSmall {
    fn default() -> Self {
        Self { keep: 0.1 }
    }
}

impl MatrixPass for ZeroSmall {
    fn peel(&self, peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        let chosen = select_by_magnitude(peel.residual, self.keep).map_err(PassError::new)?;
        let kept = Sparse::take(peel.residual, peel.rows, peel.cols, &chosen);
        let term = TermData::Sparse(kept.map_err(PassError::new)?);
        Ok(Peeled {
            note: term.label(),
            term: Some(term),
        })
    }

    fn access(&self) -> Access {
        Access::Whole
    }

    fn residual(&self) -> Residual {
        Residual::Drop
    }

    fn workspace_bytes(&self, rows: u64, cols: u64) -> u64 {
        rows.saturating_mul(cols).saturating_mul(16)
    }

    fn term_bytes(&self, rows: u64, cols: u64) -> u64 {
        let entries = rows.saturating_mul(cols) as f64 * self.keep;
        (entries.ceil() as u64 + rows + 1).saturating_mul(6)
    }
}

pass_entry!("zero-small" in "zero_small.rs", ZeroSmall, |options: ZeroSmall| Ok(
    Pass::Matrix(Box::new(options))
));
