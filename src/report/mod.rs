//! What the user is told: progress, reports, and numbers in units people read.

pub mod groups;
pub mod html;
pub mod human;
mod model;
pub mod number;
pub mod parts;
pub mod progress;
pub mod read;
pub mod resources;
mod sites;
pub mod spectra;

pub use model::{ModelReport, REPORT_VERSION, Totals};
pub use sites::{Path, SiteReport, StepReport, term_cost, terms_cost};
