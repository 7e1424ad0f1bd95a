//! What a running pass can ask of the host.
//!
//! These work on the thread that the pass was called on, while it is called; elsewhere they say that there
//! is no host, or do nothing.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::OnceLock;

use hlrc_pass_abi::*;

use crate::pass::borrow;
use crate::pass::kind::TensorView;
use crate::pass::{Moments, PassError, Remark, RemarkKind};
use crate::weights::DType;

static HOST: OnceLock<Table> = OnceLock::new();

/// The host's table, copied as far as the host has it: it may be shorter than the struct that is known here.
struct Table(HlrcHost);

// SAFETY: the host's functions may be called from any thread, and its texts never change.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

thread_local! {
    static CONTEXT: Cell<HlrcContext> = const { Cell::new(0) };
    /// Whether passes are built to see what they are, before the host has asked for any.
    static PROBING: Cell<bool> = const { Cell::new(false) };
    /// The weights of the module of a context.
    static NAMES: RefCell<(HlrcContext, HashMap<String, u32>)> = RefCell::default();
}

/// The table of the host, once it is known.
pub(crate) fn table() -> Result<&'static HlrcHost, PassError> {
    let table = HOST.get().map(|table| &table.0);
    table.ok_or_else(|| PassError::new("there is no host"))
}

/// Takes the host's table; false where it can't be used.
///
/// A host of another major version is taken to be one that reads the plugin's version, and refuses it.
///
/// # Safety
/// `host` is null, or a table that lives as long as the process.
pub(crate) unsafe fn set(host: *const HlrcHost) -> bool {
    if host.is_null() || !host.is_aligned() {
        return false;
    }
    // SAFETY: the first fields are the same in all versions; no reference to the rest is made.
    let major = unsafe { (&raw const (*host).abi_major).read() };
    if major != HLRC_ABI_MAJOR {
        return true;
    }
    // SAFETY: the caller's promise. Functions up to `onnx_output` are there in all minor versions, later ones
    // may be zero.
    match unsafe { borrow::sized(host, HOST_1_0) } {
        Ok(table) => {
            let _ = HOST.set(Table(table));
            true
        }
        Err(_) => false,
    }
}

/// Bytes of the table in version 1.0.
const HOST_1_0: usize = std::mem::offset_of!(HlrcHost, onnx_output) + size_of::<usize>();

pub(crate) fn context() -> HlrcContext {
    CONTEXT.get()
}

/// Makes a context this thread's as long as `work` takes.
pub(crate) fn within<T>(context: HlrcContext, work: impl FnOnce() -> T) -> T {
    struct Restore(HlrcContext);
    impl Drop for Restore {
        fn drop(&mut self) {
            CONTEXT.set(self.0);
        }
    }
    let _restore = Restore(CONTEXT.replace(context));
    work()
}

/// Builds a pass to see what it is: its seed is 0, and so are its random numbers.
pub(crate) fn probing<T>(build: impl FnOnce() -> T) -> T {
    PROBING.set(true);
    let built = build();
    PROBING.set(false);
    built
}

/// What a status of the host says.
pub(crate) fn check(status: HlrcStatus) -> Result<(), PassError> {
    match status {
        HLRC_OK => Ok(()),
        HLRC_EXPIRED => Err(PassError::new(
            "the host was asked after the call had ended",
        )),
        status => {
            Err(PassError::new(refused().unwrap_or_else(|| {
                format!("the host says status {status}")
            })))
        }
    }
}

fn refused() -> Option<String> {
    let host = table().ok()?;
    let mut text = HlrcStr {
        data: std::ptr::null(),
        len: 0,
    };
    // SAFETY: a function of the host, by the interface; the text lives until the call ends.
    let text = unsafe {
        ((host.last_error)(context(), &mut text) == HLRC_OK)
            .then(|| borrow::text(text).map(str::to_string))
    };
    text?.ok().filter(|text| !text.is_empty())
}

/// How much of a long work is done.
pub fn progress(done: u64, total: u64) {
    if let Ok(host) = table() {
        // SAFETY: a function of the host, by the interface.
        unsafe { (host.progress)(context(), done, total) };
    }
}

/// Whether the user asked to stop; the pass should return an error soon.
pub fn cancelled() -> bool {
    // SAFETY: a function of the host, by the interface.
    table().is_ok_and(|host| unsafe { (host.cancelled)(context()) } == HLRC_CANCELLED)
}

/// Fills `out` with uniform random numbers, the same in every run with the same seed.
///
/// # Errors
/// There is no host.
pub fn random(out: &mut [u64]) -> Result<(), PassError> {
    if PROBING.get() {
        out.fill(0);
        return Ok(());
    }
    // SAFETY: a function of the host, by the interface; `out` lives during the call.
    check(unsafe { (table()?.random)(context(), out.as_mut_ptr(), out.len()) })
}

pub(crate) fn has_statistics(host: &HlrcHost) -> bool {
    host.moments.is_some()
}

/// The seed that [`random`] begins with: of the run while a pass is built and in a module pass, of site and
/// pass in a peel, of its constants in a kind of term. 0 of hosts before 1.2.
///
/// # Errors
/// There is no host.
pub fn seed() -> Result<u64, PassError> {
    let mut seed = 0;
    if let (Some(ask), false) = (table()?.seed, PROBING.get()) {
        // SAFETY: a function of the host, by the interface.
        check(unsafe { ask(context(), &mut seed) })?;
    }
    Ok(seed)
}

/// Moments of what goes into a site's matrix, copied; none of hosts before 1.2.
pub(crate) fn moments(site: &str) -> Result<Option<Moments>, PassError> {
    let Some(ask) = table()?.moments else {
        return Ok(None);
    };
    let mut found = HlrcMoments {
        size: size_of::<HlrcMoments>(),
        tokens: 0,
        width: 0,
        diagonal: std::ptr::null(),
        hessian: std::ptr::null(),
    };
    // SAFETY: a function of the host, by the interface; what it lends lives until the next call.
    match unsafe { ask(context(), borrow::lend(site), &mut found) } {
        HLRC_NONE => Ok(None),
        status => {
            check(status)?;
            // SAFETY: as above.
            unsafe { moments_in(&found) }.map(Some)
        }
    }
}

/// Moments of the host, copied.
///
/// # Safety
/// A struct of the host, as long as its `size` says; what it points to lives during the call.
pub(crate) unsafe fn moments_in(m: *const HlrcMoments) -> Result<Moments, PassError> {
    let least = std::mem::offset_of!(HlrcMoments, hessian) + size_of::<usize>();
    // SAFETY: the caller's promise; all fields may be zero.
    let m = unsafe { borrow::sized(m, least) }?;
    let too_large = || PassError::new("moments larger than memory");
    let width = usize::try_from(m.width).map_err(|_| too_large())?;
    let square = width.checked_mul(width).ok_or_else(too_large)?;
    // SAFETY: the caller's promise.
    let (diagonal, hessian) = unsafe {
        let whole = (!m.hessian.is_null()).then(|| borrow::slice(m.hessian, square, "moments"));
        (
            borrow::slice(m.diagonal, width, "moments")?,
            whole.transpose()?,
        )
    };
    Ok(Moments {
        hessian: hessian.map(<[f32]>::to_vec),
        diagonal: diagonal.to_vec(),
        tokens: m.tokens,
    })
}

/// Gives a weight of the module at hand, as it is stored and mapped, to `read`; of module passes.
///
/// # Errors
/// There is no such weight, its file can't be read, or this is no module pass.
pub fn weight<T>(name: &str, read: impl FnOnce(TensorView<'_>) -> T) -> Result<T, PassError> {
    let number = with_names(|names| names.get(name).copied())?;
    let number = number.ok_or_else(|| PassError::new(format!("there is no weight `{name}`")))?;
    let mut tensor = HlrcTensor {
        name: EMPTY,
        dtype: 0,
        rank: 0,
        dims: std::ptr::null(),
        data: std::ptr::null(),
        len: 0,
    };
    // SAFETY: a function of the host, by the interface; what it lends lives until the call ends.
    unsafe {
        check((table()?.weight_data)(context(), number, &mut tensor))?;
        Ok(read(view(&tensor)?))
    }
}

const EMPTY: HlrcStr = HlrcStr {
    data: std::ptr::null(),
    len: 0,
};

/// Calls `work` with the numbers of the module's weights by name, which are asked for once.
fn with_names<T>(work: impl FnOnce(&HashMap<String, u32>) -> T) -> Result<T, PassError> {
    let known = NAMES.with_borrow(|(of, _)| *of == context());
    if !known {
        let names = names()?;
        NAMES.set((context(), names));
    }
    Ok(NAMES.with_borrow(|(_, names)| work(names)))
}

fn names() -> Result<HashMap<String, u32>, PassError> {
    let host = table()?;
    let (mut count, mut names) = (0, HashMap::new());
    // SAFETY: a function of the host, by the interface; so are those below.
    check(unsafe { (host.weight_count)(context(), &mut count) })?;
    for number in 0..count {
        let mut info = HlrcWeightInfo {
            size: size_of::<HlrcWeightInfo>(),
            name: EMPTY,
            dtype: 0,
            rank: 0,
            dims: std::ptr::null(),
            bytes: 0,
        };
        // SAFETY: the text lives until the call ends.
        let found = unsafe {
            check((host.weight_info)(context(), number, &mut info))?;
            borrow::text(info.name)?
        };
        names.entry(found.to_string()).or_insert(number);
    }
    Ok(names)
}

/// # Safety
/// What the tensor points to lives as long as `'a`.
pub(crate) unsafe fn view<'a>(tensor: &HlrcTensor) -> Result<TensorView<'a>, PassError> {
    let number = i32::try_from(tensor.dtype).unwrap_or(0);
    let unknown = || PassError::new(format!("{number} is no element type"));
    // SAFETY: the caller's promise.
    unsafe {
        Ok(TensorView {
            name: borrow::text(tensor.name)?,
            dtype: DType::from_onnx(number).ok_or_else(unknown)?,
            shape: borrow::slice(tensor.dims, tensor.rank as usize, "dims")?,
            bytes: borrow::slice(tensor.data, tensor.len, "data")?,
        })
    }
}

/// Hands remarks to the host.
pub(crate) fn remarks(remarks: &[Remark]) -> Result<(), PassError> {
    let host = table()?;
    for remark in remarks {
        let kind = match remark.kind {
            RemarkKind::Passed => HLRC_REMARK_PASSED,
            RemarkKind::Missed | RemarkKind::Failed => HLRC_REMARK_MISSED,
            RemarkKind::Analysis => HLRC_REMARK_ANALYSIS,
        };
        let (site, message) = (borrow::lend(&remark.site), borrow::lend(&remark.message));
        // SAFETY: a function of the host, by the interface; the texts live during the call.
        check(unsafe { (host.remark)(context(), kind, site, message) })?;
    }
    Ok(())
}
