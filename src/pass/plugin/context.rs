//! Contexts: what a callback may ask of the host, until it returns.
//!
//! A context's number is never used twice, and numbers of contexts that have ended are not in the table: use
//! after the end is refused, not undefined.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use hlrc_pass_abi::{
    HLRC_CANCELLED, HLRC_ERROR, HLRC_EXPIRED, HLRC_INVALID, HLRC_NONE, HLRC_OK, HLRC_PANIC,
    HlrcContext, HlrcStatus, HlrcStr, HlrcTensor, HlrcTerm, HlrcTermView,
};

use super::borrow::{lend, named};
use super::scene::Scene;
use crate::pass::terms::TermData;
use crate::pass::{Moments, PassError, Remark};

/// What a context holds.
pub(super) struct State {
    /// The site at hand, or the op.
    pub(super) site: String,
    /// What the plugin said with `fail`.
    pub(super) failure: Option<String>,
    /// Why the last call was refused.
    pub(super) refused: String,
    /// Remarks that were made.
    pub(super) remarks: Vec<Remark>,
    /// Text for the progress line.
    pub(super) note: String,
    /// State of the random numbers.
    pub(super) random: u64,
    /// What it was at the beginning.
    pub(super) seed: u64,
    /// Terms by handle, less one.
    pub(super) terms: Vec<Option<TermData>>,
    /// The moments that were asked for last.
    pub(super) moments: Option<Moments>,
    /// What this kind of callback has besides.
    pub(super) scene: Scene,
    /// Whether the callback has returned.
    closed: bool,
    /// What was lent, kept until the end or until its term is dropped: the term's handle, or 0.
    kept: Vec<(HlrcTerm, Box<dyn Any + Send>)>,
    /// The term that things are lent of.
    lending: HlrcTerm,
}

static CONTEXTS: RwLock<Option<HashMap<u64, Arc<Mutex<State>>>>> = RwLock::new(None);
static NEXT: AtomicU64 = AtomicU64::new(1);
/// Calls into plugins that have not returned.
static INSIDE: AtomicUsize = AtomicUsize::new(0);
/// The library that is being loaded.
static LOADING: Mutex<Option<PathBuf>> = Mutex::new(None);

/// A call into a plugin: where the process ends before it is over, the plugin has ended it.
pub(super) struct Inside(());

impl Inside {
    pub(super) fn begin() -> Self {
        INSIDE.fetch_add(1, Ordering::Relaxed);
        Self(())
    }

    /// Loading it, with what its initialisers and its entry do.
    pub(super) fn load(path: &Path) -> impl Drop {
        struct Loading(Inside);
        impl Drop for Loading {
            fn drop(&mut self) {
                *LOADING.lock().unwrap_or_else(|e| e.into_inner()) = None;
            }
        }
        *LOADING.lock().unwrap_or_else(|e| e.into_inner()) = Some(path.to_path_buf());
        Loading(Self::begin())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open context; ends when it is closed or dropped.
pub(super) struct Context {
    pub(super) number: HlrcContext,
    state: Arc<Mutex<State>>,
    _inside: Inside,
}

impl Context {
    /// Opens one for a callback on `site`.
    pub(super) fn open(site: &str, seed: u64, scene: Scene) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(Mutex::new(State {
            site: site.to_string(),
            failure: None,
            refused: String::new(),
            remarks: Vec::new(),
            note: String::new(),
            random: seed,
            seed,
            terms: Vec::new(),
            moments: None,
            scene,
            closed: false,
            kept: Vec::new(),
            lending: 0,
        }));
        let mut all = CONTEXTS.write().unwrap_or_else(|e| e.into_inner());
        all.get_or_insert_default().insert(number, state.clone());
        Self {
            number,
            state,
            _inside: Inside::begin(),
        }
    }

    /// The state; other threads of the plugin may still be at it.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Ends it, and says what the callback's status means. `Ok(false)` is `HLRC_NONE`. Whatever the status, a
    /// callback that has said why it fails has failed.
    pub(super) fn close(&self, status: HlrcStatus) -> Result<bool, PassError> {
        self.forget();
        let mut state = self.state();
        state.closed = true;
        let said = state.failure.take().filter(|text| !text.trim().is_empty());
        let refused = std::mem::take(&mut state.refused);
        let text = match (status, said) {
            (HLRC_OK, None) => return Ok(true),
            (HLRC_NONE, None) => return Ok(false),
            (HLRC_CANCELLED, None) if super::cancelled() => {
                "it stopped, as it was asked to".to_string()
            }
            (HLRC_CANCELLED, None) => "it stopped, and nobody had asked it to".to_string(),
            (HLRC_PANIC, Some(text)) => format!("it panicked: {text}"),
            (_, Some(text)) => text,
            (HLRC_PANIC, None) => "it panicked".to_string(),
            (HLRC_INVALID, None) if !refused.is_empty() => refused,
            (HLRC_EXPIRED, None) => "it used a context whose callback had returned".to_string(),
            (status, None) if refused.is_empty() => {
                format!("it returned status {status}, without a message")
            }
            (status, None) => {
                format!("it returned status {status}; the host had refused: {refused}")
            }
        };
        Err(PassError::new(text))
    }

    fn forget(&self) {
        let mut all = CONTEXTS.write().unwrap_or_else(|e| e.into_inner());
        all.get_or_insert_default().remove(&self.number);
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.forget();
        self.state().closed = true;
    }
}

/// Has a plugin that ends the process out of a call end it as a failure: with code 6 while it is loaded, else
/// with 1.
pub(super) fn guard_exit() {
    #[cfg(unix)]
    {
        extern "C" fn ended() {
            if INSIDE.load(Ordering::Relaxed) == 0 {
                return;
            }
            // Whoever holds the lock may be the thread that ends the process here.
            let loading = LOADING.try_lock().ok().and_then(|path| path.clone());
            let (said, code) = match loading {
                Some(path) => {
                    let what = "ended the process while it was loaded";
                    (format!("error: {}: {what}\n", path.display()), 6)
                }
                None => {
                    let help = "--isolate-plugins makes that an error of its own";
                    (
                        format!("error: {} ended the process\n  help: {help}\n", whoever()),
                        1,
                    )
                }
            };
            // SAFETY: the text lives, and _exit ends the process with a code.
            unsafe {
                libc::write(libc::STDERR_FILENO, said.as_ptr().cast(), said.len());
                libc::_exit(code);
            }
        }
        // SAFETY: the function is there to the end and does not unwind.
        unsafe { libc::atexit(ended) };
    }
}

/// The plugins that it may be, and what they are at; without waiting for a lock.
#[cfg(unix)]
fn whoever() -> String {
    let plugins = super::PLUGINS.try_read().map_or_else(
        |_| String::new(),
        |all| {
            let title = |p: &&super::Plugin| format!("{} {}", p.name, p.version);
            all.iter().map(title).collect::<Vec<_>>().join(" or ")
        },
    );
    let mut sites: Vec<String> = CONTEXTS.try_read().map_or_else(
        |_| Vec::new(),
        |all| {
            let states = all.iter().flat_map(|all| all.values());
            let site = |s: &Arc<Mutex<State>>| s.try_lock().ok().map(|s| s.site.clone());
            states.filter_map(site).filter(|s| !s.is_empty()).collect()
        },
    );
    sites.sort();
    sites.dedup();
    match sites.is_empty() {
        true => format!("plugin {plugins}"),
        false => format!("plugin {plugins}, at {},", sites.join(", ")),
    }
}

/// Does what a plugin asks of an open context; never panics, never blocks for long.
pub(super) fn with(
    context: HlrcContext,
    work: impl FnOnce(&mut State) -> Result<(), PassError>,
) -> HlrcStatus {
    let known = {
        let all = CONTEXTS.read().unwrap_or_else(|e| e.into_inner());
        all.as_ref().and_then(|all| all.get(&context).cloned())
    };
    let Some(known) = known else {
        return if (1..NEXT.load(Ordering::Relaxed)).contains(&context) {
            HLRC_EXPIRED
        } else {
            HLRC_INVALID
        };
    };
    // A call into the plugin, out of a call of the host's, has a context of its own. The one that waits for it
    // is busy: its lock would never come free.
    let Some(_busy) = Busy::begin(context) else {
        return HLRC_INVALID;
    };
    let mut state = known.lock().unwrap_or_else(|e| e.into_inner());
    if state.closed {
        // The callback returned while this thread was on its way here.
        return HLRC_EXPIRED;
    }
    match catch_unwind(AssertUnwindSafe(|| work(&mut state))) {
        Ok(Ok(())) => HLRC_OK,
        Ok(Err(error)) => {
            state.refused = error.to_string();
            HLRC_INVALID
        }
        Err(_) => {
            state.refused = "the host panicked; this is a bug in hlrc-opt".to_string();
            HLRC_ERROR
        }
    }
}

thread_local! {
    /// Contexts that this thread is at.
    static AT: RefCell<Vec<HlrcContext>> = const { RefCell::new(Vec::new()) };
}

/// A context that this thread is at.
struct Busy;

impl Busy {
    /// None where it is at it already.
    fn begin(context: HlrcContext) -> Option<Self> {
        AT.with_borrow_mut(|at| {
            let new = !at.contains(&context);
            new.then(|| {
                at.push(context);
                Busy
            })
        })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        AT.with_borrow_mut(|at| {
            at.pop();
        });
    }
}

impl State {
    /// Keeps what is lent until the context ends, or its term is dropped.
    pub(super) fn keep<T: Send + 'static>(&mut self, value: T) -> *const T {
        let kept = Box::new(value);
        let place: *const T = &raw const *kept;
        self.kept.push((self.lending, kept));
        place
    }

    /// Lends a text.
    pub(super) fn lend(&mut self, text: String) -> HlrcStr {
        let place = self.keep(text);
        // SAFETY: a kept value stays where it is until the context ends.
        lend(unsafe { &*place })
    }

    /// Lends a list; first element and length.
    pub(super) fn lend_list<T: Send + 'static>(&mut self, list: Vec<T>) -> (*const T, usize) {
        let place = self.keep(list);
        // SAFETY: a kept value stays where it is until the context ends.
        let list: &Vec<T> = unsafe { &*place };
        (list.as_ptr(), list.len())
    }

    /// Takes a term in; its handle.
    pub(super) fn add_term(&mut self, term: TermData) -> HlrcTerm {
        self.terms.push(Some(term));
        self.terms.len() as HlrcTerm
    }

    /// The term of a handle.
    pub(super) fn term(&self, handle: HlrcTerm) -> Result<&TermData, PassError> {
        let index = usize::try_from(handle).ok().and_then(|n| n.checked_sub(1));
        let term = index.and_then(|index| self.terms.get(index)?.as_ref());
        term.ok_or_else(|| PassError::new(format!("no term has the handle {handle}")))
    }

    /// Gives a term's memory back; other handles keep their meaning.
    pub(super) fn drop_term(&mut self, handle: HlrcTerm) -> Result<(), PassError> {
        self.term(handle)?;
        self.terms[handle as usize - 1] = None;
        self.kept.retain(|(of, _)| *of != handle);
        Ok(())
    }

    /// Takes the term of a handle out.
    pub(super) fn take_term(&mut self, handle: HlrcTerm) -> Result<TermData, PassError> {
        self.term(handle)?;
        let taken = self.terms[handle as usize - 1].take();
        taken.ok_or_else(|| PassError::new("the term is gone"))
    }

    /// The term of a handle with its parts laid out for C, until it is dropped or the context ends.
    pub(super) fn view(&mut self, handle: HlrcTerm) -> Result<HlrcTermView, PassError> {
        let term = self.term(handle)?.clone();
        self.lending = handle;
        let made = self.laid_out(term);
        self.lending = 0;
        made
    }

    fn laid_out(&mut self, term: TermData) -> Result<HlrcTermView, PassError> {
        let (rows, cols) = term.shape();
        let (spec, tensors) = term.into_parts();
        let (kind, attributes) = named(&spec)?;
        let mut views = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let name = self.lend(tensor.suffix.into_owned());
            let (dims, rank) = self.lend_list(tensor.shape);
            let (data, len) = self.lend_list(tensor.pieces.concat());
            views.push(HlrcTensor {
                name,
                dtype: tensor.dtype.onnx_number() as u32,
                rank: rank as u32,
                dims,
                data,
                len,
            });
        }
        let kind = self.lend(kind);
        let attributes = self.lend(attributes);
        let (tensors, tensor_count) = self.lend_tensors(views);
        Ok(HlrcTermView {
            size: size_of::<HlrcTermView>(),
            kind,
            rows: rows as u64,
            cols: cols as u64,
            attributes,
            tensors,
            tensor_count,
        })
    }

    fn lend_tensors(&mut self, views: Vec<HlrcTensor>) -> (*const HlrcTensor, usize) {
        let place = self.keep(Lent(views));
        // SAFETY: a kept value stays where it is until the context ends.
        let list = unsafe { &(*place).0 };
        (list.as_ptr(), list.len())
    }

    /// Lends structs that point to other lent things.
    pub(super) fn lend_operands<T: 'static>(&mut self, list: Vec<T>) -> (*const T, usize) {
        let place = self.keep(Lent(list));
        // SAFETY: a kept value stays where it is until the context ends.
        let list = unsafe { &(*place).0 };
        (list.as_ptr(), list.len())
    }
}

/// Pointers to what the same context keeps.
struct Lent<T>(Vec<T>);

// SAFETY: the pointers are never followed here; plugins get them, with the rule when they end.
unsafe impl<T> Send for Lent<T> {}
