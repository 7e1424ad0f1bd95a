//! What the user is told: progress, and numbers in units people read.

pub mod human;
pub mod progress;
pub mod resources;
mod sites;

pub use sites::{Path, SiteReport, StepReport, term_cost, terms_cost};
