//! Passes for `hlrc-opt` as plugins.
//!
//! A plugin is a library crate of the type `cdylib` with a pass as it would stand in `passes/` of
//! hlrc-opt, and one line that exports it:
//!
//! ```ignore
//! mod my_pass;                       // impl MatrixPass (or ModulePass), pass_entry!(…)
//! hlrc_pass::plugin!(my_pass::ENTRY);
//! ```
//!
//! [`ir`], [`numeric`] and [`pass`] are hlrc-opt's own sources: the same traits, the same view of a module,
//! the same codecs. What crosses the border to the host is plain C ([`abi`]), so a plugin works with every
//! hlrc-opt of the same major version of the interface, whatever compiler made either. Panics are caught at
//! the border and become errors with their message and place.
//!
//! `docs/plugins.md` has a tutorial and the reference; `hlrc-opt plugin new NAME` writes a plugin to start
//! from. [`host`] is what a running pass can ask besides: progress, the user's wish to stop, random numbers,
//! weights.

#![allow(rustdoc::broken_intra_doc_links)] // shared sources link into hlrc-opt

#[allow(dead_code)] // shared sources; hlrc-opt uses more of them
#[path = "../../../src/ir/mod.rs"]
pub mod ir;
#[allow(dead_code)]
#[path = "../../../src/numeric/mod.rs"]
pub mod numeric;
pub mod passes;
pub mod weights;

pub mod export;
pub mod host;
mod matrix;
mod module;
pub mod pass;
mod terms;

pub use hlrc_pass_abi as abi;
pub use serde_json;

/// What most passes use.
pub mod prelude {
    pub use crate::ir::Module;
    pub use crate::ir::patch::Patch;
    pub use crate::pass::kind::{CustomView, OnnxForm, OnnxNode, OnnxTensor, TermKind};
    pub use crate::pass::terms::{CustomData, CustomTensor, TermData};
    pub use crate::pass::{
        Access, Calibration, MatrixPass, ModulePass, Pass, PassError, Peel, Peeled, Remark,
        RemarkKind, Residual, Rewrite,
    };
    pub use crate::passes::shared::entry::pass_entry;
    pub use crate::weights::DType;
}

/// Exports the passes and kinds of terms of a plugin; once, in the crate's root.
///
/// `plugin!(a::ENTRY, b::ENTRY)` exports passes that `pass_entry!` made; `a::ENTRY as "name"` gives one
/// another name. `plugin!(a::ENTRY; terms: &a::Codebook)` exports kinds of terms too. Name and version
/// are the crate's.
///
/// The root gets the names `ir`, `numeric`, `pass` and `passes` of this crate, so that a source from
/// hlrc-opt's `passes/` finds its `crate::pass` here as it does there.
#[macro_export]
macro_rules! plugin {
    ($($entry:path $(as $name:literal)?),* $(,)? $(; terms: $($kind:expr),* $(,)?)?) => {
        #[allow(unused_imports)]
        use $crate::{ir, numeric, pass, passes, weights};

        /// The plugin, as the host asks for it.
        ///
        /// # Safety
        /// `host` is a table of an hlrc-opt that lives as long as the process.
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn hlrc_plugin(
            host: *const $crate::abi::HlrcHost,
        ) -> *const $crate::abi::HlrcPlugin {
            static PASSES: &[$crate::pass::PassEntry] = &[$($crate::plugin!(@ $entry $(, $name)?)),*];
            static KINDS: &[&dyn $crate::pass::kind::TermKind] = &[$($($kind),*)?];
            let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
            // SAFETY: the caller's promise.
            unsafe { $crate::export::describe(host, name, version, PASSES, KINDS) }
        }
    };
    (@ $entry:path) => { $entry };
    (@ $entry:path, $name:literal) => { $crate::pass::PassEntry { name: $name, ..$entry } };
}
