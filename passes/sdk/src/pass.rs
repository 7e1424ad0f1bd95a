//! Passes: the traits that a plugin implements, hlrc-opt's own.

#[path = "../../../src/pass/entry.rs"]
pub mod entry;
#[path = "../../../src/pass/interface.rs"]
pub mod interface;
#[path = "../../../src/pass/kind.rs"]
pub mod kind;
#[path = "../../../src/pass/remark.rs"]
pub mod remark;
#[path = "../../../src/pass/rotated.rs"]
pub mod rotated;
#[path = "../../../src/pass/terms/mod.rs"]
pub mod terms;

#[allow(dead_code)] // half of it is the host's
#[path = "../../../src/pass/plugin/borrow.rs"]
pub(crate) mod borrow;
#[allow(dead_code)] // the same
#[path = "../../../src/pass/plugin/stated.rs"]
pub(crate) mod stated;

pub use entry::PassEntry;
pub use interface::{
    Access, Calibration, Cost, Earlier, MatrixPass, ModulePass, MomentSource, Moments, Pass,
    PassError, Peel, Peeled, PeeledStored, Place, Quantizer, Residual, Rewrite, Stored,
};
pub use remark::{Remark, RemarkKind};
