//! Plain Rust: the definition that the vector versions must match.

use super::{LANES, Simd};

/// The token of plain Rust.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type D = [f64; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }

    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; LANES]) {
        *out = x;
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        std::array::from_fn(|i| if a[i] < b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    fn ceil(self, x: Self::F) -> Self::F {
        x.map(f32::ceil)
    }

    #[inline(always)]
    fn round_bf16(self, x: Self::F) -> Self::F {
        x.map(|x| {
            let bits = x.to_bits();
            f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
        })
    }

    #[inline(always)]
    fn first_min(self, x: Self::F) -> usize {
        let mut best = 0;
        for i in 1..LANES {
            best = if x[i] < x[best] { i } else { best };
        }
        best
    }

    #[inline(always)]
    fn max_abs(self, acc: Self::F, x: Self::F) -> Self::F {
        zip(acc, x, |acc, x| {
            f32::from_bits(acc.to_bits().max(x.to_bits() & 0x7fff_ffff))
        })
    }

    #[inline(always)]
    fn fold_max_abs(self, acc: Self::F) -> u32 {
        acc.iter().fold(0, |max, x| max.max(x.to_bits()))
    }

    #[inline(always)]
    fn sum(self, mut x: Self::F) -> f32 {
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                x[i] += x[i + width];
            }
            width /= 2;
        }
        x[0]
    }

    #[inline(always)]
    fn store_low_bytes(self, x: Self::F, out: &mut [u8; LANES]) {
        *out = x.map(|x| x.to_bits() as u8);
    }

    #[inline(always)]
    fn zero_sums(self) -> Self::D {
        [0.0; LANES]
    }

    #[inline(always)]
    fn add_squares(self, mut sums: Self::D, x: Self::F) -> Self::D {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += f64::from(x) * f64::from(x);
        }
        sums
    }

    #[inline(always)]
    fn total(self, mut sums: Self::D) -> f64 {
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                sums[i] += sums[i + width];
            }
            width /= 2;
        }
        sums[0]
    }
}
