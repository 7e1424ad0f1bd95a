//! What matrix passes get and give.

use super::{HlrcStr, HlrcTerm};

/// `access`: a row's result depends on that row alone.
pub const HLRC_ACCESS_ROWS: u32 = 0;
/// `access`: the whole matrix.
pub const HLRC_ACCESS_WHOLE: u32 = 1;
/// `residual`: dropped where no later pass takes it up.
pub const HLRC_RESIDUAL_DROP: u32 = 0;
/// `residual`: dropped at once.
pub const HLRC_RESIDUAL_DROP_NOW: u32 = 1;
/// `residual`: stored as a dense term where no later pass takes it up.
pub const HLRC_RESIDUAL_KEEP: u32 = 2;
/// `calibration`: statistics are of no use.
pub const HLRC_CALIBRATION_UNUSED: u32 = 0;
/// `calibration`: better with statistics.
pub const HLRC_CALIBRATION_USED: u32 = 1;
/// `calibration`: not without statistics.
pub const HLRC_CALIBRATION_NEEDED: u32 = 2;
/// `group`: one scale per row.
pub const HLRC_GROUP_ROW: u32 = 0;
/// `group`: one scale per column.
pub const HLRC_GROUP_COLUMN: u32 = u32::MAX;
/// `method`: scales from the largest magnitude.
pub const HLRC_SCALE_ABSMAX: u32 = 0;
/// `method`: scales by least squared error.
pub const HLRC_SCALE_LSQ: u32 = 1;

/// An integer quantizer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HlrcQuantizer {
    /// Bits of a code.
    pub bits: u32,
    /// 1 where zero is the middle code, 0 where groups have zero points.
    pub symmetric: u32,
    /// Neighbours along a row that share a scale, or `HLRC_GROUP_ROW`, `HLRC_GROUP_COLUMN`.
    pub group: u32,
    /// `HLRC_SCALE_…`
    pub method: u32,
    /// 1 where errors make up for each other on the inputs that were seen.
    pub feedback: u32,
}

/// A block Hadamard rotation on both sides of a matrix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HlrcRotation {
    /// Size of the blocks along the rows' side; 0: there is no rotation.
    pub out_block: u64,
    /// Size of the blocks along the columns' side.
    pub in_block: u64,
    /// Where the signs come from.
    pub seed: u64,
}

/// What the manager asks of a matrix pass; of a module pass `calibration` alone, since 1.2.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcMatrixTraits {
    /// `sizeof` this struct as the host knows it.
    pub size: usize,
    /// `HLRC_ACCESS_…`
    pub access: u32,
    /// `HLRC_RESIDUAL_…`
    pub residual: u32,
    /// `HLRC_CALIBRATION_…`
    pub calibration: u32,
    /// 1 where it quantizes what it gets, in whatever way.
    pub quantizes: u32,
    /// 1 where it is the integer quantizer below.
    pub has_quantizer: u32,
    /// The quantizer.
    pub quantizer: HlrcQuantizer,
}

/// What a pass takes for a matrix.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcCost {
    /// `sizeof` this struct as the host knows it.
    pub size: usize,
    /// Working memory, bytes, without the residual.
    pub workspace_bytes: u64,
    /// Upper bound of the bytes of its term.
    pub term_bytes: u64,
    /// Time on one core, nanoseconds, roughly.
    pub nanos: f64,
}

/// Second moments of what goes into a matrix, on some text.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcMoments {
    /// `sizeof` this struct as the host knows it.
    pub size: usize,
    /// How many tokens were seen.
    pub tokens: u64,
    /// Number of inputs.
    pub width: u64,
    /// Σ x², `[width]`
    pub diagonal: *const f32,
    /// Σ x xᵀ, `[width, width]`; null where only the diagonal is known.
    pub hessian: *const f32,
}

/// A matrix, or some of its rows, in the hands of a pass.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcPeel {
    /// `sizeof` this struct as the host knows it.
    pub size: usize,
    /// The site's name, for remarks.
    pub site: HlrcStr,
    /// Rows at hand: all of them for `HLRC_ACCESS_WHOLE`.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// `[rows, cols]`, row-major: what earlier passes left; changed in place.
    pub residual: *mut f32,
    /// Seed of this site and pass.
    pub seed: u64,
    /// Seed of rotations: of the run.
    pub rotation_seed: u64,
    /// The quantizer that comes later for this site; null where none does.
    pub next: *const HlrcQuantizer,
    /// Moments of the site's input; null where there are none.
    pub moments: *const HlrcMoments,
    /// Terms that passes before this one have made of the matrix; see `earlier`.
    pub earlier_count: usize,
    /// 1 where a quantizer of any kind comes later for this site.
    pub quantized_later: u32,
    /// Keeps what follows aligned.
    pub reserved: u32,
    /// The coordinates of `residual`; a pass that rotates it says so here.
    pub rotation: HlrcRotation,
    /// Out: the term, made with `term_new`; 0 where nothing was worth taking.
    pub term: HlrcTerm,
}

/// Rows of a stored matrix, as they are in the file.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcStored {
    /// `sizeof` this struct as the host knows it.
    pub size: usize,
    /// Element type, ONNX's number: f32, f16 or bf16.
    pub dtype: u32,
    /// Keeps what follows aligned.
    pub reserved: u32,
    /// `[rows, cols]`, little-endian, no alignment.
    pub data: *const u8,
    /// Bytes.
    pub len: usize,
    /// Rows at hand.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
}

/// What a pass took out of stored rows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcPeelStored {
    /// `sizeof` this struct as the host knows it.
    pub size: usize,
    /// Out: the term.
    pub term: HlrcTerm,
    /// Out: Σ w² over the rows.
    pub weight_squares: f64,
    /// Out: Σ (w − term)² over the rows.
    pub residual_squares: f64,
}

/// A term of an earlier pass.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HlrcEarlier {
    /// `sizeof` this struct as its caller knows it.
    pub size: usize,
    /// The term; `term_view` reads it.
    pub term: HlrcTerm,
    /// What its pass is, as the manager sees it.
    pub traits: HlrcMatrixTraits,
}
