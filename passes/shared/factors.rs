//! What `lowrank` and `multilevel` share: factor formats, and what becomes of the residual.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::numeric::FactorFormat;
use crate::pass::Residual;

/// How factors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FactorsOption {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// 8-bit codes: a scale per row of U, per 64 values of V.
    Int8,
    /// 4-bit codes, a scale per 32 values.
    Int4,
}

/// What becomes of the residual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResidualOption {
    /// Stored as a dense term where no later pass takes it up.
    Keep,
    /// Dropped at once, even where a later pass would take it up.
    Drop,
}

impl FactorsOption {
    /// The codec's name for it.
    pub fn format(self) -> FactorFormat {
        match self {
            FactorsOption::F32 => FactorFormat::F32,
            FactorsOption::F16 => FactorFormat::F16,
            FactorsOption::Int8 => FactorFormat::Int8,
            FactorsOption::Int4 => FactorFormat::Int4,
        }
    }

    /// Upper bound of the bytes of factors with `sides` = rows + columns.
    pub fn bytes(self, sides: u64, rank: u64) -> u64 {
        let entries = sides.saturating_mul(rank);
        match self {
            FactorsOption::F32 => entries.saturating_mul(4),
            FactorsOption::F16 => entries.saturating_mul(2),
            // Scales: at worst 2 bytes for every row of U, and for the odd end of a group.
            FactorsOption::Int8 => (entries / 32)
                .saturating_add(entries)
                .saturating_add(sides.saturating_mul(4)),
            FactorsOption::Int4 => (entries / 16)
                .saturating_add(entries / 2)
                .saturating_add(sides.saturating_mul(4)),
        }
    }
}

impl ResidualOption {
    /// What is said, or else that the residual is dropped.
    pub fn or_drop(option: Option<Self>) -> Residual {
        match option {
            Some(ResidualOption::Keep) => Residual::Keep,
            Some(ResidualOption::Drop) => Residual::DropNow,
            None => Residual::Drop,
        }
    }
}

/// A fraction as percent, to three significant digits or so.
pub fn percent(fraction: f64) -> String {
    let value = 100.0 * fraction;
    let digits = if value < 1.0 { 3 } else { 1 };
    format!("{value:.digits$} %")
}
