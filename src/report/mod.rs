//! What the user is told: progress, reports, and numbers in units people read.

pub mod human;
mod model;
pub mod progress;
pub mod resources;
mod sites;

pub use model::{ModelReport, Totals};
pub use sites::{Path, SiteReport, StepReport, term_cost, terms_cost};
