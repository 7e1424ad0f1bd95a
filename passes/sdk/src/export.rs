//! From a plugin's passes to the tables that the host reads.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use hlrc_pass_abi::*;
use serde_json::Map;

use crate::pass::borrow::{lend, text};
use crate::pass::kind::{self, TermKind};
use crate::pass::{Pass, PassEntry, PassError};
use crate::{host, matrix, module, terms};

struct Exported(HlrcPlugin);

// SAFETY: the tables are written once and never changed.
unsafe impl Send for Exported {}
// SAFETY: as above.
unsafe impl Sync for Exported {}

static PLUGIN: OnceLock<Exported> = OnceLock::new();

thread_local! {
    /// What the last panic of this thread said, and where.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The plugin's description. [`crate::plugin!`] calls it.
///
/// # Safety
/// `host` is null, or a table that lives as long as the process.
pub unsafe fn describe(
    host: *const HlrcHost,
    name: &'static str,
    version: &'static str,
    passes: &'static [PassEntry],
    kinds: &'static [&'static dyn TermKind],
) -> *const HlrcPlugin {
    // SAFETY: the caller's promise.
    if !unsafe { host::set(host) } {
        return std::ptr::null();
    }
    let made = catch_unwind(AssertUnwindSafe(|| {
        &PLUGIN
            .get_or_init(|| Exported(plugin(name, version, passes, kinds)))
            .0
    }));
    made.map_or(std::ptr::null(), std::ptr::from_ref)
}

fn plugin(
    name: &'static str,
    version: &'static str,
    passes: &'static [PassEntry],
    kinds: &'static [&'static dyn TermKind],
) -> HlrcPlugin {
    remember_panics();
    for &kind in kinds {
        kind::register(kind);
    }
    let passes: Vec<*const HlrcPassDef> = passes.iter().map(|e| leak(pass(e))).collect();
    let terms: Vec<*const HlrcTermDef> = kinds.iter().map(|k| leak(terms::def(name, k))).collect();
    let (passes, terms) = (passes.leak(), terms.leak());
    HlrcPlugin {
        size: size_of::<HlrcPlugin>(),
        abi_major: HLRC_ABI_MAJOR,
        abi_minor: NEEDED_MINOR,
        name: lend(name),
        version: lend(version),
        passes: passes.as_ptr(),
        pass_count: passes.len(),
        terms: terms.as_ptr(),
        term_count: terms.len(),
    }
}

/// The least minor version of the host that this crate needs: what later ones added is called where it is there.
const NEEDED_MINOR: u32 = 0;

fn leak<T>(value: T) -> *const T {
    Box::leak(Box::new(value))
}

fn pass(entry: &'static PassEntry) -> HlrcPassDef {
    let schema: &'static str = (entry.schema)().to_string().leak();
    // What kind of pass it is shows in the pass that its defaults make.
    let built = host::probing(|| (entry.build)(Map::new()));
    let is_module = matches!(built, Ok(Pass::Module(_)));
    let matrices = !is_module;
    HlrcPassDef {
        size: size_of::<HlrcPassDef>(),
        name: lend(entry.name),
        summary: lend(entry.summary),
        doc: lend(entry.doc),
        schema: lend(schema),
        user: std::ptr::from_ref(entry).cast_mut().cast(),
        create: Some(create),
        destroy: Some(destroy),
        traits: Some(match is_module {
            true => module::traits,
            false => matrix::traits,
        }),
        cost: matrices.then_some(matrix::cost),
        peel: matrices.then_some(matrix::peel),
        peel_stored: matrices.then_some(matrix::peel_stored),
        run: is_module.then_some(module::run),
    }
}

/// A pass that was made, and what it is called.
pub(crate) struct Instance {
    name: &'static str,
    pub(crate) pass: Pass,
}

unsafe extern "C" fn create(
    def: *const HlrcPassDef,
    context: HlrcContext,
    options: HlrcStr,
    out: *mut HlrcUser,
) -> HlrcStatus {
    guard(context, || {
        // SAFETY: `pass` above made the definition; its `user` is a registry entry. The text lives during
        // the call, and the host gives room for the pointer.
        let (entry, options) = unsafe { (&*(*def).user.cast::<PassEntry>(), text(options)?) };
        let options = serde_json::from_str(options).map_err(PassError::new)?;
        let instance = Instance {
            name: entry.name,
            pass: (entry.build)(options)?,
        };
        // SAFETY: as above.
        unsafe { out.write(Box::into_raw(Box::new(instance)).cast()) };
        Ok(HLRC_OK)
    })
}

unsafe extern "C" fn destroy(pass: HlrcUser) {
    if pass.is_null() {
        return;
    }
    // SAFETY: `create` made it, and the host gives it back once.
    let instance = unsafe { Box::from_raw(pass.cast::<Instance>()) };
    let name = instance.name;
    if catch_unwind(AssertUnwindSafe(|| drop(instance))).is_err() {
        // Nobody waits for an answer: the work of the pass is done.
        let plugin = PLUGIN.get().map_or("?", |p| {
            // SAFETY: the name is static.
            unsafe { text(p.0.name) }.unwrap_or("?")
        });
        eprintln!(
            "warning: plugin {plugin}: pass {name} panicked when it was dropped: {}",
            panicked()
        );
    }
}

/// # Safety
/// `pass` is one that [`create`] made and that was not given back.
pub(crate) unsafe fn instance<'a>(pass: HlrcUser) -> Result<&'a Pass, PassError> {
    // SAFETY: the caller's promise.
    let instance = unsafe { pass.cast::<Instance>().as_ref() };
    Ok(&instance.ok_or_else(|| PassError::new("a null pass"))?.pass)
}

/// Does the work of a callback: errors and panics become a status and a message for the host.
pub(crate) fn guard(
    context: HlrcContext,
    work: impl FnOnce() -> Result<HlrcStatus, PassError>,
) -> HlrcStatus {
    let done = catch_unwind(AssertUnwindSafe(|| host::within(context, work)));
    let (status, message) = match done {
        Ok(Ok(status)) => return status,
        Ok(Err(error)) => (HLRC_ERROR, error.to_string()),
        Err(_) => (HLRC_PANIC, panicked()),
    };
    if let Ok(host) = host::table() {
        // SAFETY: a function of the host, by the interface; the text lives during the call.
        unsafe { (host.fail)(context, lend(&message)) };
    }
    status
}

fn panicked() -> String {
    let said = PANIC.with(|p| p.borrow_mut().take());
    said.unwrap_or_else(|| "without a message".to_string())
}

/// Panics of this library are kept quiet and told to the host with their place; with RUST_BACKTRACE they are
/// printed too.
fn remember_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let said = info.payload_as_str().unwrap_or("no message");
        let place = info
            .location()
            .map_or_else(String::new, |at| format!(" at {at}"));
        PANIC.with(|p| *p.borrow_mut() = Some(format!("{said}{place}")));
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            print(info);
        }
    }));
}
