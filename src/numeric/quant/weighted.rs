//! Scales of least weighted squared error, for quantizers that know their inputs.

use super::scale::{
    Fault, Grid, Lanes, MAX_SCALE, Params, absmax_bits, absmax_params, range, round_scale,
};
use super::search::{candidates, ratio_range, ratios};
use super::{QuantError, ScaleMethod, Scheme};
use crate::numeric::simd::{LANES, Level, Simd, multiversion, padded};

/// Scale and zero point of a group, as they are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct GroupParams {
    /// Exact in `f16`.
    pub(crate) scale: f32,
    /// Zero point, 0 to the largest code.
    pub(crate) zero: u8,
}

/// The nearest scale that can be stored exactly.
pub(crate) fn stored_scale(raw: f32) -> f32 {
    round_scale(raw.clamp(0.0, MAX_SCALE))
}

/// Chooses scale and zero point of a group.
///
/// [`ScaleMethod::Lsq`] minimises `Σ weights[i] (w[i] - w'[i])²`, never worse
/// than [`ScaleMethod::AbsMax`]. `row`, `col` and `group` say where `w` lies.
pub(crate) fn weighted_params(
    w: &[f32],
    weights: &[f32],
    scheme: Scheme,
    method: ScaleMethod,
    (row, col, group): (usize, usize, usize),
) -> Result<GroupParams, QuantError> {
    let grid = Grid::new(scheme, method);
    let found = weighted_params_at(Level::detect(), w, weights, &grid);
    let params = found.map_err(|fault| match fault {
        Fault::Overflow(scale) => QuantError::ScaleOverflow { row, group, scale },
        Fault::NotFinite => {
            let at = w.iter().position(|x| !x.is_finite()).unwrap_or(0);
            QuantError::NotFinite {
                row,
                col: col + at,
                value: w.get(at).copied().unwrap_or(f32::NAN),
            }
        }
    })?;
    Ok(GroupParams {
        scale: params.scale,
        zero: params.zero as u8,
    })
}

/// Quantizes a group; returns its weighted squared error, and each weight's error.
///
/// Infinite where the group can't be quantized.
pub(crate) fn weighted_error(
    w: &[f32],
    weights: &[f32],
    scheme: Scheme,
    method: ScaleMethod,
    errors: &mut [f32],
) -> f32 {
    let grid = Grid::new(scheme, method);
    weighted_error_at(Level::detect(), w, weights, errors, &grid)
}

#[inline(always)]
fn weighted_error_body<S: Simd>(
    simd: S,
    w: &[f32],
    weights: &[f32],
    errors: &mut [f32],
    grid: &Grid,
) -> f32 {
    let Ok(params) = weighted_params_body(simd, w, weights, grid) else {
        return f32::INFINITY;
    };
    let lanes = Lanes::new(simd, params, grid);
    let mut sum = simd.splat(0.0);
    let chunks = w.chunks(LANES).zip(weights.chunks(LANES));
    for ((w, weights), errors) in chunks.zip(errors.chunks_mut(LANES)) {
        let (_, left) = lanes.encode(simd.load(&padded(w)));
        let square = simd.mul(left, left);
        sum = simd.add(sum, simd.mul(square, simd.load(&padded(weights))));
        let mut values = [0.0; LANES];
        simd.store(left, &mut values);
        errors.copy_from_slice(&values[..errors.len()]);
    }
    simd.sum(sum)
}

multiversion! {
    fn weighted_error_at(w: &[f32], weights: &[f32], errors: &mut [f32], grid: &Grid) -> f32 = weighted_error_body;
}

/// Weighted squared errors under 16 candidates at once.
#[inline(always)]
fn errors<S: Simd>(
    simd: S,
    w: &[f32],
    weights: &[f32],
    (scale, zero): (S::F, S::F),
    grid: &Grid,
) -> S::F {
    let lanes = Lanes::per_lane(simd, scale, zero, grid);
    let mut sum = simd.splat(0.0);
    for (&x, &weight) in w.iter().zip(weights) {
        let (_, left) = lanes.encode(simd.splat(x));
        let square = simd.mul(left, left);
        sum = simd.add(sum, simd.mul(square, simd.splat(weight)));
    }
    sum
}

/// The scale that fits the codes of a group best in closed form.
#[inline(always)]
fn refined<S: Simd>(simd: S, w: &[f32], weights: &[f32], params: Params, grid: &Grid) -> f32 {
    let (low, high) = grid.bounds(params.zero);
    let _ = simd;
    let (mut cross, mut square) = (0f32, 0f32);
    for (&x, &weight) in w.iter().zip(weights) {
        let q = (x / params.scale).max(low).min(high).round_ties_even();
        cross += weight * x * q;
        square += weight * q * q;
    }
    cross / square
}

#[inline(always)]
fn weighted_params_body<S: Simd>(
    simd: S,
    w: &[f32],
    weights: &[f32],
    grid: &Grid,
) -> Result<Params, Fault> {
    let start = absmax_params(simd, w, grid)?;
    let absmax = f32::from_bits(absmax_bits(simd, w));
    if absmax == 0.0 || grid.method == ScaleMethod::AbsMax {
        return Ok(start);
    }
    let span = if grid.symmetric {
        (-absmax, absmax)
    } else {
        range(simd, w)
    };
    let (mut first, last) = ratio_range(grid);
    let mut step = (last - first) / (LANES - 1) as f32;
    let mut found = start;
    // A coarse grid, then one strictly between the neighbours of its best point.
    for _ in 0..2 {
        let tried = candidates(simd, span, ratios(simd, first, step), grid);
        let at = simd.first_min(errors(simd, w, weights, tried, grid));
        let (mut scales, mut zeros) = ([0.0; LANES], [0.0; LANES]);
        simd.store(tried.0, &mut scales);
        simd.store(tried.1, &mut zeros);
        found = Params {
            scale: scales[at],
            zero: zeros[at] as i32,
        };
        let below = first + step * at as f32 - step;
        step = 2.0 * step / (LANES + 1) as f32;
        first = below + step;
    }
    let closed = Params {
        scale: stored_scale(refined(simd, w, weights, found, grid)),
        ..found
    };
    // The final choice is one more comparison of candidates: the first on a tie.
    let three = [start, found, closed];
    let pick = |i: usize| three[i.min(2)];
    let scales = simd.load(&std::array::from_fn(|i| pick(i).scale));
    let zeros = simd.load(&std::array::from_fn(|i| pick(i).zero as f32));
    let at = simd.first_min(errors(simd, w, weights, (scales, zeros), grid));
    Ok(pick(at))
}

multiversion! {
    fn weighted_params_at(w: &[f32], weights: &[f32], grid: &Grid) -> Result<Params, Fault> = weighted_params_body;
}
