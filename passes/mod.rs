//! The built-in passes, one file each.
//!
//! A file's header says what the pass does, before and after, its cost and its source. To add one:
//! `hlrc-opt new-pass NAME`, or by hand a file here, a `mod` line, an entry in [`ALL`] and a golden
//! in `tests/golden/NAME/`.

use crate::pass::PassEntry;

pub mod canonicalize;
pub mod drop_residual;
pub mod find_linears;
pub mod fold_rotations;
pub mod fuse_siblings;
pub mod int2;
pub mod int3;
pub mod int4;
pub mod int8;
pub mod lowrank;
pub mod multilevel;
pub mod outlier;
pub mod raise;
pub mod refine;
pub mod rotate;
pub mod shared;
pub mod train;
pub mod trellis;

/// Every built-in pass; the tidy test checks that no file is missing here.
pub const ALL: &[PassEntry] = &[
    canonicalize::ENTRY,
    drop_residual::ENTRY,
    find_linears::ENTRY,
    fold_rotations::ENTRY,
    fuse_siblings::ENTRY,
    int2::ENTRY,
    int3::ENTRY,
    int4::ENTRY,
    int8::ENTRY,
    lowrank::ENTRY,
    multilevel::ENTRY,
    outlier::ENTRY,
    raise::ENTRY,
    refine::ENTRY,
    rotate::ENTRY,
    train::ENTRY,
    trellis::ENTRY,
];
