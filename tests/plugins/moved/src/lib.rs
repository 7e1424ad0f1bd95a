//! Built-in passes as a plugin: the files of `passes/`, unchanged, under other names.
#![allow(dead_code)] // of what they share

use hlrc_pass::passes::shared;

#[path = "../../../../passes/canonicalize.rs"]
pub mod canonicalize;
#[path = "../../../../passes/outlier.rs"]
pub mod outlier;

pub mod own;

hlrc_pass::plugin!(
    canonicalize::ENTRY as "canonicalize-moved",
    outlier::ENTRY as "outlier-moved",
    own::int4::ENTRY as "int4-moved",
);
