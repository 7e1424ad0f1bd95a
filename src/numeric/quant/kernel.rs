//! The row kernels: scale, codes, residual and sums of squares in one pass.

use super::pack::pack_row_body;
use super::scale::{
    Fault, Grid, Params, ROUNDER, absmax_params, clamp, lsq_params_at, scale_to_f16,
    squared_error_at,
};
use super::{ScaleMethod, Scheme};
use crate::numeric::matrix::{LANES, sum_lanes};
use crate::numeric::simd::{Level, multiversion};
use half::f16;

/// Where the codes of a row go. All slices are of the row's exact length.
pub(super) struct RowOut<'a> {
    /// One scale per group.
    pub(super) scales: &'a mut [f16],
    /// One zero point per group, not packed.
    pub(super) zeros: &'a mut [u8],
    /// One code per weight, not packed: scratch.
    pub(super) codes: &'a mut [u8],
    /// Packed codes.
    pub(super) packed: &'a mut [u8],
}

/// Sums of squares of a row: weights and residual.
pub(super) type Sums = (f64, f64);

/// Running sums, one per lane, so that the order doesn't depend on the SIMD level.
struct LaneSums {
    weight: [f64; LANES],
    residual: [f64; LANES],
}

impl LaneSums {
    #[inline(always)]
    fn zero() -> Self {
        LaneSums {
            weight: [0.0; LANES],
            residual: [0.0; LANES],
        }
    }

    #[inline(always)]
    fn total(&self) -> Sums {
        (sum_lanes(&self.weight), sum_lanes(&self.residual))
    }
}

/// Encodes one weight: its code and what is left of it.
#[inline(always)]
fn encode_one(x: f32, scale: f32, inverse: f32, zero: i32, lo: f32, hi: f32) -> (u8, f32) {
    let shifted = clamp(x * inverse, lo, hi) + ROUNDER;
    // The product is exact: 8 bits of q times 8 bits of scale.
    let rest = x - (shifted - ROUNDER) * scale;
    (shifted.to_bits().wrapping_add(zero as u32) as u8, rest)
}

/// Encodes a group in place and adds to the sums.
#[inline(always)]
fn encode_group(w: &mut [f32], codes: &mut [u8], params: Params, grid: &Grid, sums: &mut LaneSums) {
    let (lo, hi) = grid.bounds(params.zero);
    let inverse = 1.0 / params.scale;
    let (chunks, rest) = w.as_chunks_mut::<LANES>();
    let (code_chunks, code_rest) = codes.as_chunks_mut::<LANES>();
    for (chunk, codes) in chunks.iter_mut().zip(code_chunks) {
        for i in 0..LANES {
            let x = chunk[i];
            let (code, e) = encode_one(x, params.scale, inverse, params.zero, lo, hi);
            codes[i] = code;
            chunk[i] = e;
            sums.weight[i] += f64::from(x) * f64::from(x);
            sums.residual[i] += f64::from(e) * f64::from(e);
        }
    }
    for (i, (x, code)) in rest.iter_mut().zip(code_rest).enumerate() {
        let (c, e) = encode_one(*x, params.scale, inverse, params.zero, lo, hi);
        sums.weight[i] += f64::from(*x) * f64::from(*x);
        sums.residual[i] += f64::from(e) * f64::from(e);
        (*code, *x) = (c, e);
    }
}

/// Chooses the scale of a group and encodes it.
#[inline(always)]
fn group(
    w: &mut [f32],
    codes: &mut [u8],
    level: Level,
    grid: &Grid,
    sums: &mut LaneSums,
) -> Result<Params, Fault> {
    let params = match grid.method {
        ScaleMethod::AbsMax => absmax_params(w, grid)?,
        ScaleMethod::Lsq => lsq_params_at(level, w, grid)?,
    };
    encode_group(w, codes, params, grid, sums);
    Ok(params)
}

/// Encodes the groups of a row; `W` is the group width where it is constant.
#[inline(always)]
fn groups<const W: usize>(
    w: &mut [f32],
    out: &mut RowOut,
    level: Level,
    grid: &Grid,
    sums: &mut LaneSums,
) -> Result<(), (usize, Fault)> {
    let (chunks, rest) = w.as_chunks_mut::<W>();
    let (code_chunks, code_rest) = out.codes.as_chunks_mut::<W>();
    let full = chunks.len();
    for (g, (chunk, codes)) in chunks.iter_mut().zip(code_chunks).enumerate() {
        let params = group(chunk, codes, level, grid, sums).map_err(|fault| (g, fault))?;
        out.scales[g] = scale_to_f16(params.scale);
        if let Some(zero) = out.zeros.get_mut(g) {
            *zero = params.zero as u8;
        }
    }
    if !rest.is_empty() {
        last_group(
            rest, code_rest, full, level, grid, out.scales, out.zeros, sums,
        )?;
    }
    Ok(())
}

/// A group of any width: the last of a row, or widths that aren't special.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
fn last_group(
    w: &mut [f32],
    codes: &mut [u8],
    g: usize,
    level: Level,
    grid: &Grid,
    scales: &mut [f16],
    zeros: &mut [u8],
    sums: &mut LaneSums,
) -> Result<(), (usize, Fault)> {
    let params = group(w, codes, level, grid, sums).map_err(|fault| (g, fault))?;
    scales[g] = scale_to_f16(params.scale);
    if let Some(zero) = zeros.get_mut(g) {
        *zero = params.zero as u8;
    }
    Ok(())
}

#[inline(always)]
fn encode_row_body(
    w: &mut [f32],
    width: usize,
    out: &mut RowOut,
    level: Level,
    grid: &Grid,
) -> Result<Sums, (usize, Fault)> {
    let mut sums = LaneSums::zero();
    match width {
        32 => groups::<32>(w, out, level, grid, &mut sums)?,
        64 => groups::<64>(w, out, level, grid, &mut sums)?,
        128 => groups::<128>(w, out, level, grid, &mut sums)?,
        _ => {
            let chunks = w.chunks_mut(width).zip(out.codes.chunks_mut(width));
            for (g, (chunk, codes)) in chunks.enumerate() {
                last_group(
                    chunk, codes, g, level, grid, out.scales, out.zeros, &mut sums,
                )?;
            }
        }
    }
    pack_row_body(grid.bits, out.codes, out.packed);
    Ok(sums.total())
}

multiversion! {
    /// Encodes a row of row-wise groups; leaves the residual in `w`.
    ///
    /// On a fault, `w` is partly encoded and the index is that of the group.
    pub(super) fn encode_row(w: &mut [f32], width: usize, out: &mut RowOut, inner: Level, grid: &Grid) -> Result<Sums, (usize, Fault)> = encode_row_body;
}

/// Parameters per column, as arrays for the row kernel.
#[derive(Default)]
pub(super) struct ColumnParams {
    pub(super) scale: Vec<f32>,
    pub(super) zero: Vec<i32>,
}

#[inline(always)]
fn encode_columns_body(
    w: &mut [f32],
    params: &ColumnParams,
    codes: &mut [u8],
    packed: &mut [u8],
    grid: &Grid,
) -> Sums {
    let mut sums = LaneSums::zero();
    let chunks = w.chunks_mut(LANES).zip(codes.chunks_mut(LANES));
    let params = params.scale.chunks(LANES).zip(params.zero.chunks(LANES));
    for ((w, codes), (scale, zero)) in chunks.zip(params) {
        let one = w
            .iter_mut()
            .zip(codes)
            .zip(scale.iter().zip(zero))
            .enumerate();
        for (i, ((x, code), (&scale, &zero))) in one {
            let (lo, hi) = grid.bounds(zero);
            let (c, e) = encode_one(*x, scale, 1.0 / scale, zero, lo, hi);
            sums.weight[i] += f64::from(*x) * f64::from(*x);
            sums.residual[i] += f64::from(e) * f64::from(e);
            (*code, *x) = (c, e);
        }
    }
    pack_row_body(grid.bits, codes, packed);
    sums.total()
}

multiversion! {
    /// Encodes a row under one scale per column; leaves the residual in `w`.
    pub(super) fn encode_columns(w: &mut [f32], params: &ColumnParams, codes: &mut [u8], packed: &mut [u8], grid: &Grid) -> Sums = encode_columns_body;
}

/// Squared error that a quantizer leaves in one group.
///
/// Infinite where the group can't be quantized.
pub(crate) fn group_error(w: &[f32], scheme: Scheme, method: ScaleMethod) -> f32 {
    let level = Level::detect();
    let grid = Grid::new(scheme, method);
    let params = match method {
        ScaleMethod::AbsMax => absmax_params(w, &grid),
        ScaleMethod::Lsq => lsq_params_at(level, w, &grid),
    };
    params.map_or(f32::INFINITY, |params| {
        squared_error_at(level, w, params, &grid)
    })
}

/// Quantizes one group, leaves the residual in `w` and returns its squared error.
///
/// `w` is unchanged and the error infinite where the group can't be quantized.
pub(crate) fn group_residual(w: &mut [f32], scheme: Scheme, method: ScaleMethod) -> f32 {
    let level = Level::detect();
    let grid = Grid::new(scheme, method);
    let params = match method {
        ScaleMethod::AbsMax => absmax_params(w, &grid),
        ScaleMethod::Lsq => lsq_params_at(level, w, &grid),
    };
    let Ok(params) = params else {
        return f32::INFINITY;
    };
    let error = squared_error_at(level, w, params, &grid);
    let (lo, hi) = grid.bounds(params.zero);
    for x in w {
        *x = encode_one(*x, params.scale, 1.0 / params.scale, params.zero, lo, hi).1;
    }
    error
}
