//! Scales of least squared error.
//!
//! A coarse grid of 16 ratios to the range of the group, a fine one around the
//! best of them, then the closed-form scale for the codes found. The candidates
//! of a grid are the lanes of a vector: every weight is tried on all at once.

use super::scale::{
    Fault, Grid, Lanes, MAX_SCALE, Params, ROUNDER, absmax_bits, absmax_params, range,
    refined_scale, round_scale, round_scales, squared_error,
};
use crate::numeric::simd::{LANES, Simd, multiversion};

/// Ratios of the coarse grid for a scheme: the fewer bits, the more is cut off.
#[inline(always)]
pub(super) fn ratio_range(grid: &Grid) -> (f32, f32) {
    match grid.bits {
        2 => (0.2, 1.1),
        3 => (0.35, 1.1),
        4 => (0.5, 1.1),
        _ => (0.8, 1.02),
    }
}

/// Scales and zero points of the grids that cover `[lo, hi]` times each ratio.
#[inline(always)]
pub(super) fn candidates<S: Simd>(
    simd: S,
    (lo, hi): (f32, f32),
    ratios: S::F,
    grid: &Grid,
) -> (S::F, S::F) {
    if grid.symmetric {
        let unit = simd.splat(hi / (grid.max + 1 - grid.mid) as f32);
        return (
            round_scales(simd, simd.mul(unit, ratios)),
            simd.splat(grid.mid as f32),
        );
    }
    let top = grid.max as f32;
    let scale = round_scales(simd, simd.mul(simd.splat(hi / top - lo / top), ratios));
    let zero = simd.div(simd.mul(simd.splat(-lo), ratios), scale);
    let rounder = simd.splat(ROUNDER);
    let zero = simd.sub(simd.add(simd.min(zero, simd.splat(top)), rounder), rounder);
    (scale, zero)
}

/// 16 ratios, `step` apart.
#[inline(always)]
pub(super) fn ratios<S: Simd>(simd: S, first: f32, step: f32) -> S::F {
    let index = simd.load(&std::array::from_fn(|i| i as f32));
    simd.add(simd.splat(first), simd.mul(index, simd.splat(step)))
}

/// The lane of the candidate of least squared error, the first on a tie.
#[inline(always)]
fn best_of<S: Simd>(simd: S, w: &[f32], candidates: (S::F, S::F), grid: &Grid) -> usize {
    let lanes = Lanes::per_lane(simd, candidates.0, candidates.1, grid);
    // Two sums, so that an addition needn't wait for the one before.
    let (mut even, mut odd) = (simd.splat(0.0), simd.splat(0.0));
    let (pairs, rest) = w.as_chunks::<2>();
    for pair in pairs {
        let (_, left) = lanes.encode(simd.splat(pair[0]));
        even = simd.add(even, simd.mul(left, left));
        let (_, left) = lanes.encode(simd.splat(pair[1]));
        odd = simd.add(odd, simd.mul(left, left));
    }
    if let [last] = rest {
        let (_, left) = lanes.encode(simd.splat(*last));
        even = simd.add(even, simd.mul(left, left));
    }
    simd.first_min(simd.add(even, odd))
}

/// Scale and zero point of least squared error, never worse than absmax.
#[inline(always)]
pub(super) fn lsq_params<S: Simd>(simd: S, w: &[f32], grid: &Grid) -> Result<Params, Fault> {
    let start = absmax_params(simd, w, grid)?;
    let absmax = f32::from_bits(absmax_bits(simd, w));
    if absmax == 0.0 {
        return Ok(start);
    }
    let span = if grid.symmetric {
        (-absmax, absmax)
    } else {
        range(simd, w)
    };
    let (first, last) = ratio_range(grid);
    let step = (last - first) / (LANES - 1) as f32;
    let coarse = candidates(simd, span, ratios(simd, first, step), grid);
    let at = best_of(simd, w, coarse, grid);
    // 16 points strictly between the neighbours of the best one.
    let fine_step = 2.0 * step / (LANES + 1) as f32;
    let below = first + step * at as f32 - step;
    let fine = candidates(simd, span, ratios(simd, below + fine_step, fine_step), grid);
    let at = best_of(simd, w, fine, grid);
    let (mut scales, mut zeros) = ([0.0; LANES], [0.0; LANES]);
    simd.store(fine.0, &mut scales);
    simd.store(fine.1, &mut zeros);
    let found = Params {
        scale: scales[at],
        zero: zeros[at] as i32,
    };

    let mut best = start;
    let mut least = squared_error(simd, w, start, grid);
    let refined = refined_scale(simd, w, found, grid);
    let refined = Params {
        scale: round_scale(refined.clamp(0.0, MAX_SCALE)),
        ..found
    };
    for params in [found, refined] {
        let error = squared_error(simd, w, params, grid);
        if error < least {
            (best, least) = (params, error);
        }
    }
    Ok(best)
}

multiversion! {
    /// [`lsq_params`] at a SIMD level.
    pub(super) fn lsq_params_at(w: &[f32], grid: &Grid) -> Result<Params, Fault> = lsq_params;
}
