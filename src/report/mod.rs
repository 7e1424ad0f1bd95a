//! What the user is told: progress, and numbers in units people read.

pub mod human;
pub mod progress;
pub mod resources;
