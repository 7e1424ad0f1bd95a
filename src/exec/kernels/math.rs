//! Exponential, hyperbolic tangent, logistic and error function of 16 lanes.
//!
//! Polynomials of our own fitting (least squares, reweighted until the largest errors are
//! equal); within a few units in the last place of `f64` references, which the tests assert.

use super::vector::Vector;

/// Adding this leaves a whole number in the low bits of the mantissa.
const ROUND: f32 = 12_582_912.0;
/// Below this `exp` is zero; between, results are normal numbers.
const LEAST: f32 = -87.3;
/// Above this `exp` would overflow.
const MOST: f32 = 88.7;

/// `c[0] + c[1] x + …`
#[inline(always)]
fn polynomial<S: Vector, const N: usize>(s: S, c: [f32; N], x: S::V) -> S::V {
    let mut sum = s.splat(c[N - 1]);
    for i in (0..N - 1).rev() {
        sum = s.fma(sum, x, s.splat(c[i]));
    }
    sum
}

/// e^x; zero below -87.3, e^88.7 above 88.7.
#[inline(always)]
pub(crate) fn exp<S: Vector>(s: S, x: S::V) -> S::V {
    // x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts, the first exact times n.
    let clamped = s.min(s.splat(MOST), s.max(s.splat(LEAST), x));
    let shifted = s.fma(clamped, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    let r = s.fma(n, s.splat(-0.693_145_75), clamped);
    let r = s.fma(n, s.splat(-1.428_606_8e-6), r);
    let tail = polynomial(
        s,
        [
            0.5,
            0.166_665_2,
            0.041_666_206,
            0.008_368_888,
            0.001_395_048_8,
        ],
        r,
    );
    let e = s.fma(s.mul(r, r), tail, s.add(r, s.splat(1.0)));
    let e = s.add_exponent(e, shifted);
    s.select_less(x, s.splat(LEAST), s.splat(0.0), e)
}

/// 1 / (1 + e^-x)
#[inline(always)]
pub(crate) fn sigmoid<S: Vector>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// tanh x
#[inline(always)]
pub(crate) fn tanh<S: Vector>(s: S, x: S::V) -> S::V {
    let size = s.max(x, s.sub(s.splat(0.0), x));
    // Near zero an odd polynomial, elsewhere 1 - 2 / (e^2x + 1).
    let t = s.mul(x, x);
    let c = [
        -0.333_332_63,
        0.133_309,
        -0.053_692_967,
        0.020_483_313,
        -0.005_528_631_6,
    ];
    let small = s.fma(s.mul(polynomial(s, c, t), t), x, x);
    let e = exp(s, s.add(size, size));
    let one = s.splat(1.0);
    let large = s.sub(one, s.div(s.splat(2.0), s.add(e, one)));
    s.select_less(size, s.splat(0.625), small, s.copy_sign(large, x))
}

/// The error function.
#[inline(always)]
pub(crate) fn erf<S: Vector>(s: S, x: S::V) -> S::V {
    let size = s.min(s.splat(4.0), s.max(x, s.sub(s.splat(0.0), x)));
    // Near zero an odd polynomial, elsewhere 1 - e^-g with g a fit of -ln erfc.
    let c = [
        0.128_379_16,
        -0.376_126_3,
        0.112_836_55,
        -0.026_858_017,
        0.005_198_791_6,
        -8.126_065_5e-4,
        8.326_276e-5,
    ];
    let small = s.fma(polynomial(s, c, s.mul(size, size)), x, x);
    let c = [
        1.680_832e-4,
        -1.129_483_2,
        -0.633_411_16,
        -0.108_209_396,
        0.025_073_75,
        -0.004_153_739_5,
        4.308_935_5e-4,
        -2.078_701_2e-5,
    ];
    let large = s.sub(s.splat(1.0), exp(s, polynomial(s, c, size)));
    s.select_less(size, s.splat(0.9), small, s.copy_sign(large, x))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::vector::{Isa, LANES, dispatch};
    use super::*;

    /// The error function in `f64`: its series, or Laplace's continued fraction of erfc.
    pub(crate) fn erf_f64(x: f64) -> f64 {
        let a = x.abs();
        let root = std::f64::consts::PI.sqrt();
        let value = if a < 2.5 {
            let (mut term, mut sum, mut n) = (a, a, 0.0);
            while term.abs() > 1e-18 * sum {
                n += 1.0;
                term *= -a * a / n;
                sum += term / (2.0 * n + 1.0);
            }
            2.0 / root * sum
        } else {
            let fraction = (1..60).rev().fold(a, |f, k| a + 0.5 * f64::from(k) / f);
            1.0 - (-a * a).exp() / root / fraction
        };
        value.copysign(x)
    }

    #[inline(always)]
    fn all<S: Vector>(s: S, x: &[f32], out: &mut [Vec<f32>; 4]) {
        for x in x.as_chunks::<LANES>().0 {
            let x = s.load_array(x);
            let results = [exp(s, x), sigmoid(s, x), tanh(s, x), erf(s, x)];
            for (out, result) in out.iter_mut().zip(results) {
                out.extend(s.to_array(result));
            }
        }
    }

    dispatch! {
        fn all_at(x: &[f32], out: &mut [Vec<f32>; 4]) = all;
    }

    #[test]
    fn functions_match_f64() {
        let x: Vec<f32> = (-44_000..44_000)
            .map(|i| i as f32 * 0.002)
            .chain((0..1600).map(|i| (i as f32 - 800.0) * 1e-5))
            .collect();
        let mut first = None;
        for isa in Isa::available() {
            let mut out = Default::default();
            all_at(isa, &x, &mut out);
            let functions: [fn(f64) -> f64; 4] =
                [f64::exp, |x| 1.0 / (1.0 + (-x).exp()), f64::tanh, erf_f64];
            for (which, (got, function)) in out.iter().zip(functions).enumerate() {
                let mut worst = 0.0f64;
                for (&x, &y) in x.iter().zip(got) {
                    let want = function(f64::from(x));
                    if want.abs() > 1e-37 {
                        worst = worst.max(((f64::from(y) - want) / want).abs());
                    }
                }
                assert!(worst < 2.5e-7, "function {which}: relative error {worst:e}");
            }
            assert_eq!(&out, first.get_or_insert_with(|| out.clone()), "{isa:?}");
        }
    }

    #[test]
    fn ends_of_the_range() {
        let mut x = [0.0; LANES];
        let ends = [f32::NEG_INFINITY, -100.0, 0.0, -0.0, 1e9, f32::INFINITY];
        x[..6].copy_from_slice(&ends);
        x[6] = f32::NAN;
        let mut out = Default::default();
        all_at(Isa::detect(), &x, &mut out);
        assert_eq!(out[0][..4], [0.0, 0.0, 1.0, 1.0]);
        assert!(out[0][4].is_finite());
        assert!(out[1][0] < 1e-38);
        assert_eq!(out[1][5], 1.0);
        assert_eq!(out[2][..6], [-1.0, -1.0, 0.0, 0.0, 1.0, 1.0]);
        assert_eq!(out[3][..6], [-1.0, -1.0, 0.0, 0.0, 1.0, 1.0]);
        assert!(out[..3].iter().all(|out| out[6].is_nan()));
    }
}
