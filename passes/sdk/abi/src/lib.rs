//! The C interface between `hlrc-opt` and plugins.
//!
//! A plugin is a shared library with one exported symbol, [`HLRC_ENTRY`]. The host calls it once with its
//! table of functions and gets a description of the plugin's passes and kinds of terms. All else goes
//! through functions in these two tables.
//!
//! # Versions
//! The first fields of [`HlrcHost`] and [`HlrcPlugin`], up to and with `abi_minor`, never change. Where the
//! major versions differ, the host refuses the plugin and reads nothing else of it. Within a major version
//! structs that begin with `size` grow at their end; each side reads no more than the other's `size`
//! covers. Structs without `size` never change. A plugin states the least minor version that it needs.
//!
//! # Rules
//! - Text is UTF-8 and not terminated. What a call is given lives until the call ends; what the host gives
//!   out lives until the callback that it was asked in returns, and so does its context.
//! - No exception, panic or `longjmp` may cross the border.
//! - Functions of the host may be called from any thread while the callback runs. Passes may be called from
//!   several threads at once.
//! - Numbers in tensors are little-endian; element types have the numbers of ONNX's `TensorProto.DataType`.

#![no_std]
#![allow(clippy::type_complexity)] // functions of the interface have the arguments that they have

use core::ffi::c_void;

mod host;
mod matrix;
mod module;
mod plugin;

pub use host::*;
pub use matrix::*;
pub use module::*;
pub use plugin::*;

/// Major version: a plugin of another is refused.
pub const HLRC_ABI_MAJOR: u32 = 1;
/// Minor version: structs and functions that were added to the major version.
pub const HLRC_ABI_MINOR: u32 = 2;
/// Name of the symbol that a plugin exports, an [`HlrcEntry`].
pub const HLRC_ENTRY: &str = "hlrc_plugin";

/// What a function says of how it went; other numbers are errors too.
pub type HlrcStatus = i32;
/// All went well.
pub const HLRC_OK: HlrcStatus = 0;
/// It failed; the message was given with `fail`, or `last_error` has it.
pub const HLRC_ERROR: HlrcStatus = 1;
/// A panic or exception was caught before the border; as `HLRC_ERROR` else.
pub const HLRC_PANIC: HlrcStatus = 2;
/// A handle, number or pointer that means nothing; `last_error` says which.
pub const HLRC_INVALID: HlrcStatus = 3;
/// The context's callback has returned: nothing of it can be used any more.
pub const HLRC_EXPIRED: HlrcStatus = 4;
/// There is no such thing, and that is no error.
pub const HLRC_NONE: HlrcStatus = 5;
/// The user asked the run to stop.
pub const HLRC_CANCELLED: HlrcStatus = 6;

/// A callback's access to the host; it ends with the callback. Never reused.
pub type HlrcContext = u64;
/// A term in a context; 0 is none.
pub type HlrcTerm = u64;

/// Text: UTF-8, not terminated. `data` may be null where `len` is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcStr {
    /// First byte.
    pub data: *const u8,
    /// Bytes.
    pub len: usize,
}

/// A tensor and its elements: row-major, little-endian, packed, low bits first below a byte.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcTensor {
    /// Its name in what it is part of.
    pub name: HlrcStr,
    /// Element type, ONNX's number.
    pub dtype: u32,
    /// Number of dimensions.
    pub rank: u32,
    /// The dimensions.
    pub dims: *const u64,
    /// First byte; no alignment is promised.
    pub data: *const u8,
    /// Bytes.
    pub len: usize,
}

/// A term `[rows, cols]` of a matrix.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcTermView {
    /// `sizeof` this struct as its filler knows it.
    pub size: usize,
    /// `dense`, `quant`, `trellis`, `low_rank`, `sparse`, `columns`, or `plugin.kind`.
    pub kind: HlrcStr,
    /// Rows at hand.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Constants of the kind: a JSON object.
    pub attributes: HlrcStr,
    /// Its tensors, in the kind's order.
    pub tensors: *const HlrcTensor,
    /// How many.
    pub tensor_count: usize,
}

/// No more than a pointer that the plugin gave and gets back.
pub type HlrcUser = *mut c_void;
