//! Plugins: the examples do what their goldens say, broken ones are refused, misbehaving ones are errors.
//!
//! `UPDATE_GOLDENFILES=1 cargo test --release --test plugins` accepts new results of the examples.

mod broken;
mod calls;
mod common;
mod compute;
mod dense;
mod goldens;
mod isolated;
mod kinds;
mod loading;
mod misbehaving;
mod missing;
mod moved;
mod rewriting;
mod scaffold;
mod seeds;
mod statistics;
mod stuck;
mod training;
mod versions;
