//! The plugin is `row_scale.c`; this makes Cargo link it into a library of its own.
#![allow(unsafe_code)]

use std::ffi::c_void;

unsafe extern "C" {
    fn row_scale_plugin(host: *const c_void) -> *const c_void;
}

/// The plugin, as the host asks for it.
///
/// # Safety
/// `host` is a table of hlrc-opt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hlrc_plugin(host: *const c_void) -> *const c_void {
    // SAFETY: handed through.
    unsafe { row_scale_plugin(host) }
}
