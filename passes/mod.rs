//! The built-in passes, one file each.
//!
//! A file's header says what the pass does, before and after, its cost and its source. To add one:
//! `hlrc-opt new-pass NAME`, or by hand a file here, a `mod` line, an entry in [`ALL`] and a golden
//! in `tests/golden/NAME/`.

use crate::pass::PassEntry;

/// Every built-in pass; the tidy test checks that no file is missing here.
pub const ALL: &[PassEntry] = &[];
