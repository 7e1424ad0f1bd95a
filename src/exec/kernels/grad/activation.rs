//! Gradients of activation functions.

use super::super::math::{erf, exp, sigmoid, tanh};
use super::super::vector::{Isa, LANES, Vector, dispatch};
use crate::exec::pool::Pool;
use crate::ir::Activation;

/// Values per part: long enough to be worth a thread's while.
const PART: usize = 8 << 10;

/// `dx = dy · f'(x)`; `out` holds `dy` and becomes `dx`.
///
/// # Panics
/// Lengths differ.
pub fn activate(pool: &Pool, function: Activation, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let isa = Isa::detect();
    let width = out.len();
    pool.split(out, width, (1, PART), |mut tile| {
        let x = &x[tile.cols()];
        apply(isa, function, x, tile.row_mut(0));
    });
}

/// `dx = dy · (1 − tanh²(x/cap))`; `out` holds `dy` and becomes `dx`.
///
/// # Panics
/// Lengths differ.
pub fn softcap(pool: &Pool, cap: f32, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let isa = Isa::detect();
    let width = out.len();
    pool.split(out, width, (1, PART), |mut tile| {
        let x = &x[tile.cols()];
        cap_at(isa, cap, x, tile.row_mut(0));
    });
}

dispatch! {
    fn apply(function: Activation, x: &[f32], out: &mut [f32]) = apply_body;
}

dispatch! {
    fn cap_at(cap: f32, x: &[f32], out: &mut [f32]) = cap_body;
}

#[inline(always)]
fn apply_body<S: Vector>(s: S, function: Activation, x: &[f32], out: &mut [f32]) {
    match function {
        Activation::Silu => each(s, x, out, silu),
        Activation::Gelu => each(s, x, out, gelu),
        Activation::GeluTanh => each(s, x, out, gelu_tanh),
        Activation::Relu => each(s, x, out, relu),
        Activation::Tanh => each(s, x, out, one_minus_tanh_squared),
    }
}

#[inline(always)]
fn cap_body<S: Vector>(s: S, cap: f32, x: &[f32], out: &mut [f32]) {
    let inverse = 1.0 / cap;
    each(
        s,
        x,
        out,
        #[inline(always)]
        |s, x| one_minus_tanh_squared(s, s.mul(x, s.splat(inverse))),
    );
}

#[inline(always)]
fn each<S: Vector>(s: S, x: &[f32], out: &mut [f32], slope: impl Fn(S, S::V) -> S::V) {
    let (full, rest) = out.as_chunks_mut::<LANES>();
    let (x, x_rest) = x.as_chunks::<LANES>();
    for (dy, x) in full.iter_mut().zip(x) {
        *dy = s.to_array(s.mul(s.load_array(dy), slope(s, s.load_array(x))));
    }
    let last = s.mul(s.load_part(rest), slope(s, s.load_part(x_rest)));
    s.store_part(last, rest);
}

/// σ (1 + x (1 − σ))
#[inline(always)]
fn silu<S: Vector>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let sigma = sigmoid(s, x);
    s.mul(sigma, s.fma(x, s.sub(one, sigma), one))
}

/// Φ(x) + x φ(x)
#[inline(always)]
fn gelu<S: Vector>(s: S, x: S::V) -> S::V {
    let half = s.splat(0.5);
    let e = erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
    let below = s.fma(half, e, half);
    let density = exp(s, s.mul(s.mul(x, x), s.splat(-0.5)));
    let norm = 1.0 / (2.0 * std::f32::consts::PI).sqrt();
    s.fma(s.mul(x, s.splat(norm)), density, below)
}

/// With u = √(2/π) (x + 0.044715 x³): (1 + tanh u)/2 + x/2 (1 − tanh² u) u'.
#[inline(always)]
fn gelu_tanh<S: Vector>(s: S, x: S::V) -> S::V {
    let (one, half) = (s.splat(1.0), s.splat(0.5));
    let root = (2.0 / std::f32::consts::PI).sqrt();
    let square = s.mul(x, x);
    let cubic = s.fma(square, s.splat(0.044_715), one);
    let t = tanh(s, s.mul(s.mul(x, cubic), s.splat(root)));
    let slope = s.mul(s.fma(square, s.splat(3.0 * 0.044_715), one), s.splat(root));
    let left = s.sub(one, s.mul(t, t));
    s.fma(s.mul(s.mul(half, x), left), slope, s.fma(half, t, half))
}

#[inline(always)]
fn relu<S: Vector>(s: S, x: S::V) -> S::V {
    s.select_less(s.splat(0.0), x, s.splat(1.0), s.splat(0.0))
}

#[inline(always)]
fn one_minus_tanh_squared<S: Vector>(s: S, x: S::V) -> S::V {
    let t = tanh(s, x);
    s.sub(s.splat(1.0), s.mul(t, t))
}
