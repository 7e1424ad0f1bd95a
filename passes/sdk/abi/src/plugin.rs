//! What a plugin says of itself.

use super::{
    HlrcContext, HlrcCost, HlrcHost, HlrcMatrixTraits, HlrcPeel, HlrcPeelStored, HlrcStatus,
    HlrcStored, HlrcStr, HlrcTermView, HlrcUser,
};

/// The symbol that a plugin exports. `host` lives as long as the process. Null: the plugin can't work with
/// this host.
pub type HlrcEntry = unsafe extern "C" fn(host: *const HlrcHost) -> *const HlrcPlugin;

/// A plugin. All that it points to lives as long as the process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcPlugin {
    /// `sizeof` this struct as the plugin knows it.
    pub size: usize,
    /// `HLRC_ABI_MAJOR` as the plugin knows it.
    pub abi_major: u32,
    /// The least minor version of the host that the plugin needs.
    pub abi_minor: u32,
    /// Its name: letters, digits, `_` and `-`.
    pub name: HlrcStr,
    /// Its version, for people.
    pub version: HlrcStr,
    /// Its passes.
    pub passes: *const *const HlrcPassDef,
    /// How many.
    pub pass_count: usize,
    /// Its kinds of terms.
    pub terms: *const *const HlrcTermDef,
    /// How many.
    pub term_count: usize,
}

/// A pass. Matrix passes have `traits`, `cost` and `peel`; module passes have `run`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcPassDef {
    /// `sizeof` this struct as the plugin knows it.
    pub size: usize,
    /// Name in pipelines: small letters, digits and `-`.
    pub name: HlrcStr,
    /// One line: what it does.
    pub summary: HlrcStr,
    /// What it does and why, before and after, cost, source.
    pub doc: HlrcStr,
    /// JSON Schema of the options: an object whose properties have `type`, `default`, `description`.
    pub schema: HlrcStr,
    /// The plugin's own.
    pub user: HlrcUser,
    /// Makes a pass from its options, a JSON object that fits the schema; hosts of 1.2 and later give the
    /// schema's defaults for what the user left out.
    pub create: Option<
        unsafe extern "C" fn(
            def: *const HlrcPassDef,
            context: HlrcContext,
            options: HlrcStr,
            pass: *mut HlrcUser,
        ) -> HlrcStatus,
    >,
    /// Takes a pass back; may be null.
    pub destroy: Option<unsafe extern "C" fn(pass: HlrcUser)>,
    /// What the manager asks of a matrix pass. Since 1.2 of a module pass too, which may leave it null.
    pub traits: Option<
        unsafe extern "C" fn(
            pass: HlrcUser,
            context: HlrcContext,
            traits: *mut HlrcMatrixTraits,
        ) -> HlrcStatus,
    >,
    /// Memory, time and bytes for a matrix `[rows, cols]`, asked for before any is read; may be null, or return
    /// `HLRC_NONE`: as much as the matrix in f32. An error ends the run.
    pub cost: Option<
        unsafe extern "C" fn(
            pass: HlrcUser,
            context: HlrcContext,
            rows: u64,
            cols: u64,
            cost: *mut HlrcCost,
        ) -> HlrcStatus,
    >,
    /// Takes a term out of a matrix: behind it `residual` is what it was minus the term as stored.
    pub peel: Option<
        unsafe extern "C" fn(
            pass: HlrcUser,
            context: HlrcContext,
            peel: *mut HlrcPeel,
        ) -> HlrcStatus,
    >,
    /// The same from stored rows where nobody needs the residual; may be null. `HLRC_NONE`: use `peel`.
    /// Notes and remarks are not kept.
    pub peel_stored: Option<
        unsafe extern "C" fn(
            pass: HlrcUser,
            context: HlrcContext,
            stored: *const HlrcStored,
            peeled: *mut HlrcPeelStored,
        ) -> HlrcStatus,
    >,
    /// Rewrites the module. Its edits count only where it returns `HLRC_OK` and the module verifies.
    pub run: Option<unsafe extern "C" fn(pass: HlrcUser, context: HlrcContext) -> HlrcStatus>,
}

/// A kind of term.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcTermDef {
    /// `sizeof` this struct as the plugin knows it.
    pub size: usize,
    /// Its name: letters, digits and `_`. Its full name has the plugin's and a dot in front.
    pub name: HlrcStr,
    /// One line: what such a term is.
    pub summary: HlrcStr,
    /// The plugin's own.
    pub user: HlrcUser,
    /// Whether tensors and attributes fit each other: called before all else, may be null.
    pub check: Option<
        unsafe extern "C" fn(
            def: *const HlrcTermDef,
            context: HlrcContext,
            term: *const HlrcTermView,
        ) -> HlrcStatus,
    >,
    /// Adds rows of the matrix to `out` `[rows, cols]`.
    pub add_rows: Option<
        unsafe extern "C" fn(
            def: *const HlrcTermDef,
            context: HlrcContext,
            term: *const HlrcTermView,
            first_row: u64,
            rows: u64,
            out: *mut f32,
        ) -> HlrcStatus,
    >,
    /// Writes `x Wᵀ` for rows of W to `out` `[tokens, rows]`, `x` being `[tokens, cols]`; may be null: rows
    /// are decoded.
    pub multiply: Option<
        unsafe extern "C" fn(
            def: *const HlrcTermDef,
            context: HlrcContext,
            term: *const HlrcTermView,
            first_row: u64,
            rows: u64,
            x: *const f32,
            tokens: u64,
            out: *mut f32,
        ) -> HlrcStatus,
    >,
    /// Gives ONNX nodes that compute the matrix, with the host's `onnx_…`; may be null, or return
    /// `HLRC_NONE`: the term is exported dense.
    pub onnx: Option<
        unsafe extern "C" fn(
            def: *const HlrcTermDef,
            context: HlrcContext,
            term: *const HlrcTermView,
        ) -> HlrcStatus,
    >,
    /// Since 1.1. The backward rule: from the gradient of the matrix, `dw` `[rows, cols]`, the gradient of
    /// each tensor; `gradients[i]` has room for as many f32 as tensor i has elements, and zeros in it. May be
    /// null, or return `HLRC_NONE`: the term is a constant.
    pub backward: Option<
        unsafe extern "C" fn(
            def: *const HlrcTermDef,
            context: HlrcContext,
            term: *const HlrcTermView,
            dw: *const f32,
            gradients: *const *mut f32,
        ) -> HlrcStatus,
    >,
}
