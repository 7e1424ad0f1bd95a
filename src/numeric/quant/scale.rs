//! Scales: rounding to what is stored, and the choice for one group.

use super::{ScaleMethod, Scheme};
use crate::numeric::matrix::LANES;
use half::f16;

/// Largest scale: the largest `f16` with 8 significant bits.
const MAX_SCALE: f32 = 65280.0;
/// Scale of a group of zeros: the smallest normal `f16`.
const ZERO_SCALE: f32 = 1.0 / 16384.0;
/// Smallest subnormal of `f16`, and its reciprocal.
const ULP: f32 = 1.0 / 16_777_216.0;
const INVERSE_ULP: f32 = 16_777_216.0;
/// Adding and subtracting this rounds a small `f32` to the nearest integer
/// (ties to even) and leaves the integer in the low bits of the sum.
pub(super) const ROUNDER: f32 = 12_582_912.0;

/// Scale and zero point of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Params {
    pub(super) scale: f32,
    pub(super) zero: i32,
}

/// Why a group has no scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    NotFinite,
    Overflow(f32),
}

/// A scheme as the kernels see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) bits: u8,
    pub(super) symmetric: bool,
    /// Smallest code in use (1 for symmetric 8-bit codes, else 0).
    pub(super) min: i32,
    /// Largest code.
    pub(super) max: i32,
    /// Zero point of symmetric groups and of groups of zeros.
    pub(super) mid: i32,
    pub(super) method: ScaleMethod,
}

impl Grid {
    pub(super) fn new(scheme: Scheme, method: ScaleMethod) -> Self {
        let mid = i32::from(scheme.midpoint());
        let min = if scheme.symmetric {
            scheme.symmetric_range().0 + mid
        } else {
            0
        };
        let max = i32::from(scheme.max_code());
        let mid = if scheme.symmetric { mid } else { 0 };
        Grid {
            bits: scheme.bits,
            symmetric: scheme.symmetric,
            min,
            max,
            mid,
            method,
        }
    }

    /// Bounds of `q - z` for a zero point.
    #[inline(always)]
    pub(super) fn bounds(&self, zero: i32) -> (f32, f32) {
        ((self.min - zero) as f32, (self.max - zero) as f32)
    }
}

/// The nearest scale that is stored exactly; at least one subnormal step.
///
/// 8 significant bits are those of `bf16`. Below `2^-17` the steps of `f16`
/// are coarser than that; there the scale is rounded up, so that the largest
/// weight stays in range.
#[inline(always)]
pub(super) fn round_scale(raw: f32) -> f32 {
    let bits = raw.to_bits();
    let rounded = f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
    if rounded < 128.0 * ULP {
        let steps = raw * INVERSE_ULP;
        let floor = steps as u32;
        let ceil = floor + u32::from((floor as f32) < steps);
        ceil.max(1) as f32 * ULP
    } else {
        rounded
    }
}

/// A rounded scale as `f16`, without loss.
#[inline(always)]
pub(super) fn scale_to_f16(scale: f32) -> f16 {
    if scale >= ZERO_SCALE {
        f16::from_bits((scale.to_bits() >> 13).wrapping_sub(112 << 10) as u16)
    } else {
        f16::from_bits((scale * INVERSE_ULP) as u16)
    }
}

/// Largest magnitude as bits: above `f32::INFINITY`'s if a weight is NaN.
#[inline(always)]
fn absmax_bits(w: &[f32]) -> u32 {
    let mut lanes = [0u32; LANES];
    let (chunks, rest) = w.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = lanes[i].max(chunk[i].to_bits() & 0x7fff_ffff);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = (*lane).max(x.to_bits() & 0x7fff_ffff);
    }
    lanes.into_iter().max().unwrap_or(0)
}

/// Smallest and largest weight, 0 included.
#[inline(always)]
fn range(w: &[f32]) -> (f32, f32) {
    let (mut lo, mut hi) = ([0f32; LANES], [0f32; LANES]);
    let (chunks, rest) = w.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            let x = chunk[i];
            lo[i] = if x < lo[i] { x } else { lo[i] };
            hi[i] = if x > hi[i] { x } else { hi[i] };
        }
    }
    for (i, &x) in rest.iter().enumerate() {
        lo[i] = if x < lo[i] { x } else { lo[i] };
        hi[i] = if x > hi[i] { x } else { hi[i] };
    }
    (
        lo.into_iter().fold(0.0, f32::min),
        hi.into_iter().fold(0.0, f32::max),
    )
}

/// Scale and zero point from the largest magnitude, or from the range.
#[inline(always)]
pub(super) fn absmax_params(w: &[f32], grid: &Grid) -> Result<Params, Fault> {
    let bits = absmax_bits(w);
    if bits == 0 {
        return Ok(Params {
            scale: ZERO_SCALE,
            zero: grid.mid,
        });
    }
    if bits >= f32::INFINITY.to_bits() {
        return Err(Fault::NotFinite);
    }
    if grid.symmetric {
        let raw = f32::from_bits(bits) * (2.0 / (grid.max - grid.min) as f32);
        let scale = round_scale(raw);
        // Not `scale > MAX`: rounding may have made it infinite.
        if scale <= MAX_SCALE {
            Ok(Params {
                scale,
                zero: grid.mid,
            })
        } else {
            Err(Fault::Overflow(raw))
        }
    } else {
        let (lo, hi) = range(w);
        shrunk_range(lo, hi, 1.0, grid)
    }
}

/// The asymmetric grid that covers `[lo, hi]` times `factor`.
#[inline(always)]
fn shrunk_range(lo: f32, hi: f32, factor: f32, grid: &Grid) -> Result<Params, Fault> {
    let top = grid.max as f32;
    // Divided before subtracting: the difference may be above the f32 range.
    let raw = (hi / top - lo / top) * factor;
    let scale = round_scale(raw);
    if scale.is_nan() || scale > MAX_SCALE {
        return Err(Fault::Overflow(raw));
    }
    let zero = (-lo * factor) / scale;
    let zero = if zero < top {
        (zero + ROUNDER) - ROUNDER
    } else {
        top
    };
    Ok(Params {
        scale,
        zero: zero as i32,
    })
}

/// Squared error of a group under a scale and zero point.
#[inline(always)]
pub(super) fn squared_error(w: &[f32], params: Params, grid: &Grid) -> f32 {
    let (lo, hi) = grid.bounds(params.zero);
    let inverse = 1.0 / params.scale;
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = w.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            let e = chunk[i] - quantized(chunk[i] * inverse, lo, hi) * params.scale;
            lanes[i] += e * e;
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        let e = x - quantized(x * inverse, lo, hi) * params.scale;
        *lane += e * e;
    }
    sum_lanes(lanes)
}

#[inline(always)]
fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The nearest integer within bounds, as a float.
#[inline(always)]
pub(super) fn quantized(x: f32, lo: f32, hi: f32) -> f32 {
    (clamp(x, lo, hi) + ROUNDER) - ROUNDER
}

/// `f32::clamp` in two instructions; bounds are never NaN.
#[inline(always)]
pub(super) fn clamp(x: f32, lo: f32, hi: f32) -> f32 {
    let x = if x > lo { x } else { lo };
    if x < hi { x } else { hi }
}

/// The scale that fits the codes of a group best in closed form.
#[inline(always)]
fn refined_scale(w: &[f32], params: Params, grid: &Grid) -> f32 {
    let (lo, hi) = grid.bounds(params.zero);
    let inverse = 1.0 / params.scale;
    let (mut cross, mut square) = ([0f32; LANES], [0f32; LANES]);
    for chunk in w.chunks(LANES) {
        for (i, &x) in chunk.iter().enumerate() {
            let q = quantized(x * inverse, lo, hi);
            cross[i] += x * q;
            square[i] += q * q;
        }
    }
    sum_lanes(cross) / sum_lanes(square)
}

/// Points of the coarse grid, and of the fine one on each side of the best.
const COARSE: u32 = 14;
const FINE: i32 = 3;

/// Scale and zero point of least squared error, never worse than absmax.
///
/// A coarse grid of shrink factors, a fine one around the best of them, then
/// the closed-form scale for the codes found, kept only if it is better after
/// it has been rounded.
#[inline(always)]
pub(super) fn lsq_params(w: &[f32], grid: &Grid) -> Result<Params, Fault> {
    let start = absmax_params(w, grid)?;
    let absmax = f32::from_bits(absmax_bits(w));
    if absmax == 0.0 {
        return Ok(start);
    }
    let (lo, hi) = if grid.symmetric { (0.0, 0.0) } else { range(w) };
    let candidate = |ratio: f32| {
        if grid.symmetric {
            let scale = round_scale(absmax / (grid.max + 1 - grid.mid) as f32 * ratio);
            Params {
                scale: if scale <= MAX_SCALE {
                    scale
                } else {
                    start.scale
                },
                zero: grid.mid,
            }
        } else {
            shrunk_range(lo, hi, ratio, grid).unwrap_or(start)
        }
    };
    let (first, last) = match (grid.bits, grid.symmetric) {
        (2, _) => (0.25, 1.1),
        (3, _) => (0.35, 1.1),
        (4, _) => (0.5, 1.1),
        _ => (0.8, 1.02),
    };
    let step = (last - first) / (COARSE - 1) as f32;
    let mut best = start;
    let mut least = squared_error(w, start, grid);
    let mut center = 1.0;
    for i in 0..COARSE {
        let ratio = first + step * i as f32;
        let params = candidate(ratio);
        let error = squared_error(w, params, grid);
        if error < least {
            (best, least, center) = (params, error, ratio);
        }
    }
    for i in -FINE..=FINE {
        let params = candidate(center + step * (i as f32 / (FINE + 1) as f32));
        let error = squared_error(w, params, grid);
        if error < least {
            (best, least) = (params, error);
        }
    }
    let refined = refined_scale(w, best, grid);
    if refined > 0.0 && refined <= MAX_SCALE {
        let params = Params {
            scale: round_scale(refined),
            ..best
        };
        if params.scale <= MAX_SCALE && squared_error(w, params, grid) < least {
            best = params;
        }
    }
    Ok(best)
}

super::super::simd::multiversion! {
    /// [`lsq_params`] at a SIMD level.
    pub(super) fn lsq_params_at(w: &[f32], grid: &Grid) -> Result<Params, Fault> = lsq_params;
}

super::super::simd::multiversion! {
    /// [`squared_error`] at a SIMD level.
    pub(super) fn squared_error_at(w: &[f32], params: Params, grid: &Grid) -> f32 = squared_error;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounded_scales_are_exact_everywhere() {
        let mut raw = 1e-9f32;
        while raw < 65000.0 {
            let s = round_scale(raw);
            assert_eq!(scale_to_f16(s).to_f32(), s, "{raw:e}");
            assert_eq!(half::bf16::from_f32(s).to_f32(), s, "{raw:e}");
            if raw > 128.0 * ULP {
                assert!((s - raw).abs() <= raw / 256.0, "{raw:e} {s:e}");
            } else {
                assert!(s >= raw && s - raw <= ULP, "{raw:e} {s:e}");
            }
            raw *= 1.0137;
        }
        assert_eq!(scale_to_f16(ZERO_SCALE), f16::MIN_POSITIVE);
        assert_eq!(scale_to_f16(MAX_SCALE).to_f32(), MAX_SCALE);
        assert_eq!(scale_to_f16(round_scale(ULP / 3.0)).to_f32(), ULP);
    }

    #[test]
    fn faults() {
        let grid = Grid::new(Scheme::symmetric(4), ScaleMethod::Lsq);
        assert_eq!(lsq_params(&[1.0, f32::NAN], &grid), Err(Fault::NotFinite));
        assert_eq!(
            lsq_params(&[1.0, f32::NEG_INFINITY], &grid),
            Err(Fault::NotFinite)
        );
        assert!(matches!(
            lsq_params(&[1e30], &grid),
            Err(Fault::Overflow(_))
        ));
        assert!(matches!(
            lsq_params(&[f32::MAX], &grid),
            Err(Fault::Overflow(_))
        ));
        let grid = Grid::new(Scheme::asymmetric(4), ScaleMethod::AbsMax);
        assert!(matches!(
            absmax_params(&[f32::MAX, -f32::MAX], &grid),
            Err(Fault::Overflow(_))
        ));
        assert!(absmax_params(&[65504.0 * 7.0], &grid).is_ok());
    }
}
