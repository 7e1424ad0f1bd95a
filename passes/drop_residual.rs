//! Drops what earlier passes left, and stores nothing for it.
//!
//! Says aloud what happens anyway where `lowrank` or `outlier` ends a pipeline; after
//! `residual=keep` it is the way to change one's mind. On a matrix that no pass has touched it
//! leaves the zero matrix.
//!
//! Before: `linear %x { low_rank(@w.u, @w.v, r=32) + dense(@w) }`
//! After:  `linear %x { low_rank(@w.u, @w.v, r=32) }`
//!
//! Cost: none.
//! Source: -

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shared::entry::pass_entry;
use crate::pass::{Access, MatrixPass, Pass, PassError, Peel, Peeled, Residual};

/// Options of `drop-residual`: none.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {}

/// The pass.
pub struct DropResidual;

impl MatrixPass for DropResidual {
    fn access(&self) -> Access {
        Access::Rows
    }

    fn residual(&self) -> Residual {
        Residual::DropNow
    }

    fn workspace_bytes(&self, _rows: u64, _cols: u64) -> u64 {
        0
    }

    fn nanos(&self, _rows: u64, _cols: u64) -> f64 {
        0.0
    }

    fn term_bytes(&self, _rows: u64, _cols: u64) -> u64 {
        0
    }

    fn peel(&self, _peel: &mut Peel<'_>) -> Result<Peeled, PassError> {
        Ok(Peeled {
            term: None,
            note: "dropped".to_string(),
        })
    }
}

pass_entry!("drop-residual" in "drop_residual.rs", Options, |_: Options| Ok(Pass::Matrix(
    Box::new(DropResidual)
)));
