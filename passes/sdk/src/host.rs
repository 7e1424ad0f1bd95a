//! What a running pass can ask of the host.
//!
//! These work on the thread that the pass was called on, while it is called; elsewhere they say that there
//! is no host, or do nothing.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::OnceLock;

use hlrc_pass_abi::*;

use crate::pass::borrow;
use crate::pass::kind::TensorView;
use crate::pass::{PassError, Remark, RemarkKind};
use crate::weights::DType;

static HOST: OnceLock<Table> = OnceLock::new();

/// The host's table.
struct Table(&'static HlrcHost);

// SAFETY: the host never changes its table, and its functions may be called from any thread.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

thread_local! {
    static CONTEXT: Cell<HlrcContext> = const { Cell::new(0) };
}

/// The table of the host, once it is known.
pub(crate) fn table() -> Result<&'static HlrcHost, PassError> {
    let table = HOST.get().map(|table| table.0);
    table.ok_or_else(|| PassError::new("there is no host"))
}

/// # Safety
/// The table lives as long as the process.
pub(crate) unsafe fn set(host: *const HlrcHost) {
    // SAFETY: the caller's promise.
    if let Some(host) = unsafe { host.as_ref() } {
        let _ = HOST.set(Table(host));
    }
}

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
    // SAFETY: a function of the host, by the interface; `out` lives during the call.
    check(unsafe { (table()?.random)(context(), out.as_mut_ptr(), out.len()) })
}

/// Gives a weight of the module at hand, as it is stored and mapped, to `read`; of module passes.
///
/// # Errors
/// There is no such weight, its file can't be read, or this is no module pass.
pub fn weight<T>(name: &str, read: impl FnOnce(TensorView<'_>) -> T) -> Result<T, PassError> {
    let host = table()?;
    let mut count = 0;
    // SAFETY: a function of the host, by the interface; so are those below.
    check(unsafe { (host.weight_count)(context(), &mut count) })?;
    for number in 0..count {
        let empty = HlrcStr {
            data: std::ptr::null(),
            len: 0,
        };
        let mut info = HlrcWeightInfo {
            size: size_of::<HlrcWeightInfo>(),
            name: empty,
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
        if found != name {
            continue;
        }
        let mut tensor = HlrcTensor {
            name: empty,
            dtype: 0,
            rank: 0,
            dims: std::ptr::null(),
            data: std::ptr::null(),
            len: 0,
        };
        // SAFETY: as above.
        unsafe {
            check((host.weight_data)(context(), number, &mut tensor))?;
            return Ok(read(view(&tensor)?));
        }
    }
    Err(PassError::new(format!("there is no weight `{name}`")))
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
