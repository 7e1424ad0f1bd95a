//! What a callback has at hand besides what every context has.
#![allow(unsafe_code)]

use std::cell::OnceCell;
use std::sync::Arc;

use crate::ir::patch::Patch;
use crate::ir::site::{Site, sites};
use crate::ir::{Module, Op, Weight};
use crate::pass::interface::Earlier;
use crate::pass::kind::OnnxForm;
use crate::pass::terms::TermData;
use crate::pass::{MomentSource, Moments, PassError};
use crate::weights::FileCache;

/// What kind of callback it is.
pub(super) enum Scene {
    /// One that has nothing else.
    Plain,
    /// A peel: terms of earlier passes.
    Peel(EarlierTerms),
    /// A module pass.
    Module(Box<ModuleScene>),
    /// The ONNX form of a term, as far as it was given.
    Onnx(OnnxForm),
}

/// The `earlier` of a [`crate::pass::Peel`], its lifetime erased.
pub(super) struct EarlierTerms {
    list: *mut Earlier<'static>,
    count: usize,
    changed: bool,
}

// SAFETY: the list is borrowed exclusively by the call that opened the context, which waits for the
// callback; other threads reach it under the context's lock alone, and not once the context is closed.
unsafe impl Send for EarlierTerms {}

impl EarlierTerms {
    /// # Safety
    /// The list lives, and nobody else uses it, until the context that gets this is closed.
    pub(super) unsafe fn new(earlier: &mut [Earlier<'_>]) -> Self {
        Self {
            list: earlier.as_mut_ptr().cast(),
            count: earlier.len(),
            changed: false,
        }
    }

    /// Whether a term was changed.
    pub(super) fn changed(&self) -> bool {
        self.changed
    }

    pub(super) fn set(&mut self, index: usize, term: TermData) -> Result<(), PassError> {
        let earlier = self.get(index)?;
        if earlier.term.shape() != term.shape() {
            return Err(PassError::new(
                "a term of another shape than the one that it replaces",
            ));
        }
        *earlier.term = term;
        self.changed = true;
        Ok(())
    }

    pub(super) fn get(&mut self, index: usize) -> Result<&mut Earlier<'static>, PassError> {
        if index >= self.count {
            let count = self.count;
            return Err(PassError::new(format!(
                "no earlier term {index}, there are {count}"
            )));
        }
        // SAFETY: inside the list, which lives by the promise of `new`; the borrow is as long as that of
        // `self`, under the context's lock.
        Ok(unsafe { &mut *self.list.add(index) })
    }
}

/// The statistics of a [`crate::pass::Rewrite`], their lifetime erased.
pub(super) struct Statistics(*const dyn MomentSource);

// SAFETY: the source is `Sync`; it is used under the context's lock alone, and not once the context is closed.
unsafe impl Send for Statistics {}

impl Statistics {
    /// # Safety
    /// The source lives until the context that gets this is closed.
    pub(super) unsafe fn new(source: &dyn MomentSource) -> Self {
        let source: *const (dyn MomentSource + '_) = source;
        // SAFETY: the two differ in their lifetime alone, which is the caller's promise.
        Self(unsafe {
            std::mem::transmute::<*const (dyn MomentSource + '_), *const dyn MomentSource>(source)
        })
    }

    pub(super) fn moments(&self, site: &str) -> Result<Option<Moments>, String> {
        // SAFETY: it lives, by the promise of `new`.
        unsafe { &*self.0 }.moments(site)
    }
}

/// A module and the changes that a pass asks for.
pub(super) struct ModuleScene {
    pub(super) module: Arc<Module>,
    /// Its matrices, once they were asked for.
    pub(super) sites: OnceCell<Vec<Site>>,
    pub(super) statistics: Option<Statistics>,
    pub(super) files: FileCache,
    pub(super) patch: Patch,
    /// Ops that were made and are in no graph yet, with their graphs.
    pub(super) fresh: Vec<(u32, Op)>,
    /// Weights that were made.
    pub(super) weights: Vec<Weight>,
    /// Values that were made, per graph.
    pub(super) values: Vec<u32>,
    /// The module that takes this one's place.
    pub(super) whole: Option<Module>,
}

impl ModuleScene {
    pub(super) fn new(module: &Module, rule: &str, statistics: Option<Statistics>) -> Self {
        Self {
            sites: OnceCell::new(),
            statistics,
            patch: Patch::new(module, rule),
            values: vec![0; module.graphs.len()],
            module: Arc::new(module.clone()),
            files: FileCache::default(),
            fresh: Vec::new(),
            weights: Vec::new(),
            whole: None,
        }
    }

    /// The module's matrices.
    pub(super) fn sites(&self) -> &[Site] {
        self.sites.get_or_init(|| sites(&self.module))
    }
}
