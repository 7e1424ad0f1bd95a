//! Scales: rounding to what is stored, and the choice for one group.

use super::{ScaleMethod, Scheme};
use crate::numeric::simd::{LANES, Simd, padded};
use half::f16;

/// Largest scale: the largest `f16` with 8 significant bits.
pub(super) const MAX_SCALE: f32 = 65280.0;
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

/// The stored scale nearest to a number of either sign: 8 significant bits, as those that quantizers
/// choose. `None` where `f16` does not reach it.
pub fn nearest_scale(raw: f32) -> Option<f16> {
    let rounded = round_scale(raw.abs());
    // Not so for NaN either.
    let fits = rounded <= MAX_SCALE && raw.is_finite();
    fits.then(|| f16::from_f32(rounded.copysign(raw)))
}

/// [`round_scale`] in each lane, at most [`MAX_SCALE`].
#[inline(always)]
pub(super) fn round_scales<S: Simd>(simd: S, raw: S::F) -> S::F {
    let rounded = simd.round_bf16(raw);
    let steps = simd.ceil(simd.mul(raw, simd.splat(INVERSE_ULP)));
    let small = simd.mul(simd.max(steps, simd.splat(1.0)), simd.splat(ULP));
    let scale = simd.select_less(rounded, simd.splat(128.0 * ULP), small, rounded);
    simd.min(scale, simd.splat(MAX_SCALE))
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
pub(super) fn absmax_bits<S: Simd>(simd: S, w: &[f32]) -> u32 {
    let mut max = simd.splat(0.0);
    let (chunks, rest) = w.as_chunks::<LANES>();
    for chunk in chunks {
        max = simd.max_abs(max, simd.load(chunk));
    }
    if !rest.is_empty() {
        max = simd.max_abs(max, simd.load(&padded(rest)));
    }
    simd.fold_max_abs(max)
}

/// Smallest and largest weight, 0 included.
#[inline(always)]
pub(super) fn range<S: Simd>(simd: S, w: &[f32]) -> (f32, f32) {
    let zero = simd.splat(0.0);
    let (mut low, mut high) = (zero, zero);
    let (chunks, rest) = w.as_chunks::<LANES>();
    for chunk in chunks {
        let x = simd.load(chunk);
        (low, high) = (simd.min(x, low), simd.max(x, high));
    }
    if !rest.is_empty() {
        let x = simd.load(&padded(rest));
        (low, high) = (simd.min(x, low), simd.max(x, high));
    }
    // All of `low` is at most 0 and all of `high` at least 0.
    let low = f32::from_bits(simd.fold_max_abs(simd.max_abs(zero, low)));
    (-low, f32::from_bits(simd.fold_max_abs(high)))
}

/// Scale and zero point from the largest magnitude, or from the range.
#[inline(always)]
pub(super) fn absmax_params<S: Simd>(simd: S, w: &[f32], grid: &Grid) -> Result<Params, Fault> {
    let bits = absmax_bits(simd, w);
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
        range_params(range(simd, w), grid)
    }
}

/// The asymmetric grid that covers a range.
#[inline(always)]
fn range_params((lo, hi): (f32, f32), grid: &Grid) -> Result<Params, Fault> {
    let top = grid.max as f32;
    // Divided before subtracting: the difference may be above the f32 range.
    let raw = hi / top - lo / top;
    let scale = round_scale(raw);
    if scale.is_nan() || scale > MAX_SCALE {
        return Err(Fault::Overflow(raw));
    }
    let zero = -lo / scale;
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

/// What quantizing needs of [`Params`], spread over lanes.
#[derive(Clone, Copy)]
pub(super) struct Lanes<S: Simd> {
    simd: S,
    scale: S::F,
    inverse: S::F,
    low: S::F,
    high: S::F,
    rounder: S::F,
}

impl<S: Simd> Lanes<S> {
    #[inline(always)]
    pub(super) fn new(simd: S, params: Params, grid: &Grid) -> Self {
        let (low, high) = grid.bounds(params.zero);
        Lanes {
            simd,
            scale: simd.splat(params.scale),
            inverse: simd.splat(1.0 / params.scale),
            low: simd.splat(low),
            high: simd.splat(high),
            rounder: simd.splat(ROUNDER),
        }
    }

    /// Of one scale and zero point per lane.
    #[inline(always)]
    pub(super) fn per_lane(simd: S, scale: S::F, zero: S::F, grid: &Grid) -> Self {
        Lanes {
            simd,
            scale,
            inverse: simd.div(simd.splat(1.0), scale),
            low: simd.sub(simd.splat(grid.min as f32), zero),
            high: simd.sub(simd.splat(grid.max as f32), zero),
            rounder: simd.splat(ROUNDER),
        }
    }

    /// The nearest codes less the zero point, plus [`ROUNDER`]; and what is left.
    #[inline(always)]
    pub(super) fn encode(&self, x: S::F) -> (S::F, S::F) {
        let s = self.simd;
        let clamped = s.min(s.max(s.mul(x, self.inverse), self.low), self.high);
        let shifted = s.add(clamped, self.rounder);
        (shifted, s.sub(x, self.value(shifted)))
    }

    /// What [`Lanes::encode`]'s codes decode to.
    #[inline(always)]
    pub(super) fn value(&self, shifted: S::F) -> S::F {
        // The product is exact: 8 bits of code times 8 bits of scale.
        let s = self.simd;
        s.mul(s.sub(shifted, self.rounder), self.scale)
    }
}

/// Squared error of a group under a scale and zero point.
#[inline(always)]
pub(super) fn squared_error<S: Simd>(simd: S, w: &[f32], params: Params, grid: &Grid) -> f32 {
    let lanes = Lanes::new(simd, params, grid);
    let mut sum = simd.splat(0.0);
    let (chunks, rest) = w.as_chunks::<LANES>();
    for chunk in chunks {
        let (_, left) = lanes.encode(simd.load(chunk));
        sum = simd.add(sum, simd.mul(left, left));
    }
    if !rest.is_empty() {
        let (_, left) = lanes.encode(simd.load(&padded(rest)));
        sum = simd.add(sum, simd.mul(left, left));
    }
    simd.sum(sum)
}

/// The scale that fits the codes of a group best in closed form.
#[inline(always)]
pub(super) fn refined_scale<S: Simd>(simd: S, w: &[f32], params: Params, grid: &Grid) -> f32 {
    let lanes = Lanes::new(simd, params, grid);
    let (mut cross, mut square) = (simd.splat(0.0), simd.splat(0.0));
    for chunk in w.chunks(LANES) {
        let x = simd.load(&padded(chunk));
        let (shifted, _) = lanes.encode(x);
        let q = simd.sub(shifted, lanes.rounder);
        cross = simd.add(cross, simd.mul(x, q));
        square = simd.add(square, simd.mul(q, q));
    }
    simd.sum(cross) / simd.sum(square)
}

#[cfg(test)]
mod tests {
    use super::super::search::lsq_params;
    use super::*;
    use crate::numeric::simd::Scalar;

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
    fn lanes_round_as_single_scales_do() {
        let raw = std::array::from_fn(|i| 3e-9 * 11f32.powi(i as i32));
        let rounded = round_scales(Scalar, raw);
        for (raw, rounded) in raw.into_iter().zip(rounded) {
            assert_eq!(rounded, round_scale(raw).min(MAX_SCALE));
        }
    }

    #[test]
    fn the_nearest_scale_is_one_that_quantizers_choose() {
        for raw in [1.0f32, -1.0, 0.1, 3.14159e-3, 5e-5, -7.77, 65000.0] {
            let near = nearest_scale(raw).map_or(f32::NAN, f16::to_f32);
            assert!((near / raw - 1.0).abs() <= 1.0 / 256.0, "{raw}: {near}");
            assert_eq!(round_scale(near.abs()), near.abs(), "{raw}: {near}");
        }
        assert_eq!(nearest_scale(1e5), None);
        assert_eq!(nearest_scale(f32::NAN), None);
        assert_eq!(nearest_scale(f32::INFINITY), None);
    }

    #[test]
    fn faults() {
        let grid = Grid::new(Scheme::symmetric(4), ScaleMethod::Lsq);
        assert_eq!(
            lsq_params(Scalar, &[1.0, f32::NAN], &grid),
            Err(Fault::NotFinite)
        );
        assert_eq!(
            lsq_params(Scalar, &[1.0, f32::NEG_INFINITY], &grid),
            Err(Fault::NotFinite)
        );
        assert!(matches!(
            lsq_params(Scalar, &[1e30], &grid),
            Err(Fault::Overflow(_))
        ));
        assert!(matches!(
            lsq_params(Scalar, &[f32::MAX], &grid),
            Err(Fault::Overflow(_))
        ));
        let grid = Grid::new(Scheme::asymmetric(4), ScaleMethod::AbsMax);
        assert!(matches!(
            absmax_params(Scalar, &[f32::MAX, -f32::MAX], &grid),
            Err(Fault::Overflow(_))
        ));
        assert!(absmax_params(Scalar, &[65504.0 * 7.0], &grid).is_ok());
    }
}
