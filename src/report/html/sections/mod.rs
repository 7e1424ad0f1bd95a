//! The sections of the page.

pub mod bytes;
pub mod layers;
pub mod matrices;
pub mod overview;
pub mod passes;
pub mod quality;
pub mod remarks;
pub mod spectra;
pub mod terms;
pub mod training;
