//! Passes: what rewrites the IR.
//!
//! A **matrix pass** ([`MatrixPass`]) works on one matrix at a time: it takes a term out of the dense
//! residual ("peels" it). Consecutive matrix passes of a pipeline run matrix by matrix, so that a
//! model streams through and nothing but the matrices in flight is in memory. A **module pass**
//! ([`ModulePass`]) sees the whole module, without weights' data, and returns a patch.
//!
//! [`interface`] has the traits, [`registry`] knows all passes, [`plugin`] loads those of others, [`pipeline`] reads `-p`, [`manager`] runs them: scopes, order,
//! threads, memory, verification, remarks, timing, resume.

pub mod entry;
pub mod interface;
pub mod kind;
pub mod manager;
pub mod pipeline;
pub mod plugin;
pub mod registry;
pub mod remark;
pub mod rotated;
pub mod terms;

pub use entry::PassEntry;
pub use interface::{
    Access, Calibration, Cost, Earlier, MatrixPass, ModulePass, MomentSource, Moments, Pass,
    PassError, Peel, Peeled, PeeledStored, Place, Quantizer, Residual, Rewrite, Stored,
};
pub use registry::{find, passes};
pub use remark::{Remark, RemarkKind};
