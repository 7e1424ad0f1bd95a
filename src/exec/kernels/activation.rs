//! Activation functions, alone and as the gate of a gated linear unit.

use super::math::{erf, exp, sigmoid, tanh};
use super::vector::{Isa, LANES, Vector, dispatch};
use crate::exec::pool::Pool;
use crate::ir::Activation;

/// Values per part: long enough to be worth a thread's while.
const PART: usize = 8 << 10;

/// `out = f(out)`.
///
/// Errors are a few units in the last place, as against `f64`.
pub fn activate(pool: &Pool, function: Activation, out: &mut [f32]) {
    let isa = Isa::detect();
    let width = out.len();
    pool.split(out, width, (1, PART), |mut tile| {
        apply(isa, function, tile.row_mut(0));
    });
}

/// `out = f(out) · up`, the middle of a gated feed-forward (arXiv 2002.05202).
///
/// # Panics
/// Lengths differ.
pub fn gated(pool: &Pool, function: Activation, up: &[f32], out: &mut [f32]) {
    assert_eq!(up.len(), out.len());
    let isa = Isa::detect();
    let width = out.len();
    pool.split(out, width, (1, PART), |mut tile| {
        let up = &up[tile.cols()];
        apply_gated(isa, function, up, tile.row_mut(0));
    });
}

dispatch! {
    fn apply(function: Activation, out: &mut [f32]) = apply_body;
}

dispatch! {
    fn apply_gated(function: Activation, up: &[f32], out: &mut [f32]) = apply_gated_body;
}

/// One function of one vector.
trait Function {
    fn of<S: Vector>(s: S, x: S::V) -> S::V;
}

struct Silu;
struct Gelu;
struct GeluTanh;
struct Relu;
struct Tanh;

impl Function for Silu {
    #[inline(always)]
    fn of<S: Vector>(s: S, x: S::V) -> S::V {
        s.mul(x, sigmoid(s, x))
    }
}

impl Function for Gelu {
    #[inline(always)]
    fn of<S: Vector>(s: S, x: S::V) -> S::V {
        let half = s.mul(x, s.splat(0.5));
        let e = erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
        s.fma(half, e, half)
    }
}

impl Function for GeluTanh {
    #[inline(always)]
    fn of<S: Vector>(s: S, x: S::V) -> S::V {
        // (1 + tanh u) / 2 = 1 / (1 + e^-2u), without the cancellation.
        let minus_two_root = -2.0 * (2.0 / std::f32::consts::PI).sqrt();
        let cubic = s.mul(s.mul(x, x), s.splat(0.044_715));
        let u = s.mul(s.fma(cubic, x, x), s.splat(minus_two_root));
        s.div(x, s.add(s.splat(1.0), exp(s, u)))
    }
}

impl Function for Relu {
    #[inline(always)]
    fn of<S: Vector>(s: S, x: S::V) -> S::V {
        s.select_less(x, s.splat(0.0), s.splat(0.0), x)
    }
}

impl Function for Tanh {
    #[inline(always)]
    fn of<S: Vector>(s: S, x: S::V) -> S::V {
        tanh(s, x)
    }
}

#[inline(always)]
fn apply_body<S: Vector>(s: S, function: Activation, out: &mut [f32]) {
    match function {
        Activation::Silu => each::<S, Silu>(s, out),
        Activation::Gelu => each::<S, Gelu>(s, out),
        Activation::GeluTanh => each::<S, GeluTanh>(s, out),
        Activation::Relu => each::<S, Relu>(s, out),
        Activation::Tanh => each::<S, Tanh>(s, out),
    }
}

#[inline(always)]
fn apply_gated_body<S: Vector>(s: S, function: Activation, up: &[f32], out: &mut [f32]) {
    match function {
        Activation::Silu => each_gated::<S, Silu>(s, up, out),
        Activation::Gelu => each_gated::<S, Gelu>(s, up, out),
        Activation::GeluTanh => each_gated::<S, GeluTanh>(s, up, out),
        Activation::Relu => each_gated::<S, Relu>(s, up, out),
        Activation::Tanh => each_gated::<S, Tanh>(s, up, out),
    }
}

#[inline(always)]
fn each<S: Vector, F: Function>(s: S, out: &mut [f32]) {
    let (full, rest) = out.as_chunks_mut::<LANES>();
    for x in full {
        *x = s.to_array(F::of(s, s.load_array(x)));
    }
    let last = F::of(s, s.load_part(rest));
    s.store_part(last, rest);
}

#[inline(always)]
fn each_gated<S: Vector, F: Function>(s: S, up: &[f32], out: &mut [f32]) {
    let (full, rest) = out.as_chunks_mut::<LANES>();
    let (up, up_rest) = up.as_chunks::<LANES>();
    for (x, up) in full.iter_mut().zip(up) {
        *x = s.to_array(s.mul(F::of(s, s.load_array(x)), s.load_array(up)));
    }
    let last = s.mul(F::of(s, s.load_part(rest)), s.load_part(up_rest));
    s.store_part(last, rest);
}

#[cfg(test)]
mod tests {
    use super::super::float::tests::noise;
    use super::super::math::tests::erf_f64;
    use super::*;

    fn reference(function: Activation, x: f64) -> f64 {
        match function {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => 0.5 * x * (1.0 + erf_f64(x / 2f64.sqrt())),
            Activation::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + u.tanh())
            }
            Activation::Relu => x.max(0.0),
            Activation::Tanh => x.tanh(),
        }
    }

    #[test]
    fn activations_match_f64() {
        let functions = [
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Relu,
            Activation::Tanh,
        ];
        let mut x: Vec<f32> = noise(1, 20_011).iter().map(|x| x * 12.0).collect();
        x.extend([0.0, -0.0, 100.0, -100.0, 1e-20]);
        let up = noise(2, x.len());
        for function in functions {
            let mut first = None;
            for threads in 1..=3 {
                let pool = Pool::new(threads);
                let (mut plain, mut gates) = (x.clone(), x.clone());
                activate(&pool, function, &mut plain);
                gated(&pool, function, &up, &mut gates);
                for i in 0..x.len() {
                    let want = reference(function, f64::from(x[i]));
                    let bound = 3e-7 * want.abs() + 1.2e-7 * f64::from(x[i]).abs().min(1.0);
                    assert!(
                        (f64::from(plain[i]) - want).abs() <= bound,
                        "{function:?} {}",
                        x[i]
                    );
                    assert_eq!(gates[i], plain[i] * up[i]);
                }
                let bits: Vec<u32> = plain.iter().map(|x| x.to_bits()).collect();
                assert_eq!(&bits, first.get_or_insert_with(|| bits.clone()));
            }
        }
    }
}
