//! Plain Rust: the definition that the vector versions must match.
#![allow(unsafe_code)]

use super::{LANES, Vector};
use crate::numeric::float::f16_bits_to_f32;

/// The token of plain Rust.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// Folds the upper half onto the lower until one value is left.
#[inline(always)]
fn fold(mut x: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            x[i] = f(x[i], x[i + width]);
        }
        width /= 2;
    }
    x[0]
}

impl Vector for Scalar {
    type V = [f32; LANES];
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, at: *const f32) -> Self::V {
        // SAFETY: the caller owns 16 values there.
        let bits = unsafe { at.cast::<[u32; LANES]>().read_unaligned() };
        bits.map(|bits| f32::from_bits(u32::from_le(bits)))
    }

    #[inline(always)]
    unsafe fn load_bf16(self, at: *const u8) -> Self::V {
        // SAFETY: the caller owns 32 bytes there.
        let bits = unsafe { at.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|bits| f32::from_bits(u32::from(u16::from_le(bits)) << 16))
    }

    #[inline(always)]
    unsafe fn load_f16(self, at: *const u8) -> Self::V {
        // SAFETY: the caller owns 32 bytes there.
        let bits = unsafe { at.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|bits| f16_bits_to_f32(u16::from_le(bits)))
    }

    #[inline(always)]
    unsafe fn store(self, x: Self::V, at: *mut f32) {
        // SAFETY: the caller owns 16 values there.
        unsafe { at.cast::<[f32; LANES]>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn store_transposed(self, x: [Self::V; 8], at: *mut f32, stride: usize, add: bool) {
        for t in 0..LANES {
            let column = x.map(|row| row[t]);
            // SAFETY: the caller owns 8 values at each of the 16 places.
            unsafe {
                let place = at.add(t * stride).cast::<[f32; 8]>();
                let before = if add {
                    place.read_unaligned()
                } else {
                    [0.0; 8]
                };
                let sum: [f32; 8] = std::array::from_fn(|i| before[i] + column[i]);
                place.write_unaligned(if add { sum } else { column });
            }
        }
    }

    #[inline(always)]
    fn transpose(self, x: [Self::V; LANES]) -> [Self::V; LANES] {
        std::array::from_fn(|i| std::array::from_fn(|j| x[j][i]))
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn select_less(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn copy_sign(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, f32::copysign)
    }

    #[inline(always)]
    fn add_exponent(self, x: Self::V, n: Self::V) -> Self::V {
        zip(x, n, |x, n| {
            f32::from_bits(x.to_bits().wrapping_add(n.to_bits() << 23))
        })
    }

    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        fold(x, |a, b| a + b)
    }

    #[inline(always)]
    fn largest(self, x: Self::V) -> f32 {
        fold(x, |a, b| if a > b { a } else { b })
    }
}
